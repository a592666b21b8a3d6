"""torch's FLOP counter sees the product of a weight gradient that an update computes."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

USES = {
    "a layer": lambda m, x: m(x),
    "twice": lambda m, x: m(x) + m(2 * x),
    "transposed": lambda m, x: F.linear(m(x), m.weight.t()),
    "@": lambda m, x: x @ m.weight.t(),
    "from the left": lambda m, x: m.weight @ x.transpose(-1, -2),
    "in bf16": lambda m, x: F.linear(x.bfloat16(), m.weight.bfloat16()),
}


@pytest.mark.parametrize("schedule", ["at_step", "in_backward"])
@pytest.mark.parametrize("shape", [(16, 64), (2, 5, 64), (1, 64)])
@pytest.mark.parametrize("use", USES)
def test_a_backward_counts_as_torchs(use, shape, schedule):
    counts = []
    for held in (False, True):
        layer = nn.Linear(64, 32, bias=False)
        optimizer = forge.SGD(layer, lr=0.1, schedule=schedule) if held else None
        with FlopCounterMode(display=False) as counter:
            USES[use](layer, torch.ones(shape, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
        del optimizer
    assert counts[1] == counts[0] > 0
