"""Optimizers of bitsandbytes, torchao and torch beside ours, on a model whose state is in codes and in numbers."""

import copy
import re
import warnings

import pytest
import torch
from models import forge, through_a_file
from rule_cases import moments_of
from torch import nn

# ---- Models and gradients ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """An embedding, matrices of 21 and of 20.7 blocks of 256, a small one of one block, and a vector."""

    def __init__(self):
        super().__init__()
        self.embedding, self.whole = nn.Embedding(80, 64), nn.Linear(64, 84, bias=False)
        self.ragged, self.small = nn.Linear(53, 100), nn.Linear(32, 8, bias=False)


def signs(p):
    return torch.where(torch.arange(p.numel()).view(p.shape) % 3 == 1, -1.0, 1.0)


def net(dtype=torch.float32):
    """Weights that have the signs of their gradients: no sum in an update cancels, so that bounds are of its result."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.abs().clamp(min=1e-3) * signs(p))
    return model.to(dtype)


def set_gradients(model, t):
    for i, p in enumerate(model.parameters()):
        uniform = torch.rand(p.shape, generator=torch.Generator().manual_seed(100 * t + i))
        p.grad = (signs(p) * 10 ** (-3 + 1.5 * uniform)).to(p.dtype)
    model.embedding.weight.grad[30:60] = 0  # rows of no token: blocks of zeros


def train(model, optimizer, steps=3, first=0):
    with torch.compiler.set_stance("force_eager"):  # torchao compiles its step
        for t in range(first, first + steps):
            set_gradients(model, t)
            optimizer.step()
    return optimizer


def library(name):
    """Its optimizers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
        return {"torch": torch.optim}.get(name) or __import__(f"{name}.optim").optim


ADEMAMIX = dict(lr=1e-2, alpha=3.0, weight_decay=0.01)

CASES = {
    **{
        f"bitsandbytes {cls}": ("bitsandbytes", cls, "AdamW", dict(lr=1e-2, weight_decay=0.1))
        for cls in ("AdamW8bit", "AdamW32bit", "PagedAdamW8bit", "Adam8bit")
    },
    "bitsandbytes Adam8bit in Adam": ("bitsandbytes", "Adam8bit", "Adam", dict(lr=1e-2, weight_decay=0.1)),
    **{
        f"bitsandbytes {cls}{bits}bit": ("bitsandbytes", f"{cls}{bits}bit", cls, options)
        for bits in (8, 32)
        for cls, options in {
            "SGD": dict(lr=0.1, momentum=0.9, weight_decay=0.01),
            "RMSprop": dict(lr=1e-2, alpha=0.9, weight_decay=0.01),
            "Adagrad": dict(lr=1e-2, weight_decay=0.01),
            "Lion": dict(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.1),
        }.items()
    },
    **{
        f"bitsandbytes {cls} alpha over {t_alpha}": ("bitsandbytes", cls, "AdEMAMix", ADEMAMIX | dict(t_alpha=t_alpha))
        for cls in ("AdEMAMix", "AdEMAMix8bit")
        for t_alpha in (None, 10)
    },
    **{
        f"torchao {cls}": ("torchao", cls, "AdamW" if "AdamW" in cls else "Adam", dict(lr=1e-2, weight_decay=0.1))
        for cls in ("AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit")
    },
    "torch AdamW": ("torch", "AdamW", "AdamW", dict(lr=1e-2, weight_decay=0.1)),
    "torch RMSprop": ("torch", "RMSprop", "RMSprop", dict(lr=1e-2, momentum=0.9, centered=True)),
}
every_case = pytest.mark.parametrize("case", CASES)


