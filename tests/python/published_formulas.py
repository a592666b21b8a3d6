"""One update of each optimizer that torch has not, in float64, as its paper and its authors' code have it.

f(w, g, s, o, t): what update t changes of w, and the state after it, given the state s and the group's options o. Both
are sums whose largest term is known, which errors are measured by.
"""

import math

import torch


class Sum:
    """A number and the largest of the terms that it is a sum of."""

    def __init__(self, value, largest=None):
        self.value = value
        self.largest = value.abs() if largest is None else largest

    def __add__(self, other):
        other = other if isinstance(other, Sum) else Sum(other)
        return Sum(self.value + other.value, torch.maximum(self.largest, other.largest))

    def __mul__(self, factor):
        return Sum(self.value * factor, self.largest * abs(factor))

    __rmul__ = __mul__

    def __sub__(self, other):
        return self + other * -1.0

    def __truediv__(self, divisor):
        return Sum(self.value / divisor, self.largest / abs(divisor))

    def square(self):
        return Sum(self.value.square(), self.value.abs() * self.largest)


def average(beta, old, new):
    return Sum(beta * old) + (1 - beta) * new


def lion(w, g, s, o, t):
    (b1, b2), m = o["betas"], s["exp_avg"]
    change = Sum(-o["lr"] * o["weight_decay"] * w) - Sum(o["lr"] * average(b1, m, Sum(g)).value.sign())
    return change, {"exp_avg": average(b2, m, Sum(g))}


def signum(w, g, s, o, t):
    m = average(o["momentum"], s["momentum_buffer"], Sum(g))
    return Sum(-o["lr"] * o["weight_decay"] * w) - Sum(o["lr"] * m.value.sign()), {"momentum_buffer": m}


def adan(w, g, s, o, t):
    (b1, b2, b3), lr, decay = o["betas"], o["lr"], o["lr"] * o["weight_decay"]
    difference = Sum(g) + s["neg_pre_grad"] if t > 1 else Sum(torch.zeros_like(g))
    m = average(b1, s["exp_avg"], Sum(g))
    q = average(b2, s["exp_avg_diff"], difference)
    n = average(b3, s["exp_avg_sq"], (Sum(g) + b2 * difference).square())
    denominator = n.value.sqrt() / math.sqrt(1 - b3**t) + o["eps"]
    step = (lr / (1 - b1**t) * m + lr * b2 / (1 - b2**t) * q) / denominator
    change = Sum(-decay * w) - step if o["no_prox"] else (Sum(-decay * w) - step) / (1 + decay)
    return change, {"exp_avg": m, "exp_avg_diff": q, "exp_avg_sq": n, "neg_pre_grad": Sum(-g)}


def ademamix(w, g, s, o, t):
    (b1, b2, b3), alpha = o["betas"], o["alpha"]
    if o["alpha_warmup"]:
        alpha *= min(1, t / o["alpha_warmup"])
    if o["beta3_warmup"] and t < o["beta3_warmup"]:
        lives = [math.log(0.5) / math.log(b + 1e-8) - 1 for b in (b1, b3)]
        done = t / o["beta3_warmup"]
        b3 = 0.5 ** (1 / ((1 - done) * lives[0] + done * lives[1] + 1))
    fast, slow = average(b1, s["exp_avg_fast"], Sum(g)), average(b3, s["exp_avg_slow"], Sum(g))
    v = average(b2, s["exp_avg_sq"], Sum(g * g))
    denominator = (v.value / (1 - b2**t)).sqrt() + o["eps"]
    change = -o["lr"] * ((fast / (1 - b1**t) + alpha * slow) / denominator + o["weight_decay"] * w)
    return change, {"exp_avg_fast": fast, "exp_avg_slow": slow, "exp_avg_sq": v}


