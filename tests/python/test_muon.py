"""Muon beside torch's, which iterates in bf16, and beside the same iteration in float64."""

import copy

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from rule_cases import CASES  # noqa: E402
from torch import nn  # noqa: E402

SHAPES = [(24, 60), (60, 24), (1, 9), (33, 33)]


def gradients(shape, n=4):
    for seed in range(n):
        yield torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_step(w, g, b, o):
    """Of torch's class, in float64."""
    b = torch.lerp(b, g, 1 - o["momentum"])
    x = torch.lerp(g, b, o["momentum"]) if o["nesterov"] else b
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=o["eps"])
    for _ in range(o["ns_steps"]):
        gram = x @ x.T
        x = o["ns_coefficients"][0] * x + (o["ns_coefficients"][1] * gram + o["ns_coefficients"][2] * gram @ gram) @ x
    rows, columns = w.shape
    adjusted = o["adjust_lr_fn"] == "match_rms_adamw"
    factor = 0.2 * max(rows, columns) ** 0.5 if adjusted else max(1, rows / columns) ** 0.5
    return (1 - o["lr"] * o["weight_decay"]) * w - o["lr"] * factor * (x.T if tall else x), b


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", CASES["Muon"], ids=str)
def test_a_step_is_that_of_an_exact_iteration_and_about_torchs(options, shape):
    p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)))
    q = nn.Parameter(p.detach().clone())
    ours, theirs = forge.Muon([p], **copy.deepcopy(options)), torch.optim.Muon([q], **copy.deepcopy(options))
    w, b = p.detach().double(), torch.zeros(shape, dtype=torch.double)
    for g in gradients(shape):
        p.grad, q.grad = g.clone(), g.clone()
        q.data.copy_(p.detach())
        before = p.detach().double()
        ours.step()
        theirs.step()
        w, b = exact_step(before, g.double(), b, ours.param_groups[0])
        change = (w - before).norm()
        assert (p.detach() - w).norm() <= 1e-5 * change + 1e-7 * w.norm()
        assert (p.detach() - q.detach()).norm() <= 0.06 * change
        buffer, of_torch = ours.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"]
        torch.testing.assert_close(buffer, of_torch, rtol=1e-5, atol=1e-6)
    assert ours.state[p].keys() == theirs.state[q].keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_to_torch_and_back(dtype):
    p = nn.Parameter(torch.ones(5, 7, dtype=dtype))
    ours = forge.Muon([p])
    p.grad = torch.eye(5, 7, dtype=dtype)
    ours.step()
    assert ours.state[p]["momentum_buffer"].dtype == dtype
    theirs = torch.optim.Muon([nn.Parameter(p.detach().clone())])
    theirs.load_state_dict(ours.state_dict())
    back = forge.Muon([p])
    back.load_state_dict(theirs.state_dict())
    assert torch.equal(back.state[p]["momentum_buffer"], ours.state[p]["momentum_buffer"])


@pytest.mark.parametrize("parameter", [torch.zeros(3), torch.zeros(4, 3).t()], ids=["vector", "transposed"])
def test_what_is_no_matrix_in_memory_is_refused_with_the_remedy(parameter):
    with pytest.raises((RuntimeError, ValueError), match="2D|contiguous matrices"):
        forge.Muon([nn.Parameter(parameter)])


def test_no_gradient_is_kept_in_backward_and_the_direction_is_gone_after_the_update():
    layer = nn.Linear(512, 256, bias=False)
    optimizer = forge.Muon(layer, schedule="in_backward")
    x = torch.randn(4, 512)
    layer(x).sum().backward()
    optimizer.step()  # the momentum is there
    optimizer.zero_grad()
    with forge.AllocationRecorder() as recorder:
        layer(x).sum().backward()
        optimizer.step()  # gives the workspace back
        after = recorder.live_bytes
    weight = layer.weight.nbytes
    # The direction, its copy and two products of the shorter side, half a weight each; and the workspace, some 110 KB.
    assert weight <= recorder.peak_bytes <= 3.25 * weight
    assert after < weight / 8
    assert isinstance(layer.weight.grad, forge.FactoredGrad)
