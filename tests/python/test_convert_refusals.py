"""What cannot be carried between libraries is refused, in a sentence with the remedy."""

import copy
import re

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from library_cases import Case, library, net, train  # noqa: E402

# ---- Refusals ------------------------------------------------------------------------------------------------------

REFUSED = [
    ("SGD", dict(momentum=0.9, nesterov=True), "bitsandbytes has no SGD with nesterov=True; set it to False"),
    ("SGD", dict(momentum=0.9, dampening=0.5), "dampening=0.5"),
    ("SGD", dict(), 'no "momentum_buffer"'),
    ("Adam", dict(weight_decay=0.1), "decoupled_weight_decay=False"),
    ("AdamW", dict(amsgrad=True), "amsgrad=True"),
    ("AdamW", dict(maximize=True), "maximize=True"),
    ("RMSprop", dict(centered=True), "centered=True"),
    ("RMSprop", dict(momentum=0.5), "momentum=0.5"),
    ("Adagrad", dict(lr_decay=0.5), "lr_decay=0.5"),
    ("Adagrad", dict(initial_accumulator_value=0.5), "initial_accumulator_value=0.5"),
    ("NAdam", dict(), "bitsandbytes has no NAdam as it is here, only Adam, AdamW, "),
]


@pytest.mark.parametrize("cls, options, message", REFUSED)
def test_rules_and_options_that_bitsandbytes_lacks_are_refused(cls, options, message):
    model = net()
    optimizer = train(model, getattr(forge, cls)(model, **options | {"weight_format": None}), steps=1)
    if cls == "SGD" and not options:  # there is a state where noise depends on the step
        optimizer.state[model.small.weight]["step"] = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        forge.convert.to_state_dict(optimizer, "bitsandbytes")


@pytest.mark.parametrize(
    "cls, options, library, message",
    [
        ("Lion", {}, ("torch",), "torch.optim has no Lion"),
        ("SGD", dict(momentum=0.9), ("torchao",), "torchao has no SGD as it is here, only Adam, AdamW"),
        ("AdamW", dict(maximize=True), ("torchao",), "torchao has no AdamW with maximize=True"),
        ("AdamW", dict(amsgrad=True), ("torchao",), "torchao has no AdamW with amsgrad=True"),
        ("Adam", dict(amsgrad=True), ("torchao",), "torchao has no Adam with amsgrad=True"),
        ("Adam", dict(weight_decay=0.1, decoupled_weight_decay=True), ("torchao",), "decoupled_weight_decay=True"),
        ("AdamW", {}, ("bitsandbytes", "4bit"), "no layout bitsandbytes 4bit; the layouts are torch, b"),
        ("AdamW", {}, ("torch", "8bit"), "no layout torch 8bit"),
        ("AdamW", {}, ("bnb",), "no layout bnb None"),
    ],
)
def test_what_a_library_lacks_is_refused(cls, options, library, message):
    model = net()
    optimizer = train(model, getattr(forge, cls)(model, **options), steps=1)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        forge.convert.to_state_dict(optimizer, *library)


@pytest.mark.parametrize("name", ["bitsandbytes", "torchao"])
def test_adamw_whose_group_has_been_made_adams_is_no_adamw(name):
    optimizer = forge.AdamW(net(), weight_decay=0.1)
    optimizer.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(RuntimeError, match="decoupled_weight_decay=False; set it to True"):
        forge.convert.to_state_dict(optimizer, name)
    optimizer.param_groups[0]["weight_decay"] = 0.0  # nothing decays
    forge.convert.to_state_dict(optimizer, name)


