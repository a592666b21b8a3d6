"""How torch.optim, bitsandbytes and torchao lay out the state of a parameter and the options of a group.

Sources: bitsandbytes 0.50 (optim/optimizer.py, optim/ademamix.py), torchao 0.18 (optim/adam.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import block_codes
from .fusion import is_embedding

Dict = dict[str, Any]

_LEAST_CODED = 4096  # elements; bitsandbytes and torchao keep fewer as numbers


@dataclass(frozen=True)
class Layout:
    """How a library keeps one of our rules."""

    moments: tuple[tuple[str, ...], ...] = ()  # what bitsandbytes' state1 and state2 hold; of two, they are stacked
    betas: str = "betas"  # our option that its betas, or the first of them, are
    renamed: Dict = field(default_factory=dict)  # our names of its options
    always: Dict = field(default_factory=dict)  # our options that it has no choice of
    counts_steps: bool = True  # SGD here does not: a moment that is there tells the first step


def without(of: Dict, keys: Iterable[str]) -> Dict:
    return {key: x for key, x in of.items() if key not in keys}


def quoted(keys: Iterable[str]) -> str:
    return ", ".join(f'"{key}"' for key in sorted(keys))


def _moment(numbers: Dict, key: str) -> Tensor:
    if (moment := numbers.get(key)) is None:
        raise RuntimeError(f'a weight has no "{key}", which the library needs; take a step with these options first')
    if hasattr(moment, "to_local"):
        raise RuntimeError(f'"{key}" is a DTensor; gather the state (torch.distributed.checkpoint.state_dict) first')
    return moment.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check_finite(moment: Tensor, key: str) -> None:
    if not moment.isfinite().all():
        raise RuntimeError(f'"{key}" is not finite everywhere, which would spoil blocks of codes; repair it first')


# ---- torch.optim ---------------------------------------------------------------------------------------------------


class Torch:
    """Of its layout ours is an extension, as is that of the authors of rules that it lacks."""

    name = "torch.optim"
    layouts = None

    def read_options(self, saved: Dict, group: Dict, layout: Layout) -> Dict:
        return saved

    def read(self, state: Dict, parameter: Tensor, layout: Layout) -> Dict:
        return state

    def write_options(self, group: Dict, layout: Layout, defaults: Dict) -> Dict:
        return group

    def write(self, numbers: Dict, parameter: Tensor, layout: Layout) -> Dict:
        return numbers


# ---- bitsandbytes --------------------------------------------------------------------------------------------------


NESTED = "__bnb_optimizer_quant_state__"  # where newer checkpoints have the tensors; all versions load them without

_PLAIN = {"maximize": False}
_ADAM = Layout((("exp_avg",), ("exp_avg_sq",)), always=_PLAIN | {"amsgrad": False, "decoupled_weight_decay": True})


@dataclass(frozen=True)
class Bitsandbytes:
    coded: bool = True

    name = "bitsandbytes"
    options = ("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3")
    layouts = {
        "Adam": _ADAM,
        "AdamW": _ADAM,
        "AdEMAMix": Layout(
            (("exp_avg_fast", "exp_avg_slow"), ("exp_avg_sq",)),
            renamed={"alpha": "alpha", "t_alpha": "alpha_warmup", "t_beta3": "beta3_warmup"},
        ),
        "Lion": Layout((("exp_avg",),)),
        "SGD": Layout(
            (("momentum_buffer",),),
            betas="momentum",
            always=_PLAIN | {"dampening": 0, "nesterov": False},
            counts_steps=False,
        ),
        "RMSprop": Layout((("square_avg",),), betas="alpha", always=_PLAIN | {"momentum": 0, "centered": False}),
        "Adagrad": Layout((("sum",),), betas="", always=_PLAIN | {"lr_decay": 0, "initial_accumulator_value": 0}),
    }

    def read_options(self, saved: Dict, group: Dict, layout: Layout) -> Dict:
        options = {key: saved[key] for key in ("lr", "eps", "weight_decay") if key in group}
        options |= {ours: saved[theirs] for theirs, ours in layout.renamed.items()}
        if layout.betas:
            options[layout.betas] = tuple(saved["betas"]) if layout.betas == "betas" else saved["betas"][0]
        return group | without(saved, self.options) | options | layout.always

    def read(self, state: Dict, parameter: Tensor, layout: Layout) -> Dict:
        theirs = without(state, [NESTED]) | state.get(NESTED, {})
        _check_tensors(theirs, layout, parameter)
        moments = {"step": torch.tensor(float(theirs["step"]))} if layout.counts_steps else {}
        for place, names in enumerate(layout.moments, start=1):
            packed, table, scales = (theirs.get(f"{key}{place}") for key in ("state", "qmap", "absmax"))
            for name, part, scale in zip(names, _parts(packed, names), _parts(scales, names), strict=True):
                moments[name] = part.clone() if table is None else block_codes.decode(part, table, scale)
        return moments

    def write_options(self, group: Dict, layout: Layout, defaults: Dict) -> Dict:
        first = (group[layout.betas], 0.0) if layout.betas else (0.0, 0.0)
        options = {
            "lr": float(group["lr"]),
            "betas": group["betas"] if layout.betas == "betas" else first,
            "eps": group.get("eps", 0.0),
            "weight_decay": group["weight_decay"],
        }
        if len(layout.moments) > 1:
            options |= {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
        return without(group, defaults) | options | {theirs: group[ours] for theirs, ours in layout.renamed.items()}

    def write(self, numbers: Dict, parameter: Tensor, layout: Layout) -> Dict:
        state: Dict = {"step": int(numbers.get("step", 1))}
        coded = self.coded and parameter.numel() >= _LEAST_CODED and not is_embedding(parameter)
        for place, names in enumerate(layout.moments, start=1):
            parts = [_moment(numbers, name) for name in names]
            if coded:
                table = block_codes.dynamic_map(signed=place == 1)
                parts, scales = zip(*map(_encoded, parts, names, [table] * len(names)), strict=True)
                state |= {f"qmap{place}": table, f"absmax{place}": _whole(scales)}
            state[f"state{place}"] = _whole(parts)
        return state


def _encoded(moment: Tensor, key: str, table: Tensor) -> tuple[Tensor, Tensor]:
    _check_finite(moment, key)
    return block_codes.encode(moment, table)


def _parts(packed: Tensor | None, names: tuple[str, ...]) -> list[Tensor | None]:
    if packed is None:
        return [None] * len(names)
    return [packed] if len(names) == 1 else list(packed)


def _whole(parts: Iterable[Tensor]) -> Tensor:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def _check_tensors(theirs: Dict, layout: Layout, parameter: Tensor) -> None:
    if "unorm_vec" in theirs:
        raise RuntimeError(
            "the checkpoint is of an optimizer that bounds a step by the weight's norm (LAMB, LARS, max_unorm), which "
            'no rule here does; remove "unorm_vec" from its state to go on without the bound'
        )
    kinds = ("state", "qmap", "absmax") if any(key.startswith("qmap") for key in theirs) else ("state",)
    needed = {"step"} | {f"{kind}{place + 1}" for kind in kinds for place in range(len(layout.moments))}
    if needed != theirs.keys():
        raise RuntimeError(
            f"the checkpoint has {quoted(theirs)}, and this rule is kept as {quoted(needed)}; load it into the "
            "optimizer of its rule"
        )
    for place, names in enumerate(layout.moments, start=1):
        shape = (len(names), *parameter.shape) if len(names) > 1 else parameter.shape
        if theirs[f"state{place}"].shape != shape:
            raise RuntimeError(
                f'"state{place}" is {tuple(theirs[f"state{place}"].shape)}, expected {tuple(shape)} for its parameter'
            )


# ---- torchao -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Torchao:
    moments: str = "8bit"

    name = "torchao"
    options = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    layouts = {
        "Adam": Layout(always=_PLAIN | {"amsgrad": False, "decoupled_weight_decay": False}),
        "AdamW": Layout(always=_PLAIN | {"amsgrad": False, "decoupled_weight_decay": True}),
    }
    classes = {"8bit": ("AdamW8bit", 256), "4bit": ("AdamW4bit", 128), "fp8": ("AdamWFp8", 256)}  # and their blocks

    def read_options(self, saved: Dict, group: Dict, layout: Layout) -> Dict:
        return group | saved | layout.always | {"lr": float(saved["lr"])}  # theirs is a tensor of fp32

    def read(self, state: Dict, parameter: Tensor, layout: Layout) -> Dict:
        return {key: x.dequantize() if is_torchaos(x) else x.clone() for key, x in state.items()}

    def write_options(self, group: Dict, layout: Layout, defaults: Dict) -> Dict:
        options = {key: group[key] for key in self.options}
        return without(group, defaults) | options | {"lr": torch.tensor(float(group["lr"]), dtype=torch.float32)}

    def write(self, numbers: Dict, parameter: Tensor, layout: Layout) -> Dict:
        state = {"step": numbers["step"].clone()}
        for key in numbers.keys() - state.keys():
            state[key] = self._coded(_moment(numbers, key), parameter, key)
        return state

    def _coded(self, moment: Tensor, parameter: Tensor, key: str) -> Tensor:
        import torchao.optim

        name, block = self.classes[self.moments]
        if moment.numel() < _LEAST_CODED or moment.numel() % block:
            return moment.to(parameter.dtype)
        _check_finite(moment, key)
        coded = getattr(torchao.optim, name)._subclass_zeros(parameter.detach(), key == "exp_avg", block)
        if self.moments == "fp8":
            return coded.copy_(moment)
        codes, scale = block_codes.encode(moment, coded.qmap, block)
        if self.moments == "4bit":
            codes = codes.flatten()[::2] << 4 | codes.flatten()[1::2]
        coded.codes.copy_(codes)
        coded.scale.copy_(scale)
        return coded


def is_torchaos(value: Any) -> bool:
    if type(getattr(value, "_local_tensor", None)).__module__.startswith("torchao."):
        raise RuntimeError("torchao's state is of DTensors; gather it (torch.distributed.checkpoint.state_dict) first")
    return type(value).__module__.startswith("torchao.")


Library = Torch | Bitsandbytes | Torchao
