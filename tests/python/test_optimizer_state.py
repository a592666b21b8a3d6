"""State, checkpoints and copies of the optimizers, and several optimizers of one model."""

import copy
import gc
import io
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    both,
    difference,
    forge_optimizer,
    is_factored,
    mlp,
    mlp_loss,
    points,
    rules,
    schedules,
    text,
    text_loss,
    through_a_file,
    tokens,
    torch_optimizer,
    train,
    train_mlp,
)

# ---- State and checkpoints -------------------------------------------------------------------------------

CHECKPOINTED = RULES | {"SGD without momentum": dict(cls="SGD", lr=0.1)}


TRANSPORTS = {"deepcopy": copy.deepcopy, "torch.save": through_a_file}


def layout(state_dict):
    """Keys, types, shapes and dtypes."""

    def describe(x):
        return (type(x), x.dtype, x.shape) if isinstance(x, torch.Tensor) else type(x)

    state = {i: {key: describe(x) for key, x in of.items()} for i, of in state_dict["state"].items()}
    groups = [{key: g[key] for key in g.keys() - {"foreach", "fused"}} for g in state_dict["param_groups"]]
    return state, groups, [set(g) for g in state_dict["param_groups"]]


@schedules
@pytest.mark.parametrize("rule", CHECKPOINTED)
def test_the_state_has_torchs_keys_and_layout(rule, schedule):
    (theirs, their_opt), (ours, our_opt) = both(text(), schedule=schedule, **CHECKPOINTED[rule])
    assert layout(our_opt.state_dict()) == layout(their_opt.state_dict())
    train(theirs, their_opt, steps=2)
    train(ours, our_opt, steps=2)
    their_state, our_state = their_opt.state_dict(), our_opt.state_dict()
    if rule == "SGD without momentum":
        # torch leaves momentum_buffer: None or nothing, by version; a state of nothing says the same.
        assert not any(value is not None for of in our_state["state"].values() for value in of.values())
        assert layout(our_state)[1:] == layout(their_state)[1:]
        return
    assert layout(our_state) == layout(their_state)
    for i, of in their_state["state"].items():
        for key, value in of.items():
            ours_value = our_state["state"][i][key]
            scale = value.abs().max()
            assert (ours_value - value).abs().max() <= 1e-4 * scale, key


@schedules
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("rule", CHECKPOINTED)
def test_a_checkpoint_goes_from_torch_to_us_and_back(rule, transport, schedule):
    model = text()
    train(model, torch_optimizer(params=model, **CHECKPOINTED[rule]), steps=1)  # weights of some age
    carried = copy.deepcopy(model)
    whole = torch_optimizer(params=model, **CHECKPOINTED[rule])
    train(model, whole, steps=6)

    move = TRANSPORTS[transport]
    first = torch_optimizer(params=carried, **CHECKPOINTED[rule])
    train(carried, first, steps=2)
    checkpoint = move(first.state_dict())
    second = forge_optimizer(params=carried, schedule=schedule, cls=CHECKPOINTED[rule]["cls"], lr=99.0)
    second.load_state_dict(checkpoint)
    train(carried, second, first=2, steps=2)
    forge.unfuse(carried)
    third = torch_optimizer(params=carried, cls=CHECKPOINTED[rule]["cls"], lr=99.0)
    third.load_state_dict(move(second.state_dict()))
    del second
    train(carried, third, first=4, steps=2)
    assert_same_weights(carried, model, "AdamW" if rule == "AdamW" else "SGD")


@schedules
@rules
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(rule, schedule):
    whole, resumed = text(), text()
    whole_opt = forge_optimizer(params=whole, schedule=schedule, **RULES[rule])
    train(whole, whole_opt, steps=5)
    first = forge_optimizer(params=resumed, schedule=schedule, **RULES[rule])
    train(resumed, first, steps=2)
    again = text(seed=1)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    second = forge_optimizer(params=again, schedule=schedule, **RULES[rule])
    second.load_state_dict(through_a_file(first.state_dict()))
    train(again, second, first=2, steps=3)
    assert_equal_bits(again, whole)


def test_a_loaded_state_is_a_copy():
    model = mlp()
    optimizer = forge.AdamW(model)
    train_mlp(model, optimizer, steps=1)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    kept = copy.deepcopy(saved["state"])
    train_mlp(model, optimizer, steps=1)
    assert all(v.dtype == torch.float32 for of in kept.values() for v in of.values())
    for i, p in enumerate(model.parameters()):
        assert optimizer.state[p]["step"] == 2
        assert not torch.equal(optimizer.state[p]["exp_avg"], kept[i]["exp_avg"])


