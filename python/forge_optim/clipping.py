"""``clip_grad_norm_`` that computes all norms in one call; the unmodified one of torch gives the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import _C


@torch.no_grad()
def clip_grad_norm_(
    parameters: nn.Module | Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales all gradients together so that their norm is at most ``max_norm``; returns the norm before that, fp32.

    Of fused weights only the scale of the expression changes. The host waits for no device, unless
    ``error_if_nonfinite``. RuntimeError where gradients were applied in backward.
    """
    if isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    ordinary = all(not hasattr(p, "to_local") and _C.has_kernels(p.device.type) for p in parameters)
    if norm_type != 2 or not ordinary:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    norm = _C.clip_grad_norm_(parameters, max_norm, error_if_nonfinite)
    return norm.to(parameters[0].device if parameters else None, torch.float32)
