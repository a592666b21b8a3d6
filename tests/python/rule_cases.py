"""Every optimizer of the package, with options away from their defaults."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import matrices  # noqa: E402


def third(step):
    """A clip of ADOPT's."""
    return step / 3


TORCHS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD",
          "Adafactor", "Muon")  # fmt: skip
# What keeps numbers of rows and columns of a matrix, and for a vector something else.
FACTORED = ("Adafactor", "AdaLomo")

CASES = {
    "SGD": [
        {},
        dict(weight_decay=0.1, maximize=True),
        dict(momentum=0.9),
        dict(momentum=0.9, dampening=0.3, weight_decay=0.1, maximize=True),
        dict(momentum=0.8, nesterov=True, weight_decay=0.1),
    ],
    "Adam": [
        {},
        dict(betas=(0.4, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
        dict(amsgrad=True, weight_decay=0.1),
    ],
    "AdamW": [
        {},
        dict(betas=(0.4, 0.9), eps=1e-3, weight_decay=0.3, maximize=True),
        dict(amsgrad=True, lr=torch.tensor(0.01)),
    ],
    "NAdam": [
        {},
        dict(betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1, momentum_decay=0.1),
        dict(weight_decay=0.3, decoupled_weight_decay=True, maximize=True),
    ],
    "RAdam": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, maximize=True),
        dict(weight_decay=0.3, decoupled_weight_decay=True, betas=(0.9, 0.7)),
    ],
    "Adamax": [{}, dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, maximize=True)],
    "Adagrad": [
        {},
        dict(lr_decay=0.3, weight_decay=0.1, initial_accumulator_value=0.2, eps=1e-3),
        dict(maximize=True),
    ],
    "Adadelta": [{}, dict(rho=0.7, eps=1e-3, weight_decay=0.1, maximize=True)],
    "RMSprop": [
        {},
        dict(alpha=0.8, eps=1e-3, weight_decay=0.1, maximize=True),
        dict(momentum=0.9, weight_decay=0.1),
        dict(centered=True, eps=1e-2),
        dict(centered=True, momentum=0.8, eps=1e-2, maximize=True),
    ],
    "Rprop": [{}, dict(etas=(0.7, 1.5), step_sizes=(1e-3, 0.02), maximize=True)],
    "ASGD": [{}, dict(lambd=0.1, alpha=0.5, t0=2, weight_decay=0.1, maximize=True)],
    "Adafactor": [
        {},
        dict(beta2_decay=-0.3, eps=(1e-3, 2.0), weight_decay=0.3, maximize=True),
        dict(lr=torch.tensor(0.02), eps=(None, 1e-2), d=1.5),
    ],
    "Muon": [
        {},
        dict(lr=0.02, weight_decay=0.3, momentum=0.6, nesterov=False, ns_steps=3),
        dict(adjust_lr_fn="match_rms_adamw", ns_coefficients=(2.0, -1.5, 0.5)),
        dict(lr=torch.tensor(0.01)),
    ],
    "Lion": [{}, dict(betas=(0.8, 0.6), weight_decay=0.3)],
    "Signum": [{}, dict(momentum=0.4, weight_decay=0.3)],
    "Adan": [
        {},
        dict(betas=(0.9, 0.8, 0.95), eps=1e-3, weight_decay=0.3),
        dict(betas=(0.4, 0.3, 0.2), weight_decay=0.3, no_prox=True),
    ],
    "AdEMAMix": [
        {},
        dict(betas=(0.8, 0.99, 0.999), alpha=5.0, beta3_warmup=5, alpha_warmup=3, eps=1e-3, weight_decay=0.3),
    ],
    "ADOPT": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-2, weight_decay=0.1, maximize=True),
        dict(weight_decay=0.3, decouple=True),
        dict(clip_lambda=None),
        dict(clip_lambda=third),
    ],
    "ScheduleFreeAdamW": [
        {},
        dict(betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1, warmup_steps=3, r=1.0, weight_lr_power=1.0),
        dict(inner_momentum=0.6, weight_decay=0.1),
    ],
    "ScheduleFreeSGD": [
        {},
        dict(momentum=0.7, weight_decay=0.1, warmup_steps=10, r=1.0, weight_lr_power=0.0),
    ],
    "SophiaG": [{}, dict(betas=(0.8, 0.9), rho=0.4, weight_decay=0.3, maximize=True)],
    "MARS": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, gamma=0.1, amsgrad=True),
        dict(is_approx=False),
    ],
    "Grams": [{}, dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, correct_bias=False)],
    "CautiousAdamW": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, correct_bias=False),
        dict(weight_decay=0.3, rescale=False),
    ],
    "StableAdamW": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3),
        dict(weight_decay=0.3, decouple_lr=True, max_lr=0.01),
    ],
    "LAMB": [
        {},
        dict(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3, max_grad_norm=None, trust_clip=True),
        dict(weight_decay=0.0, bias_correction=False, grad_averaging=False, max_grad_norm=20.0),
        dict(lr=0.1, weight_decay=0.3, always_adapt=True, decoupled_decay=True, max_grad_norm=None),
    ],
    "AdaLomo": [
        {},
        dict(clip_grad_norm=20.0),
        dict(lr=0.1, eps=(1e-3, 2.0), clip_threshold=0.5, decay_rate=-0.4, weight_decay=0.3),
    ],
}
ALL = [pytest.param(cls, options, id=f"{cls} {i}") for cls in CASES for i, options in enumerate(CASES[cls])]
# Of Muon, which is for matrices and takes no foreach, test_muon.py has these.
TORCHS_OF_ANY_SHAPE = [cls for cls in TORCHS if cls != "Muon"]
torchs_cases = pytest.mark.parametrize("cls, options", [case for case in ALL if case.values[0] in TORCHS_OF_ANY_SHAPE])
# torch's Muon iterates in bf16, so its steps are compared in test_muon.py.
comparable_cases = pytest.mark.parametrize("cls, options", [case for case in ALL if case.values[0] != "Muon"])
every_case = pytest.mark.parametrize("cls, options", ALL)
every_optimizer = pytest.mark.parametrize("cls", CASES)


# Options that clip all gradients together.
CLIPPED = {"LAMB": ["max_grad_norm"], "AdaLomo": ["clip_grad_norm"]}


def ours_of(cls, params, **options):
    """Ready to train. Of a model Muon takes the matrices; in backward nothing is clipped."""
    if cls == "Muon" and isinstance(params, torch.nn.Module):
        forge.fuse(params, verbose=False)
        params = matrices(params)
    if options.get("schedule") == "in_backward":
        options |= {key: None for key in CLIPPED.get(cls, ())}
    optimizer = getattr(forge, cls)(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def moments_of(optimizer, p):
    """Copies of what is kept for a parameter, its count of steps excepted."""
    return {key: torch.as_tensor(x).clone() for key, x in optimizer.state[p].items() if key != "step" and x is not None}
