"""``fuse``: says which weights of a model have their gradients recorded, and lets ``torch.compile`` record them.

Recording itself needs no change of a model: where an optimizer of this library holds a weight, torch's own F.linear and
F.embedding record (forge/torch/functional.h). Modules keep their class, parameters and state_dict. In a graph of
``torch.compile`` the weight cannot be recognised, so a known module gets a ``forward`` of its own, an attribute of the
instance that is used there alone. It gives way to whatever somebody puts in the place of torch's own forward, and
copies and pickles of a module are without it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field, replace
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _C, compiled

_logger = logging.getLogger("forge_optim")

# What is known of a parameter stands in attributes of it: a table would refer to it weakly, and torch's swap_tensors
# refuses tensors that somebody refers to.
_EXPECTED_STORED, _EMBEDDING, _UNFUSED = "_forge_expected_stored", "_forge_embedding", "_forge_unfused"
_DTYPES = (torch.float32, torch.bfloat16)


def is_embedding(parameter: Tensor) -> bool:
    """True where ``fuse`` has seen that one of the modules whose weight the parameter is, is an embedding."""
    return getattr(parameter, _EMBEDDING, False)


def is_unfused(parameter: Tensor) -> bool:
    """True after ``unfuse``: its gradient is to be an ordinary one."""
    return getattr(parameter, _UNFUSED, False)


def is_expected_stored(parameter: Tensor) -> bool:
    """True where ``fuse`` has said that the gradient of this parameter is stored, or may well be."""
    return getattr(parameter, _EXPECTED_STORED, False)


# ---- The known modules -----------------------------------------------------------------------------------------------

# What the forwards below stand for. Where somebody has put something else in its place, they leave it to that.
_forwards = {"Linear": nn.Linear.forward, "Embedding": nn.Embedding.forward}
_linear, _embedding = F.linear, F.embedding


class _Linear:
    def forward(self, input: Tensor) -> Tensor:
        if _is_compiled() and type(self).forward is _forwards["Linear"] and F.linear is _linear:
            return compiled.linear(input, self.weight, self.bias, transposed=False)
        return type(self).forward(self, input)


class _Conv1D:
    """transformers' Conv1D, y = x W + b with W (in, out), multiplies by torch.addmm."""

    def forward(self, x: Tensor) -> Tensor:
        if type(self).forward is not _forwards["Conv1D"] or F.linear is not _linear:
            return type(self).forward(self, x)
        if _is_compiled():
            return compiled.linear(x, self.weight, self.bias, transposed=True)
        return F.linear(x, self.weight.t(), self.bias)


class _Embedding:
    def forward(self, input: Tensor) -> Tensor:
        is_torchs = type(self).forward is _forwards["Embedding"] and F.embedding is _embedding
        if _is_compiled() and is_torchs and self.max_norm is None and not self.scale_grad_by_freq:
            return compiled.embedding(input, self.weight, -1 if self.padding_idx is None else self.padding_idx)
        return type(self).forward(self, input)


def _is_compiled() -> bool:
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _kinds() -> dict[type[nn.Module], type]:
    kinds = {nn.Linear: _Linear, nn.Embedding: _Embedding}
    utils = sys.modules.get("transformers.pytorch_utils")  # a model that has a Conv1D has brought it along
    if utils is None:
        return kinds
    _forwards.setdefault("Conv1D", utils.Conv1D.forward)
    return kinds | {utils.Conv1D: _Conv1D}


def _forward_of(module: nn.Module):
    """The forward that a known module gets; None for one whose class has a forward of its own."""
    for base, kind in _kinds().items():
        if isinstance(module, base) and type(module).forward is base.forward:
            return kind.forward
    return None


def _own_forward(module: nn.Module):
    """A forward that somebody has given this instance; not ours, nor the class's, which taking off a hook leaves."""
    given = vars(module).get("forward")
    function = getattr(given, "__func__", given)
    ours = [kind.forward for kind in _kinds().values()]
    return None if given is None or function is type(module).forward or function in ours else given


def _let_compile(module: nn.Module) -> None:
    forward = _forward_of(module)
    if forward is not None and _own_forward(module) is None:
        module.forward, module.__getstate__ = MethodType(forward, module), MethodType(_state_of_copy, module)


def _state_of_copy(module: nn.Module) -> object:
    """What a copy or a pickle takes along: not our forward, which belongs to the module that is copied."""
    state = type(module).__getstate__(module)
    if not isinstance(state, dict):  # a class with a state of its own
        return state
    return {key: value for key, value in state.items() if key not in ("forward", "__getstate__")}


# ---- Fusing a model --------------------------------------------------------------------------------------------------


