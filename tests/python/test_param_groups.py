"""Param groups and state that users edit after construction: what the next update does is what torch's does."""

import collections
import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    assert_equal_bits,
    assert_same_weights,
    assert_unchanged,
    both,
    difference,
    forge_optimizer,
    is_factored,
    mlp,
    mlp_loss,
    points,
    rules,
    schedules,
    snapshot,
    train_mlp,
)
from torch import nn  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

# ---- What is refused -------------------------------------------------------------------------------------


def half(model, optimizer):
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(3).half()))


def twice(model, optimizer):
    optimizer.param_groups[0]["params"].append(model[0].weight)


def in_two_groups(model, optimizer):
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[0].weight]})


def one_group_twice(model, optimizer):
    optimizer.param_groups.append(optimizer.param_groups[0])


def expanded(model, optimizer):
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(1, 3).expand(4, 3)))


def of_another_format(model, optimizer):
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [], "state_format": "bf16_plus8"})
    optimizer.param_groups[1]["params"].append(nn.Parameter(torch.zeros(3)))


REFUSED = {
    half: "Half",
    twice: "given twice",
    in_two_groups: "given twice",
    one_group_twice: "given twice",
    expanded: "in one place of memory",
    of_another_format: "which is for weights",
}


@schedules
@pytest.mark.parametrize("edit", REFUSED, ids=lambda f: f.__name__)
def test_an_edit_that_is_refused_changes_nothing_and_may_be_taken_back(edit, schedule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), "AdamW", schedule, lr=1e-2)
    train_mlp(theirs, their_opt, steps=2)
    train_mlp(ours, our_opt, steps=2)
    before = snapshot(ours, our_opt)
    groups = [(group, list(group["params"])) for group in our_opt.param_groups]
    edit(ours, our_opt)
    for call in (our_opt.step, our_opt.zero_grad, lambda: forge.report(our_opt)):
        with pytest.raises(RuntimeError, match=REFUSED[edit]):
            call()
    our_opt.param_groups[:] = [group for group, _ in groups]
    for group, params in groups:
        group["params"][:] = params
    assert_unchanged(ours, our_opt, before)
    train_mlp(theirs, their_opt, first=2, steps=3)
    train_mlp(ours, our_opt, first=2, steps=3)
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize(
    "group, error",
    [({"betas": None}, TypeError), ({"noise": {}}, KeyError), ({"state_format": "int7"}, RuntimeError)],
)
def test_a_group_that_is_refused_for_any_reason_is_not_there(group, error):
    (theirs, their_opt), (ours, our_opt) = both(mlp()[:2], "AdamW", lr=1e-2)
    our_opt = forge.AdamW(ours, lr=1e-2, state_format="int8")
    with pytest.raises(error):
        our_opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))], **group})
    assert len(our_opt.param_groups) == 1
    train_mlp(theirs, their_opt)
    train_mlp(ours, our_opt)
    assert_same_weights(ours, theirs)


# ---- Edits -----------------------------------------------------------------------------------------------


