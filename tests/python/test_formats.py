"""How moments and bf16 weights are kept: int8, fp8, bf16 and fp32; rounded stochastically, or with the bits that bf16
drops."""

import copy
import functools

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from format_runs import (  # noqa: E402
    adamw,
    expected,
    ids,
    kept,
    loss,
    net,
    pairs,
    same_moments,
    states,
    trained,
    weights,
)
from models import (  # noqa: E402
    assert_equal_bits,
    assert_unchanged,
    difference,
    quietly,
    snapshot,
    through_a_file,
    torch_clip,
    train,
)
from torch import nn  # noqa: E402

# ---- What is kept --------------------------------------------------------------------------------------------------


@states
def test_large_matrices_are_kept_as_asked_for_and_small_ones_not_below_16_bits(state):
    model, optimizer = trained(state_format=state)
    small = "fp32" if state in ("int8", "fp8") else state
    for name, p in model.named_parameters():
        if name != "embedding.weight":
            large = name in ("up.weight", "down.weight")
            assert kept(optimizer, p) == expected(p, state if large else small), name


@pytest.mark.parametrize(
    "steps, spread",
    [
        (1, False),
        (3, False),
        (1, True),
    ],
)
@pytest.mark.parametrize("state", ["int8", "fp8"])
def test_an_embedding_is_kept_in_fp32(state, steps, spread):
    model = net()
    optimizer = adamw(model, state_format=state)
    # More tokens than rows: its terms are multiplied out.
    data = (lambda seed: torch.cat([ids(seed) for _ in range(20)])) if spread else ids
    quietly(train, model, optimizer, steps=steps, loss=loss, data=data)
    assert kept(optimizer, model.embedding.weight) == expected(model.embedding.weight, "fp32")


def test_a_group_has_its_own_format():
    model = net()
    forge.fuse(model, verbose=False)
    groups = [
        {"params": [model.up.weight], "state_format": "fp8"},
        {"params": [model.down.weight]},
        {"params": [model.head.weight, model.norm.weight], "state_format": "int8"},
    ]
    optimizer = adamw(groups, state_format="bf16")
    train(model, optimizer, steps=2, loss=loss, data=ids)
    assert kept(optimizer, model.up.weight) == expected(model.up.weight, "fp8")
    assert kept(optimizer, model.down.weight) == expected(model.down.weight, "bf16")
    assert kept(optimizer, model.head.weight) == expected(model.head.weight, "int8")
    again = adamw(groups, state_format="bf16")
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    train(model, again, first=2, steps=1, loss=loss, data=ids)
    assert kept(again, model.up.weight) == expected(model.up.weight, "fp8")