def adopt(w, g, s, o, t, clip=lambda k: k**0.25):
    (b1, b2), m, v = o["betas"], s["exp_avg"], s["exp_avg_sq"]
    g = -g if o["maximize"] else g
    if not o["decouple"]:
        g = g + o["weight_decay"] * w
    if t == 1:
        return Sum(torch.zeros_like(w)), {"exp_avg": Sum(m), "exp_avg_sq": Sum(g * g)}
    bound = clip(t - 1) if clip else math.inf
    m = average(b1, m, Sum((g / v.sqrt().clamp(min=o["eps"])).clamp(-bound, bound)))
    change = -o["lr"] * m
    if o["decouple"]:
        change += -o["lr"] * o["weight_decay"] * w
    return change, {"exp_avg": m, "exp_avg_sq": average(b2, v, Sum(g * g))}


def schedule_free(w, u, s, o, t, beta):
    """The authors' update of z and y; s has d = z − y in place of z."""
    rate = o["lr"] * min(1, t / o["warmup_steps"]) if o["warmup_steps"] else o["lr"]
    lr_max = max(rate, float(s["lr_max"]) if t > 1 else 0)
    weight = t ** o["r"] * lr_max ** o["weight_lr_power"]
    weight_sum = weight + (float(s["weight_sum"]) if t > 1 else 0)
    c = weight / weight_sum if weight_sum else 0
    change = c * Sum(s["z_minus_y"]) - rate * (1 - beta * (1 - c)) * u
    scalars = {"weight_sum": Sum(torch.tensor(weight_sum)), "lr_max": Sum(torch.tensor(lr_max))}
    # z' = z − rate u and y' = y + change
    return change, {"z_minus_y": (1 - c) * (Sum(s["z_minus_y"]) - beta * rate * u)} | scalars


def schedule_free_adamw(w, g, s, o, t):
    (b1, b2), inner = o["betas"], o["inner_momentum"]
    v = average(b2, s["exp_avg_sq"], Sum(g * g))
    state, direction = {"exp_avg_sq": v}, Sum(g)
    if inner:
        state["exp_avg"] = average(inner, s["exp_avg"], Sum(g))
        direction = state["exp_avg"] / (1 - inner**t)
    u = direction / ((v.value / (1 - b2**t)).sqrt() + o["eps"]) + o["weight_decay"] * w
    change, more = schedule_free(w, u, s, o, t, b1)
    return change, state | more


def schedule_free_sgd(w, g, s, o, t):
    return schedule_free(w, Sum(g) + o["weight_decay"] * w, s, o, t, o["momentum"])


def sophia_g(w, g, s, o, t):
    m = average(o["betas"][0], s["exp_avg"], Sum(-g if o["maximize"] else g))
    ratio = m / (o["rho"] * o.get("bs", 5120) * s["hessian"] + 1e-15)
    bounded = Sum(ratio.value.clamp(-1, 1), ratio.largest.clamp(max=1))
    return -o["lr"] * (bounded + o["weight_decay"] * w), {"exp_avg": m, "hessian": Sum(s["hessian"])}


def mars(w, g, s, o, t):
    b1, b2 = o["betas"]
    c = Sum(g) + o["gamma"] * b1 / (1 - b1) * (Sum(g) - Sum(s["last_grad"]))
    m, v = average(b1, s["exp_avg"], c), average(b2, s["exp_avg_sq"], c.square())
    state = {"exp_avg": m, "exp_avg_sq": v, "last_grad": Sum(g if o["is_approx"] else s["last_grad"])}
    if o["amsgrad"]:
        v = state["max_exp_avg_sq"] = Sum(torch.maximum(s["max_exp_avg_sq"], v.value), v.largest)
    step = m / (1 - b1**t) / ((v.value / (1 - b2**t)).sqrt() + o["eps"])
    return -o["lr"] * (step + o["weight_decay"] * w), state


def signed_adamw(direction):
    def update(w, g, s, o, t):
        b1, b2 = o["betas"]
        m, v = average(b1, s["exp_avg"], Sum(g)), average(b2, s["exp_avg_sq"], Sum(g * g))
        rate = o["lr"] * (math.sqrt(1 - b2**t) / (1 - b1**t) if o["correct_bias"] else 1)
        step = rate * direction(m, g) / (v.value.sqrt() + o["eps"])
        return Sum(-o["lr"] * o["weight_decay"] * w) - step, {"exp_avg": m, "exp_avg_sq": v}

    return update


