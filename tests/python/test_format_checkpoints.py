"""Checkpoints and copies of moments and weights in every format."""

import copy
import itertools
import pickle

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from format_runs import STATES, adamw, expected, ids, kept, loss, net, same_moments, states, trained, weights  # noqa: E402
from models import assert_equal_bits, through_a_file, train  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:no parameter belongs to a fused module")


@weights
@states
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(state, weight):
    formats = dict(state_format=state, weight_format=weight, seed=5)
    whole, whole_optimizer = trained(5, **formats)
    first, first_optimizer = trained(3, **formats)
    again = net()
    again.load_state_dict(through_a_file(first.state_dict()))
    second = adamw(again, **formats)
    second.load_state_dict(through_a_file(first_optimizer.state_dict()))
    runs = [(again, second), copy.deepcopy((first, first_optimizer))]
    if state != "fp8":  # torch cannot unpickle a tensor of it, and loads it
        runs.append(pickle.loads(pickle.dumps((first, first_optimizer))))
    for model, optimizer in runs:
        train(model, optimizer, first=3, steps=2, loss=loss, data=ids)
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(p, q)
            assert same_moments(optimizer, p, whole_optimizer, q)


@pytest.mark.parametrize("source, target", itertools.permutations(STATES, 2))
def test_moments_of_a_checkpoint_get_the_format_that_is_asked_for(source, target):
    model, optimizer = trained(state_format=source)
    p = model.up.weight
    before = optimizer.state[p]["exp_avg"].float()
    if "exp_avg_scale" in optimizer.state[p]:
        before = forge._C.dequantize(optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_scale"], False)
    other = adamw(model, state_format=target, lr=0.0)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for group in other.param_groups:
        group["betas"] = (0.999999, 0.999999)
    train(model, other, first=3, steps=1, loss=loss, data=ids)
    assert kept(other, p) == expected(p, target)
    after = other.state[p]["exp_avg"].float()
    if "exp_avg_scale" in other.state[p]:
        after = forge._C.dequantize(other.state[p]["exp_avg"], other.state[p]["exp_avg_scale"], False)
    off = (after - before).norm() / before.norm()
    assert off < {"fp32": 1e-4, "bf16": 4e-3, "bf16_stochastic": 8e-3, "int8": 2e-2, "fp8": 6e-2}[target]


def test_without_a_format_a_checkpoint_brings_its_own():
    model, optimizer = trained(state_format="int8")
    other = adamw(model)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    train(model, other, first=3, steps=1, loss=loss, data=ids)
    assert kept(other, model.up.weight) == expected(model.up.weight, "int8")


@pytest.mark.parametrize(
    "source, target",
    [
        ("bf16_plus16", "bf16_plus8"),
        ("bf16_plus8", "bf16_plus16"),
        ("bf16_plus16", "bf16"),
        ("bf16_plus8", "bf16_stochastic"),
    ],
)
def test_bits_of_a_weight_that_the_new_format_has_no_room_for_are_not_dropped_silently(source, target):
    model, optimizer = trained(weight_format=source)
    other = adamw(model, weight_format=target)
    with pytest.raises(RuntimeError, match="saved with another weight_format"):
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        train(model, other, first=3, steps=1, loss=loss, data=ids)


@pytest.mark.parametrize("target", ["bf16_plus8", "bf16_plus16"])
def test_a_checkpoint_of_bf16_weights_starts_the_others_at_their_values(target):
    model, optimizer = trained()
    other = adamw(model, weight_format=target, lr=0.0, weight_decay=0.0)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    other.param_groups[0].update(lr=0.0, weight_decay=0.0)
    before = copy.deepcopy(model)
    train(model, other, first=3, steps=1, loss=loss, data=ids)
    assert_equal_bits(model, before)
    assert not any(other.state[p]["weight_low"].any() for p in model.parameters())


@pytest.mark.parametrize("spoil", [lambda scale: scale.float(), lambda scale: scale.t().contiguous()])
def test_a_scale_that_does_not_fit_is_refused(spoil):
    model, optimizer = trained(state_format="int8")
    saved = through_a_file(optimizer.state_dict())
    for of in saved["state"].values():
        if "exp_avg_scale" in of:
            of["exp_avg_scale"] = spoil(of["exp_avg_scale"])
    other = adamw(model, state_format="int8")
    with pytest.raises(RuntimeError, match="exp_avg_scale"):
        other.load_state_dict(saved)
        train(model, other, first=3, steps=1, loss=loss, data=ids)


@pytest.mark.parametrize("state, bound", [("fp32", 1e-6), ("int8", 1e-2)])
def test_moments_go_to_a_weight_that_lies_otherwise(state, bound):
    """Of one magnitude in tiles of 32 x 32, which are blocks of either layout: coding anew rounds only the scales."""
    torch.manual_seed(0)
    start = torch.randn(96, 64).t()
    magnitude = torch.logspace(-3, 0, 6).reshape(2, 3).repeat_interleave(32, 0).repeat_interleave(32, 1)
    g = torch.randn(64, 96).sign() * magnitude
    ends = []
    for layout in (torch.Tensor.clone, torch.Tensor.contiguous):
        p = nn.Parameter(start.clone())
        optimizer = adamw([{"params": [p]}], state_format=state)
        p.grad = g
        optimizer.step()
        q = nn.Parameter(layout(p.detach()))
        other = adamw([{"params": [q]}], state_format=state)
        other.load_state_dict(through_a_file(optimizer.state_dict()))
        q.grad = g
        other.step()
        ends.append(q.detach() - start)
    assert (ends[0] - ends[1]).norm() < bound * ends[0].norm()
