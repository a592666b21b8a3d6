"""What training loops do to ``p.grad`` of a fused weight, done on the expression scale · Σ dYᵀX."""

from __future__ import annotations

import torch

from .factored_grad import FactoredGrad, handles, on_dense

aten = torch.ops.aten


def _is_factored(t) -> bool:
    """True for a handle whose gradient is an expression still, and not a tensor that may have views."""
    return isinstance(t, FactoredGrad) and not t._gradient.exposed


def _as_factor(x) -> float | torch.Tensor | None:
    """A number of the host's, or of a device's in fp64, for which nobody waits."""
    if isinstance(x, (int, float)):
        return float(x)
    if not isinstance(x, torch.Tensor) or x.dim() != 0 or x.is_complex():
        return None
    return float(x) if x.device.type == "cpu" else x.double()


@handles(aten.detach.default, aten.alias.default)
def _share(func, t):
    return FactoredGrad(t._gradient, t)


@handles(aten.clone.default)
def _clone(func, t, *, memory_format=None):
    return FactoredGrad(t._gradient.clone(), t) if _is_factored(t) else on_dense(func, t, memory_format=memory_format)


@handles(aten.mul_.Tensor, aten.mul_.Scalar, aten.div_.Tensor, aten.div_.Scalar)
def _scale_(func, t, factor):
    number = _as_factor(factor) if _is_factored(t) else None
    divides = func in (aten.div_.Tensor, aten.div_.Scalar)
    if number is None or (divides and _is_zero(number)):
        return on_dense(func, t, factor)
    t._gradient.mul_(1 / number if divides else number)
    return t


def _is_zero(number: float | torch.Tensor) -> bool:
    """As far as the host knows."""
    return not isinstance(number, torch.Tensor) and number == 0


@handles(aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
def _scale(func, t, factor):
    number = _as_factor(factor) if _is_factored(t) else None
    if number is None or _is_zero(number):
        return on_dense(func, t, factor)
    return _scale_(getattr(aten, func.overloadpacket.__name__ + "_").Scalar, t.clone(), number)


@handles(aten.neg_.default)
def _negate_(func, t):
    return _scale_(aten.mul_.Scalar, t, -1)


@handles(aten.zero_.default)
def _zero_(func, t):
    if not t._gradient.exposed:
        t._gradient.zero_()
        return t
    return on_dense(func, t)


@handles(aten.add_.Tensor, aten.sub_.Tensor)
def _add_(func, t, other, *, alpha=1):
    if not (isinstance(t, FactoredGrad) and isinstance(other, FactoredGrad) and t.shape == other.shape):
        return on_dense(func, t, other, alpha=alpha)
    t._gradient.add_(other._gradient, -alpha if func is aten.sub_.Tensor else alpha)
    return t


@handles(aten.copy_.default)
def _copy_(func, t, source, non_blocking=False):
    if _is_factored(t) and not isinstance(source, FactoredGrad):
        source.expand(t.shape)  # raises where that cannot be
        t._gradient.zero_()  # what is overwritten need not be multiplied out
    return on_dense(func, t, source, non_blocking)


@handles(aten.linalg_vector_norm.default)
def _vector_norm(func, t, ord=2, dim=None, keepdim=False, *, dtype=None):
    if not _is_factored(t) or ord != 2 or dim or keepdim:
        return on_dense(func, t, ord, dim, keepdim, dtype=dtype)
    return t._gradient.sum_squares().sqrt().to(dtype or t.dtype)


@handles(aten._foreach_norm.Scalar)
def _foreach_norm(func, tensors, ord=2, dtype=None):
    return [torch.linalg.vector_norm(t, ord, dtype=dtype) for t in tensors]


@handles(aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor, aten._foreach_div_.Scalar, aten._foreach_div_.Tensor)
def _foreach_scale_(func, tensors, factor):
    scale_ = torch.Tensor.mul_ if func in (aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor) else torch.Tensor.div_
    for t in tensors:
        scale_(t, factor)


@handles(aten._foreach_zero_.default)
def _foreach_zero_(func, tensors):
    for t in tensors:
        t.zero_()


@handles(aten._amp_foreach_non_finite_check_and_unscale_.default)
def _unscale_(func, tensors, found_inf, inv_scale):
    """What GradScaler does: found_inf becomes 1 where an element is not finite; all are multiplied by inv_scale."""
    ordinary = [t for t in tensors if not _is_factored(t)]
    if ordinary:
        on_dense(func, ordinary, found_inf, inv_scale)
    for t in filter(_is_factored, tensors):
        found_inf.masked_fill_(~t._gradient.finite(), 1)
        t._gradient.mul_(inv_scale)


@handles(
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)
def _like(func, t, *args, **kwargs):
    """Only the shape, dtype and device are asked for."""
    return func(torch.empty((), dtype=t.dtype, device=t.device).expand(t.shape), *args, **kwargs)


@handles(aten._to_copy.default)
def _convert(func, t, **options):
    """A gradient that was applied in backward is gone in any dtype, and on the meta device there are no numbers."""
    if t._gradient.spent:
        return t
    device = options.get("device")
    return (_like if device is not None and device.type == "meta" else on_dense)(func, t, **options)


@handles(aten.isnan.default, aten.isinf.default, aten.isposinf.default, aten.isneginf.default, aten.isfinite.default)
def _mask_of_kind(func, t):
    """Where all is finite, which dY and X tell, there is nothing to multiply out for."""
    if not _is_factored(t) or not t._gradient.finite():
        return on_dense(func, t)
    return torch.full(t.shape, func is aten.isfinite.default, dtype=torch.bool, device=t.device)
