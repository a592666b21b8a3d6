"""Optimizers that torch does not have, with the constructor arguments, defaults and methods of their authors' classes.

All take what ``forge_optim.AdamW`` takes beyond its namesake's arguments: the model as ``params``, ``schedule``,
``collapse``, ``exact``, ``state_format``, ``weight_format``, ``seed``, ``count_rounding``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from . import _C
from .optimizers import FusedOptimizer, Params

Betas = tuple[float, float]
Betas3 = tuple[float, float, float]


class Published(FusedOptimizer, Optimizer):
    """Reads the checkpoints of the authors' class too, whose groups lack what is an option here alone."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            for p in group["params"] if "step" in group else ():  # Adan's authors count in the group
                if self.state.get(p):
                    self.state[p].setdefault("step", torch.tensor(float(group["step"])))

    def _norm_of_gradients(self) -> torch.Tensor:
        """A number on their device, fp32 as that of ``clip_grad_norm_``, in fp64."""
        return _C.grad_norm([p for group in self.param_groups for p in group["params"]]).float().double()


def group_options(of_init: dict[str, Any]) -> dict[str, Any]:
    """A constructor's own arguments, which are the options of its groups."""
    return {key: x for key, x in of_init.items() if key not in ("self", "__class__", "params", "options")}


def check_clip(optimizer: Published, name: str, value: float | None, options: dict[str, Any]) -> None:
    """Refuses an option that clips all gradients together where weights are updated before all are there."""
    if value is not None and options.get("schedule") == "in_backward":
        raise RuntimeError(
            f"{type(optimizer).__name__}: {name} needs all gradients before the first update; give {name}=None, or "
            'schedule="at_step"'
        )


class Lion(Published):
    """Evolved sign momentum (arXiv 2302.06675), as google/automl's."""

    _rule = "Lion"

    def __init__(
        self, params: Params, lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


class Signum(Published):
    """The sign of the momentum (arXiv 1802.04434), as MXNet's with decoupled decay."""

    _rule = "Signum"

    def __init__(
        self, params: Params, lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


class Adan(Published):
    """Adaptive Nesterov momentum (arXiv 2208.06677), as sail-sg/Adan's."""

    _rule = "Adan"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas3 = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        **options: Any,
    ) -> None:
        if max_grad_norm:
            raise RuntimeError("Adan: max_grad_norm is left to forge_optim.clip_grad_norm_; call it before step()")
        super().__init__(params, group_options(locals()), **options)


class AdEMAMix(Published):
    """AdamW with a second, slow average (arXiv 2409.03137), as apple/ml-ademamix's."""

    _rule = "AdEMAMix"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas3 = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


def _fourth_root(step: int) -> float:
    return step**0.25


class ADOPT(Published):
    """Adam that converges with any beta2 (arXiv 2411.02853), as iShohei220/adopt's.

    clip_lambda: from the number of updates before this one (the most of a group's parameters) to the bound of a
        normalised gradient; None: no bound. To pickle the optimizer, give a function of a module.
    """

    _rule = "ADOPT"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_lambda: Callable[[int], float] | None = _fourth_root,
        weight_decay: float = 0.0,
        decouple: bool = False,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        self.clip_lambda = clip_lambda
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decouple=decouple, maximize=maximize)
        super().__init__(params, defaults | {"clip_value": 0.0}, **options)
        self._set_clip()

    def _set_clip(self) -> None:
        for group in self.param_groups:
            steps = max((self.state[p].get("step", 0) for p in group["params"] if p in self.state), default=0)
            if self.clip_lambda is None:
                group["clip_value"] = float("inf")
            elif self.clip_lambda is _fourth_root:  # 0 stands for it
                group["clip_value"] = 0.0
            else:
                group["clip_value"] = float(self.clip_lambda(int(steps))) or sys.float_info.min

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._set_clip()  # in backward, where this step has been taken, for the next
        return super().step(closure)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"clip_lambda": self.clip_lambda}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_clip()


