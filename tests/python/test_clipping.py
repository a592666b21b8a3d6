"""Clipping, loss scaling and mixed precision act on a fused model as on an unfused one."""

import functools

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    assert_unchanged,
    both,
    difference,
    forge_optimizer,
    is_factored,
    kinds,
    make,
    mlp,
    mlp_loss,
    points,
    quietly,
    rules,
    schedules,
    snapshot,
    text,
    text_loss,
    tokens,
    torch_clip,
    train,
)
from torch import nn  # noqa: E402

# ---- Clipping --------------------------------------------------------------------------------------------


def in_two_calls(parameters, max_norm):
    parameters = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


# What ours does, and what torch's does meanwhile; both with (model, max_norm).
CLIPS = {
    "torch's": (lambda m, c: torch_clip(m.parameters(), c),) * 2,
    "torch's, foreach": (lambda m, c: torch_clip(m.parameters(), c, foreach=True),) * 2,
    "torch's, one by one": (lambda m, c: torch_clip(m.parameters(), c, foreach=False),) * 2,
    "torch's, in two calls": (lambda m, c: in_two_calls(m.parameters(), c),) * 2,
    "torch's, largest value": (lambda m, c: torch_clip(m.parameters(), c / 10, norm_type=float("inf")),) * 2,
    "torch's, sum of values": (lambda m, c: torch_clip(m.parameters(), 20 * c, norm_type=1),) * 2,
    "torch's, each value": (lambda m, c: torch.nn.utils.clip_grad_value_(m.parameters(), c / 100),) * 2,
    "ours": (lambda m, c: forge.clip_grad_norm_(m.parameters(), c), lambda m, c: torch_clip(m.parameters(), c)),
    "ours, of a model": (lambda m, c: forge.clip_grad_norm_(m, c), lambda m, c: torch_clip(m.parameters(), c)),
    "ours, largest value": (
        lambda m, c: forge.clip_grad_norm_(m, c / 10, norm_type=float("inf")),
        lambda m, c: torch_clip(m.parameters(), c / 10, norm_type=float("inf")),
    ),
}


@rules
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("max_norm", [0.05, 1e3], ids=["that clips", "that does not"])
@pytest.mark.parametrize("how", CLIPS)
def test_clipping_is_as_in_torch(how, max_norm, micro, rule):
    norms = []
    pairs = both(text(), **RULES[rule])
    for (model, optimizer), clip in zip(pairs, reversed(CLIPS[how]), strict=True):
        seen = []

        def note(i, clip=clip, seen=seen, model=model):
            seen.append(quietly(clip, model, max_norm))

        train(model, optimizer, steps=3, micro=micro, before_step=note)
        norms.append([torch.tensor(0.0) if n is None else n for n in seen])
    (theirs, _), (ours, _) = pairs
    torch.testing.assert_close(torch.stack(norms[1]), torch.stack(norms[0]), rtol=1e-5, atol=0)
    # A threshold between values: what is clipped and what is not may turn on a last bit, once in a while.
    assert_same_weights(ours, theirs, rule)


@pytest.mark.parametrize("exact", [False, True])
def test_both_ways_to_clip_agree_with_each_other_and_keep_the_expression(exact):
    models = [text(), text()]
    optimizers = [forge.AdamW(m, exact=exact) for m in models]
    norms = []
    for model, clip in zip(models, (forge.clip_grad_norm_, torch_clip), strict=True):
        text_loss(model, tokens(0)).backward()
        norms.append(clip(model.parameters(), 0.05))
        assert is_factored(model.embedding.weight, model.blocks[0].up.weight)
    assert norms[0].dtype == norms[1].dtype == torch.float32
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-6, atol=0)
    for optimizer in optimizers:
        optimizer.step()
    assert difference(*models) <= 1e-6


def test_clipping_a_part_of_the_parameters_scales_that_part_only():
    norms = []
    pairs = both(text(), "SGD", lr=0.1)
    for (model, optimizer), clip in zip(pairs, (torch_clip, forge.clip_grad_norm_), strict=True):
        text_loss(model, tokens(0)).backward()
        norms.append(clip(model.blocks.parameters(), 0.01))
        norms.append(clip(model.norm.weight, 0.01))
        optimizer.step()
    torch.testing.assert_close(norms[2:], norms[:2], rtol=1e-5, atol=0)
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("clip", [torch_clip, forge.clip_grad_norm_])
def test_a_norm_that_is_not_finite_raises_where_that_is_asked_for(clip, bad):
    model = mlp()
    optimizer = forge.AdamW(model)
    (bad * mlp_loss(model, points(0))).backward()
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="norm"):
        clip(model.parameters(), 1.0, error_if_nonfinite=True)
    assert not clip(model.parameters(), 1.0).isfinite()
    assert_unchanged(model, optimizer, before)


@pytest.mark.parametrize("clip", [torch_clip, forge.clip_grad_norm_])
def test_in_backward_clipping_raises_and_says_what_to_do(clip):
    model = mlp()
    forge.fuse(model, verbose=False)
    optimizer = forge.AdamW(model, schedule="in_backward")
    mlp_loss(model, points(0)).backward()
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="unclipped.*at_step"):
        clip(model.parameters(), 1.0)
    assert_unchanged(model, optimizer, before)