@dataclass
class FusionRow:
    name: str  # of the parameter, as in named_parameters(); a tied one goes by its first name
    shape: tuple[int, ...]
    reason: str | None  # why its gradient is stored, or what that depends on; None where it is fused
    by_use: bool = False  # the module's own forward decides: products by F.linear, F.embedding and @ are recorded

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
        return [row for row in self.rows if row.reason is not None and not row.by_use]

    @property
    def by_use(self) -> list[FusionRow]:
        return [row for row in self.rows if row.by_use]

    def __str__(self) -> str:
        groups: dict[tuple, list[FusionRow]] = {}
        for row in self.rows:
            groups.setdefault((_gradient(row), row.shape), []).append(row)
        lines = [("parameters", "shape", "values", "gradient")]
        for (gradient, shape), rows in sorted(groups.items(), key=lambda item: item[0][0] != "fused"):
            name = rows[0].name if len(rows) == 1 else f"{rows[0].name} and {len(rows) - 1} more"
            values = f"{sum(row.numel for row in rows):,}"
            lines.append((name, " × ".join(map(str, shape)), values, gradient))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, self.summary()])

    def summary(self) -> str:
        """The table's last line."""
        fused, total = (sum(row.numel for row in rows) for rows in (self.fused, self.rows))
        share = f"{fused / total:.1%}" if total else "none"
        by_use = sum(row.numel for row in self.by_use)
        more = f", {by_use:,} by use" if by_use else ""
        return f"forge_optim: {fused:,} of {total:,} values ({share}) are fused{more}"


def _gradient(row: FusionRow) -> str:
    return "fused" if row.reason is None else row.reason if row.by_use else f"stored: {row.reason}"


def fuse(model: nn.Module, verbose: bool = False) -> FusionReport:
    """Says of each parameter of a model whether its gradient is recorded once an optimizer of this library holds it,
    and lets ``torch.compile`` record the weights of nn.Linear, nn.Embedding and transformers' Conv1D.

    Uses of weights by F.linear and F.embedding are recorded with or without it. Fusing twice is fine, and takes back
    ``unfuse``. verbose: prints the table; without it one line goes to the logger "forge_optim".
    """
    found: dict[int, FusionRow] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            row = _row(module, name, parameter)
            # A tied weight is fused where one of its uses is.
            if id(parameter) not in found or row.reason is None:
                found[id(parameter)] = row
            setattr(parameter, _UNFUSED, False)
            _C.set_recording(parameter, True)
        if isinstance(module, tuple(_kinds())):
            _let_compile(module)
        if isinstance(module, nn.Embedding):
            setattr(module.weight, _EMBEDDING, True)
    rows = []
    for name, parameter in model.named_parameters():
        rows.append(replace(found[id(parameter)], name=name))
    report = FusionReport(rows)
    _logger.info(report.summary())
    if verbose:
        print(report)
    return report


def _shape_of(parameter: Tensor) -> tuple[int, ...]:
    return (0,) if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)


def _row(module: nn.Module, name: str, parameter: Tensor) -> FusionRow:
    kind = type(module).__name__
    reason = _obstacle(module, name, parameter)
    known = isinstance(module, tuple(_kinds())) and name == "weight"
    by_use = reason is None and not (known and _forward_of(module) or _is_attentions_output(module))
    if by_use:
        reason = f"fused where {kind}'s forward uses F.linear, F.embedding or @"
    # Who derives from a known module mostly does.
    setattr(parameter, _EXPECTED_STORED, reason is not None and not (by_use and known))
    return FusionRow(name, _shape_of(parameter), reason, by_use)


def _is_attentions_output(module: nn.Module) -> bool:
    """MultiheadAttention multiplies by its weight past the layer's forward, by F.linear."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _obstacle(module: nn.Module, name: str, parameter: Tensor) -> str | None:
    """Why the gradient is stored whatever the module does; None where it may be recorded."""
    if getattr(module, "parametrizations", None):
        return "parametrized"
    if nn.parameter.is_lazy(parameter):
        return "no shape yet: fuse again after the first call"
    if parameter.dim() != 2 or isinstance(module, nn.EmbeddingBag):
        return f"used by {type(module).__name__}" if name == "weight" else "no weight of a linear layer or embedding"
    if not parameter.requires_grad:
        return "frozen"
    if hasattr(parameter, "to_local"):
        return "a DTensor: FSDP2 gathers it for forward"
    if parameter.dtype not in _DTYPES:
        return f"{parameter.dtype}, not fp32 or bf16"
    if not _C.has_kernels(parameter.device.type):
        return f"on {parameter.device.type}, for which this library was built without kernels"
    return "scale_grad_by_freq" if getattr(module, "scale_grad_by_freq", False) else None


def unfuse(model: nn.Module) -> nn.Module:
    """Gives every weight of the model an ordinary gradient again, whatever optimizer holds it. Returns the model."""
    ours = [kind.forward for kind in _kinds().values()]
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) in ours:
            del module.forward, module.__getstate__
        for parameter in module.parameters(recurse=False):
            setattr(parameter, _UNFUSED, True)
            setattr(parameter, _EXPECTED_STORED, True)
            _C.set_recording(parameter, False)
    return model