class SophiaG(Published):
    """Momentum over a diagonal of the Hessian, clipped (arXiv 2305.14342), as Liuhong99/Sophia's.

    Every ten steps or so: a backward of the loss on labels sampled from the model, then ``update_hessian()``.
    ``schedule="in_backward"`` would have taken that for a step.
    """

    _rule = "SophiaG"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-4,
        betas: Betas = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 1e-1,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)

    @torch.no_grad()
    def update_hessian(self) -> None:
        """Takes the gradients that are there into ``hessian``; no weight changes. ``zero_grad()`` is the caller's."""
        if self._options[0] == "in_backward":
            raise RuntimeError('SophiaG: backward has updated the weights already; give schedule="at_step"')
        self._follow()
        self._engine.step_by("SophiaHessian")

    def step(self, closure: Callable[[], Any] | None = None, bs: int = 5120) -> Any:
        """bs: tokens in a batch, with which the Hessian's estimate is scaled."""
        for group in self.param_groups:
            group["bs"] = bs
        return super().step(closure)


class MARS(Published):
    """AdamW of a gradient with less variance (arXiv 2411.10438), as AGI-Arena/MARS's without its clip by the norm of
    the corrected gradient. Vectors follow it too. ``is_approx=False`` reads ``last_grad`` as the caller leaves it."""

    _rule = "MARS"

    def __init__(
        self,
        params: Params,
        lr: float = 3e-3,
        betas: Betas = (0.95, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        gamma: float = 0.025,
        is_approx: bool = True,
        mars_type: str = "mars-adamw",
        optimize_1d: bool = True,
        **options: Any,
    ) -> None:
        if mars_type != "mars-adamw" or not optimize_1d:
            raise RuntimeError('MARS: this is mars_type="mars-adamw" with optimize_1d=True; give vectors to AdamW')
        super().__init__(params, group_options(locals()), **options)


class Grams(Published):
    """The sign of the gradient with the size of Adam's step (arXiv 2412.17107), as Gunale0926/Grams's."""

    _rule = "Grams"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


class CautiousAdamW(Published):
    """AdamW that moves only where the gradient agrees (arXiv 2411.16085), as kyleliang919/C-Optim's.

    ``rescale``: as the authors do, by the share of a weight's elements that move; then the gradient's products are
    computed twice. Without, in one pass.
    """

    _rule = "CautiousAdamW"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        rescale: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


class StableAdamW(Published):
    """AdamW that slows down where gradients surprise it (arXiv 2304.13013), as warner-benjamin/optimi's.

    Two passes over a weight, of which the second needs no gradient. ``max_lr``: None is ``lr``. For optimi's Kahan sums
    there is ``weight_format="bf16_plus16"``, which is exact.
    """

    _rule = "StableAdamW"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.99),
        weight_decay: float = 1e-2,
        eps: float = 1e-6,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        kahan_sum: bool | None = None,
        **options: Any,
    ) -> None:
        if kahan_sum:
            raise RuntimeError('StableAdamW: kahan_sum is not there; weight_format="bf16_plus16" loses nothing')
        options.pop("triton", None)
        defaults = dict(lr=lr, betas=betas, weight_decay=weight_decay, eps=eps, decouple_lr=decouple_lr)
        super().__init__(params, defaults | {"max_lr": max_lr or (lr if decouple_lr else None)}, **options)


class LAMB(Published):
    """Adam whose step is as long as the weight (arXiv 1904.00962), as timm's Lamb.

    Two passes over a weight, of which the second needs no gradient. ``max_grad_norm``: ``step()`` clips all gradients
    together to it, and leaves them as they are; the first param group's counts. None: not clipped, which
    ``schedule="in_backward"`` needs.
    """

    _rule = "LAMB"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
        caution: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        **options: Any,
    ) -> None:
        if caution or corrected_weight_decay:
            raise RuntimeError("LAMB: caution and corrected_weight_decay are not there; leave them False")
        check_clip(self, "max_grad_norm", max_grad_norm, options)
        super().__init__(params, group_options(locals()), **options)

    def _update(self) -> None:
        max_norm = self.param_groups[0]["max_grad_norm"]
        if max_norm is None:
            return super()._update()
        self._engine.step_scaled((self._norm_of_gradients() / max_norm).clamp(min=1).reciprocal())