class Case:
    """A library's optimizer and ours, of the same rule."""

    def __init__(self, case, dtype=torch.float32):
        self.name, self.their_cls, self.our_cls, self.options = CASES[case]
        self.optim, self.dtype = library(self.name), dtype

    def theirs(self, model=None, **changes):
        model = net(self.dtype) if model is None else model
        return model, getattr(self.optim, self.their_cls)(model.parameters(), **self.options | changes)

    def trained(self):
        model, optimizer = self.theirs()
        return model, train(model, optimizer)

    def ours(self, model, **options):
        model = copy.deepcopy(model)
        return model, getattr(forge, self.our_cls)(model, **options)

    def our_options(self):
        options = {{"t_alpha": "alpha_warmup"}.get(key, key): x for key, x in self.options.items()}
        if self.name == "bitsandbytes" and self.our_cls == "Adam":
            options["decoupled_weight_decay"] = True
        return options

    def ours_trained(self, **formats):
        """Ours with the options that the library's has."""
        model, optimizer = self.ours(net(self.dtype), **formats)
        for group in optimizer.param_groups:
            group.update(self.our_options())
        return model, train(model, optimizer)

    def layout(self):
        """What to_state_dict is asked for."""
        end = re.search("(8bit|32bit|4bit|Fp8)?$", self.their_cls)[0].lower()
        return self.name, {"torch": None}.get(self.name, end or "32bit")

    def carried_in(self, saved, model, **options):
        ours, optimizer = self.ours(model, **options)
        optimizer.load_state_dict(forge.convert.from_state_dict(saved, optimizer))
        return ours, optimizer

    def carried_out(self, optimizer, model, **options):
        theirs, their_optimizer = self.theirs(copy.deepcopy(model))
        saved = forge.convert.to_state_dict(optimizer, *self.layout(), **options)
        their_optimizer.load_state_dict(through_a_file(saved))
        return theirs, their_optimizer


# ---- What each library reads in its own state, from its description ------------------------------------------------

STATE1 = {"AdEMAMix": ["exp_avg_fast", "exp_avg_slow"], "SGD": ["momentum_buffer"], "RMSprop": ["square_avg"]}
STATE1 |= {"Adagrad": ["sum"]}


def of_blocks(codes, table, scale, block):
    """A loop over blocks, as either library's layout is described."""
    numbers = torch.empty(codes.numel())
    for i, s in enumerate(scale.tolist()):
        part = slice(i * block, (i + 1) * block)
        numbers[part] = table[codes.flatten()[part].long()] * torch.tensor(s)
    return numbers


def bitsandbytes_numbers(state, cls):
    found = {}
    for place, names in ((1, STATE1.get(cls, ["exp_avg"])), (2, ["exp_avg_sq"])):
        if f"state{place}" not in state:
            continue
        x, scale = state[f"state{place}"], state.get(f"absmax{place}")
        for i, name in enumerate(names):
            part, of_part = (x[i], scale if scale is None else scale[i]) if len(names) > 1 else (x, scale)
            numbers = part if scale is None else of_blocks(part, state[f"qmap{place}"], of_part, 256).view(part.shape)
            found[name] = numbers
    return found


def torchao_numbers(x):
    if not hasattr(x, "codes"):
        return x
    codes, block = x.codes, x.codes.numel() // x.scale.numel()
    if not hasattr(x, "qmap"):  # fp8
        return (codes.float().flatten() * x.scale.repeat_interleave(block)).view(x.shape)
    if x.qmap.numel() == 16:
        codes, block = torch.stack([codes // 16, codes % 16], 1).flatten(), 2 * block
    return of_blocks(codes, x.qmap, x.scale, block).view(x.shape)


def numbers_of(case, optimizer, p):
    state = optimizer.state[p]
    if case.name == "bitsandbytes":
        return bitsandbytes_numbers(state, case.our_cls)
    return {key: torchao_numbers(x) for key, x in state.items() if key != "step"}


def our_numbers(optimizer, p):
    state = optimizer.state[p]
    found = {}
    for key, x in moments_of(optimizer, p).items():
        if not key.endswith("_scale") and key != "weight_low":
            scale = state.get(f"{key}_scale")
            not_negative = key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
            found[key] = x if scale is None else forge._C.dequantize(x, scale, not_negative)
    return found


def codes_of(optimizer):
    """Everything 8-bit, 4-bit or in scales."""
    found = {}
    for i, state in enumerate(optimizer.state.values()):
        for key, x in state.items():
            for part in ("codes", "scale"):
                if hasattr(x, part):
                    found[i, key, part] = getattr(x, part)
            if key.startswith("absmax") or (key.startswith("state") and x.dtype == torch.uint8):
                found[i, key, "scale" if key.startswith("absmax") else "codes"] = x
    return found


def scales_of(case, state):
    """Of each moment in codes: the numbers that codes stand for, and the scale of each block."""
    if case.name == "torchao":
        values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        coded = {key: x for key, x in state.items() if hasattr(x, "codes")}
        return {key: (getattr(x, "qmap", values[values.isfinite()].unique()), x.scale) for key, x in coded.items()}
    found = {}
    for place, names in ((1, STATE1.get(case.our_cls, ["exp_avg"])), (2, ["exp_avg_sq"])):
        if f"qmap{place}" in state:
            scales = state[f"absmax{place}"].view(len(names), -1)
            found |= {name: (state[f"qmap{place}"], scale) for name, scale in zip(names, scales, strict=True)}
    return found