def bf16(model):
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("through", ["load_state_dict", "the round trip of accelerate", "deepcopy", "pickle"])
@pytest.mark.parametrize("rule, moments", [("AdamW", ["exp_avg", "exp_avg_sq"]), ("SGD", ["momentum_buffer"])])
def test_fp32_moments_of_bf16_weights_stay_fp32_and_keep_their_bits(rule, moments, through):
    model = bf16(text())
    optimizer = forge_optimizer(params=model, state_format="fp32", **RULES[rule])
    train(model, optimizer, steps=2)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    if through == "load_state_dict":
        old, optimizer = optimizer, forge_optimizer(params=model, **RULES[rule])
        optimizer.load_state_dict(through_a_file(old.state_dict()))
    elif through == "the round trip of accelerate":
        optimizer.load_state_dict(optimizer.state_dict())
    elif through == "deepcopy":
        model, optimizer = copy.deepcopy((model, optimizer))
    else:
        model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    after = optimizer.state_dict()["state"]
    for i in before:
        for key in moments:
            assert after[i][key].dtype == torch.float32
            assert torch.equal(after[i][key], before[i][key])
    train(model, optimizer, first=2, steps=1)
    assert all(optimizer.state[p][key].dtype == torch.float32 for p in model.parameters() for key in moments)


@pytest.mark.parametrize(
    "weights, asked, kept",
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, "fp32", torch.float32),
        (torch.float32, "bf16", torch.bfloat16),
    ],
)
@schedules
def test_moments_have_the_dtype_that_is_asked_for(weights, asked, kept, schedule):
    model = text().to(weights)
    optimizer = forge.AdamW(model, state_format=asked, schedule=schedule)
    train(model, optimizer, steps=2)
    for p in model.parameters():
        state = optimizer.state[p]
        assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {kept}
        assert state["step"].dtype == torch.float32
    values = sum(p.numel() for p in model.parameters())
    assert forge.report(optimizer).state == 2 * values * kept.itemsize


def test_loading_converts_moments_to_the_dtype_that_is_asked_for():
    model = text()
    optimizer = forge.AdamW(model)
    train(model, optimizer, steps=1)
    narrow = forge.AdamW(model, state_format="bf16")
    narrow.load_state_dict(optimizer.state_dict())
    train(model, narrow, first=1, steps=1)
    assert all(narrow.state[p]["exp_avg"].dtype == torch.bfloat16 for p in model.parameters())


def test_moments_in_a_type_that_is_not_kept_become_fp32():
    model = text()
    optimizer = forge.AdamW(model)
    train(model, optimizer, steps=1)
    saved = copy.deepcopy(optimizer.state_dict())
    for of in saved["state"].values():
        of["exp_avg"] = of["exp_avg"].half()
    optimizer.load_state_dict(saved)
    train(model, optimizer, first=1, steps=1)
    assert all(optimizer.state[p]["exp_avg"].dtype == torch.float32 for p in model.parameters())


def test_fp32_moments_bring_bf16_weights_nearer_to_fp32_training_than_torchs_bf16_moments():
    reference, theirs = text(), bf16(text())
    ours = copy.deepcopy(theirs)
    settings = RULES["AdamW"]
    train(reference, torch_optimizer(params=reference, **settings), steps=8)
    train(theirs, torch_optimizer(params=theirs, **settings), steps=8)
    train(ours, forge_optimizer(params=ours, state_format="fp32", **settings), steps=8)
    assert difference(ours, reference) <= difference(theirs, reference)


def test_hooks_around_state_dict_and_load_state_dict_fire():
    model = mlp()
    optimizer = forge.AdamW(model)
    train_mlp(model, optimizer, steps=1)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda o, saved: saved | {"note": "kept"})
    saved = optimizer.state_dict()
    assert saved["note"] == "kept"
    del saved["note"]

    def halve(o, loaded):
        seen.append("loading")
        loaded = copy.deepcopy(loaded)
        for group in loaded["param_groups"]:
            group["lr"] = group["lr"] / 2
        return loaded

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    lr = optimizer.param_groups[0]["lr"]
    optimizer.load_state_dict(saved)
    assert seen == ["saving", "loading", "loaded"]
    assert optimizer.param_groups[0]["lr"] == lr / 2
    train_mlp(model, optimizer, first=1, steps=1)


@pytest.mark.parametrize("spoil", ["another number of groups", "another number of parameters"])
def test_a_checkpoint_that_does_not_fit_raises_what_torch_raises(spoil):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), "AdamW", lr=1e-2)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=1)
        saved = copy.deepcopy(optimizer.state_dict())
        if spoil == "another number of groups":
            saved["param_groups"] = saved["param_groups"] * 2
        else:
            saved["param_groups"][0]["params"].pop()
        with pytest.raises(ValueError, match="doesn't match the size|different number of parameter groups"):
            optimizer.load_state_dict(saved)
        train_mlp(model, optimizer, first=1, steps=2)
    assert_same_weights(ours, theirs)


