"""``fuse``: makes the linear layers and embeddings of a model record their weight gradients.

A module keeps its place, its parameters and its state_dict; only its class becomes a subclass of itself that computes
the same output. While no optimizer of this library holds a weight, its module does what it always did.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import _C, compiled

_fused_weights = WeakIdKeyDictionary()  # whether one of the modules is an embedding
_DTYPES = (torch.float32, torch.bfloat16)


def is_fused(parameter: Tensor) -> bool:
    """True where the parameter is the weight of a module that ``fuse`` has changed."""
    return parameter in _fused_weights


def is_embedding(parameter: Tensor) -> bool:
    """True where one of the modules whose weight the parameter is, is a fused embedding."""
    return _fused_weights.get(parameter, False)


def _note_fused(module: nn.Module) -> None:
    weight = module.weight
    _fused_weights[weight] = isinstance(module, nn.Embedding) or is_embedding(weight)


# ---- The fused modules -----------------------------------------------------------------------------------------------


class Fused:
    """What a fused module's class has before its own. Leaves the process as what it was before."""

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Why this module cannot be fused; None where it can."""
        return None

    def __setstate__(self, state):
        super().__setstate__(state)
        if self._parameters.get("weight") is not None:
            _note_fused(self)

    def __reduce_ex__(self, protocol):
        rebuild, arguments, *rest = super().__reduce_ex__(protocol)
        cls = type(self)
        return (_rebuild, (cls.original, rebuild, tuple(cls.original if a is cls else a for a in arguments)), *rest)


def _rebuild(original, rebuild, arguments):
    module = rebuild(*arguments)
    module.__class__ = _fused_class(original)
    return module


class FusedLinear(Fused):
    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return compiled.linear(input, self.weight, self.bias, transposed=False)
        return _C.linear(input, self.weight, self.bias)


class FusedConv1D(Fused):
    """transformers' Conv1D: y = x W + b, W (in, out)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return compiled.linear(x, self.weight, self.bias, transposed=True)
        return _C.linear_transposed(x, self.weight, self.bias)


class FusedEmbedding(Fused):
    @staticmethod
    def obstacle(module: nn.Embedding) -> str | None:
        if module.max_norm is not None:
            return "max_norm changes the weight in forward"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq"
        return "sparse=True" if module.sparse else None

    def forward(self, input: Tensor) -> Tensor:
        padding = -1 if self.padding_idx is None else self.padding_idx
        if torch.compiler.is_compiling():
            return compiled.embedding(input, self.weight, padding)
        return _C.embedding(input, self.weight, padding)


def _kinds() -> dict[type[nn.Module], type[Fused]]:
    kinds = {nn.Linear: FusedLinear, nn.Embedding: FusedEmbedding}
    utils = sys.modules.get("transformers.pytorch_utils")  # a model that has a Conv1D has brought it along
    return kinds | {utils.Conv1D: FusedConv1D} if utils else kinds


@functools.cache
def _fused_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The fused subclass of a module's class; None where there is none, or the class has a forward of its own."""
    for base, kind in _kinds().items():
        if issubclass(cls, base) and cls.forward is base.forward:
            # It goes by its own name: printing a model, tracing it and looking for its layers find what they look for.
            names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
            return type(cls.__name__, (kind, cls), names | {"original": cls})
    return None


# ---- Fusing a model --------------------------------------------------------------------------------------------------


@dataclass
class FusionRow:
    name: str  # of the parameter, as in named_parameters(); a tied one goes by its first name
    shape: tuple[int, ...]
    reason: str | None  # why its gradient is stored; None where it is fused

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass
class FusionReport:
    """Which of a model's parameters are fused. Prints as a table, in which like rows are one."""

    rows: list[FusionRow] = field(default_factory=list)

    @property
    def fused(self) -> list[FusionRow]:
        return [row for row in self.rows if row.reason is None]

    @property
    def unfused(self) -> list[FusionRow]:
        return [row for row in self.rows if row.reason is not None]

    def __str__(self) -> str:
        groups: dict[tuple, list[FusionRow]] = {}
        for row in self.rows:
            groups.setdefault((row.reason, row.shape), []).append(row)
        lines = [("parameters", "shape", "values", "gradient")]
        for (reason, shape), rows in sorted(groups.items(), key=lambda item: item[0][0] is not None):
            name = rows[0].name if len(rows) == 1 else f"{rows[0].name} and {len(rows) - 1} more"
            values = f"{sum(row.numel for row in rows):,}"
            gradient = "fused" if reason is None else f"stored: {reason}"
            lines.append((name, " × ".join(map(str, shape)), values, gradient))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        fused, total = (sum(row.numel for row in rows) for rows in (self.fused, self.rows))
        share = f"{fused / total:.1%}" if total else "none"
        return "\n".join([*table, f"forge_optim: {fused:,} of {total:,} values ({share}) are fused"])


def fuse(model: nn.Module, verbose: bool = True) -> FusionReport:
    """Makes the modules of a model that it knows record their weight gradients; prints and returns what came of it.

    Known are nn.Linear, nn.Embedding and transformers' Conv1D, and their subclasses that have no forward of their own.
    Frozen weights are left alone: fuse again after unfreezing. Fusing twice is fine. What is not fused trains as
    always. verbose=False prints nothing.
    """
    reasons: dict[int, str | None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            reason = _fuse_module(module) if name == "weight" else "no weight of a linear layer or embedding"
            # A tied weight is fused where one of its modules is; the others go through autograd.
            if reasons.get(id(parameter), "") is not None:
                reasons[id(parameter)] = reason
    report = FusionReport(
        [FusionRow(name, _shape_of(p), reasons[id(p)]) for name, p in model.named_parameters()]
    )
    if verbose:
        print(report)
    return report


def _shape_of(parameter: Tensor) -> tuple[int, ...]:
    return (0,) if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)


def _fuse_module(module: nn.Module) -> str | None:
    if getattr(module, "parametrizations", None):
        return "parametrized"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "used by MultiheadAttention, which takes the weight and passes the layer by"
    if nn.parameter.is_lazy(module.weight):
        return "no shape yet: fuse again after the first call"
    # A fused one is looked at again: its weight may have been replaced, frozen or sharded since.
    cls = type(module) if isinstance(module, Fused) else _fused_class(type(module))
    if cls is None:
        known = isinstance(module, tuple(_kinds()))
        return f"{type(module).__name__} has a forward of its own" if known else f"used by {type(module).__name__}"
    reason = _obstacle(module, cls)
    if reason is None:
        module.__class__ = cls
        _note_fused(module)
    return reason


def _obstacle(module: nn.Module, cls: type[Fused]) -> str | None:
    weight = module.weight
    if not weight.requires_grad:
        return "frozen"
    if hasattr(weight, "to_local"):
        return "a DTensor: FSDP2 gathers it for forward"
    if weight.dtype not in _DTYPES:
        return f"{weight.dtype}, not fp32 or bf16"
    if not _C.has_kernels(weight.device.type):
        return f"on {weight.device.type}, for which this library was built without kernels"
    return cls.obstacle(module)


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every fused module its own class back. Returns the model."""
    for module in model.modules():
        if isinstance(module, Fused):
            module.__class__ = type(module).original
            _fused_weights.pop(module.weight, None)
    return model
