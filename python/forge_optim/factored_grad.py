"""``FactoredGrad``: the gradient of a fused weight, as a tensor that is not multiplied out.

After a backward pass ``p.grad`` of a fused weight is a handle on scale · Σ dYᵀX. What training loops do with gradients
(clip, unscale, average, add, drop) is done on that expression. Every other operation is given the gradient multiplied
out, in memory that belongs to the handle: what is written there, through the handle or any view, is the gradient.
"""

from __future__ import annotations

import warnings

import torch
from torch.utils._pytree import tree_map

from . import _C

aten = torch.ops.aten


class CollapseWarning(UserWarning):
    """An operation needed a gradient as a dense tensor, so that it takes the memory of one."""


class FactoredGrad(torch.Tensor):
    """A gradient of the parameter's shape, dtype and device; made by backward, never by users.

    ``detach()``, ``.data`` and assignment share one gradient; ``clone()`` makes another. ``dense()`` gives the numbers.
    Reading the memory behind it directly (``data_ptr()``, ``untyped_storage()``) raises: there may be none.
    """

    _gradient: _C.Gradient

    @staticmethod
    def __new__(cls, gradient: _C.Gradient, like: torch.Tensor) -> FactoredGrad:
        return _C.make_handle(cls, gradient, like)

    def __init__(self, gradient: _C.Gradient, like: torch.Tensor) -> None:
        pass

    def dense(self) -> torch.Tensor:
        """The gradient multiplied out, an ordinary tensor. Writing to it changes the gradient."""
        return self._gradient.expose("dense()")

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        handler = _HANDLERS.get(func, _on_dense)
        return handler(func, *args, **(kwargs or {}))

    # ---- What bypasses the dispatcher --------------------------------------------------------------------------------

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        if isinstance(value, FactoredGrad) and value._gradient is self._gradient:
            return  # module.cpu() and the like, where there is nothing to move
        raise RuntimeError("the .data of a FactoredGrad cannot be replaced; assign to the parameter's .grad instead")

    def data_ptr(self):
        raise RuntimeError(_NO_MEMORY.format("data_ptr()"))

    def const_data_ptr(self):
        raise RuntimeError(_NO_MEMORY.format("const_data_ptr()"))

    def untyped_storage(self):
        if torch._guards.TracingContext.try_get() is not None:
            # torch.compile describes the .grad of each parameter that a graph uses, and does not look inside.
            return torch.empty(self.shape, dtype=self.dtype, device="meta").untyped_storage()
        raise RuntimeError(_NO_MEMORY.format("untyped_storage()"))

    def storage(self):
        raise RuntimeError(_NO_MEMORY.format("storage()"))

    def numpy(self, *, force: bool = False):
        return self.dense().numpy(force=force)

    def __array__(self, *args, **kwargs):
        return self.dense().__array__(*args, **kwargs)

    def __dlpack__(self, *args, **kwargs):
        return self.dense().__dlpack__(*args, **kwargs)

    def tolist(self):
        return self.dense().tolist()

    def __copy__(self):
        return self.detach()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = self.clone()
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.dense().detach().clone().__reduce_ex__(protocol)  # leaves the process as an ordinary tensor

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"FactoredGrad({_describe(self._gradient)}, size={tuple(self.shape)}, dtype={self.dtype})"


_NO_MEMORY = (
    "{} of a FactoredGrad: it is not multiplied out and has no memory of its own; take p.grad.dense() for a tensor "
    "that has"
)


def _describe(gradient: _C.Gradient) -> str:
    if gradient.spent:
        return "applied in backward"
    if gradient.exposed:
        return "dense"
    terms = " + ".join(f"{kind}[{tokens} tokens]" if tokens else kind for kind, tokens in gradient.terms)
    return terms if gradient.scale == 1 else f"{gradient.scale:g} · ({terms})"


# ---- Operations on the expression ------------------------------------------------------------------------------------


_HANDLERS = {}


def _handles(*ops):
    def register(function):
        _HANDLERS.update(dict.fromkeys(ops, function))
        return function

    return register


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


@_handles(aten.detach.default, aten.alias.default)
def _share(func, t):
    return FactoredGrad(t._gradient, t)


@_handles(aten.clone.default)
def _clone(func, t, *, memory_format=None):
    return FactoredGrad(t._gradient.clone(), t) if _is_factored(t) else _on_dense(func, t, memory_format=memory_format)


@_handles(aten.mul_.Tensor, aten.mul_.Scalar, aten.div_.Tensor, aten.div_.Scalar)
def _scale_(func, t, factor):
    number = _as_factor(factor) if _is_factored(t) else None
    divides = func in (aten.div_.Tensor, aten.div_.Scalar)
    if number is None or (divides and _is_zero(number)):
        return _on_dense(func, t, factor)
    t._gradient.mul_(1 / number if divides else number)
    return t


def _is_zero(number: float | torch.Tensor) -> bool:
    """As far as the host knows."""
    return not isinstance(number, torch.Tensor) and number == 0


