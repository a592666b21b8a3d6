"""Optimizer state that other libraries have written, in ours, and ours in theirs.

    optimizer.load_state_dict(forge.convert.from_state_dict(torch.load("bitsandbytes.pt"), optimizer))
    theirs.load_state_dict(forge.convert.to_state_dict(optimizer, "bitsandbytes"))

The libraries are ``torch.optim``, bitsandbytes (layout of 0.50: optim/optimizer.py, optim/ademamix.py) and torchao
(0.18: optim/adam.py). Tensors from and for ``torch.optim`` are shared, as in a ``state_dict()``; all others are new.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Literal

import torch

from . import _C
from .optimizers import FusedOptimizer
from .state_layouts import NESTED, Bitsandbytes, Dict, Layout, Library, Torch, Torchao, is_torchaos, quoted, without

_OURS = ("noise", "state_format")  # options of a group that no other library has


def from_state_dict(state_dict: Dict, optimizer: FusedOptimizer) -> Dict:
    """What an optimizer of another library saved, as ``optimizer.load_state_dict`` takes it.

    Who wrote it is told by what it holds. Codes become fp32 numbers, the same that the library reads there, which
    ``optimizer`` then keeps in its ``state_format``; a group's options are those that the library went by. The rule is
    that of ``optimizer``: a checkpoint does not say which of its library's one-moment optimizers, or which of torchao's
    Adam and AdamW, wrote it.

    Raises RuntimeError where the checkpoint holds something that ``optimizer`` has no place for.
    """
    library = _writer_of(state_dict)
    layout = _layout(library, optimizer._rule)
    state, groups = dict(state_dict["state"]), []
    for saved, group in _matched(state_dict["param_groups"], optimizer.param_groups):
        options = library.read_options(saved, group, layout)
        for i, parameter in zip(saved["params"], group["params"], strict=True):
            if state.get(i):
                state[i] = library.read(state[i], parameter, layout)
                _check_places(state[i], optimizer, options)
        groups.append(options)
    return state_dict | {"state": state, "param_groups": groups}


def to_state_dict(
    optimizer: FusedOptimizer,
    library: Literal["torch", "bitsandbytes", "torchao"],
    moments: Literal["8bit", "32bit", "4bit", "fp8"] | None = None,
    *,
    drop_weight_low: bool = False,
) -> Dict:
    """The state of ``optimizer`` as the library's optimizer of the same rule loads it and goes on.

    moments: which of the library's classes it is for: bitsandbytes' "8bit" (None says this) or "32bit", torchao's
        "8bit" (None), "4bit" or "fp8". As in the library, fewer than 4,096 elements are not coded, nor are
        bitsandbytes' embeddings, which its own modules and transformers' Trainer keep in 32 bits, nor torchao's
        weights that are no whole number of blocks, whose moments get the weight's dtype.
    drop_weight_low: leaves out what ``weight_low`` holds, so that the bf16 part is the weight.

    Raises RuntimeError where the library lacks the rule or an option of it, or something would be lost.
    """
    writer = _writer(library, moments, optimizer)
    layout = _layout(writer, optimizer._rule)
    own = optimizer.state_dict()
    state, groups = dict(own["state"]), []
    for saved, group in zip(own["param_groups"], optimizer.param_groups, strict=True):
        _check_options(writer, group, layout, optimizer._rule)
        groups.append(writer.write_options(without(saved, _OURS), layout, optimizer.defaults))
        for i, parameter in zip(saved["params"], group["params"], strict=True):
            if state.get(i):
                _check_weight(state[i], drop_weight_low)
                state[i] = writer.write(_numbers(state[i], optimizer, group), parameter, layout)
    return own | {"state": state, "param_groups": groups}


# ---- Checks and keys -------------------------------------------------------------------------------------------------


def _layout(library: Library, rule: str) -> Layout:
    if library.layouts is None:
        return Layout()
    if rule not in library.layouts:
        raise RuntimeError(f"{library.name} has no {rule} as it is here, only {', '.join(library.layouts)}")
    return library.layouts[rule]


def _matched(saved: list[Dict], groups: list[Dict]) -> Iterator[tuple[Dict, Dict]]:
    theirs, ours = ([len(group["params"]) for group in of] for of in (saved, groups))
    if theirs != ours:
        raise RuntimeError(
            f"the checkpoint's groups have {theirs} parameters, the optimizer's {ours}; make it of the same groups"
        )
    return zip(saved, groups, strict=True)


def _keys(optimizer: FusedOptimizer, options: Dict) -> tuple[dict[str, bool], list[str]]:
    """Of the rule with these options: its moments and whether they are never negative, and its numbers."""
    moments, numbers = _C.state_keys(optimizer._rule, optimizer.defaults | options)
    return dict(moments), numbers


def _check_places(state: Dict, optimizer: FusedOptimizer, options: Dict) -> None:
    moments, numbers = _keys(optimizer, options)
    places = {"step", "weight_low", *numbers, *moments, *(f"{key}_scale" for key in moments)}
    unknown = {key for key, value in state.items() if value is not None} - places
    if unknown:
        raise RuntimeError(
            f"the checkpoint has {quoted(unknown)}, for which {optimizer._rule} with its options has no place; load it "
            "into the optimizer of its rule, or remove that from its state"
        )


def _check_options(library: Library, group: Dict, layout: Layout, rule: str) -> None:
    for option, value in layout.always.items():
        matters = option != "decoupled_weight_decay" or group["weight_decay"]
        if matters and group.get(option, value) != value:
            raise RuntimeError(
                f"{library.name} has no {rule} with {option}={group[option]}; set it to {value} in param_groups to go "
                "on without it"
            )


def _check_weight(state: Dict, drop: bool) -> None:
    low = state.get("weight_low")
    if low is not None and not drop and low.any():
        raise RuntimeError(
            'the lower bits of a weight ("weight_low") have no place in another library; give drop_weight_low=True to '
            "go on with its bf16 part, which is at most half of its last place off"
        )


def _numbers(state: Dict, optimizer: FusedOptimizer, group: Dict) -> Dict:
    """Our state without codes and without what only we keep."""
    moments, numbers = _keys(optimizer, group)
    plain = {key: state[key] for key in (*numbers, *moments) if state.get(key) is not None}
    for key, not_negative in moments.items():
        if (scale := state.get(f"{key}_scale")) is not None:
            plain[key] = _C.dequantize(state[key], scale, not_negative)
    return plain


# ---- Whose it is ---------------------------------------------------------------------------------------------------


def _writer_of(state_dict: Dict) -> Library:
    states = [state for state in state_dict["state"].values() if isinstance(state, dict)]
    if any("state1" in state or NESTED in state for state in states):
        return Bitsandbytes()
    if any(is_torchaos(value) for state in states for value in state.values()):
        return Torchao()
    return Torch()


def _writer(library: str, moments: str | None, optimizer: FusedOptimizer) -> Library:
    there = {
        ("torch", None): Torch(),
        ("bitsandbytes", "8bit"): Bitsandbytes(),
        ("bitsandbytes", "32bit"): Bitsandbytes(coded=False),
        **{("torchao", key): Torchao(key) for key in Torchao.classes},
    }
    there |= {(name, None): there[name, "8bit"] for name in ("bitsandbytes", "torchao")}
    if (library, moments) not in there:
        known = ", ".join(f"{name} {key}" if key else name for name, key in there)
        raise RuntimeError(f"there is no layout {library} {moments}; the layouts are {known}")
    if library == "torch" and not isinstance(optimizer, getattr(torch.optim, optimizer._rule, ())):
        raise RuntimeError(
            f"torch.optim has no {optimizer._rule}; what its authors' class loads is the state_dict() of this one with "
            'state_format="fp32"'
        )
    if library == "torchao" and importlib.util.find_spec("torchao") is None:
        raise RuntimeError("torchao is not installed, and its state is made of its own tensors; pip install torchao")
    return there[library, moments]
