"""load_state_dict() and step() happen as a whole or not at all."""

import copy
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

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
    mlp,
    mlp_loss,
    points,
    schedules,
    snapshot,
    text,
    train,
    train_mlp,
)
from torch import nn  # noqa: E402

# ---- Loads that are refused ------------------------------------------------------------------------------


def spoil_moments(saved):
    """What a load must not leave behind, whatever it is refused for."""
    for group in saved["param_groups"]:
        group["lr"] = 77.0
    for state in saved["state"].values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                state[key] = torch.full_like(value, 9)
    return saved


def capturable(saved):
    saved["param_groups"][0]["capturable"] = True


def the_last_group_is_capturable(saved):
    saved["param_groups"][-1]["capturable"] = True


def an_option_is_missing(saved):
    del saved["param_groups"][-1]["lr"]


def an_option_is_nonsense(saved):
    saved["param_groups"][-1]["lr"] = "fast"


def an_option_is_out_of_range(saved):
    saved["param_groups"][-1]["lr"] = -1.0


def a_moment_has_another_shape(saved):
    last = saved["state"][max(saved["state"])]
    key = next(key for key in last if key != "step")
    last[key] = torch.zeros(3, 3)


def a_step_that_is_no_number(saved):
    saved["state"][max(saved["state"])]["step"] = "many"


def too_few_groups(saved):
    saved["param_groups"].pop()


def too_many_groups(saved):
    saved["param_groups"].append({**saved["param_groups"][0], "params": []})


def too_few_parameters(saved):
    saved["param_groups"][0]["params"].pop()


def no_groups_at_all(saved):
    del saved["param_groups"]


def no_state_at_all(saved):
    del saved["state"]


def of_another_rule(saved):
    for group in saved["param_groups"]:
        for key in ("betas", "momentum"):
            group.pop(key, None)


def weight_low_of_another_format(saved):
    saved["state"][max(saved["state"])]["weight_low"] = torch.zeros(7, dtype=torch.int16)


def codes_with_scales_of_another_shape(saved):
    last = saved["state"][max(saved["state"])]
    key = next(key for key in last if key != "step")
    last[key] = last[key].to(torch.float8_e4m3fn)
    last[f"{key}_scale"] = torch.zeros(3, dtype=torch.bfloat16)


SPOILS = [
    capturable,
    the_last_group_is_capturable,
    an_option_is_missing,
    an_option_is_nonsense,
    an_option_is_out_of_range,
    a_moment_has_another_shape,
    a_step_that_is_no_number,
    too_few_groups,
    too_many_groups,
    too_few_parameters,
    no_groups_at_all,
    no_state_at_all,
    of_another_rule,
    weight_low_of_another_format,
    codes_with_scales_of_another_shape,
]


def in_two_groups(model):
    return [{"params": list(model[:2].parameters())}, {"params": list(model[2:].parameters()), "lr": 3e-3}]


REFUSALS = (RuntimeError, ValueError, KeyError, TypeError)


def refuse(optimizer, saved):
    groups, state, engine = optimizer.param_groups, optimizer.state, optimizer._engine
    options = copy.deepcopy([{k: v for k, v in group.items() if k != "params"} for group in groups])
    with pytest.raises(REFUSALS):
        optimizer.load_state_dict(saved)
    assert (optimizer.param_groups, optimizer.state, optimizer._engine) == (groups, state, engine)
    assert optimizer.param_groups is groups and optimizer.state is state
    assert [{k: v for k, v in group.items() if k != "params"} for group in groups] == options


# torch's SGD has no such option, nor counts its steps.
NOT_OF_SGD = (capturable, the_last_group_is_capturable, a_step_that_is_no_number)
SPOILED = [(rule, spoil) for rule in ("AdamW", "SGD") for spoil in SPOILS if rule != "SGD" or spoil not in NOT_OF_SGD]


