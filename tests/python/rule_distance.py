"""How far one step is from that of the implementation that defines it, given gradient and state (contract 8)."""

import collections
import copy

import torch
from published_formulas import FORMULAS, adopt
from rule_cases import moments_of, ours_of
from torch import nn

VALUES, STEPS = 4000, 6


def values(seed, low, high):
    """Of both signs, log-uniform: a vector."""
    generator = torch.Generator().manual_seed(seed)
    uniform, coin = torch.rand(2, VALUES, generator=generator)
    return 10 ** (low + (high - low) * uniform) * (1 - 2 * (coin < 0.5).float())


def gradients():
    """Each weight's of about one size, from 1e-7 to 100, some of them zero; a few weights never have one."""
    size = 10 ** (-7 + 9 * torch.rand(VALUES, generator=torch.Generator().manual_seed(1)))
    size[::50] = 0
    for t in range(STEPS):
        g = size * values(10 + t, -1, 0)
        g[t::9] = 0
        yield g


def ulp(x):
    exponent = torch.frexp(x.double())[1] - 24
    return torch.ldexp(torch.ones_like(x, dtype=torch.double), exponent.clamp(min=-149))


def units(ours, theirs, old, largest):
    """Contract 8's: the error over ulp(old) + ulp(the largest term of the change)."""
    worst = ((ours.double() - theirs.double()).abs() / (ulp(old) + ulp(largest))).max().item()
    assert worst == worst, "NaN"
    return worst


def halve_lr(*optimizers):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.5


def largest_terms(cls, p, optimizer, g):
    """Of torch's change of p and of its moments: in float64 the same step where nothing cancels, as all is positive."""
    group = optimizer.param_groups[0]
    g = -g if group["maximize"] else g
    saved = copy.deepcopy(optimizer.state_dict())
    if cls not in ("AdamW", "Adafactor") and not group.get("decoupled_weight_decay"):
        # Decay that is added to the gradient: both round it once, in the same fma.
        g = g.double() + group.get("weight_decay", 0) * p.detach().double()
        saved["param_groups"][0]["weight_decay"] = 0
    saved["param_groups"][0]["maximize"] = False
    if cls == "Adafactor":  # None is the dtype's
        saved["param_groups"][0]["eps"] = tuple(torch.finfo(p.dtype).eps if e is None else e for e in group["eps"])
    for of in saved["state"].values():
        for key, x in of.items():
            of[key] = x.abs() if isinstance(x, torch.Tensor) else x
    q = nn.Parameter(p.detach().double().abs())
    q.grad = g.double().abs()
    positive = getattr(torch.optim, cls)([q], lr=1.0, foreach=False)
    positive.load_state_dict(saved)
    before = q.detach().clone()
    positive.step()
    change, moments = q.detach() - before, moments_of(positive, q)
    if "ax" in moments:  # an average of weights
        moments["ax"] = before + change.abs()
    return change, moments


def distance_to_torch(cls, options, shape=(VALUES,), **their_options):
    """The worst units of a step, state and weights going from each side to the other in turns."""
    ours_p, theirs_p = (nn.Parameter(values(0, -3, 1).view(shape)) for _ in range(2))
    ours = ours_of(cls, [ours_p], **copy.deepcopy(options))
    theirs = getattr(torch.optim, cls)([theirs_p], **copy.deepcopy(options), **(their_options or {"foreach": False}))
    worst = 0.0
    for t, g in enumerate(gradients()):
        (source, source_p), (target, target_p) = ((ours, ours_p), (theirs, theirs_p))[:: 1 if t % 2 else -1]
        if t:  # before the first step both have what their constructors were given
            target.load_state_dict(copy.deepcopy(source.state_dict()))
            target_p.data.copy_(source_p.detach())
        if t == 3:
            halve_lr(ours, theirs)
        g = g.view(shape)
        ours_p.grad, theirs_p.grad = g.clone(), g.clone()
        old, old_moments = ours_p.detach().clone(), moments_of(ours, ours_p)
        change, moments = largest_terms(cls, theirs_p, theirs, g)
        ours.step()
        theirs.step()
        worst = max(worst, units(ours_p.detach(), theirs_p.detach(), old, change))
        ours_now, theirs_now = moments_of(ours, ours_p), moments_of(theirs, theirs_p)
        for key in theirs_now:
            was = old_moments.get(key, torch.zeros_like(theirs_now[key]))
            worst = max(worst, units(ours_now[key], theirs_now[key], was, moments[key]))
        assert ours_now.keys() == theirs_now.keys() and torch.equal(ours_p.grad, g)
        if "step" in theirs.state[theirs_p]:
            assert ours.state[ours_p]["step"] == theirs.state[theirs_p]["step"] == t + 1
    return worst


def distance_to_formula(cls, options, shape=(VALUES,)):
    p = nn.Parameter(values(0, -3, 1).view(shape))
    optimizer = ours_of(cls, [p], **options)
    formula = FORMULAS[cls]
    if "clip_lambda" in options:
        formula = lambda *given: adopt(*given, clip=options["clip_lambda"])  # noqa: E731
    worst = 0.0
    for t, g in enumerate(gradients(), start=1):
        g = g.view(shape)
        p.grad = g.clone()
        if t == 4:
            halve_lr(optimizer)
        if cls == "SophiaG":
            optimizer.update_hessian()
        if cls == "MARS" and t > 1 and not optimizer.param_groups[0]["is_approx"]:
            optimizer.state[p]["last_grad"].copy_(0.5 * g)
        w, old = p.detach().double(), collections.defaultdict(lambda: torch.zeros((), dtype=torch.double))
        old |= {key: x.double() for key, x in moments_of(optimizer, p).items()}
        change, moments = formula(w, g.double(), old, optimizer.param_groups[0], t)
        optimizer.step()
        worst = max(worst, units(p.detach(), w + change.value, w, change.largest))
        now = moments_of(optimizer, p)
        assert now.keys() == moments.keys() and torch.equal(p.grad, g)
        for key, expected in moments.items():
            was = old.get(key, torch.zeros_like(expected.value))
            worst = max(worst, units(now[key], expected.value, was, expected.largest))
        assert optimizer.state[p]["step"] == t
    return worst
