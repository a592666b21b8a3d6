"""``report``: what an optimizer of this library holds, in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import _C
from .optimizers import FusedOptimizer


@dataclass(frozen=True)
class Report:
    """Bytes at this moment, and of gradients also the highest value since the last ``reset_peak_memory()``."""

    weights: int
    state: int
    held_terms: int  # dY, X and indices kept until step(), each storage counted once
    dense_gradients: int
    peak_gradient: int  # of held terms and dense gradients together
    collapses: int  # how often terms were multiplied out
    reasons: dict[str, int] = field(default_factory=dict)  # the same by reason
    kernels: str = ""  # the instruction set that the kernels run on

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
        lines.append(f"{'kernels':18}{self.kernels:>12}")
        return "\n".join(lines)


def report(optimizer: FusedOptimizer) -> Report:
    """What this optimizer holds. Also takes one wrapped by accelerate or Lightning."""
    while not isinstance(optimizer, FusedOptimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(f"report: {type(optimizer).__name__} is no optimizer of forge_optim")
    now, peak = optimizer._engine.memory(), optimizer._engine.peak_memory()
    return Report(
        weights=now["weights"],
        state=now["state"],
        held_terms=now["held_terms"],
        dense_gradients=now["dense_gradients"],
        peak_gradient=peak["gradients"],
        collapses=now["collapses"],
        reasons=optimizer._engine.collapses,
        kernels=_C.kernels(),
    )