@schedules
@pytest.mark.parametrize("rule, spoil", SPOILED, ids=lambda x: getattr(x, "__name__", x))
def test_a_load_that_is_refused_changes_neither_values_nor_the_steps_after_it(spoil, rule, schedule):
    runs = []
    for tried in (False, True):
        model = mlp()
        optimizer = forge_optimizer(params=in_two_groups(model), schedule=schedule, **RULES[rule])
        train_mlp(model, optimizer, steps=2)
        if tried:
            before = snapshot(model, optimizer)
            saved = spoil_moments(copy.deepcopy(optimizer.state_dict()))
            spoil(saved)
            refuse(optimizer, saved)
            assert_unchanged(model, optimizer, before)
        train_mlp(model, optimizer, first=2, steps=3)
        runs.append(model)
    assert_equal_bits(*runs)
    assert difference(runs[0], mlp()) > 0


def test_a_load_that_is_refused_between_backward_and_step_loses_no_gradient():
    (theirs, their_opt), (ours, our_opt) = both(mlp(), "AdamW", lr=1e-2)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=1)
        optimizer.zero_grad()
        mlp_loss(model, points(1)).backward()
    saved = spoil_moments(copy.deepcopy(our_opt.state_dict()))
    a_moment_has_another_shape(saved)
    refuse(our_opt, saved)
    their_opt.step()
    our_opt.step()
    assert_same_weights(ours, theirs)


def large():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))


def noise_of_another_mapping(saved):
    saved["param_groups"][0]["noise"]["mapping"] = 99


def a_scale_is_of_another_type(saved):
    state = next(state for state in saved["state"].values() if "exp_avg_scale" in state)
    state["exp_avg_scale"] = state["exp_avg_scale"].float()


def unsigned_codes_for_signed_ones(saved):
    state = next(state for state in saved["state"].values() if "exp_avg_scale" in state)
    state["exp_avg"] = state["exp_avg"].to(torch.uint8)


def lower_bits_of_another_type(saved):
    saved["state"][0]["weight_low"] = saved["state"][0]["weight_low"].to(torch.uint8)


def lower_bits_of_another_shape(saved):
    saved["state"][0]["weight_low"] = saved["state"][0]["weight_low"][:3]


FORMATS = {
    noise_of_another_mapping: dict(state_format="int8"),
    a_scale_is_of_another_type: dict(state_format="int8"),
    unsigned_codes_for_signed_ones: dict(state_format="int8"),
    lower_bits_of_another_type: dict(weight_format="bf16_plus16"),
    lower_bits_of_another_shape: dict(weight_format="bf16_plus16"),
    capturable: dict(state_format="int8", weight_format="bf16_stochastic"),
}


@schedules
@pytest.mark.parametrize("spoil", FORMATS, ids=lambda f: f.__name__)
def test_a_refused_load_of_other_formats_changes_nothing(spoil, schedule):
    runs = []
    for tried in (False, True):
        model = large().bfloat16()
        optimizer = forge.AdamW(model, lr=1e-2, schedule=schedule, **FORMATS[spoil])
        of = dict(loss=lambda m, x: mlp_loss(m, x.bfloat16()), data=points)
        train(model, optimizer, steps=2, **of)
        if tried:
            before = snapshot(model, optimizer)
            saved = copy.deepcopy(optimizer.state_dict())
            saved["param_groups"][0]["lr"] = 77.0
            spoil(saved)
            refuse(optimizer, saved)
            assert_unchanged(model, optimizer, before)
        train(model, optimizer, first=2, steps=3, **of)
        runs.append(model)
    assert_equal_bits(*runs)


def test_lower_bits_for_weights_that_keep_none_are_refused_and_change_nothing():
    model, other = large().bfloat16(), large().bfloat16()
    optimizer, source = forge.AdamW(model), forge.AdamW(other, weight_format="bf16_plus16")
    of = dict(loss=lambda m, x: mlp_loss(m, x.bfloat16()), data=points, steps=1)
    train(model, optimizer, **of)
    train(other, source, **of)
    before = snapshot(model, optimizer)
    refuse(optimizer, source.state_dict())
    assert_unchanged(model, optimizer, before)


def the_authors_z(saved):
    for state in saved["state"].values():
        state["z"] = state.pop("z_minus_y")