def replace(optimizer, old, new, grown=lambda moment: moment):
    """As those do who grow or wrap a parameter: the state moves along, `grown` to the new shape."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        matrices = [key for key, x in state.items() if isinstance(x, torch.Tensor) and x.shape == old.shape]
        optimizer.state[new] = state | {key: grown(state[key]) for key in matrices}


def swap_every_parameter(model, optimizer):
    for module in model:
        for name, old in list(module.named_parameters(recurse=False)):
            new = nn.Parameter(old.detach().clone())
            setattr(module, name, new)
            replace(optimizer, old, new)


def densify(model, optimizer):
    rows, columns = model[2].weight, model[4].weight
    model[2].weight = nn.Parameter(torch.cat([rows.detach(), torch.ones(3, 20)]))
    replace(optimizer, rows, model[2].weight, lambda moment: torch.cat([moment, torch.zeros(3, 20)]))
    model[4].weight = nn.Parameter(torch.cat([columns.detach(), torch.ones(7, 3)], 1))
    replace(optimizer, columns, model[4].weight, lambda moment: torch.cat([moment, torch.zeros(7, 3)], 1))


def prune(model, optimizer):
    rows, bias = model[4].weight, model[4].bias
    model[4].weight, model[4].bias = nn.Parameter(rows.detach()[:5]), nn.Parameter(bias.detach()[:5])
    replace(optimizer, rows, model[4].weight, lambda moment: moment[:5])
    replace(optimizer, bias, model[4].bias, lambda moment: moment[:5])


def freeze(model, optimizer):
    model[0].weight.requires_grad_(False)
    optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]


def take_out(model, optimizer):
    del optimizer.param_groups[0]["params"][:2]


def take_all_out(model, optimizer):
    optimizer.param_groups[0]["params"] = []


def no_groups(model, optimizer):
    optimizer.param_groups.clear()


def a_group_for_each_layer(model, optimizer):
    first = optimizer.param_groups[0]
    optimizer.param_groups[:] = [
        {**first, "params": [p], "lr": first["lr"] * 0.5**i} for i, p in enumerate(first["params"])
    ]


def split_a_group_that_stays(model, optimizer):
    group = optimizer.param_groups[0]
    optimizer.param_groups.append({**group, "params": group["params"][1:], "weight_decay": 0.5})
    group["params"] = group["params"][:1]


def clear_and_refill(model, optimizer):
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    optimizer.param_groups += groups


def assign_copies(model, optimizer):
    optimizer.param_groups = [{**group, "lr": 2 * group["lr"]} for group in optimizer.param_groups]


def reorder(model, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def tuples(model, optimizer):
    optimizer.param_groups[0]["params"] = tuple(optimizer.param_groups[0]["params"])
    optimizer.param_groups = tuple(optimizer.param_groups)


def into_a_group_of_its_own(model, optimizer):
    optimizer.add_param_group({"params": [optimizer.param_groups[0]["params"].pop()], "lr": 1e-3})


def put_in(model, optimizer):
    bias = nn.Parameter(torch.ones(16))
    model[2].register_parameter("bias", bias)
    optimizer.param_groups[0]["params"].insert(1, bias)


def clear_state(model, optimizer):
    optimizer.state.clear()


def assign_state(model, optimizer):
    kept = {p: optimizer.state[p] for p in (model[0].bias, model[2].weight)}
    optimizer.state = collections.defaultdict(dict, kept)


def other_memory(model, optimizer):
    model[2].weight.data = model[2].weight.data.repeat_interleave(2, 1)[:, ::2]
    model[0].weight.data = model[0].weight.data.t().clone().t()


EDITS = [
    swap_every_parameter,
    densify,
    prune,
    freeze,
    take_out,
    take_all_out,
    no_groups,
    a_group_for_each_layer,
    split_a_group_that_stays,
    clear_and_refill,
    assign_copies,
    reorder,
    tuples,
    into_a_group_of_its_own,
    put_in,
    clear_state,
    assign_state,
    other_memory,
]
edits = pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)

# Where in a step; in_backward the update has been by the last.
MOMENTS = ["before zero_grad", "before forward", "before backward", "before step"]


def train_with_edit(model, optimizer, edit, moment, steps=5, at=2):
    for i in range(steps):

        def reach(where, i=i):
            if i == at and where == moment:
                edit(model, optimizer)

        reach("before zero_grad")
        optimizer.zero_grad()
        reach("before forward")
        loss = mlp_loss(model, points(i))
        reach("before backward")
        loss.backward()
        reach("before step")
        optimizer.step()


# In in_backward the update has been where a step comes.
WHEN = [(schedule, moment) for schedule in ("at_step", "in_backward") for moment in MOMENTS]
WHEN.remove(("in_backward", "before step"))


@rules
@pytest.mark.parametrize("schedule, moment", WHEN)
@edits
def test_groups_that_are_edited_are_followed(edit, moment, rule, schedule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), schedule=schedule, **RULES[rule])
    train_with_edit(theirs, their_opt, edit, moment)
    train_with_edit(ours, our_opt, edit, moment)
    assert_same_weights(ours, theirs, rule)
    assert not torch.equal(ours[0].bias, mlp()[0].bias)


@schedules
@pytest.mark.parametrize("rule", ["Adafactor", "Lion", "Muon", "ScheduleFreeAdamW"])
def test_rules_with_other_state_are_followed_too(rule, schedule):
    """Against a run whose optimizer was made with the groups as edited."""
    decayed = [{"lr": 2e-3}, {"lr": 5e-3}]
    runs = []
    for edited in (False, True):
        model = mlp()
        forge.fuse(model)
        weights = [model[0].weight, model[2].weight]
        groups = [{"params": [p], **of} for p, of in zip(weights, decayed, strict=True)]
        optimizer = getattr(forge, rule)(weights if edited else groups, schedule=schedule)
        if edited:
            optimizer.param_groups[:] = [{**optimizer.param_groups[0], **group} for group in groups]
        if rule == "ScheduleFreeAdamW":
            optimizer.train()
        train_mlp(model, optimizer)
        if rule == "ScheduleFreeAdamW":
            optimizer.eval()
        runs.append(model)
    assert_equal_bits(*runs)
    assert difference(runs[0], mlp()) > 0


@schedules
def test_a_parameter_that_is_taken_out_and_put_back_goes_on_with_its_state(schedule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), "AdamW", schedule, lr=1e-2)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=2)
        taken = optimizer.param_groups[0]["params"].pop(0)
        taken.requires_grad_(False)
        train_mlp(model, optimizer, first=2, steps=2)
        taken.requires_grad_(True)
        optimizer.param_groups[0]["params"].append(taken)
        train_mlp(model, optimizer, first=4, steps=2)
    assert_same_weights(ours, theirs)


@schedules
def test_zero_grad_leaves_the_gradient_of_what_was_taken_out(schedule):
    for model, optimizer in both(mlp(), "AdamW", schedule, lr=1e-2):
        optimizer.param_groups[0]["params"].pop(0)
        mlp_loss(model, points(0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert model[0].weight.grad is not None and model[2].weight.grad is None
        assert torch.isfinite(model[0].weight.grad).all()


def test_the_gradient_of_what_stays_is_still_factored():
    model = mlp()
    optimizer = forge.AdamW(model)
    mlp_loss(model, points(0)).backward()
    reorder(model, optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    mlp_loss(model, points(1)).backward()
    assert is_factored(model[0].weight, model[2].weight, model[4].weight)


# ---- Copies, schedulers, options that read groups --------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@schedules
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("edit", [take_out, a_group_for_each_layer, put_in, reorder], ids=lambda f: f.__name__)
def test_a_copy_of_an_edited_optimizer_goes_on_as_it_would(edit, how, schedule):
    model = mlp()
    optimizer = forge.AdamW(model, lr=1e-2, schedule=schedule)
    train_with_edit(model, optimizer, edit, "before zero_grad", steps=3)
    model.zero_grad()
    model_copy, optimizer_copy = COPIES[how]((model, optimizer))
    train_mlp(model, optimizer, first=3)
    train_mlp(model_copy, optimizer_copy, first=3)
    assert_equal_bits(model_copy, model)


# torch's state_dict() has no place for the state that these leave.
WITH_STATE_LEFT = (freeze, take_out, take_all_out, no_groups)


@schedules
@pytest.mark.parametrize("edit", [e for e in EDITS if e not in WITH_STATE_LEFT], ids=lambda e: e.__name__)
def test_a_checkpoint_of_an_edited_optimizer_resumes_it(edit, schedule):
    model = mlp()
    optimizer = forge.AdamW(model, lr=1e-2, schedule=schedule)
    train_with_edit(model, optimizer, edit, "before zero_grad", steps=3)
    model.zero_grad()
    resumed = copy.deepcopy(model)
    twin = dict(zip(model.parameters(), resumed.parameters(), strict=True))
    groups = [{"params": [twin[p] for p in group["params"]]} for group in optimizer.param_groups]
    again = forge.AdamW(groups, schedule=schedule)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train_mlp(model, optimizer, first=3)
    train_mlp(resumed, again, first=3)
    assert_equal_bits(resumed, model)


@schedules
@rules
def test_a_scheduler_that_holds_the_old_groups_is_as_in_torch(rule, schedule):
    """torch's schedulers write into the groups that the optimizer has then."""
    pairs = both(mlp(), schedule=schedule, **RULES[rule])
    for model, optimizer in pairs:
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
        old = optimizer.param_groups[0]
        train_mlp(model, optimizer, steps=2, after_step=lambda i, s=scheduler: s.step())
        optimizer.param_groups = [{**old}]
        old["lr"] = 100.0  # of nobody any more
        train_mlp(model, optimizer, first=2, steps=3, after_step=lambda i, s=scheduler: s.step())
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


