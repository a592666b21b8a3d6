"""Schedule-Free optimizers: the weights of training and those of evaluation."""

import copy

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import assert_equal_bits, difference, mlp, train_mlp  # noqa: E402
from rule_cases import ours_of  # noqa: E402
from torch import nn  # noqa: E402

FREE = {
    "ScheduleFreeAdamW": dict(lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, warmup_steps=3),
    "ScheduleFreeSGD": dict(lr=0.1, momentum=0.8, weight_decay=0.1, r=1.0),
}


def average_of_the_authors(cls, start, o, gradients):
    """x as the paper defines it: an average of the z that are stepped, γ-weighted; in float64."""
    x = z = start.double()
    beta = o["betas"][0] if "betas" in o else o["momentum"]
    weights, largest, v = 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        y = beta * x + (1 - beta) * z
        u = g.double()
        if "betas" in o:
            v = o["betas"][1] * v + (1 - o["betas"][1]) * u * u
            u = u / ((v / (1 - o["betas"][1] ** t)).sqrt() + 1e-8)
        rate = o["lr"] * min(1, t / o.get("warmup_steps", 1))
        z = z - rate * (u + o["weight_decay"] * y)
        largest = max(largest, rate)
        weight = t ** o.get("r", 0) * largest**2
        weights += weight
        x = x + weight / weights * (z - x)
    return x


@pytest.mark.parametrize(
    "weights, formats, bound",
    [
        (torch.float32, {}, 2**-21),
        (torch.float32, dict(state_format="int8"), 2**-9),
        (torch.bfloat16, dict(state_format="fp32", weight_format="bf16_plus16"), 2**-8),
        (torch.bfloat16, dict(state_format="fp32", weight_format="bf16_plus8"), 2**-8),
    ],
)
@pytest.mark.filterwarnings("ignore:no parameter belongs to a fused module")
@pytest.mark.parametrize("cls", FREE)
def test_eval_shows_the_average_and_train_goes_back(cls, weights, formats, bound):
    start = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).to(weights)
    given = [torch.randn(64, 64, generator=torch.Generator().manual_seed(t)).to(weights) for t in range(10, 15)]
    p, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, straight = (getattr(forge, cls)([{"params": q}], **FREE[cls], **formats) for q in (p, other))
    straight.train()
    for t, g in enumerate(given):
        optimizer.train()
        for q, o in ((p, optimizer), (other, straight)):
            q.grad = g.clone()
            o.step()
        trained = p.detach().clone()
        optimizer.eval()
        optimizer.eval()  # a second time is none
        torch.testing.assert_close(
            p.detach().double(), average_of_the_authors(cls, start, FREE[cls], given[: t + 1]), rtol=bound, atol=bound
        )
        assert t == 0 or not torch.equal(p, trained)
    optimizer.train()
    # Also where bf16 alone shows 8 bits: what it drops went along.
    full = [whole_weight(q, o) for q, o in ((p, optimizer), (other, straight))]
    left = 2**-14 if "plus8" in formats.get("weight_format", "") else 2**-21
    torch.testing.assert_close(*full, rtol=left, atol=left)


def whole_weight(p, optimizer):
    low = optimizer.state[p].get("weight_low")
    if low is None:
        return p.detach().clone()
    high = p.detach().view(torch.int16).int() << 16
    return (high + (low.int() << (16 - 8 * low.element_size()))).view(torch.float32)


@pytest.mark.parametrize(
    "schedule",
    [
        "at_step",
        "in_backward",
    ],
)
@pytest.mark.parametrize("cls", FREE)
def test_a_step_with_the_weights_of_evaluation_raises_with_the_remedy(cls, schedule):
    model = mlp()
    optimizer = getattr(forge, cls)(model, schedule=schedule)
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        train_mlp(model, optimizer, steps=1)
    assert_equal_bits(model, mlp())
    optimizer.train()
    train_mlp(model, optimizer, steps=1)
    assert difference(model, mlp()) > 0


def test_z_of_the_authors_is_refused_as_we_keep_its_difference():
    model = mlp()
    optimizer = ours_of("ScheduleFreeSGD", model)
    train_mlp(model, optimizer, steps=1)
    saved = copy.deepcopy(optimizer.state_dict())
    for of in saved["state"].values():
        of["z"] = of.pop("z_minus_y")
    with pytest.raises(RuntimeError, match="which keeps z; start from the weights alone"):
        optimizer.load_state_dict(saved)
