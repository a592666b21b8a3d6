"""AdaLomo (arXiv 2310.10195), with the loop of its authors."""

from __future__ import annotations

from typing import Any

import torch

from .optimizers import Params
from .published import Published, check_clip, group_options


class AdaLomo(Published):
    """A second moment of one number a row and column, and steps as long as the weight (arXiv 2310.10195), as
    OpenLMLab/LOMO's.

    For vectors and matrices. The gradient's products are computed three times: for the sums over rows and columns, for
    the sizes of the update and of the weight, for the weight. ``exp_avg_sq_row`` and ``exp_avg_sq_col`` are fp32.
    ``backward()`` and ``step()`` are as with every optimizer; ``fused_backward(loss, lr)`` is both.

    loss_scale: ``fused_backward`` multiplies the loss by it, and ``step()`` within it the gradients by its inverse; not
        with ``schedule="in_backward"``, where no gradient waits to be scaled.
    clip_grad_norm: ``step()`` clips all gradients together to it, and leaves them as they are; the first param group's
        counts. ``schedule="in_backward"`` needs None.
    """

    _rule = "AdaLomo"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        loss_scale: float | None = 2**10,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if clip_grad_value is not None:
            raise RuntimeError("AdaLomo: clip_grad_value is not there; call torch's clip_grad_value_ before step()")
        if clip_grad_norm is not None and clip_grad_norm <= 0:
            raise ValueError(f"clip_grad_norm should be positive, got {clip_grad_norm}.")
        check_clip(self, "clip_grad_norm", clip_grad_norm, options)
        self._scale = 1.0  # of the gradients that are there
        arguments = group_options(locals())
        del arguments["clip_grad_value"]
        super().__init__(params, arguments, **options)

    def fused_backward(self, loss: torch.Tensor, lr: float) -> None:
        """Backward, and the update with this learning rate."""
        for group in self.param_groups:
            group["lr"] = lr
        scale = self.param_groups[0]["loss_scale"] or 1.0
        if self._options[0] == "in_backward":
            scale = 1.0
        (loss if scale == 1.0 else loss * scale).backward()
        self._scale = scale
        try:
            self.step()
        finally:
            self._scale = 1.0
        self.zero_grad()

    def grad_norm(self, loss: torch.Tensor) -> None:
        raise RuntimeError("AdaLomo: fused_backward clips to clip_grad_norm in one backward; leave grad_norm out")

    def _update(self) -> None:
        scale, max_norm = 1 / self._scale, self.param_groups[0]["clip_grad_norm"]
        factor = torch.tensor(scale, dtype=torch.float64, device="cpu")
        if max_norm is not None:
            norm = self._norm_of_gradients() * scale
            factor = (torch.full_like(norm, max_norm) / (norm + 1e-6)).clamp(max=1) * scale
        self._engine.step_scaled(factor)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._scale = 1.0
        super().__setstate__(state)