def cautious_adamw(w, g, s, o, t):
    share = 1.0
    if o["rescale"]:
        share = (average(o["betas"][0], s["exp_avg"], Sum(g)).value * g > 0).double().mean().clamp(min=1e-3)
    return signed_adamw(lambda m, g: m * (m.value * g > 0).double() / share)(w, g, s, o, t)


def stable_adamw(w, g, s, o, t):
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in o["betas"])
    m, v = average(b1, s["exp_avg"], Sum(g)), average(b2, s["exp_avg_sq"], Sum(g * g))
    rms = (g * g / v.value.clamp(min=o["eps"] ** 2)).mean().sqrt()
    lr = o["lr"] / max(1.0, rms.item())
    decay = lr / (o["max_lr"] if o["decouple_lr"] else 1) * o["weight_decay"]
    return Sum(-decay * w) - lr * m / (v.value.sqrt() + o["eps"]), {"exp_avg": m, "exp_avg_sq": v}


def lamb(w, g, s, o, t):
    b1, b2 = o["betas"]
    if o["max_grad_norm"] is not None:
        g = g / (g.norm() / o["max_grad_norm"]).clamp(min=1)
    m = average(b1, s["exp_avg"], Sum(g)) if o["grad_averaging"] else b1 * Sum(s["exp_avg"]) + Sum(g)
    v = average(b2, s["exp_avg_sq"], Sum(g * g))
    c1, c2 = (1 - b1**t, 1 - b2**t) if o["bias_correction"] else (1, 1)
    r = m / c1 / ((v.value / c2).sqrt() + o["eps"])
    decay = o["lr"] * o["weight_decay"] if o["decoupled_decay"] else 0
    if not o["decoupled_decay"]:
        r += Sum(o["weight_decay"] * w)
    ratio = 1.0
    if o["weight_decay"] or o["always_adapt"]:
        ratio = ((1 - decay) * w).norm() / r.value.norm()
    if o["trust_clip"]:
        ratio = ratio.clamp(max=1)
    return Sum(-decay * w) - o["lr"] * ratio * r, {"exp_avg": m, "exp_avg_sq": v}


def adalomo(w, g, s, o, t):
    def towards(key, square):
        return average(1 - t ** o["decay_rate"], s[key], Sum(square + o["eps"][0]))

    if o["clip_grad_norm"] is not None:
        g = g * (o["clip_grad_norm"] / (g.norm() + 1e-6)).clamp(max=1)
    if w.dim() < 2:
        moments = {"exp_avg_sq": towards("exp_avg_sq", g * g)}
        u = g / moments["exp_avg_sq"].value.sqrt()
    else:
        row = towards("exp_avg_sq_row", (g * g).mean(1, keepdim=True))
        col = towards("exp_avg_sq_col", (g * g).mean(0, keepdim=True))
        moments = {"exp_avg_sq_row": row, "exp_avg_sq_col": col}
        u = g / (row.value / row.value.mean() * col.value).sqrt()
    u = u / (u.square().mean().sqrt() / o["clip_threshold"]).clamp(min=1)
    lr = o["lr"] * w.square().mean().sqrt().clamp(min=o["eps"][1])
    return Sum(-lr * o["weight_decay"] * w) - Sum(lr * u), moments


FORMULAS = {
    "Lion": lion,
    "Signum": signum,
    "Adan": adan,
    "AdEMAMix": ademamix,
    "ADOPT": adopt,
    "ScheduleFreeAdamW": schedule_free_adamw,
    "ScheduleFreeSGD": schedule_free_sgd,
    "SophiaG": sophia_g,
    "MARS": mars,
    "Grams": signed_adamw(lambda m, g: Sum(m.value.abs() * g.sign(), m.largest)),
    "CautiousAdamW": cautious_adamw,
    "StableAdamW": stable_adamw,
    "LAMB": lamb,
    "AdaLomo": adalomo,
}