@_handles(aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
def _scale(func, t, factor):
    number = _as_factor(factor) if _is_factored(t) else None
    if number is None or _is_zero(number):
        return _on_dense(func, t, factor)
    return _scale_(getattr(aten, func.overloadpacket.__name__ + "_").Scalar, t.clone(), number)


@_handles(aten.neg_.default)
def _negate_(func, t):
    return _scale_(aten.mul_.Scalar, t, -1)


@_handles(aten.zero_.default)
def _zero_(func, t):
    if not t._gradient.exposed:
        t._gradient.zero_()
        return t
    return _on_dense(func, t)


@_handles(aten.add_.Tensor, aten.sub_.Tensor)
def _add_(func, t, other, *, alpha=1):
    if not (isinstance(t, FactoredGrad) and isinstance(other, FactoredGrad) and t.shape == other.shape):
        return _on_dense(func, t, other, alpha=alpha)
    t._gradient.add_(other._gradient, -alpha if func is aten.sub_.Tensor else alpha)
    return t


@_handles(aten.copy_.default)
def _copy_(func, t, source, non_blocking=False):
    if _is_factored(t) and not isinstance(source, FactoredGrad):
        source.expand(t.shape)  # raises where that cannot be
        t._gradient.zero_()  # what is overwritten need not be multiplied out
    return _on_dense(func, t, source, non_blocking)


@_handles(aten.linalg_vector_norm.default)
def _vector_norm(func, t, ord=2, dim=None, keepdim=False, *, dtype=None):
    if not _is_factored(t) or ord != 2 or dim or keepdim:
        return _on_dense(func, t, ord, dim, keepdim, dtype=dtype)
    return t._gradient.sum_squares().sqrt().to(dtype or t.dtype)


@_handles(aten._foreach_norm.Scalar)
def _foreach_norm(func, tensors, ord=2, dtype=None):
    return [torch.linalg.vector_norm(t, ord, dtype=dtype) for t in tensors]


@_handles(aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor, aten._foreach_div_.Scalar, aten._foreach_div_.Tensor)
def _foreach_scale_(func, tensors, factor):
    scale_ = torch.Tensor.mul_ if func in (aten._foreach_mul_.Scalar, aten._foreach_mul_.Tensor) else torch.Tensor.div_
    for t in tensors:
        scale_(t, factor)


@_handles(aten._foreach_zero_.default)
def _foreach_zero_(func, tensors):
    for t in tensors:
        t.zero_()


@_handles(aten._amp_foreach_non_finite_check_and_unscale_.default)
def _unscale_(func, tensors, found_inf, inv_scale):
    """What GradScaler does: found_inf becomes 1 where an element is not finite; all are multiplied by inv_scale."""
    ordinary = [t for t in tensors if not _is_factored(t)]
    if ordinary:
        _on_dense(func, ordinary, found_inf, inv_scale)
    for t in filter(_is_factored, tensors):
        found_inf.masked_fill_(~t._gradient.finite(), 1)
        t._gradient.mul_(inv_scale)


@_handles(
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


@_handles(aten.resize_.default, aten.resize_as_.default, *(getattr(aten.set_, name) for name in aten.set_.overloads()))
def _refuse(func, *args, **kwargs):
    raise RuntimeError(
        f"{func}: the shape and the memory of a FactoredGrad cannot be changed in place; assign to the parameter's "
        ".grad instead"
    )


# ---- Every other operation -------------------------------------------------------------------------------------------


_warned_of = set()


def _on_dense(func, *args, **kwargs):
    """The operation on the gradients multiplied out; results that are such a gradient are its handle again."""
    if torch.Tag.inplace_view in func.tags:
        _refuse(func)
    outs = [a.name for a in func._schema.arguments if a.is_out and isinstance(kwargs.get(a.name), FactoredGrad)]
    if outs and func.namespace == "aten":  # a collective's has its shape, and is written when that is waited for
        return _into_outs(func, outs, args, kwargs)
    handles = {}

    def multiplied_out(x):
        if not isinstance(x, FactoredGrad):
            return x
        if not x._gradient.exposed:
            _warn_once(func)
        dense = x._gradient.expose(str(func))
        return handles.setdefault(id(dense), (dense, x))[0]

    def handle(x):
        return handles[id(x)][1] if isinstance(x, torch.Tensor) and id(x) in handles else x

    args, kwargs = tree_map(multiplied_out, (args, kwargs))
    return tree_map(handle, func(*args, **kwargs))


def _into_outs(func, names, args, kwargs):
    """For out=, which torch would give another shape where the result has one."""
    fresh = {name: torch.empty(0, dtype=kwargs[name].dtype) for name in names}
    func(*args, **(kwargs | fresh))
    for name, result in fresh.items():
        if result.shape != kwargs[name].shape:
            _refuse(func)
    for name, result in fresh.items():
        kwargs[name].copy_(result)
    results = [kwargs[a.name] for a in func._schema.arguments if a.is_out]
    return results[0] if len(results) == 1 else tuple(results)


def _warn_once(func) -> None:
    if func in _warned_of:
        return
    _warned_of.add(func)
    warnings.warn(
        f"{func} needs a fused weight's gradient as a dense tensor: the result is right, and the gradient now takes "
        "the memory that it would take without fusing (said once for each operation)",
        CollapseWarning,
        stacklevel=4,
    )


_C.install(FactoredGrad)
