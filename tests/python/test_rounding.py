"""count_rounding: forge_optim.report says what rounding does to updates."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from torch import nn  # noqa: E402


def layer(dtype=torch.bfloat16):
    """Weights of 1, of which bf16's last place is 2⁻⁷ above and 2⁻⁸ below."""
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)).to(dtype)
    for p in model.parameters():
        nn.init.ones_(p)
    return model


def train(model, optimizer, steps=2, x=1.0):
    for _ in range(steps):
        for linear in model:
            linear(torch.full((1, linear.in_features), x, dtype=linear.weight.dtype)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def count(elements, lost=0, saturated=0, not_finite=0):
    return forge.RoundingCount(elements, lost, saturated, not_finite)


def test_without_the_option_nothing_is_reported():
    model = layer()
    optimizer = forge.SGD(model, lr=2**-12)
    train(model, optimizer)
    assert forge.report(optimizer).rounding is None
    assert "rounding" not in str(forge.report(optimizer))


@pytest.mark.parametrize("weight_format, lost", [("bf16", 2 * 16384), ("bf16_plus8", 0), ("bf16_plus16", 0)])
def test_small_updates_are_lost_in_bf16_and_kept_with_more_bits(weight_format, lost):
    model = layer()
    optimizer = forge.SGD(model, lr=2**-12, weight_format=weight_format, count_rounding=True)
    train(model, optimizer)
    rounding = forge.report(optimizer).rounding
    assert rounding.formats == {f"weight, {weight_format}": count(2 * 16384, lost)}
    assert rounding.parameters == {name: {"weight": count(16384, lost // 2)} for name in ("0.weight", "1.weight")}
    assert [name for name, _ in rounding.most_lost()] == (["0.weight", "1.weight"] if lost else [])


def test_moments_are_told_apart_and_the_worst_parameters_named():
    model = layer()
    groups = [{"params": [model[0].weight], "lr": 1.0}, {"params": [model[1].weight], "lr": 1e-5}]
    forge.fuse(model, verbose=False)
    optimizer = forge.AdamW(groups, state_format="int8", count_rounding=True)
    train(model, optimizer)
    rounding = forge.report(optimizer).rounding
    assert set(rounding.parameters) == {"0", "1"}, "without a name, its place"
    assert set(rounding.parameters["1"]) == {"weight", "exp_avg", "exp_avg_sq"}
    assert rounding.formats["exp_avg, int8"].elements == 2 * 16384
    assert rounding.most_lost() == [("1", count(16384, 16384))]
    printed = str(forge.report(optimizer))
    for words in ("lost", "saturated", "not finite", "weight, bf16", "exp_avg_sq, int8", "skipped steps"):
        assert words in printed


def test_no_bit_depends_on_counting():
    weights = []
    for counted in (True, False):
        model = layer()
        optimizer = forge.AdamW(model, weight_format="bf16_stochastic", state_format="fp8", count_rounding=counted)
        train(model, optimizer, steps=3)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_the_option_survives_copies_and_checkpoints():
    model = layer()
    optimizer = forge.SGD(model, lr=2**-12, count_rounding=True)
    train(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert forge.report(optimizer).rounding.formats == {}, "counted from here on"
    train(model, optimizer, steps=1)
    assert forge.report(optimizer).rounding.formats == {"weight, bf16": count(16384, 16384)}


def test_every_optimizer_takes_the_option():
    classes = [c for c in vars(forge).values() if isinstance(c, type) and issubclass(c, forge.FusedOptimizer)]
    assert len(classes) > 20
    for cls in classes:
        if cls is not forge.FusedOptimizer:
            optimizer = cls(layer(), count_rounding=True)
            assert forge.report(optimizer).rounding.formats == {}, cls.__name__


def scaled_step(model, optimizer, scaler, x):
    loss = sum(linear(torch.full((1, linear.in_features), x)).sum() for linear in model)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_steps_that_grad_scaler_skips_are_counted():
    model = layer(torch.float32)
    optimizer = forge.SGD(model, lr=1e-3, count_rounding=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for x, skipped in ((1.0, 0), (float("inf"), 1), (1.0, 1), (float("inf"), 2)):
        scaled_step(model, optimizer, scaler, x)
        assert forge.report(optimizer).rounding.skipped_steps == skipped
    assert forge.report(optimizer).rounding.formats["weight, fp32"] == count(2 * 16384), "two steps happened"


@pytest.mark.parametrize("clip", [forge.clip_grad_norm_, torch.nn.utils.clip_grad_norm_], ids=["ours", "torch's"])
def test_a_step_that_clipping_refused_is_counted_when_its_gradient_is_dropped(clip):
    model = layer(torch.float32)
    optimizer = forge.SGD(model, lr=1e-3, count_rounding=True)
    sum(linear(torch.full((1, linear.in_features), float("inf"))).sum() for linear in model).backward()
    with pytest.raises(RuntimeError, match="norm"):
        clip(model.parameters(), 1.0, error_if_nonfinite=True)
    assert forge.report(optimizer).rounding.skipped_steps == 0
    optimizer.zero_grad()
    assert forge.report(optimizer).rounding.skipped_steps == 1


def test_what_is_not_finite_is_counted_where_the_step_happens():
    model = layer(torch.float32)
    optimizer = forge.SGD(model, lr=1e-3, count_rounding=True)
    train(model, optimizer, steps=1, x=float("nan"))
    rounding = forge.report(optimizer).rounding
    assert rounding.formats == {"weight, fp32": count(16384, not_finite=16384)}
    assert rounding.skipped_steps == 0