def test_torchao_must_be_there_to_be_written(monkeypatch):
    monkeypatch.setattr(forge.convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install torchao"):
        forge.convert.to_state_dict(forge.AdamW(net()), "torchao")


@pytest.mark.parametrize("kind", ["bf16_plus8", "bf16_plus16"])
def test_lower_bits_of_weights_are_dropped_only_when_asked(kind):
    model = net(torch.bfloat16)
    optimizer = train(model, forge.AdamW(model, lr=1e-3, weight_format=kind, state_format="fp32"))
    with pytest.raises(RuntimeError, match="drop_weight_low=True"):
        forge.convert.to_state_dict(optimizer, "torch")
    saved = forge.convert.to_state_dict(optimizer, "torch", drop_weight_low=True)
    assert all(of.keys() == {"step", "exp_avg", "exp_avg_sq"} for of in saved["state"].values())
    for of in optimizer.state.values():
        of["weight_low"].zero_()
    forge.convert.to_state_dict(optimizer, "torch")  # nothing to lose


@pytest.mark.parametrize("name", ["bitsandbytes", "torchao"])
def test_codes_of_what_is_not_finite_are_refused(name):
    library(name)
    model = net()
    optimizer = train(model, forge.AdamW(model), steps=1)
    optimizer.state[model.whole.weight]["exp_avg"][3, 4] = float("inf")
    with pytest.raises(RuntimeError, match='"exp_avg" is not finite'):
        forge.convert.to_state_dict(optimizer, name)


class Sharded(torch.Tensor):
    def to_local(self): ...


def test_shards_are_refused():
    model = net()
    optimizer = train(model, forge.AdamW(model), steps=1)
    optimizer.state[model.whole.weight]["exp_avg"] = torch.zeros(84, 64).as_subclass(Sharded)
    with pytest.raises(RuntimeError, match="gather the state"):
        forge.convert.to_state_dict(optimizer, "bitsandbytes")
    case = Case("torchao AdamW8bit")
    model, theirs = case.trained()
    saved = theirs.state_dict()
    shard = torch.zeros(3).as_subclass(Sharded)
    shard._local_tensor = saved["state"][1]["exp_avg"]
    saved["state"] = {1: {"exp_avg": shard}}
    with pytest.raises(RuntimeError, match="of DTensors; gather it"):
        forge.convert.from_state_dict(saved, forge.AdamW(net()))


def spoiled(key, value):
    def spoil(saved):
        saved["state"][1][forge.convert.NESTED][key] = value

    return spoil


@pytest.mark.parametrize(
    "cls, spoil, message",
    [
        ("Lion", None, 'kept as "absmax1", "qmap1", "state1", "step"; load it into the optimizer of its rule'),
        ("NAdam", None, "bitsandbytes has no NAdam"),
        ("AdamW", spoiled("unorm_vec", torch.zeros(1)), "LAMB, LARS, max_unorm"),
        ("AdamW", spoiled("absmax1", torch.zeros(7)), "7 scales fit 5376 codes neither"),
        ("AdamW", spoiled("state1", torch.zeros(64, 84, dtype=torch.uint8)), '"state1" is (64, 84), expected (84, 64)'),
        ("AdamW", lambda saved: saved["param_groups"][0]["params"].pop(), "have [4] parameters, the optimizer's [5]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(cls, spoil, message):
    case = Case("bitsandbytes AdamW8bit")
    _, theirs = case.trained()
    saved = copy.deepcopy(theirs.state_dict())
    if spoil:
        spoil(saved)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        forge.convert.from_state_dict(saved, getattr(forge, cls)(net()))


def test_moments_that_a_rule_has_no_place_for_are_refused():
    model = net()
    theirs = train(model, torch.optim.Adam(model.parameters(), amsgrad=True), steps=1)
    for optimizer, keys in ((forge.SGD(net(), lr=0.1), '"exp_avg", '), (forge.Lion(net()), "")):
        message = f'has {keys}"exp_avg_sq", "max_exp_avg_sq", for which {optimizer._rule} with its options has no place'
        with pytest.raises(RuntimeError, match=message):
            forge.convert.from_state_dict(theirs.state_dict(), optimizer)
