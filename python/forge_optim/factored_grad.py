"""``FactoredGrad``: the gradient of a fused weight, as a tensor that is not multiplied out.

After a backward pass ``p.grad`` of a fused weight is a handle on scale · Σ dYᵀX. What training loops do with gradients
(clip, unscale, average, add, drop) is done on that expression. Every other operation is given the gradient multiplied
out, in memory that belongs to the handle: what is written there, through the handle or any view, is the gradient.
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from . import _C, user_line

aten = torch.ops.aten


class CollapseWarning(UserWarning):
    """An operation needed a gradient as a dense tensor, so that it takes the memory of one."""


class _NoMemory(torch.UntypedStorage):
    """The storage of a FactoredGrad, which tells its size and device; whoever reads or writes it gets an error."""

    def is_shared(self) -> bool:
        return False  # torch's own asks for the memory, and an error there ends the process

    def __reduce__(self):
        return self.data_ptr()  # raises; torch's own takes this class for no storage, and does not end


class FactoredGrad(torch.Tensor):
    """A gradient of the parameter's shape, dtype and device; made by backward, never by users.

    ``detach()``, ``.data`` and assignment share one gradient; ``clone()`` makes another. ``dense()`` gives the numbers.
    Reading the memory behind it directly (``data_ptr()``, also of its storage) raises: there may be none. Replacing it
    (``.data = value``, ``share_memory_()``) makes an ordinary tensor of it.
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
        handler = HANDLERS.get(func, on_dense)
        return handler(func, *args, **(kwargs or {}))

    # ---- What bypasses the dispatcher --------------------------------------------------------------------------------

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        """Makes an ordinary tensor of this one, on the memory of `value`, as module.half() and the like do."""
        if isinstance(value, FactoredGrad):
            if value._gradient is self._gradient:
                return  # module.cpu() and the like, where there is nothing to convert
            value = value._multiplied_out(".data = ")
        torch.Tensor.data.__set__(self, value)
        _C.make_ordinary(self)
        self.__class__ = torch.Tensor
        del self._gradient

    def untyped_storage(self) -> torch.UntypedStorage:
        storage = _C.unreadable_storage(self)
        storage.__class__ = _NoMemory
        return storage

    def data_ptr(self):
        return self.untyped_storage().data_ptr()  # raises

    const_data_ptr = data_ptr

    def share_memory_(self):
        if not self._gradient.spent:
            self.data = self._multiplied_out("share_memory_()").share_memory_()
        return self

    def numpy(self, *, force: bool = False):
        return self._multiplied_out("numpy()").numpy(force=force)

    def __array__(self, *args, **kwargs):
        return self._multiplied_out("__array__()").__array__(*args, **kwargs)

    def __dlpack__(self, *args, **kwargs):
        return self._multiplied_out("__dlpack__()").__dlpack__(*args, **kwargs)

    def tolist(self):
        return self._multiplied_out("tolist()").tolist()

    def _multiplied_out(self, reason: str) -> torch.Tensor:
        """As dense(), for those who did not ask for it: they hear that it takes memory."""
        if not self._gradient.exposed:
            _warn_once(reason)
        return self._gradient.expose(reason)

    def __copy__(self):
        return self.detach()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = self.clone()
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self._gradient.clone().expose("pickling").__reduce_ex__(protocol)  # leaves as an ordinary tensor

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"FactoredGrad({_describe(self._gradient)}, size={tuple(self.shape)}, dtype={self.dtype})"


def _describe(gradient: _C.Gradient) -> str:
    if gradient.spent:
        return "applied in backward"
    if gradient.exposed:
        return "dense"
    terms = " + ".join(f"{kind}[{tokens} tokens]" if tokens else kind for kind, tokens in gradient.terms)
    return terms if gradient.scale == 1 else f"{gradient.scale:g} · ({terms})"


# ---- Operations ----------------------------------------------------------------------------------------------------


HANDLERS = {}


def handles(*ops):
    def register(function):
        HANDLERS.update(dict.fromkeys(ops, function))
        return function

    return register


_warned_of = set()


def on_dense(func, *args, **kwargs):
    """The operation on the gradients multiplied out; results that are such a gradient are its handle again."""
    if torch.Tag.inplace_view in func.tags:
        _refuse(func)
    outs = [a.name for a in func._schema.arguments if a.is_out and isinstance(kwargs.get(a.name), FactoredGrad)]
    if outs and func.namespace == "aten":  # a collective's has its shape, and is written when that is waited for
        return _into_outs(func, outs, args, kwargs)
    owners = {}

    def multiplied_out(x):
        if not isinstance(x, FactoredGrad):
            return x
        dense = x._multiplied_out(str(func))
        return owners.setdefault(id(dense), (dense, x))[0]

    def handle(x):
        return owners[id(x)][1] if isinstance(x, torch.Tensor) and id(x) in owners else x

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


def _warn_once(operation: str) -> None:
    if operation in _warned_of:
        return
    _warned_of.add(operation)
    user_line.warn(
        f"{operation} needs a fused weight's gradient as a dense tensor: the result is right, and the gradient now "
        "takes the memory that it would take without fusing (said once for each operation)",
        CollapseWarning,
    )


@handles(aten.resize_.default, aten.resize_as_.default, *(getattr(aten.set_, name) for name in aten.set_.overloads()))
def _refuse(func, *args, **kwargs):
    raise RuntimeError(
        f"{func}: the shape and the memory of a FactoredGrad cannot be changed in place; assign to the parameter's "
        ".grad instead"
    )


from . import gradient_operations  # noqa: E402, F401  (fills HANDLERS)

_C.install(FactoredGrad)
