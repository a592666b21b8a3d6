"""A small bf16 model whose moments and weights are kept in every format."""

import pytest
import torch
import torch.nn.functional as F
from models import forge, train
from rule_cases import moments_of
from torch import nn

STATES = ("fp32", "bf16", "bf16_stochastic", "int8", "fp8")
WEIGHTS = ("bf16", "bf16_stochastic", "bf16_plus8", "bf16_plus16")
VALUES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "bf16_stochastic": (torch.bfloat16, torch.bfloat16),
    "int8": (torch.int8, torch.uint8),
    "fp8": (torch.float8_e4m3fn, torch.float8_e4m3fn),
}
PAIRS = [
    ("int8", "bf16_plus8"),
    ("int8", "bf16_stochastic"),
    ("fp8", "bf16_plus16"),
    ("bf16", "bf16"),
    ("fp32", "bf16"),
]
states = pytest.mark.parametrize("state", STATES)
weights = pytest.mark.parametrize("weight", WEIGHTS)
pairs = pytest.mark.parametrize("state, weight", PAIRS)

VOCABULARY, WIDTH = 96, 64


class Net(nn.Module):
    """An embedding and two matrices of more than 4,096 elements, a small matrix, and vectors."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 100), nn.Linear(100, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 20)

    def forward(self, ids):
        x = self.embedding(ids)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


def net(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return Net().to(dtype)


def ids(seed):
    return torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(seed))


def loss(model, ids):
    return F.cross_entropy(model(ids).float().flatten(0, 1), (ids * 7 % 20).flatten())


def adamw(model, **options):
    return forge.AdamW(model, **dict(lr=1e-2, weight_decay=0.1) | options)


def trained(steps=3, model=None, **options):
    model = net() if model is None else model
    optimizer = adamw(model, **options)
    train(model, optimizer, steps=steps, loss=loss, data=ids)
    return model, optimizer


def kept(optimizer, p):
    return {key: (x.dtype, tuple(x.shape)) for key, x in moments_of(optimizer, p).items()}


def expected(p, state):
    """Of AdamW's two moments, the second of which cannot be negative."""
    first, second = VALUES[state]
    keys = {"exp_avg": (first, tuple(p.shape)), "exp_avg_sq": (second, tuple(p.shape))}
    if state in ("int8", "fp8"):
        blocks = (torch.bfloat16, (p.shape[0], -(-p.shape[1] // 32)))
        keys |= {"exp_avg_scale": blocks, "exp_avg_sq_scale": blocks}
    return keys


def same_moments(one, p, other, q):
    """Bit for bit; fp8 has no comparison of its own."""
    mine, its = moments_of(one, p), moments_of(other, q)
    return mine.keys() == its.keys() and all(
        torch.equal(mine[key].view(torch.uint8), its[key].view(torch.uint8)) for key in mine
    )