@rules
@kinds
@pytest.mark.parametrize("oracle", ["every gradient multiplied out", "every gradient an ordinary tensor"])
def test_exact_clipped_steps_have_the_bits_of_gradients_that_are_multiplied_out(oracle, kind, rule):
    def clip(i, model):
        return forge.clip_grad_norm_(model, 0.05)

    def multiply_out_and_clip(i, model):
        for p in model.parameters():
            if isinstance(p.grad, forge.FactoredGrad):
                dense = p.grad.dense()
                if oracle == "every gradient an ordinary tensor":
                    p.grad = dense.clone()
        return clip(i, model)

    models, norms = [], []
    for before_step in (clip, multiply_out_and_clip):
        model, seen = make(kind), []
        optimizer = forge_optimizer(params=model, exact=True, **RULES[rule])
        train(model, optimizer, micro=2, before_step=lambda i, f=before_step, m=model, s=seen: s.append(f(i, m)))
        models.append(model)
        norms.append(torch.stack(seen))
    assert torch.equal(*norms)
    assert (norms[0] > 0.05).all()  # it did clip
    assert_equal_bits(*models)


# ---- Loss scaling ----------------------------------------------------------------------------------------


def scaled_training(model, optimizer, *, bad_steps=(), clip=None, steps=6, autocast=None, scaler=None):
    """Trains with a GradScaler; at bad steps the loss is infinite. Returns the scales and what did not move."""
    scaler = scaler or torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales, unmoved, losses = [], [], []
    for i in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            loss = text_loss(model, tokens(i))
        scaler.scale(loss * float("inf") if i in bad_steps else loss).backward()
        before = snapshot(model, optimizer)
        if clip:
            scaler.unscale_(optimizer)
            clip(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        losses.append(loss.item())
        try:
            assert_unchanged(model, optimizer, before)
            unmoved.append(i)
        except AssertionError:
            pass
    return scales, unmoved, losses


@rules
@pytest.mark.parametrize("clip", [None, torch_clip, forge.clip_grad_norm_])
@pytest.mark.parametrize("bad_steps", [(), (0,), (1, 2, 4)])
def test_a_grad_scaler_scales_and_skips_as_with_torch(bad_steps, clip, rule):
    (theirs, their_opt), (ours, our_opt) = both(text(), **RULES[rule])
    their = scaled_training(theirs, their_opt, bad_steps=bad_steps, clip=clip and torch_clip)
    our = scaled_training(ours, our_opt, bad_steps=bad_steps, clip=clip)
    assert our[:2] == their[:2]
    assert our[1] == list(bad_steps)  # skipped whole, and nothing else was
    assert_same_losses(our[2], their[2])
    assert_same_weights(ours, theirs, rule)


def test_a_scaled_gradient_stays_an_expression():
    model = text()
    optimizer = forge.AdamW(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(text_loss(model, tokens(0))).backward()
    scaler.unscale_(optimizer)
    up = model.blocks[0].up.weight.grad
    assert is_factored(model.embedding.weight, model.blocks[0].up.weight) and up._gradient.scale == 0.25
    assert forge.report(optimizer).collapses == 0


def test_in_backward_a_grad_scaler_raises_and_says_what_to_do():
    model = mlp()
    optimizer = forge.AdamW(model, schedule="in_backward")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(mlp_loss(model, points(0))).backward()
    with pytest.raises(RuntimeError, match="at_step"):
        scaler.step(optimizer)


# ---- Mixed precision -------------------------------------------------------------------------------------


def autocast_loss(model, data, loss=text_loss, dtype=torch.bfloat16):
    with torch.autocast("cpu", dtype=dtype):
        return loss(model, data)


@schedules
@kinds
def test_under_autocast_it_trains_as_near_to_fp32_as_torch(kind, schedule):
    reference = make(kind)
    (theirs, their_opt), (ours, our_opt) = both(make(kind), "SGD", schedule, lr=0.1, momentum=0.9)
    train(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9))
    their_losses = train(theirs, their_opt, loss=autocast_loss)
    our_losses = train(ours, our_opt, loss=autocast_loss)
    assert our_losses[0] == their_losses[0]  # the forward pass is the same
    # bf16 factors have 8 bits; torch rounds the product to 8 bits as well, we do not.
    assert difference(ours, reference) <= 1.2 * difference(theirs, reference)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}


def test_under_autocast_the_kept_factors_are_bf16():
    torch.manual_seed(0)
    model = nn.Linear(12, 20)
    optimizer = forge.SGD(model, lr=0.1)
    x = points(0, count=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    dY = (2 * y.float()).bfloat16()
    assert forge.report(optimizer).held_terms == 3 * (12 + 20) * 2
    expected = dY.double().t() @ x.bfloat16().double()
    torch.testing.assert_close(model.weight.grad.dense().double(), expected, rtol=0, atol=3 * 2.0**-24 * 20)


def test_under_autocast_with_fp16_it_trains_as_near_to_fp32_as_torch():
    half = functools.partial(scaled_training, autocast=torch.float16, clip=torch_clip)
    reference = text()
    (theirs, their_opt), (ours, our_opt) = both(text(), "SGD", lr=0.1, momentum=0.9)
    our = half(ours, our_opt)
    their = half(theirs, their_opt)
    scaled_training(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9), clip=torch_clip)
    assert our[0] == their[0]
    assert difference(ours, reference) <= 1.2 * difference(theirs, reference)
