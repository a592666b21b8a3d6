"""FORGE for PyTorch: train without ever storing a weight gradient, in the loop that you have.

    import forge_optim as forge
    opt = forge.AdamW(model, lr=2e-5, weight_decay=0.1)

``loss.backward()``, gradient clipping, accumulation, ``GradScaler``, schedulers, ``opt.step()`` and ``opt.zero_grad()``
stay as they are.
"""

import importlib
import warnings

import torch  # noqa: F401  (libtorch is loaded before what links it)

from . import _C, convert
from ._C import AllocationRecorder
from .adalomo import AdaLomo
from .clipping import clip_grad_norm_
from .factored_grad import CollapseWarning, FactoredGrad
from .fusion import FusionReport, fuse, unfuse
from .optimizers import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    FusedOptimizer,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    StoredGradientWarning,
)
from .own_rules import load_rule
from .published import (
    ADOPT,
    LAMB,
    MARS,
    Adan,
    AdEMAMix,
    CautiousAdamW,
    Grams,
    Lion,
    Signum,
    SophiaG,
    StableAdamW,
)
from .reporting import Report, Rounding, RoundingCount, report
from .schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "NAdam",
    "RAdam",
    "Adamax",
    "Adagrad",
    "Adadelta",
    "RMSprop",
    "Rprop",
    "ASGD",
    "Lion",
    "Signum",
    "Adan",
    "AdEMAMix",
    "ADOPT",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SophiaG",
    "MARS",
    "Grams",
    "CautiousAdamW",
    "StableAdamW",
    "LAMB",
    "Muon",
    "Adafactor",
    "AdaLomo",
    "AllocationRecorder",
    "CollapseWarning",
    "FactoredGrad",
    "FusedOptimizer",
    "FusionReport",
    "Report",
    "Rounding",
    "RoundingCount",
    "StoredGradientWarning",
    "clip_grad_norm_",
    "convert",
    "fuse",
    "load_rule",
    "report",
    "unfuse",
]

if _C.kernels() == "ref":  # pip shows nothing of what CMake said
    warnings.warn(
        "forge_optim was built without Highway, or this machine lacks AVX2: the reference kernels run, which are "
        "correct and very slow; install libhwy-dev and build again",
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str):
    if name == "hf":  # imported when asked for
        return importlib.import_module(".hf", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