def test_sophias_hessian_is_of_the_parameters_that_are_there_now():
    runs = []
    for edited in (False, True):
        model = mlp()
        forge.fuse(model)
        chosen = [p for p in model.parameters() if p is not model[0].weight]
        optimizer = forge.SophiaG(model.parameters() if edited else chosen, lr=1e-2)
        if edited:
            optimizer.param_groups[0]["params"] = chosen
        for i in range(3):
            mlp_loss(model, points(i)).backward()
            optimizer.update_hessian()
            optimizer.zero_grad()
            model[0].weight.grad = None
            mlp_loss(model, points(10 + i)).backward()
            optimizer.step(bs=4)
            optimizer.zero_grad()
            model[0].weight.grad = None
        assert model[0].weight not in optimizer.state
        runs.append(model)
    assert_equal_bits(*runs)


@pytest.mark.parametrize(
    "rule, options", [("LAMB", dict(max_grad_norm=0.1)), ("AdaLomo", dict(clip_grad_norm=0.1)), ("MARS", {})]
)
def test_the_norm_to_clip_by_is_of_the_parameters_that_are_there_now(rule, options):
    runs = []
    for edited in (False, True):
        model = mlp()
        forge.fuse(model)
        chosen = [p for p in model.parameters() if p is not model[0].weight]
        optimizer = getattr(forge, rule)(model.parameters() if edited else chosen, lr=1e-2, **options)
        if edited:
            optimizer.param_groups[0]["params"] = chosen
        train_mlp(model, optimizer)
        runs.append(model)
    assert_equal_bits(*runs)


