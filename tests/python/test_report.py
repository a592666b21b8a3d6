"""forge_optim.report counts what gradients cost."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    assert_equal_bits,
    mlp,
    text,
    train,
    train_mlp,
)
from torch import nn  # noqa: E402


class ThreeFromOne(nn.Module):
    """q, k and v of one hidden X."""

    def __init__(self):
        super().__init__()
        self.input = nn.Linear(16, 32)
        self.q, self.k, self.v = (nn.Linear(32, 24, bias=False) for _ in range(3))

    def forward(self, x):
        x = torch.tanh(self.input(x))
        return self.q(x) * self.k(x) + self.v(x)


T, FP32 = 3, 4
VALUES = 16 * 32 + 32 + 3 * 24 * 32
HELD = T * (16 + 32 + 32 + 3 * 24) * FP32  # the user's X copied, its dY; the shared X once, three dY
VECTORS = 32 * FP32


def test_the_report_counts_each_byte_once():
    torch.manual_seed(0)
    model = ThreeFromOne()
    optimizer = forge.AdamW(model)
    report = forge.report(optimizer)
    assert (report.weights, report.state, report.held_terms, report.dense_gradients) == (VALUES * FP32, 0, 0, 0)
    model(torch.randn(T, 16)).square().sum().backward()
    report = forge.report(optimizer)
    assert report.held_terms == HELD
    assert report.dense_gradients == VECTORS
    assert report.peak_gradient == HELD + VECTORS
    assert (report.collapses, report.reasons) == (0, {})
    optimizer.step()
    optimizer.zero_grad()
    report = forge.report(optimizer)
    assert (report.weights, report.state) == (VALUES * FP32, 2 * VALUES * FP32)
    assert (report.held_terms, report.dense_gradients, report.peak_gradient) == (0, 0, HELD + VECTORS)
    optimizer.reset_peak_memory()
    assert forge.report(optimizer).peak_gradient == 0


def test_in_backward_the_peak_is_less_than_all_gradients_together():
    torch.manual_seed(0)
    model = ThreeFromOne()
    optimizer = forge.AdamW(model, schedule="in_backward")
    model(torch.randn(T, 16)).square().sum().backward()
    report = forge.report(optimizer)
    assert (report.held_terms, report.dense_gradients) == (0, 0)
    # q, k and v have their uses behind them before the input's begins; none waits for another.
    assert 0 < report.peak_gradient < HELD
    assert report.collapses == 0


def test_collapse_never_and_auto_differ_in_what_is_held_and_not_in_the_bits():
    models, reports = [text(), text()], []
    for model, collapse in zip(models, ("auto", "never"), strict=True):
        optimizer = forge.AdamW(model, lr=1e-2, collapse=collapse)
        train(model, optimizer, micro=3, before_step=lambda i, o=optimizer: reports.append(forge.report(o)))
    auto, never = reports[:5], reports[5:]
    assert all(r.collapses == 0 and r.reasons == {} for r in never)
    assert auto[-1].collapses > 0 and sum(auto[-1].reasons.values()) == auto[-1].collapses
    weights = sum(p.numel() for p in models[0].parameters() if p.dim() == 2) * FP32
    vectors = sum(p.numel() for p in models[0].parameters() if p.dim() == 1) * FP32
    assert all(r.held_terms + r.dense_gradients <= weights + vectors for r in auto)
    assert all(r.dense_gradients == vectors for r in never)
    assert_equal_bits(*models)


def test_the_report_prints_its_figures_and_takes_a_wrapped_optimizer():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = mlp()
    optimizer = forge.AdamW(model)
    train_mlp(model, optimizer, steps=1)
    report = forge.report(Wrapper(Wrapper(optimizer)))
    assert report == forge.report(optimizer)
    lines = str(report).splitlines()
    names = ("weights", "state", "held terms", "dense gradients", "gradients, peak", "collapses", "kernels")
    for name in names:
        assert any(line.startswith(name) for line in lines), name
    assert report.kernels in str(report) and report.kernels
    for reason, count in report.reasons.items():
        assert f"{count} × {reason}" in str(report)
    with pytest.raises(TypeError, match="AdamW is no optimizer of forge_optim"):
        forge.report(torch.optim.AdamW(model.parameters()))
