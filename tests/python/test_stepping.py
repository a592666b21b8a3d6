"""Groups, schedulers, closures, hooks and errors of step(), as with torch.optim."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    assert_same_losses,
    assert_same_weights,
    assert_unchanged,
    both,
    difference,
    forge_optimizer,
    is_factored,
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
    torch_optimizer,
    train,
    train_mlp,
)
from torch import nn  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

# ---- Groups, learning rates, schedulers ------------------------------------------------------------------


def groups_of(model):
    decayed = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    return [
        {"params": decayed[:1], "lr": 3e-2, "weight_decay": 0.3},
        {"params": decayed[1:], "weight_decay": 0.1},
        {"params": rest, "lr": 2e-3, "weight_decay": 0.0},
    ]


def both_in_groups(schedule, rule):
    theirs = text()
    ours = copy.deepcopy(theirs)
    forge.fuse(ours, verbose=False)
    return (
        (theirs, torch_optimizer(params=groups_of(theirs), **RULES[rule])),
        (ours, forge_optimizer(params=groups_of(ours), schedule=schedule, **RULES[rule])),
    )


@schedules
@rules
def test_groups_have_their_own_values(rule, schedule):
    (theirs, their_opt), (ours, our_opt) = both_in_groups(schedule, rule)
    their_losses = train(theirs, their_opt)
    assert_same_losses(train(ours, our_opt), their_losses)
    assert_same_weights(ours, theirs, rule)


@schedules
@rules
def test_what_is_written_into_a_group_acts_at_the_next_update(rule, schedule):
    pairs = both_in_groups(schedule, rule)
    for model, optimizer in pairs:

        def write(i, optimizer=optimizer):
            optimizer.param_groups[0]["lr"] *= 3
            optimizer.param_groups[1]["lr"] = torch.tensor(5e-3)
            optimizer.param_groups[1]["weight_decay"] = 0.01 * i
            optimizer.param_groups[2]["maximize"] = i == 1

        train(model, optimizer, after_step=write)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


@pytest.mark.parametrize("key, value", [("lr", "fast"), ("lr", -1.0), ("betas", (0.9,)), ("capturable", True)])
def test_nonsense_written_into_a_group_is_refused_and_changes_nothing(key, value):
    model = mlp()
    optimizer = forge.AdamW(model)
    train_mlp(model, optimizer, steps=1)
    mlp_loss(model, points(1)).backward()
    before = snapshot(model, optimizer)
    optimizer.param_groups[0][key] = value
    with pytest.raises(RuntimeError, match=key):
        optimizer.step()
    assert_unchanged(model, optimizer, before)


LR_SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)),
    "LambdaLR, one for each group": lambda o: lr_scheduler.LambdaLR(o, [lambda i: 0.9**i] * len(o.param_groups)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda i: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "CyclicLR, of momentum too": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=2),
    "OneCycleLR, of momentum too": lambda o: lr_scheduler.OneCycleLR(o, max_lr=2e-2, total_steps=8),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)], milestones=[2]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=3),
}


@schedules
@rules
@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_schedulers_drive_it_as_they_drive_torch(name, rule, schedule):
    rates = []
    pairs = both(mlp(), schedule=schedule, **RULES[rule])
    for model, optimizer in pairs:
        with warnings.catch_warnings():
            # torch's of its own: SequentialLR's epoch argument. That step() does not come before is an error here.
            warnings.filterwarnings("error", message=".*lr_scheduler.step.*before.*")
            scheduler = LR_SCHEDULERS[name](optimizer)
            seen = []

            def advance(i, optimizer=optimizer, scheduler=scheduler, seen=seen):
                plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
                scheduler.step(1.0) if plateau else scheduler.step()
                seen.append(float(optimizer.param_groups[0]["lr"]))

            train_mlp(model, optimizer, steps=6, after_step=advance)
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1  # it did schedule
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


@schedules
@rules
def test_a_tensor_lr_that_is_filled_in_place_acts(rule, schedule):
    settings = RULES[rule] | dict(lr=torch.tensor(1e-2))
    pairs = both(mlp(), schedule=schedule, **settings)
    for model, optimizer in pairs:
        train_mlp(model, optimizer, after_step=lambda i, o=optimizer: o.param_groups[0]["lr"].mul_(0.5))
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


# ---- step() ----------------------------------------------------------------------------------------------


@schedules
@rules
def test_step_evaluates_a_closure_with_gradients_enabled(rule, schedule):
    (theirs, their_opt), (ours, our_opt) = both(text(), schedule=schedule, **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        losses = []
        for i in range(4):

            def closure(i=i, model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = text_loss(model, tokens(i))
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure).item())
        model.losses = losses
    assert_same_losses(ours.losses, theirs.losses)
    assert_same_weights(ours, theirs, rule)


@rules
def test_step_twice_without_a_backward_between_is_as_in_torch(rule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        for i in range(3):
            optimizer.zero_grad()
            mlp_loss(model, points(i)).backward()
            optimizer.step()
            optimizer.step()
    assert_same_weights(ours, theirs, rule)
    assert is_factored(ours[0].weight)


@schedules
@rules
def test_zero_grad_that_keeps_zeros_is_as_in_torch(rule, schedule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), schedule=schedule, **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        for i in range(4):
            optimizer.zero_grad(set_to_none=False)
            quietly(mlp_loss(model, points(i)).backward)
            optimizer.step()
    assert_same_weights(ours, theirs, rule)


@rules
def test_a_gradient_of_zeros_is_a_gradient(rule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=2)
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert_same_weights(ours, theirs, rule)
    assert difference(ours, mlp()) > 0


@schedules
def test_hooks_before_and_after_step_fire_as_in_torch_and_may_change_arguments(schedule):
    calls = []
    for model, optimizer in both(mlp(), "AdamW", schedule):
        seen = []

        def note(o, args, kwargs, seen=seen, optimizer=optimizer):
            seen.append((o is optimizer, args[0] is optimizer, args[1:], kwargs))

        handles = [optimizer.register_step_pre_hook(note), optimizer.register_step_post_hook(note)]
        train_mlp(model, optimizer, steps=2)
        for handle in handles:
            handle.remove()
        train_mlp(model, optimizer, first=2, steps=1)
        optimizer.zero_grad()
        optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: torch.tensor(17)), {}))
        calls.append((seen, optimizer.step().item()))
    assert calls[0] == calls[1] == ([(True, True, (), {})] * 4, 17)


def test_the_hooks_of_all_optimizers_fire():
    seen = []
    handle = register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append(o))
    model = mlp()
    optimizer = forge.SGD(model, lr=0.1)
    train_mlp(model, optimizer, steps=1)
    handle.remove()
    assert seen == [optimizer]


def moment_of_another_shape(model, optimizer):
    state = optimizer.state[model[4].weight]
    key = next(key for key in state if key != "step")
    state[key] = torch.zeros(3, 3)


def X_changed_in_place(model, optimizer):
    with torch.no_grad():
        model.X.add_(1)


def parameter_that_became_fp64(model, optimizer):
    model[4].bias.grad = None
    model[4].bias.data = model[4].bias.data.double()
    model[4].bias.grad = torch.ones(7).double()


@rules
@pytest.mark.parametrize(
    "spoil, said",
    [
        (moment_of_another_shape, r"\[3, 3\]"),
        (X_changed_in_place, "changed in place"),
        (parameter_that_became_fp64, "Double"),
    ],
)
def test_an_error_in_step_leaves_every_weight_and_all_state_unchanged(spoil, said, rule):
    model = mlp()
    # The tanh's output: the X that the second layer's gradient refers to.
    model[1].register_forward_hook(lambda module, args, y: setattr(model, "X", y))
    optimizer = forge_optimizer(params=model, **RULES[rule])
    train_mlp(model, optimizer, steps=2)
    optimizer.zero_grad()
    mlp_loss(model, points(2)).backward()
    assert is_factored(model[2].weight)
    spoil(model, optimizer)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match=said) as refusal:
        optimizer.step()
    assert "\n" not in str(refusal.value)
    assert_unchanged(model, optimizer, before)


# ---- Param groups that come later ------------------------------------------------------------------------


@schedules
@rules
def test_a_group_that_is_added_trains_with_the_rest(rule, schedule):
    theirs = mlp()
    ours = copy.deepcopy(theirs)
    forge.fuse(ours, verbose=False)
    pairs = (
        (theirs, torch_optimizer(params=theirs[:2].parameters(), **RULES[rule])),
        (ours, forge_optimizer(params=ours[:2].parameters(), schedule=schedule, **RULES[rule])),
    )
    for model, optimizer in pairs:
        train_mlp(model, optimizer, steps=2)
        for p in model[2:].parameters():
            p.grad = None  # what came before the optimizer knew of them
        optimizer.add_param_group({"params": list(model[2:].parameters()), "lr": 5e-3})
        train_mlp(model, optimizer, first=2, steps=3)
    assert_same_weights(ours, theirs, rule)
    assert [len(g["params"]) for g in pairs[1][1].param_groups] == [2, 3]


def both_without_names():
    theirs = mlp()
    ours = copy.deepcopy(theirs)
    forge.fuse(ours, verbose=False)
    return (theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2)), (ours, forge.AdamW(ours.parameters(), lr=1e-2))


@pytest.mark.parametrize(
    "group, said",
    [
        (lambda: {"params": [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2).double())]}, "Double"),
        (lambda: {"params": [nn.Parameter(torch.zeros(2))], "capturable": True}, "capturable"),
        (lambda: {"params": [nn.Parameter(torch.zeros(2))], "lr": "fast"}, "lr"),
    ],
)
def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was(group, said):
    (theirs, their_opt), (ours, our_opt) = both_without_names()
    train_mlp(theirs, their_opt, steps=2)
    train_mlp(ours, our_opt, steps=2)
    before = snapshot(ours, our_opt)
    with pytest.raises(RuntimeError, match=said):
        our_opt.add_param_group(group())
    assert len(our_opt.param_groups) == 1
    assert_unchanged(ours, our_opt, before)
    assert_same_losses(train_mlp(ours, our_opt, first=2), train_mlp(theirs, their_opt, first=2))
    assert_same_weights(ours, theirs)


def test_a_group_that_is_refused_between_backward_and_step_loses_no_gradient():
    (theirs, their_opt), (ours, our_opt) = both_without_names()
    mlp_loss(theirs, points(0)).backward()
    mlp_loss(ours, points(0)).backward()
    with pytest.raises(RuntimeError, match="Double"):
        our_opt.add_param_group({"params": [nn.Parameter(torch.zeros(2).double())]})
    their_opt.step()
    our_opt.step()
    assert_same_weights(ours, theirs)