# ---- Copies ----------------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
    "torch.save": lambda both: torch_load_all(both),
}


def torch_load_all(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@schedules
@pytest.mark.parametrize("how", COPIES)
@rules
def test_a_copy_of_model_and_optimizer_continues_equal_and_apart(rule, how, schedule):
    model = text()
    optimizer = forge_optimizer(params=model, schedule=schedule, **RULES[rule])
    train(model, optimizer, steps=2)
    twin, twin_opt = COPIES[how]((model, optimizer))
    assert type(twin_opt) is type(optimizer)
    assert twin_opt.param_groups[0]["params"][0] is next(twin.parameters())
    losses = train(twin, twin_opt, first=2)
    assert is_factored(twin.blocks[0].up.weight) or schedule == "in_backward"
    assert difference(twin, model) > 1e-4  # the original stayed
    assert losses == train(model, optimizer, first=2)
    assert_equal_bits(twin, model)


@rules
def test_a_copy_of_the_optimizer_alone_has_parameters_of_its_own_as_in_torch(rule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=1)
        before = [p.detach().clone() for p in model.parameters()]
        alone = copy.deepcopy(optimizer)
        for p in alone.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        alone.step()
        model.alone = [p.detach().clone() for p in alone.param_groups[0]["params"]]
        assert_equal_bits(model, before)
    assert_same_weights(ours.alone, theirs.alone, rule)


def test_a_copied_model_is_still_fused_and_needs_no_warning():
    model = text()
    forge.fuse(model, verbose=False)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = forge.AdamW(copied.parameters())
        text_loss(copied, tokens(0)).backward()
        assert is_factored(copied.embedding.weight, copied.blocks[0].up.weight)
        optimizer.step()


# ---- Several optimizers ----------------------------------------------------------------------------------


@rules
def test_of_two_optimizers_the_second_records_and_the_first_still_steps(rule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), **RULES[rule])
    second = dict(cls="SGD", lr=0.05, momentum=0.5)
    their_second, our_second = torch_optimizer(params=theirs, **second), forge_optimizer(params=ours, **second)
    for model, optimizers in ((theirs, (their_opt, their_second)), (ours, (our_opt, our_second))):
        for i in range(4):
            optimizers[0].zero_grad()
            mlp_loss(model, points(i)).backward()
            if i != 2:
                optimizers[0].step()
            optimizers[1].step()
    assert_same_weights(ours, theirs, rule)
    assert is_factored(ours[0].weight)


@schedules
def test_binding_the_name_again_is_a_fresh_start(schedule):
    (theirs, their_opt), (ours, opt) = both(mlp(), "AdamW", schedule, lr=1e-2)
    train_mlp(theirs, their_opt, steps=2)
    train_mlp(ours, opt, steps=2)
    for _ in range(2):  # the second is made while the first is alive, and outlives it
        opt = forge.AdamW(ours, lr=1e-2, schedule=schedule)
    gc.collect()
    their_opt = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    assert_same_losses(train_mlp(ours, opt), train_mlp(theirs, their_opt))
    assert_same_weights(ours, theirs)


@schedules
def test_torchs_optimizer_takes_over_from_a_deleted_one(schedule):
    (theirs, their_opt), (ours, opt) = both(mlp(), "AdamW", schedule, lr=1e-2)
    train_mlp(theirs, their_opt, steps=2)
    train_mlp(ours, opt, steps=2)
    ours.zero_grad()
    del opt
    gc.collect()
    losses = []
    for model in (theirs, ours):
        losses.append(train_mlp(model, torch.optim.AdamW(model.parameters(), lr=1e-2)))
    assert_same_losses(*losses)
    assert_same_weights(ours, theirs)
    assert type(ours[0].weight.grad) is torch.Tensor


@schedules
def test_a_graph_outlives_the_optimizer_that_was_there_when_it_was_made(schedule):
    theirs = mlp()
    ours = copy.deepcopy(theirs)
    opt = forge.AdamW(ours, schedule=schedule)
    loss = mlp_loss(ours, points(0))
    del opt
    gc.collect()
    loss.backward()
    mlp_loss(theirs, points(0)).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert_equal_bits(ours, theirs)


def test_a_gradient_outlives_its_optimizer():
    theirs = mlp()
    ours = copy.deepcopy(theirs)
    opt = forge.AdamW(ours)
    mlp_loss(ours, points(0)).backward()
    mlp_loss(theirs, points(0)).backward()
    del opt
    gc.collect()
    torch.testing.assert_close(ours[0].weight.grad.dense(), theirs[0].weight.grad)
    torch.optim.SGD([ours[0].weight], lr=0.1).step()
    torch.optim.SGD([theirs[0].weight], lr=0.1).step()
    torch.testing.assert_close(ours[0].weight, theirs[0].weight)
