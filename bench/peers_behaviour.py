"""What a method makes of clipping and accumulation, found by running it on a small model.

It takes three steps, and so does torch.optim.AdamW(fused=True) for every behaviour that a method may have: as asked,
unclipped, stepping at every micro-batch. The nearest weights say which of them the method has.
"""

import statistics

from peers_methods import METHODS, TorchFused
from peers_model import Data, make_model, train_step
from peers_worker import first_line

# AdamW does not see a constant factor on the gradient: clipping shows where norms change from step to step. They grow,
# since a norm that falls sharply tests the precision of 8-bit moments instead.
FACTORS = (1.0, 4.0, 16.0)
# Measured: torch-optimi's step is 1e-6 off, 8-bit moments 0.008 (the worst tensor 0.03), a wrong step 0.28 and more.
NEAR = 0.05


def trained(make_method, clip, accum, each=False):
    """The weights after three steps; `each`: every micro-batch is a step of its own."""
    model = make_model("tiny")
    method = make_method(model)
    data = Data("tiny", tokens=16)
    for factor in FACTORS:
        batches = data.batches(accum)
        for part in [[b] for b in batches] if each else [batches]:
            train_step(model, method, part, clip, factor * len(part) / accum)
    return weights(model)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def distances(mine, reference, start):
    """Tensor by tensor: how far mine is from the reference, as a share of the way that the reference went."""
    return {n: ((mine[n] - w).norm() / (w - start[n]).norm()).item() for n, w in reference.items()}


def references(clip, accum):
    """What torch_fused gets, for each way of answering the same loop."""
    ways = {"": (clip, False)}
    if clip:
        ways["unclipped"] = (False, False)
    if accum > 1:
        ways["steps at every micro-batch"] = (clip, True)
    if clip and accum > 1:
        ways["unclipped, steps at every micro-batch"] = (False, True)
    return {way: trained(TorchFused, clips, accum, each) for way, (clips, each) in ways.items()}


def behaviour(name, clip, accum):
    """The row's note: empty where the method does what torch_fused does."""
    start = weights(make_model("tiny"))
    try:
        mine = trained(METHODS[name], clip, accum)
    except ImportError:
        raise
    except Exception as error:
        return "refuses: " + first_line(error)
    off = {way: distances(mine, reference, start) for way, reference in references(clip, accum).items()}
    # The median, because a single tensor may go astray for another reason.
    middle = {way: statistics.median(d.values()) for way, d in off.items()}
    nearest = min(middle, key=middle.get)
    notes = [f"ignores silently: {nearest}"] if nearest else []
    worst = max(off[nearest], key=off[nearest].get)
    if middle[nearest] > NEAR:
        notes.append(f"another step: off by {middle[nearest]:.0%} of torch_fused's way")
    elif off[nearest][worst] > NEAR:
        notes.append(f"{worst} off by {off[nearest][worst]:.0%} of torch_fused's way")
    return "; ".join(notes)