@weights
def test_a_weight_has_the_lower_part_of_its_format(weight):
    model, optimizer = trained(weight_format=weight)
    dtype = {"bf16_plus8": torch.int8, "bf16_plus16": torch.int16}.get(weight)
    for p in model.parameters():
        low = optimizer.state[p].get("weight_low")
        assert low is None if dtype is None else (low.dtype, low.shape) == (dtype, p.shape)
        assert p.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "state, weight, bytes_each",
    [
        ("bf16", "bf16", 6.0),
        ("int8", "bf16_plus8", 5.125),
        ("int8", "bf16_stochastic", 4.125),
        ("fp8", "bf16_stochastic", 4.125),
        ("fp32", "bf16_plus16", 12.0),
    ],
)
def test_report_counts_the_bytes_of_a_weight(state, weight, bytes_each):
    layer = nn.Linear(64, 128, bias=False).bfloat16()
    optimizer = adamw(layer, state_format=state, weight_format=weight)
    layer(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    report = forge.report(optimizer)
    assert report.weights + report.state == bytes_each * layer.weight.numel()


# ---- Training ------------------------------------------------------------------------------------------------------


@pairs
def test_in_backward_has_the_bits_of_at_step(state, weight):
    formats = dict(state_format=state, weight_format=weight, collapse="never")
    one, one_optimizer = trained(schedule="at_step", **formats)
    other, other_optimizer = trained(schedule="in_backward", **formats)
    assert_equal_bits(one, other)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert same_moments(one_optimizer, p, other_optimizer, q)


def whole(seed, *shape):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.filterwarnings("ignore:no parameter belongs to a fused module")
@pairs
def test_micro_batches_have_the_bits_of_a_stored_sum(state, weight):
    layers = [nn.Linear(80, 64, bias=False).bfloat16()]
    layers.append(copy.deepcopy(layers[0]))
    forge.fuse(layers[0], verbose=False)
    for layer in layers:
        optimizer = adamw([{"params": layer.parameters()}], state_format=state, weight_format=weight)
        for t in range(3):
            optimizer.zero_grad()
            for k in range(2):
                layer(whole(10 * t + k, 3, 80)).backward(whole(10 * t + k + 5, 3, 64))
            optimizer.step()
    assert_equal_bits(*layers)


@pairs
def test_clipping_by_torch_and_by_us_gives_one_result(state, weight):
    clipped = []
    for clip in (torch_clip, forge.clip_grad_norm_, None):
        model = net()
        optimizer = adamw(model, state_format=state, weight_format=weight, eps=1.0, lr=1.0)
        before = (lambda _, m=model, c=clip: quietly(c, m.parameters(), 0.05)) if clip else None
        train(model, optimizer, loss=loss, data=ids, before_step=before)
        clipped.append(model)
    assert difference(clipped[1], clipped[0]) < 1e-3 < difference(clipped[1], clipped[2])


@pairs
def test_a_step_that_a_grad_scaler_skips_leaves_everything_as_it_was(state, weight):
    model, optimizer = trained(state_format=state, weight_format=weight)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = snapshot(model, optimizer)
    for times, changes in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(loss(model, ids(9)) * times).backward()
        quietly(scaler.step, optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0
        if not changes:
            assert_unchanged(model, optimizer, before)
    assert difference(model, before[0]) > 0


def test_a_compiled_model_trains_with_small_state():
    results = []
    for compiled in (False, True):
        model = net()
        optimizer = adamw(model, state_format="int8", weight_format="bf16_stochastic")
        run = torch.compile(model, backend="aot_eager") if compiled else model
        for t in range(3):
            optimizer.zero_grad()
            loss(run, ids(t)).backward()
            optimizer.step()
        assert kept(optimizer, model.up.weight) == expected(model.up.weight, "int8")
        results.append(model)
    torch._dynamo.reset()
    assert difference(*results) < 1e-2


@functools.cache
def final_loss(state, weight, dtype=torch.bfloat16):
    """After 60 steps; a step is about a tenth of bf16's last place, which rounding to nearest loses."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64, bias=False))
    x = torch.randn(256, 64)
    y = torch.tanh(x @ torch.randn(64, 64) / 8)
    model.to(dtype)
    optimizer = forge.AdamW(model, lr=1e-4, state_format=state, weight_format=weight)
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(model(x.to(dtype)).float(), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return F.mse_loss(model.float()(x), y).item()


@states
@weights
def test_each_format_trains_like_fp32_and_bf16_to_nearest_does_not(state, weight):
    worse = final_loss(state, weight) / final_loss(None, None, torch.float32) - 1
    assert worse > 0.1 if weight == "bf16" else abs(worse) < 0.01


# ---- Noise ---------------------------------------------------------------------------------------------------------


def with_groups(order, seed=0, named=True):
    model = net()
    forge.fuse(model, verbose=False)
    parameters = list(model.named_parameters())[::order]
    groups = [{"params": [pair] if named else [pair[1]]} for pair in parameters]
    optimizer = adamw(groups, weight_format="bf16_stochastic", seed=seed)
    train(model, optimizer, loss=loss, data=ids, steps=2)
    return model


def test_noise_depends_on_the_name_and_the_seed_and_not_on_the_order():
    model, _ = trained(2, weight_format="bf16_stochastic")
    assert_equal_bits(with_groups(1), model)
    assert_equal_bits(with_groups(-1), model)
    assert difference(with_groups(1, seed=1), model) > 0
    # Without names it is the place that counts.
    assert difference(with_groups(1, named=False), with_groups(-1, named=False)) > 0


def test_noise_of_a_compiled_model_is_the_models():
    model = net()
    run = torch.compile(model, backend="eager")
    optimizer = adamw(run, weight_format="bf16_stochastic")
    train(model, optimizer, loss=loss, data=ids, steps=2)
    assert_equal_bits(model, trained(2, weight_format="bf16_stochastic")[0])


@pytest.mark.parametrize("formats", [dict(state_format="int8"), dict(weight_format="bf16_stochastic"), {}])
def test_sgd_counts_its_steps_where_noise_depends_on_them(formats):
    """torch's SGD has none; without one, every step would round with the same noise."""
    model = net()
    optimizer = forge.SGD(model, lr=1e-3, momentum=0.9, **formats)
    train(model, optimizer, loss=loss, data=ids, steps=3)
    counted = ["step" in of for of in optimizer.state.values()]
    assert any(counted) == bool(formats)
    assert all(of["step"] == 3 for of in optimizer.state.values() if "step" in of)


# ---- Refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, options, said",
    [
        (torch.float32, dict(weight_format="bf16_plus8"), r"model\.bfloat16\(\)"),
        (torch.float32, dict(weight_format="bf16_stochastic"), r"model\.bfloat16\(\)"),
        (torch.bfloat16, dict(weight_format="int8"), "weight_format is int8"),
        (torch.bfloat16, dict(weight_format="fp32"), "weight_format is fp32"),
        (torch.bfloat16, dict(weight_format="bf16_plus9"), "the formats are"),
        (torch.bfloat16, dict(state_format="bf16_plus8"), "state_format is bf16_plus8"),
        (torch.bfloat16, dict(state_format="int4"), "the formats are"),
    ],
)
def test_a_format_that_cannot_be_is_refused_in_one_sentence(dtype, options, said):
    with pytest.raises(RuntimeError, match=said) as refusal:
        adamw(net(dtype), **options)
    assert "\n" not in str(refusal.value)


def test_a_groups_wrong_format_is_refused():
    p = nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError, match="a group's state_format is bf16_plus8"):
        adamw([{"params": [p], "state_format": "bf16_plus8"}])


@pytest.mark.parametrize("options", [dict(state_format="int8"), dict(weight_format="bf16_plus8")])
def test_a_parameter_of_fsdp2_is_refused_with_the_remedy(options):
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        whole = distribute_tensor(torch.zeros(64, 64).bfloat16(), init_device_mesh("cpu", (1,)), [Replicate()])
        with pytest.raises(RuntimeError, match="leave weight_format out"):
            adamw([{"params": [nn.Parameter(whole)]}], **options)
    finally:
        dist.destroy_process_group()
