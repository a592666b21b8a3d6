"""Every optimizer beside the implementation that defines it: one step from the same gradient and state (contract 8)."""

import inspect
import types

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from forge_optim import _C  # noqa: E402
from published_formulas import FORMULAS  # noqa: E402
from rule_cases import (  # noqa: E402
    CASES,
    CLIPPED,
    FACTORED,
    TORCHS,
    comparable_cases,
    every_case,
    every_optimizer,
    moments_of,
    ours_of,
)
from rule_distance import VALUES, distance_to_formula, distance_to_torch  # noqa: E402
from torch import nn  # noqa: E402

RULE_NAMES = _C.rule_names()  # before a test loads more

# How far a step may be from theirs, in units of ulp(what was there) + ulp(the largest term of the change): what 24,000
# updates of each case give, rounded up. torch's own foreach and fused paths differ from its plain one by 3.2 (AdamW),
# 4.8 (NAdam), 2.0 (Adam, RAdam, Adagrad, ASGD) and, for the others, 0. torch's Adafactor is 6.8 from float64, ours 2.6.
K = {"SGD": 1, "Adam": 3, "AdamW": 4, "NAdam": 4, "RAdam": 3, "Adamax": 1, "Adagrad": 3, "Adadelta": 6, "RMSprop": 3,
     "Rprop": 1, "ASGD": 2, "Lion": 2, "Signum": 2, "Adan": 7, "AdEMAMix": 5, "ADOPT": 3, "ScheduleFreeAdamW": 5,
     "ScheduleFreeSGD": 3, "SophiaG": 2, "MARS": 7, "Grams": 3, "CautiousAdamW": 5, "StableAdamW": 4,
     "LAMB": 4, "Adafactor": 8, "AdaLomo": 3}  # fmt: skip


@comparable_cases
def test_a_step_is_that_of_the_defining_implementation(cls, options):
    distance = distance_to_torch if cls in TORCHS else distance_to_formula
    for shape in [(VALUES,), (50, 80)] if cls in FACTORED else [(VALUES,)]:
        assert distance(cls, options, shape) <= K[cls]


def test_adams_decay_may_be_decoupled():
    assert distance_to_torch("Adam", dict(weight_decay=0.3, decoupled_weight_decay=True)) <= K["Adam"]


# ---- From a model's gradient ---------------------------------------------------------------------------------------

OUT, IN = 6, 11


