"""What is done to p.grad of a fused weight is done to the gradient: every line beside torch's own training."""

import forge_optim as forge
import pytest
import torch
from factored import Side, assert_same
from gradient_lines import NEAR, REFUSED, SAME

pytestmark = [
    pytest.mark.filterwarnings("ignore::forge_optim.CollapseWarning"),
    pytest.mark.filterwarnings("ignore:An output with one or more elements was resized"),
]


# ---- One operation ---------------------------------------------------------------------------------------------------

# How the gradient stands when the operation comes.
STATES = {
    "one term": dict(steps=["backward(1)"]),
    "two terms": dict(steps=["backward(1)", "backward(2)"]),
    "a term after a scale": dict(steps=["backward(1)", "g.mul_(0.5); h.mul_(0.5); v.mul_(0.5)", "backward(2)"]),
    "scaled": dict(steps=["backward(1)", "g.mul_(0.5); h.mul_(0.5)"]),
    "rows": dict(steps=["backward(1)", "backward(2)"], kind="embedding"),
    "outgrown": dict(steps=["backward(1, tokens=12)", "g.mul_(0.5)"]),
    "outgrown and a term": dict(steps=["backward(1, tokens=12)", "backward(2)"], collapse="never"),
    "exposed": dict(steps=["backward(1)", "held.append((g.view(-1), h.view(-1)))", "backward(2)"]),
    "no token": dict(steps=["backward(1, tokens=0)"]),
}


def both(steps, kind="linear", dtype=torch.float32, **options):
    sides = Side(True, kind, dtype, **options), Side(False, kind, dtype)
    for side in sides:
        for line in steps:
            side.do(line)
    assert isinstance(sides[0].p.grad, forge.FactoredGrad)
    return sides


def check_line(line, state, ulps=0):
    """The value, the gradients and the next update; then with another backward pass and a scale between."""
    for goes_on in (False, True) if state == "two terms" else (True,):
        sides = both(**STATES[state])
        results = [side.do(line) for side in sides]
        assert_same(*results, ulps)
        assert_same(*(side.gradients() for side in sides), ulps)
        for line_after in ["backward(3)", "g is None or g.mul_(0.5)"] if goes_on else []:
            for side in sides:
                side.do(line_after)
            assert_same(*results, ulps)  # a view sees what happens to the gradient, a copy does not
            assert_same(*(side.gradients() for side in sides), ulps)
        assert_same(*(side.held for side in sides), ulps)
        for side in sides:
            side.opt.step()
        assert_same(*(side.weights() for side in sides), ulps)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("line", SAME)
def test_a_line_does_to_a_factored_gradient_what_it_does_to_a_dense_one(line, state):
    check_line(line, state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("line", NEAR)
def test_a_line_does_the_same_to_within_roundings(line, state):
    check_line(line, state, ulps=NEAR[line])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_cannot_be_is_refused_and_changes_nothing(line, state):
    fused, plain = both(**STATES[state])
    with pytest.raises(RuntimeError):
        fused.do(line)
    assert_same(fused.gradients(), plain.gradients())
    for side in (fused, plain):
        side.do("backward(3)")
        side.opt.step()
    assert_same(fused.weights(), plain.weights())
