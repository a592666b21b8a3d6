"""Two equal trainings, one with fused weights and one as torch has it, to which the same lines are done."""

import ast
import copy
import io
import pickle

import forge_optim as forge
import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

OUT, IN = 8, 9


def lines(text):
    """Those of a text that are not empty."""
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def whole(seed, *shape, dtype=torch.float32):
    """Small whole numbers: with them gradients and updates are exact, whatever the order of the sums."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Net(nn.Module):
    """Two fused weights of one shape, p and q, and a bias b."""

    def __init__(self, kind, dtype):
        super().__init__()
        if kind == "linear":
            self.first, self.second = nn.Linear(IN, OUT), nn.Linear(IN, OUT, bias=False)
        else:
            self.first, self.second = nn.Embedding(OUT, IN), nn.Embedding(OUT, IN)
            self.bias = nn.Parameter(torch.empty(IN))
        self.kind = kind
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(whole(seed, *parameter.shape))
        self.to(dtype)

    def forward(self, x):
        if self.kind == "linear":
            return self.first(x), self.second(x)
        return self.first(x) + self.bias, self.second(x)


class Side:
    def __init__(self, fused, kind="linear", dtype=torch.float32, **options):
        self.fused, self.dtype, self.options = fused, dtype, options
        self.model = Net(kind, dtype)
        self.p, self.q = self.model.first.weight, self.model.second.weight
        self.b = self.model.first.bias if kind == "linear" else self.model.bias
        if fused:
            forge.fuse(self.model, verbose=False)
            self.opt = forge.SGD(self.model.named_parameters(), lr=1.0, **options)
        else:
            self.opt = torch.optim.SGD(self.model.named_parameters(), lr=1.0)
        self.held = []

    def backward(self, seed, tokens=2):
        if self.model.kind == "linear":
            x = whole(seed, tokens, IN, dtype=self.dtype)
        else:
            x = whole(seed, tokens).long().abs()
        first, second = self.model(x)
        dY = whole(seed + 100, *first.shape, dtype=self.dtype), whole(seed + 200, *second.shape, dtype=self.dtype)
        ((first * dY[0]).sum() + (second * dY[1]).sum()).backward()

    def do(self, line):
        """Runs a line of Python on the names below; returns what its last expression gives."""
        names = {
            "torch": torch, "np": np, "OUT": OUT, "IN": IN, "copy": copy, "pickle": pickle, "io": io, "nn": nn,
            "model": self.model, "opt": self.opt, "p": self.p, "q": self.q, "b": self.b,
            "g": self.p.grad, "h": self.q.grad, "v": self.b.grad,
            "d": whole(7, OUT, IN, dtype=self.dtype), "e": whole(8, OUT, IN, dtype=self.dtype) + 0.5,
            "mask": whole(9, OUT, IN) > 0, "held": self.held, "backward": self.backward,
        }  # fmt: skip
        tree = ast.parse(line)
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        torch.default_generator.manual_seed(0)  # the CPU's alone: torch.manual_seed takes 3 ms
        exec(compile(tree, line, "exec"), names)
        return eval(compile(last, line, "eval"), names) if last else None

    def gradients(self):
        return [parameter.grad for parameter in self.model.parameters()]

    def weights(self):
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def numbers(x):
    """The value of a gradient; looking does not change how it is kept."""
    x = x.clone() if isinstance(x, forge.FactoredGrad) else x
    return x.dense() if isinstance(x, forge.FactoredGrad) else x


def assert_same(of_fused, of_plain, ulps=0):
    """Equal trees; tensors bit for bit, or to so many ulps of their largest value."""
    (ours, our_tree), (theirs, their_tree) = tree_flatten(of_fused), tree_flatten(of_plain)
    assert our_tree == their_tree
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            assert isinstance(a, torch.Tensor)
            a, b = numbers(a).detach(), b.detach()
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            tolerance = 0.0
            if ulps and b.numel() and b.is_floating_point():
                tolerance = ulps * torch.finfo(b.dtype).eps * b.double().nan_to_num(0, 0, 0).abs().max().item()
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance, equal_nan=True)
        elif isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif isinstance(b, float):
            assert abs(a - b) <= ulps * torch.finfo(torch.float32).eps * abs(b) or a == b
        elif isinstance(b, (int, bool, str, bytes, type(None), torch.Size, torch.dtype)):
            assert a == b
        else:
            assert type(a) is type(b)