def whole(seed, *shape):
    """Small whole numbers, of which all sums are exact."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def linear():
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=False)


def backward(layer, seed, tokens):
    layer(whole(seed, tokens, IN)).backward(whole(seed + 100, tokens, OUT))


def trained(cls, options, micro_batches, fused=True, tokens=3, **more):
    """Four steps; not fused: of the gradients that torch makes."""
    layer = linear()
    optimizer = ours_of(cls, layer.parameters(), **options, **more)
    if not fused:
        forge.unfuse(layer)
    for t in range(4):
        optimizer.zero_grad()
        for k in range(micro_batches):
            backward(layer, 10 * t + k, tokens[t] if isinstance(tokens, list) else tokens)
        assert fused == isinstance(layer.weight.grad, forge.FactoredGrad) or more.get("schedule") == "in_backward"
        optimizer.step()
    return layer.weight, optimizer


@pytest.mark.filterwarnings("ignore::forge_optim.StoredGradientWarning")
@pytest.mark.parametrize("schedule, micro_batches", [("at_step", 1), ("at_step", 2), ("in_backward", 1)])
@every_case
def test_a_fused_weight_has_the_bits_that_a_stored_gradient_gives(cls, options, schedule, micro_batches):
    if schedule == "in_backward":
        options = options | {key: None for key in CLIPPED.get(cls, ())}
    expected, plain = trained(cls, options, micro_batches, fused=False)
    weight, optimizer = trained(cls, options, micro_batches, schedule=schedule)
    assert torch.equal(weight, expected)
    state, expected_state = moments_of(optimizer, weight), moments_of(plain, expected)
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[key], expected_state[key]) for key in state)
    assert not torch.equal(weight, linear().weight)


# ---- Which updates happen ------------------------------------------------------------------------------------------

# Whose state has no "step", as torch's.
UNCOUNTED = ("SGD", "Muon")


@pytest.mark.parametrize("schedule", ["at_step", "in_backward"])
@every_optimizer
def test_no_token_is_a_gradient_of_zeros(cls, schedule):
    ours, optimizer = trained(cls, CASES[cls][-1], 1, schedule=schedule, tokens=[2, 0, 0, 3])
    p = nn.Parameter(linear().weight.detach().clone())
    dense = ours_of(cls, [p], **CASES[cls][-1])
    for t, tokens in enumerate([2, 0, 0, 3]):
        p.grad = whole(10 * t + 100, tokens, OUT).t() @ whole(10 * t, tokens, IN)
        dense.step()
    assert torch.equal(ours, p)
    assert optimizer.state[ours].get("step") == dense.state[p].get("step") == (None if cls in UNCOUNTED else 4)


@every_optimizer
def test_a_parameter_without_a_gradient_and_a_frozen_one_take_no_step(cls):
    options = CASES[cls][-1]
    skipped, frozen, other = (nn.Parameter(whole(i, 4, 5) + 0.5) for i in range(3))
    optimizer = ours_of(cls, [skipped, frozen, other], **options)
    alone = nn.Parameter(skipped.detach().clone())
    optimizer_alone = ours_of(cls, [alone], **options)
    frozen.requires_grad_(False)
    at_first = frozen.detach().clone()
    for t in range(4):
        other.grad = whole(t, 4, 5)
        skipped.grad = None if t == 1 else whole(t + 50, 4, 5)
        optimizer.step()
        if t != 1:
            if "clip_lambda" in options:  # one number a group, of its most advanced parameter
                optimizer_alone.clip_lambda = lambda k, t=t: options["clip_lambda"](t)
            alone.grad = whole(t + 50, 4, 5)
            optimizer_alone.step()
    assert torch.equal(frozen, at_first)
    assert not optimizer.state.get(frozen) or optimizer.state[frozen]["step"] == 0  # Adagrad makes it at once
    assert torch.equal(skipped, alone)
    if cls not in UNCOUNTED:
        assert (optimizer.state[skipped]["step"], optimizer.state[other]["step"]) == (3, 4)


@every_optimizer
def test_a_tensor_is_as_good_a_learning_rate(cls):
    weights = [trained(cls, CASES[cls][0] | {"lr": lr}, 1)[0] for lr in (2**-6, torch.tensor(2**-6))]
    assert torch.equal(*weights)


@every_optimizer
def test_hooks_of_a_step_fire_once_and_its_closure_counts(cls):
    layer = forge_layer = linear()
    optimizer = ours_of(cls, forge_layer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        optimizer.zero_grad()
        backward(layer, 1, 3)
        return 17.0

    assert [optimizer.step(closure) for _ in range(2)] == [17.0, 17.0]  # ADOPT's first only looks
    assert seen == ["before", "after"] * 2
    assert not torch.equal(layer.weight, linear().weight)


# ---- Arguments -----------------------------------------------------------------------------------------------------

# Options that are no number of the update, or fixed by the class.
UNREAD = {"foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay", "train_mode", "mars_type",
          "optimize_1d", "max_grad_norm", "adjust_lr_fn", "kahan_sum", "caution", "corrected_weight_decay",
          "loss_scale", "clip_grad_norm"}  # fmt: skip

AUTHORS_ARGUMENTS = {
    "Lion": "lr betas weight_decay",
    "Adan": "lr betas eps weight_decay max_grad_norm no_prox",
    "AdEMAMix": "lr betas alpha beta3_warmup alpha_warmup eps weight_decay",
    "ADOPT": "lr betas eps clip_lambda weight_decay decouple",
    "ScheduleFreeAdamW": "lr betas eps weight_decay warmup_steps r weight_lr_power",
    "ScheduleFreeSGD": "lr momentum weight_decay warmup_steps r weight_lr_power",
    "SophiaG": "lr betas rho weight_decay",
    "MARS": "lr betas eps weight_decay amsgrad gamma is_approx mars_type optimize_1d",
    "Grams": "lr betas eps weight_decay correct_bias",
    "CautiousAdamW": "lr betas eps weight_decay correct_bias",
    "StableAdamW": "lr betas weight_decay eps decouple_lr max_lr kahan_sum",
    "LAMB": "lr bias_correction betas eps weight_decay grad_averaging max_grad_norm trust_clip always_adapt caution "
    "decoupled_decay corrected_weight_decay",
    "AdaLomo": "lr loss_scale eps clip_threshold decay_rate clip_grad_norm clip_grad_value weight_decay",
}


def test_the_table_has_every_optimizer():
    assert list(CASES) == RULE_NAMES and K.keys() == CASES.keys() - {"Muon"}
    assert {cls for cls in CASES if cls not in TORCHS} == FORMULAS.keys()


@every_optimizer
def test_defaults_are_those_of_the_rule(cls):
    defaults = dict(getattr(forge, cls)([nn.Parameter(torch.zeros(1, 1))]).defaults)
    if cls == "SophiaG":
        defaults["bs"] = inspect.signature(forge.SophiaG.step).parameters["bs"].default
    if cls == "Muon":
        defaults["match_rms_adamw"] = defaults["adjust_lr_fn"] == "match_rms_adamw"
    for name, tuple_name, place, value in _C.rule_options(cls):
        ours = defaults[tuple_name][place] if tuple_name else defaults[name]
        assert ours is None or ours == value, name
    read = {tuple_name or name for name, tuple_name, _, _ in _C.rule_options(cls)}
    assert defaults.keys() - read <= UNREAD - read


@pytest.mark.parametrize("cls", AUTHORS_ARGUMENTS)
def test_arguments_stand_in_the_order_of_the_authors(cls):
    ours = list(inspect.signature(getattr(forge, cls)).parameters)
    assert " ".join(ours[1:]).startswith(AUTHORS_ARGUMENTS[cls])


@pytest.mark.parametrize(
    "cls, options, remedy",
    [
        ("Adan", dict(max_grad_norm=1.0), "clip_grad_norm_"),
        ("MARS", dict(mars_type="mars-lion"), "mars-adamw"),
        ("MARS", dict(optimize_1d=False), "AdamW"),
        ("StableAdamW", dict(kahan_sum=True), "bf16_plus16"),
        ("LAMB", dict(caution=True), "leave them False"),
        ("LAMB", dict(schedule="in_backward"), "max_grad_norm=None"),
        ("AdaLomo", dict(clip_grad_value=1.0), "clip_grad_value_"),
        ("AdaLomo", dict(clip_grad_norm=1.0, schedule="in_backward"), "clip_grad_norm=None"),
    ],
)
def test_what_the_authors_have_and_we_do_elsewhere_is_refused_with_the_remedy(cls, options, remedy):
    with pytest.raises(RuntimeError, match=remedy):
        getattr(forge, cls)([nn.Parameter(torch.zeros(1))], **options)


@pytest.mark.parametrize(
    "cls, expected",
    [
        ("Lion", dict(lr=0.5, betas=(0.7, 0.8))),
        ("NAdam", dict(lr=0.5, betas=(0.7, 0.8), eps=0.25)),
        ("AdEMAMix", dict(lr=0.5)),
        ("Adagrad", dict(lr=0.5)),
    ],
)
def test_trainer_takes_every_optimizer(cls, expected):
    pytest.importorskip("transformers")
    args = types.SimpleNamespace(
        learning_rate=0.5, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=0.25, device=torch.device("cpu")
    )
    layer = linear()
    ours, kwargs = forge.hf.optimizer(layer, args, getattr(forge, cls), verbose=False)
    assert ours is getattr(forge, cls) and kwargs == expected | {"schedule": "at_step"}
    optimizer = ours(layer.parameters(), **kwargs)
    backward(layer, 1, 3)
    optimizer.step()
    assert not torch.equal(layer.weight, linear().weight)