def a_difference_of_another_shape(saved):
    saved["state"][4]["z_minus_y"] = torch.zeros(3)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("spoil", [the_authors_z, a_difference_of_another_shape], ids=lambda f: f.__name__)
def test_schedule_frees_state_is_looked_at_in_either_mode(spoil, mode):
    model = mlp()
    optimizer = forge.ScheduleFreeAdamW(model)
    optimizer.train()
    train_mlp(model, optimizer, steps=2)
    getattr(optimizer, mode)()
    before = snapshot(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(saved)
    refuse(optimizer, saved)
    assert_unchanged(model, optimizer, before)


@schedules
def test_what_is_refused_at_first_may_be_loaded_mended(schedule):
    (theirs, their_opt), (ours, our_opt) = both(text(), "AdamW", schedule, lr=1e-2)
    train(theirs, their_opt, steps=2)
    saved = copy.deepcopy(their_opt.state_dict())
    ours.load_state_dict(theirs.state_dict())
    bad = copy.deepcopy(saved)
    bad["state"][1]["exp_avg"] = torch.zeros(2, 2, 2)
    refuse(our_opt, bad)
    our_opt.load_state_dict(saved)
    train(theirs, their_opt, first=2, steps=3)
    train(ours, our_opt, first=2, steps=3)
    assert_same_weights(ours, theirs)


# ---- Steps that find no memory ---------------------------------------------------------------------------

SIDE, LAYERS = 400, 6
OF_STEP = {
    "AdamW": dict(rule="AdamW"),
    "AdamW, int8": dict(rule="AdamW", state_format="int8"),
    "AdamW, bf16_plus16": dict(rule="AdamW", weight_format="bf16_plus16"),
    "AdamW, of weights with gaps": dict(rule="AdamW", gaps=True),
    "Muon": dict(rule="Muon"),
    "LAMB": dict(rule="LAMB"),
}


def start(rule, gaps=False, **options):
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS))
    if "weight_format" in options:
        model = model.bfloat16()
    for layer in model if gaps else ():
        layer.weight.data = layer.weight.data.repeat_interleave(2, 1)[:, ::2]
    optimizer = getattr(forge, rule)(model.parameters(), lr=1e-2, **options)
    x = torch.randn(3, SIDE, dtype=model[0].weight.dtype)
    sum(layer(x).float().square().mean() for layer in model).backward()
    return model, optimizer


def run_out_of_memory(of):
    """Tries a step with ever more room; says how many tries failed, how many of them moved a weight, and how far the
    weights after the one that did not are from those of a run that had memory at once."""
    torch.set_num_threads(1)
    model, optimizer = start(**of)
    before = copy.deepcopy([layer.weight.detach() for layer in model])
    failed, moved, room = 0, 0, 0
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    while True:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
        try:
            optimizer.step()
            break
        except (RuntimeError, MemoryError):
            failed += 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        moved += any(not torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True))
        room += 1 << 16
    expected, optimizer = start(**of)
    optimizer.step()
    apart = max((a.weight - b.weight).abs().max().item() for a, b in zip(model, expected, strict=True))
    return {"failed": failed, "moved": moved, "apart": apart}


@pytest.fixture(scope="module")
def seen():
    arguments = [sys.executable, "-W", "ignore", __file__]
    run = subprocess.run(arguments, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", OF_STEP)
def test_a_step_without_memory_moves_no_weight_and_a_later_one_is_the_first(name, seen):
    assert seen[name]["failed"] > 0
    assert seen[name]["moved"] == 0
    assert seen[name]["apart"] == 0


def in_a_fork(function, *args):
    """Its result, from a process whose heap has no holes that others have left."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, json.dumps(function(*args)).encode())
        os._exit(0)
    os.close(theirs)
    status = os.waitpid(child, 0)[1]
    return json.loads(os.read(ours, 1 << 16)) if status == 0 else {"failed": status}


if __name__ == "__main__":
    print(json.dumps({name: in_a_fork(run_out_of_memory, of) for name, of in OF_STEP.items()}))
