"""Tiny models, their data and the comparison with torch that the tests of the Python package share."""

from __future__ import annotations

import copy
import functools
import io
import warnings

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

VOCABULARY, WIDTH = 40, 24

# What training may differ by, relative: DESIGN.md, contract 8.
LOSS_BOUND = 1e-5
WEIGHT_BOUND = {"AdamW": 3e-4, "SGD": 1e-6}

RULES = {
    "AdamW": dict(cls="AdamW", lr=1e-2, weight_decay=0.1),
    "SGD": dict(cls="SGD", lr=0.1, momentum=0.9, weight_decay=0.01),
}
SCHEDULES = ("at_step", "in_backward")
schedules = pytest.mark.parametrize("schedule", SCHEDULES)
rules = pytest.mark.parametrize("rule", RULES)

# What a weight says that would be updated a second time inside backward.
SECOND_UPDATE = "again before step|applied inside backward"

torch_clip = torch.nn.utils.clip_grad_norm_


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, conv1d: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = _conv1d(2 * width, width) if conv1d else nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def _conv1d(out: int, width: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(out, width)


class Text(nn.Module):
    """An embedding with a padding row, blocks and a head, tied to the embedding where `tied`."""

    def __init__(self, tied: bool = True, blocks: int = 2, conv1d: bool = False, checkpoint: str | None = None) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.blocks = nn.ModuleList(Block(conv1d=conv1d) for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            if self.checkpoint:
                x = checkpoint(block, x, use_reentrant=self.checkpoint == "reentrant")
            else:
                x = block(x)
        return self.head(self.norm(x))


def text(seed: int = 0, **kwargs) -> Text:
    torch.manual_seed(seed)
    return Text(**kwargs)


def tokens(seed: int, batch: int = 2, length: int = 5) -> Tensor:
    """Token ids, of which some are padding."""
    drawn = torch.randint(1, VOCABULARY, (batch, length + 1), generator=torch.Generator().manual_seed(seed))
    drawn[:, -2:] *= torch.arange(batch).unsqueeze(1) % 2
    return drawn


def text_loss(model: nn.Module, ids: Tensor) -> Tensor:
    scores = model(ids[:, :-1]).float()
    return F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16, bias=False), nn.Tanh(), nn.Linear(16, 7))


def points(seed: int, count: int = 5) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def mlp_loss(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x).float()
    return (y.square().mean(1) * torch.linspace(0.5, 2, len(y))).sum()


def square_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


KINDS = {
    "tied": text,
    "untied": functools.partial(text, tied=False),
    "with transformers' Conv1D": functools.partial(text, conv1d=True),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> nn.Module:
    if "Conv1D" in kind:
        pytest.importorskip("transformers")
    return KINDS[kind]()


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is for."""
    return [p for p in model.parameters() if p.dim() == 2]


def torch_optimizer(cls: str, params, **kwargs) -> torch.optim.Optimizer:
    if isinstance(params, nn.Module):
        params = matrices(params) if cls == "Muon" else params.parameters()
    return getattr(torch.optim, cls)(params, **copy.deepcopy(kwargs))


def forge_optimizer(cls: str, params, **kwargs) -> forge.FusedOptimizer:
    if cls == "Muon" and isinstance(params, nn.Module):
        forge.fuse(params, verbose=False)
        params = matrices(params)
    return getattr(forge, cls)(params, **copy.deepcopy(kwargs))


def both(model: nn.Module, cls: str, schedule: str = "at_step", **kwargs):
    """(unfused model, torch's optimizer), (fused copy, ours)."""
    ours = copy.deepcopy(model)
    return (
        (model, torch_optimizer(cls, model, **kwargs)),
        (ours, forge_optimizer(cls, ours, schedule=schedule, **kwargs)),
    )


def train(
    model, optimizer, *, first=0, steps=5, micro=1, loss=text_loss, data=tokens, before_step=None, after_step=None
):
    """Steps of training, step i on `micro` batches of their own; returns the losses."""
    losses = []
    for i in range(first, first + steps):
        optimizer.zero_grad()
        for k in range(i * micro, (i + 1) * micro):
            value = loss(model, data(k))
            (value / micro).backward()
            losses.append(value.item())
        if before_step:
            before_step(i)
        optimizer.step()
        if after_step:
            after_step(i)
    return losses


train_mlp = functools.partial(train, loss=mlp_loss, data=points)


def difference(ours, theirs) -> float:
    """‖W − W′‖ / ‖W′‖ over all parameters."""
    ours, theirs = ([p.detach().double() for p in _parameters(x)] for x in (ours, theirs))
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    distance = sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True))
    return (distance / sum(b.square().sum() for b in theirs)).sqrt().item()


def _parameters(x):
    return x.parameters() if isinstance(x, nn.Module) else x


def assert_same_weights(ours, theirs, rule: str = "AdamW") -> None:
    off = difference(ours, theirs)
    assert off <= WEIGHT_BOUND.get(rule, WEIGHT_BOUND["AdamW"]), f"weights differ by {off:.2g}"


def assert_same_losses(ours, theirs) -> None:
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=LOSS_BOUND, atol=0)


def train_both(pairs, rule: str, **kwargs) -> None:
    (theirs, their_opt), (ours, our_opt) = pairs
    their_losses = train(theirs, their_opt, **kwargs)
    assert_same_losses(train(ours, our_opt, **kwargs), their_losses)
    assert_same_weights(ours, theirs, rule)


def assert_equal_bits(ours, theirs) -> None:
    for a, b in zip(_parameters(ours), _parameters(theirs), strict=True):
        assert torch.equal(a, b)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer):
    """Every weight and all state, copied."""
    return copy.deepcopy([p.detach() for p in model.parameters()]), copy.deepcopy(optimizer.state_dict()["state"])


def assert_unchanged(model: nn.Module, optimizer: torch.optim.Optimizer, before) -> None:
    weights, state = before
    assert_equal_bits([p.detach() for p in model.parameters()], weights)
    now = optimizer.state_dict()["state"]
    assert now.keys() == state.keys()
    for i in state:
        assert now[i].keys() == state[i].keys()
        for key in state[i]:
            assert torch.equal(torch.as_tensor(now[i][key]), torch.as_tensor(state[i][key])), key


def is_factored(*parameters: Tensor) -> bool:
    """Every gradient is recorded and not multiplied out for a user."""
    return all(isinstance(p.grad, forge.FactoredGrad) and not p.grad._gradient.exposed for p in parameters)


def quietly(function, *args, **kwargs):
    """Without this package's warning that a gradient was multiplied out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", forge.CollapseWarning)
        return function(*args, **kwargs)


def through_a_file(value: object) -> object:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
