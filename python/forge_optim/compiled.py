"""The fused modules inside a graph of ``torch.compile``.

A graph has the weight itself as an input and asks for its record each time that backward runs. So one graph serves
blocks that are alike, an optimizer made later and no optimizer at all: then the gradient is an ordinary one. A graph
made before the weight's first optimizer is made again.

Supported is to compile what computes the forward pass, a model or parts of it, ``fullgraph=True`` or not. Where a
whole training step is compiled, ``backward()``, clipping and ``step()`` break the graph and run as they are; where
nothing may break (``fullgraph=True``, compiled autograd), torch raises. Raised is also, in backward: gradient hooks
that a weight got after its graph was made (earlier ones are served), ``torch.autograd.grad`` for a weight,
``create_graph=True``, and saved-tensor hooks that copy weights.

dY and X are copied, as a graph uses its memory again. With ``schedule="in_backward"`` the weights of one graph are
updated together, when its backward has run, so that their terms are there together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._device import DeviceContext

from . import _C

# ---- What a graph is made of -----------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    autocast = torch.is_autocast_enabled(x.device.type)
    fits = x.layout is torch.strided and (autocast or x.dtype == weight.dtype)
    if not fits or not _records(weight):
        return F.linear(x, weight.t() if transposed else weight, bias)
    if autocast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Linear.apply(x, weight, bias, _token, transposed)


def embedding(index: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    if index.layout is not torch.strided or not _records(weight):
        return F.embedding(index, weight, padding_idx if padding_idx >= 0 else None)
    return _Embedding.apply(weight, index, _token, padding_idx)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        # Not among the saved: the token is changed, and what is saved may not be.
        ctx.token, ctx.transposed = token, transposed
        # Cast here: autocast would keep its cast, and checkpointing take what it computes again for something else.
        W = weight.to(x.dtype)
        return F.linear(x, W.t() if transposed else W, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, dY: Tensor):
        x, weight, bias = ctx.saved_tensors
        left, right = dY.reshape(-1, dY.shape[-1]), x.reshape(-1, x.shape[-1])
        dX = db = None
        if ctx.needs_input_grad[0]:
            W = weight.to(dY.dtype)
            dX = dY @ (W.t() if ctx.transposed else W)
        if bias is not None and ctx.needs_input_grad[2]:
            db = left.sum(0).to(bias.dtype)
        if ctx.transposed:
            left, right = right, left  # (dYᵀX)ᵀ = XᵀdY
        torch.ops.forge.use_outer(ctx.token, weight, left, right)
        return dX, None, db, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, index: Tensor, token: Tensor, padding_idx: int) -> Tensor:
        ctx.save_for_backward(weight, index)
        ctx.token, ctx.padding_idx = token, padding_idx
        return F.embedding(index, weight)

    @staticmethod
    def backward(ctx, dY: Tensor):
        weight, index = ctx.saved_tensors
        values = dY.reshape(-1, dY.shape[-1])
        torch.ops.forge.use_rows(ctx.token, weight, index.reshape(-1), values, ctx.padding_idx)
        return None, None, None, None


# The operations below are said to change it, which keeps them in the graph, each as often as it was traced.
_token = torch.zeros(())

# An attribute of a weight that an optimizer has taken. Graphs are guarded by it; it stays when the optimizer goes.
_HELD = "_forge_held"


def note_held(parameter: Tensor) -> None:
    """To be called when an optimizer takes a parameter."""
    setattr(parameter, _HELD, True)


def _records(weight: Tensor) -> bool:
    trained = torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf
    return trained and getattr(weight, _HELD, False) and _has_record(weight) and not _has_modes()


def _has_modes() -> bool:
    """Whether a mode of the user's may make something else of F.linear."""
    modes = range(torch._C._len_torch_function_stack())
    return any(not isinstance(torch._C._get_function_stack_at(i), DeviceContext) for i in modes)


@torch.compiler.assume_constant_result
def _has_record(weight: Tensor) -> bool:
    transformed = torch._C._functorch.maybe_current_level() is not None
    usable = _C.has_kernels(weight.device.type) and weight.is_contiguous() and weight.numel() > 0
    return usable and not transformed and not _has_hooks(weight) and _C.is_recorded(weight)


# ---- What a graph does in backward -----------------------------------------------------------------------------------

_library = torch.library.Library("forge", "FRAGMENT")
_library.define("use_outer(Tensor(a!) token, Tensor weight, Tensor dY, Tensor X) -> ()")
_library.define("use_rows(Tensor(a!) token, Tensor weight, Tensor index, Tensor values, int padding_idx) -> ()")


@torch.library.impl(_library, "use_outer", "CompositeExplicitAutograd")
@torch._disable_dynamo
def _use_outer(token: Tensor, weight: Tensor, dY: Tensor, X: Tensor) -> None:
    if _is_wanted(weight) and not _C.record_outer(weight, dY, X):
        _accumulate(weight, dY.t() @ X)


@torch.library.impl(_library, "use_rows", "CompositeExplicitAutograd")
@torch._disable_dynamo
def _use_rows(token: Tensor, weight: Tensor, index: Tensor, values: Tensor, padding_idx: int) -> None:
    if _is_wanted(weight) and not _C.record_rows(weight, index, values, padding_idx):
        _accumulate(weight, torch.ops.aten.embedding_dense_backward(values, index, weight.shape[0], padding_idx, False))


@torch.library.impl(_library, "use_outer", "Meta")
@torch.library.impl(_library, "use_rows", "Meta")
def _use_nothing(*args) -> None:
    pass


def _is_wanted(weight: Tensor) -> bool:
    """Whether this backward pass is to reach the weight: a graph computes all gradients, asked for or not."""
    if not getattr(weight, _HELD, False):
        raise RuntimeError(
            "backward of a compiled graph got a copy of a weight, and its gradient would be lost; call "
            "forge_optim.unfuse(model) to use saved-tensor hooks that copy weights"
        )
    if not weight.requires_grad:
        return False
    if _has_hooks(weight):
        raise RuntimeError(
            f"the weight of shape {tuple(weight.shape)} got gradient hooks after its graph was compiled; call "
            "forge_optim.unfuse(module) to use them"
        )
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(weight).node)
    except RuntimeError as error:
        raise RuntimeError(
            "torch.autograd.grad for a weight whose gradient a compiled graph records is not supported; use "
            "backward(), or the model that is not compiled"
        ) from error


def _accumulate(weight: Tensor, dW: Tensor) -> None:
    """What autograd does with an ordinary gradient."""
    if weight.grad is None:
        weight.grad = dW.to(weight.dtype)
    else:
        weight.grad.add_(dW.to(weight.dtype))


def _has_hooks(weight: Tensor) -> bool:
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)
