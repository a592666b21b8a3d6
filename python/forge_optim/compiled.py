"""The fused modules inside a graph of ``torch.compile``.

A graph cannot carry a pointer, so a weight's record goes by its number, and the operation that records dY and X goes by
a token that it is said to change, which keeps it in the graph and in order. The number is read when the graph is made;
that is when an optimizer must hold the weight, else the graph computes an ordinary gradient, which is right as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _C

_tokens: dict[torch.device, Tensor] = {}


@torch.compiler.assume_constant_result
def _record_id(weight: Tensor) -> int:
    return _C.record_id(weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, token: Tensor, record: int, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Not among the saved: the token is changed, and what is saved may not be.
        ctx.token, ctx.record, ctx.transposed = token, record, transposed
        weight = weight.to(x.dtype)
        return F.linear(x, weight.t() if transposed else weight)

    @staticmethod
    def backward(ctx, dY: Tensor):
        x, weight = ctx.saved_tensors
        weight = weight.to(dY.dtype)
        dX = dY @ (weight.t() if ctx.transposed else weight) if ctx.needs_input_grad[0] else None
        left, right = dY.reshape(-1, dY.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.transposed:
            left, right = right, left
        torch.ops.forge.record_outer(ctx.token, left, right, ctx.record)
        return dX, None, None, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, index: Tensor, token: Tensor, record: int, padding_idx: int) -> Tensor:
        ctx.save_for_backward(index)
        ctx.token, ctx.record, ctx.padding_idx = token, record, padding_idx
        return F.embedding(index, weight)

    @staticmethod
    def backward(ctx, dY: Tensor):
        (index,) = ctx.saved_tensors
        index, values = index.reshape(-1), dY.reshape(-1, dY.shape[-1])
        if ctx.padding_idx >= 0:
            values = values * (index != ctx.padding_idx).unsqueeze(1)
        torch.ops.forge.record_rows(ctx.token, index, values, ctx.record)
        return None, None, None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    record = _record_of(weight)
    if not record:
        return F.linear(x, weight.t() if transposed else weight, bias)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y = _Linear.apply(x, weight, _token(x.device), record, transposed)
    return y if bias is None else y + bias.to(y.dtype)


def embedding(index: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    record = _record_of(weight)
    if not record:
        return F.embedding(index, weight, padding_idx if padding_idx >= 0 else None)
    return _Embedding.apply(weight, index, _token(index.device), record, padding_idx)


def _record_of(weight: Tensor) -> int:
    return _record_id(weight) if torch.is_grad_enabled() and weight.requires_grad else 0


def _token(device: torch.device) -> Tensor:
    return _tokens[device]


_tokens[torch.device("cpu")] = torch.zeros(())
