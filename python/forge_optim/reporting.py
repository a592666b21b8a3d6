"""``report``: what an optimizer of this library holds, in bytes, and what rounding does to its updates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from . import _C
from .optimizers import FusedOptimizer


@dataclass(frozen=True)
class RoundingCount:
    """Of so many elements that updates computed in fp32."""

    elements: int
    lost: int  # the result was another number than before, and what is stored has not changed
    saturated: int  # the result was finite and beyond the largest number of its format
    not_finite: int  # the result was infinite or NaN

    def __str__(self) -> str:
        shares = (self.lost, self.saturated, self.not_finite)
        return "".join(f"{100 * part / max(self.elements, 1):10.3g} %" for part in shares)


@dataclass(frozen=True)
class Rounding:
    """Of all updates since the optimizer was made, or its state was loaded."""

    formats: dict[str, RoundingCount]  # "weight, bf16", "exp_avg, int8", …
    parameters: dict[str, dict[str, RoundingCount]]  # name → of its "weight" and of each moment, as in its state
    # Gradients of fused weights that were found not to be finite, by GradScaler or a norm, and dropped without step().
    skipped_steps: int

    def most_lost(self, count: int = 5) -> list[tuple[str, RoundingCount]]:
        """The parameters whose weights lost the largest shares of their updates, the largest first."""
        weights = [(name, matrices["weight"]) for name, matrices in self.parameters.items()]
        losing = [(name, weight) for name, weight in weights if weight.lost]
        return sorted(losing, key=lambda row: row[1].lost / row[1].elements, reverse=True)[:count]

    def __str__(self) -> str:
        lines = [f"{'rounding':30}{'lost':>12}{'saturated':>12}{'not finite':>12}"]
        lines += [f"  {kind:28}{count}" for kind, count in self.formats.items()]
        lines += [f"  {name:28}{count}" for name, count in self.most_lost()]
        lines.append(f"{'skipped steps':18}{self.skipped_steps:12}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """Bytes at this moment, and of gradients also the highest value since the last ``reset_peak_memory()``."""

    weights: int
    state: int
    held_terms: int  # dY, X and indices kept until step(), each storage counted once
    dense_gradients: int
    peak_gradient: int  # of held terms and dense gradients together
    collapses: int  # how often terms were multiplied out
    # The same by reason, and how often matrices got an ordinary gradient by reason.
    reasons: dict[str, int] = field(default_factory=dict)
    ordinary: dict[str, str] = field(default_factory=dict)  # the names of these matrices, each with its (last) reason
    not_finite: str | None = None  # whose gradient was first found not to be finite since the last step
    kernels: str = ""  # the instruction set that the kernels run on
    rounding: Rounding | None = None  # with count_rounding

    def __str__(self) -> str:
        sizes = {
            "weights": self.weights,
            "state": self.state,
            "held terms": self.held_terms,
            "dense gradients": self.dense_gradients,
            "gradients, peak": self.peak_gradient,
        }
        lines = [f"{name:18}{size / 2**20:12.2f} MiB" for name, size in sizes.items()]
        lines.append(f"{'collapses':18}{self.collapses:12}")
        lines += [f"  {count} × {reason}" for reason, count in self.reasons.items()]
        lines += [f"  stored: {name} ({reason})" for name, reason in self.ordinary.items()]
        lines += [f"  not finite: {self.not_finite}"] if self.not_finite else []
        lines.append(f"{'kernels':18}{self.kernels:>12}")
        if self.rounding:
            lines.append(str(self.rounding))
        return "\n".join(lines)


def report(optimizer: FusedOptimizer) -> Report:
    """What this optimizer holds. Also takes one wrapped by accelerate or Lightning."""
    while not isinstance(optimizer, FusedOptimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(f"report: {type(optimizer).__name__} is no optimizer of forge_optim")
    optimizer._follow()
    engine = optimizer._engine
    now, peak, stored = engine.memory(), engine.peak_memory(), engine.ordinary_gradients()
    names, not_finite = optimizer._names_of_all(), engine.not_finite()
    reasons = Counter(engine.collapses())
    for of_one in stored:
        reasons[of_one.reason] += of_one.times
    return Report(
        weights=now.weights,
        state=now.state,
        held_terms=now.held_terms,
        dense_gradients=now.dense_gradients,
        peak_gradient=peak.gradients,
        collapses=now.collapses,
        reasons=dict(reasons),
        ordinary={names[of_one.parameter]: of_one.reason for of_one in stored},
        not_finite=None if not_finite is None else names[not_finite],
        kernels=_C.kernels(),
        rounding=_rounding(optimizer) if optimizer._counts_rounding else None,
    )


def _rounding(optimizer: FusedOptimizer) -> Rounding:
    counted = optimizer._engine.rounding()
    names = optimizer._names_of_all()
    parameters: dict[str, dict[str, RoundingCount]] = {}
    for place, matrix, count in counted["matrices"]:
        parameters.setdefault(names[place], {})[matrix] = RoundingCount(*count)
    formats = {kind: RoundingCount(*count) for kind, count in counted["formats"].items()}
    return Rounding(formats, parameters, counted["skipped_steps"])