# ---- Names and noise -------------------------------------------------------------------------------------


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))


def noise_of(optimizer):
    """Each parameter and the name that its noise is keyed by."""
    return {
        id(p): name
        for group in optimizer.param_groups
        for p, name in zip(group["params"], group["noise"]["names"], strict=True)
    }


@schedules
@pytest.mark.parametrize(
    "edit",
    [reorder, a_group_for_each_layer, split_a_group_that_stays, clear_and_refill],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("given", ["a model", "named parameters", "parameters"])
def test_a_parameter_keeps_its_noise_wherever_it_is_put(given, edit, schedule):
    """Bits are those of a run without the edit, but for learning rates, which stay as they are here."""
    runs = []
    for edited in (False, True):
        model = wide()
        forge.fuse(model)
        params = {"a model": model, "named parameters": model.named_parameters(), "parameters": model.parameters()}
        optimizer = forge.AdamW(params[given], lr=1e-2, state_format="int8", schedule=schedule)
        train_mlp(model, optimizer, steps=2)
        names = noise_of(optimizer)
        if edited:
            edit(model, optimizer)
            for group in optimizer.param_groups:
                group |= dict(lr=1e-2, weight_decay=0.01)
        train_mlp(model, optimizer, first=2)
        assert noise_of(optimizer) == names
        runs.append(model)
    assert_equal_bits(*runs)


def test_no_two_parameters_have_one_noise():
    model = wide()
    optimizer = forge.AdamW(model.parameters(), state_format="int8")
    for _ in range(3):
        optimizer.param_groups[0]["params"].pop(0)
        optimizer.param_groups[0]["params"].append(nn.Parameter(torch.zeros(64, 64)))
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(64, 64))]})
        optimizer.step()
        names = noise_of(optimizer)
        assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("schedule_and_format", [("at_step", None), ("in_backward", None), ("at_step", "int8")])
def test_names_that_came_with_a_group_are_asked_for_after_an_edit(schedule_and_format):
    schedule, state_format = schedule_and_format
    model = mlp()
    optimizer = forge.AdamW(model.named_parameters(), schedule=schedule, state_format=state_format)
    take_out(model, optimizer)
    put_in(model, optimizer)
    model[2].weight.register_hook(lambda grad: grad)
    with pytest.warns(forge.StoredGradientWarning, match="2.weight"):
        train_mlp(model, optimizer, steps=1)
    assert list(forge.report(optimizer).ordinary) == ["2.weight"]


@schedules
def test_state_in_a_dict_without_default_is_filled(schedule):
    """torch raises a KeyError before it updates; here a step goes through as a whole."""
    model, again = mlp(), mlp()
    for m, state in ((model, collections.defaultdict(dict)), (again, {})):
        optimizer = forge_optimizer(params=m, schedule=schedule, **RULES["AdamW"])
        optimizer.state = state
        train_mlp(m, optimizer)
    assert_equal_bits(again, model)


# ---- Memory in another order -----------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("rule", ["Adafactor", "AdaLomo", "Muon"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_rules_that_need_rows_refuse_memory_in_columns_and_change_nothing(steps_before, rule, schedule):
    model = mlp()
    forge.fuse(model)
    optimizer = getattr(forge, rule)([model[2].weight], lr=1e-2, schedule=schedule)
    train_mlp(model, optimizer, steps=steps_before)
    optimizer.zero_grad()
    model[2].weight.data = model[2].weight.data.t().contiguous().t()
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match=r"rows|row_var|exp_avg_sq_row"):
        mlp_loss(model, points(0)).backward()
        optimizer.step()
    assert_unchanged(model, optimizer, before)


@pytest.mark.parametrize("rule", ["Adafactor", "AdaLomo", "Muon", "LAMB"])
def test_rules_that_need_rows_follow_gaps(rule):
    runs = []
    for gaps in (False, True):
        model = mlp()
        forge.fuse(model)
        optimizer = getattr(forge, rule)([model[0].weight, model[2].weight], lr=1e-2)
        if gaps:
            model[2].weight.data = model[2].weight.data.repeat_interleave(2, 1)[:, ::2]
        train_mlp(model, optimizer)
        runs.append(model)
    assert_same_weights(runs[1], runs[0])
