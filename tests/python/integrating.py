"""What the tests with the training loops of other libraries share."""

import logging
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
forge = pytest.importorskip("forge_optim")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from models import (  # noqa: E402
    RULES,
    difference,
    forge_optimizer,
    text,
    tokens,
    torch_optimizer,
)

STEPS, ACCUMULATE, CLIP = 10, 4, 0.5


# A fixture of each module that imports it.
@pytest.fixture(autouse=True)
def quiet_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|peft|accelerate|transformers")
        yield
    transformers.utils.logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@torch.no_grad()
def blank(model):
    """So that what is resumed cannot come from anywhere but the checkpoint."""
    for p in model.parameters():
        p.zero_()
    return model


def assert_trained(model, start):
    """What stays where it was is equal to whatever else stays there."""
    assert difference(model, start) > 1e-2


SAMPLES = torch.cat([tokens(i) for i in range(STEPS * ACCUMULATE)])


def both_optimizers(rule, **options):
    """(unfused model, torch's optimizer), (fused model, ours), equal at the start."""
    theirs, ours, settings = text(), text(), RULES[rule]
    their_optimizer = torch_optimizer(params=theirs, **settings)
    return (theirs, their_optimizer), (ours, forge_optimizer(params=ours, **settings, **options))
