#!/usr/bin/env python3
"""A training step of a model of Llama-3.1-8B's shape: peak memory and time of several ways to update it. Rows of JSON.

    bench/gpu_check/llama_step.py [METHOD …]        each in a process of its own; default: all

Random weights in bf16, one sequence, the loss of the next token. In a process of one method peak memory is what torch's
allocator handed out at most, and the time the median of steps after the first two.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

ADAMW = dict(lr=1e-5, weight_decay=0.1)
SECONDS = 60  # of one method


class Layer(nn.Module):
    def __init__(self, o):
        super().__init__()
        keys = o.hidden // o.heads * o.kv_heads
        self.heads, self.norms = o.heads, nn.ParameterList(torch.ones(o.hidden) for _ in range(2))
        shapes = dict(q=(o.hidden, o.hidden), k=(o.hidden, keys), v=(o.hidden, keys), o=(o.hidden, o.hidden))
        shapes |= dict(gate=(o.hidden, o.wide), up=(o.hidden, o.wide), down=(o.wide, o.hidden))
        for name, shape in shapes.items():
            setattr(self, name, nn.Linear(*shape, bias=False))

    def forward(self, x, cos, sin):
        def by_head(y):
            return y.unflatten(-1, (-1, x.size(-1) // self.heads)).transpose(1, 2)

        def turned(y):
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        h = F.rms_norm(x, x.shape[-1:], self.norms[0])
        q, k, v = turned(by_head(self.q(h))), turned(by_head(self.k(h))), by_head(self.v(h))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = F.rms_norm(x, x.shape[-1:], self.norms[1])
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(o.vocab, o.hidden), nn.Parameter(torch.ones(o.hidden))
        self.layers = nn.ModuleList(Layer(o) for _ in range(o.layers))
        self.head = nn.Linear(o.hidden, o.vocab, bias=False)
        half = o.hidden // o.heads // 2
        angle = torch.outer(torch.arange(o.tokens), 5e5 ** (-torch.arange(half) / half)).repeat(1, 2)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        scores = self.head(F.rms_norm(x, x.shape[-1:], self.norm))
        return F.cross_entropy(scores[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def make_model(o):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(o.device):
        model = Llama(o)
    for p in model.parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.02)
    return model


# ---- Methods: what is called after backward --------------------------------------------------------------------------


def torch_adamw(model, clip=False):
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **ADAMW)

    def update():
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def torch_hook(model):
    optimizers = {p: torch.optim.AdamW([p], fused=True, **ADAMW) for p in model.parameters()}

    def update(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
    return lambda: None


def forge(model, clip=False, **options):
    import forge_optim

    with contextlib.redirect_stdout(sys.stderr):
        optimizer = forge_optim.AdamW(model, **ADAMW, **options)

    def update():
        if clip:
            forge_optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


INT8 = dict(weight_format="bf16_stochastic", state_format="int8")
METHODS = {
    "torch_fused": torch_adamw,
    "torch_fused_clipped": lambda model: torch_adamw(model, clip=True),
    "torch_hook": torch_hook,
    "forge_at_step": forge,
    "forge_at_step_clipped": lambda model: forge(model, clip=True),
    "forge_in_backward": lambda model: forge(model, schedule="in_backward"),
    "forge_at_step_int8_clipped": lambda model: forge(model, clip=True, **INT8),
    "forge_in_backward_int8": lambda model: forge(model, schedule="in_backward", **INT8),
}


def measure(o):
    model = make_model(o)
    update = METHODS[o.one](model)
    ids = torch.randint(0, o.vocab, (1, o.tokens), device=o.device)
    wait = torch.cuda.synchronize if o.device == "cuda" else lambda: None
    times = []
    for _ in range(2 + o.steps):
        begin = time.perf_counter()
        loss = model(ids)
        loss.backward()
        update()
        wait()
        times.append(time.perf_counter() - begin)
    row = {"part": "llama", "method": o.one, "tokens": o.tokens, "ms": 1e3 * statistics.median(times[2:])}
    if o.device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(row | {"loss": loss.item()}), flush=True)


def run_each(methods, arguments):
    right = True
    for method in methods:
        try:
            subprocess.run([sys.executable, __file__, "--one", method, *arguments], check=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(json.dumps({"part": "llama", "method": method, "error": str(error)[-300:]}), flush=True)
            right = False
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--one", choices=METHODS, help="this method, here")
    parser.add_argument("--device", default="cuda")
    sizes = dict(hidden=4096, wide=14336, layers=32, heads=32, kv_heads=8, vocab=128256, tokens=512, steps=5)
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    o = parser.parse_args()
    if o.one:
        return measure(o)
    if unknown := set(o.methods) - METHODS.keys():
        parser.error(f"there is no method {', '.join(sorted(unknown))}; the methods are {', '.join(METHODS)}")
    arguments = [f"--{name.replace('_', '-')}={getattr(o, name)}" for name in ("device", *sizes)]
    return not run_each(o.methods or METHODS, arguments)


if __name__ == "__main__":
    sys.exit(main())
