"""peers.py layer: weight gradient + AdamW update of one linear layer.

  torch_default  PyTorch as it comes: w.grad = dYᵀX; AdamW(fused=True).step(); w.grad = None
  torch_tuned    the faster of that under THP_MEM_ALLOC_ENABLE=1 and with a gradient buffer kept across steps
  torch_cast     bf16 weights only: operands cast to fp32 for the product, the gradient cast back, tuned as above
  forge          torch.ops.forge.adamw_step_, in the environment of torch_tuned
  limit          max(streaming W and its moments through the rule, 2·T·out·in / FMA peak), measured in the same run
"""

import json
import statistics
import subprocess
import time

from peers_worker import BUILD, Worker, serve, write_rows

TOKENS = (8, 32, 64, 128, 256, 512, 2048)
DTYPES = ("fp32", "bf16")
ENVIRONMENTS = {"plain": {}, "tuned": {"THP_MEM_ALLOC_ENABLE": "1"}}
# method → (environment, dtypes)
METHODS = {
    "torch_default": ("plain", DTYPES),
    "torch_thp": ("tuned", DTYPES),
    "torch_kept": ("tuned", DTYPES),
    "torch_cast": ("tuned", ("bf16",)),
    "forge": ("tuned", DTYPES),
}


class Layer:
    """One weight with its state, its operands, and every method of taking a step."""

    def __init__(self, dtype, out_features, in_features, tokens):
        import torch

        self.torch = torch
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        generator = torch.Generator().manual_seed(0)
        self.w = (torch.randn(out_features, in_features, generator=generator) * 0.02).to(kind).requires_grad_()
        self.dy = (torch.randn(tokens, out_features, generator=generator) * 1e-3).to(kind)
        self.x = torch.randn(tokens, in_features, generator=generator).to(kind)
        self.moments = [torch.zeros_like(self.w, requires_grad=False) for _ in range(2)]
        self.optimizer = torch.optim.AdamW([self.w], lr=1e-3, fused=True)
        self.kept = torch.empty_like(self.w, requires_grad=False)
        self.step = 0

    def torch_default(self):
        self.w.grad = self.dy.t() @ self.x
        self.optimizer.step()
        self.w.grad = None

    torch_thp = torch_default

    def torch_kept(self):
        self.w.grad = self.torch.mm(self.dy.t(), self.x, out=self.kept)
        self.optimizer.step()
        self.w.grad = None

    def torch_cast(self):
        product = self.dy.float().t() @ self.x.float()
        self.w.grad = self.kept.copy_(product)
        self.optimizer.step()
        self.w.grad = None

    def forge(self):
        self.step += 1
        self.torch.ops.forge.adamw_step_(
            self.w, *self.moments, [self.dy], [self.x],
            step=self.step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2,
        )  # fmt: skip


class Server:
    """What a worker process does: holds one layer at a time, and times one method of it."""

    def __init__(self):
        import torch

        torch.ops.load_library(str(BUILD / "libforge_torch.so"))
        self.torch = torch
        self.layer, self.key = None, None

    def measure(self, dtype, out, tokens, method, repetitions, warm, **rest):
        """The median of one step, in ms."""
        key = (dtype, out, rest["in"], tokens)
        if key != self.key:
            self.layer, self.key = None, key
            self.layer = Layer(*key)
        run = getattr(self.layer, method)
        times = []
        with self.torch.no_grad():
            if warm:  # workspace and caches; what takes seconds needs none
                run()
            for _ in range(repetitions):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)


def limits(dtype, out_features, in_features, threads):
    command = [BUILD / "bench_limits", str(out_features), str(in_features), dtype, str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_layer(workers, dtype, out_features, in_features, tokens, rounds, threads):
    """Medians over rounds; each round measures every method once, in a rotated order, and the limits."""
    methods = [m for m, (_, dtypes) in METHODS.items() if dtype in dtypes]
    times = {m: [] for m in methods}
    floors = []
    for r in range(rounds):
        for m in methods[r % len(methods):] + methods[: r % len(methods)]:
            slow = dtype == "bf16" and m in ("torch_default", "torch_thp", "torch_kept")
            times[m].append(
                workers[METHODS[m][0]].ask(
                    "measure", dtype=dtype, out=out_features, tokens=tokens, method=m,
                    repetitions=1 if slow else 5 if tokens < 512 else 3, warm=not slow, **{"in": in_features},
                )  # fmt: skip
            )
        floor = limits(dtype, out_features, in_features, threads)
        fma_ms = 2 * tokens * out_features * in_features / floor["fma_gflops"] / 1e6 if floor["fma_gflops"] else 0
        floors.append(max(floor["stream_ms"], fma_ms))
    ms = {m: statistics.median(t) for m, t in times.items()}
    tuned = min(ms["torch_thp"], ms["torch_kept"])
    return {
        "dtype": dtype,
        "shape": f"{out_features}x{in_features}",
        "tokens": tokens,
        "torch_default_ms": ms["torch_default"],
        "torch_tuned_ms": tuned,
        "torch_cast_ms": ms.get("torch_cast"),
        "forge_ms": ms["forge"],
        "limit_ms": statistics.median(floors),
        "ratio_default": ms["torch_default"] / ms["forge"],
        "ratio_tuned": tuned / ms["forge"],
    }


def print_row(row):
    cast = f"{row['torch_cast_ms']:9.1f}" if row["torch_cast_ms"] else "        -"
    print(
        f"{row['dtype']:5} {row['shape']:>10} {row['tokens']:7} {row['torch_default_ms']:9.1f}"
        f" {row['torch_tuned_ms']:9.1f} {cast} {row['forge_ms']:9.1f} {row['limit_ms']:9.1f}"
        f" {row['ratio_default']:8.2f} {row['ratio_tuned']:8.2f} {row['limit_ms'] / row['forge_ms']:7.0%}",
        flush=True,
    )


def layer(args):
    out_features, in_features = (int(n) for n in args.shape.split("x"))
    workers = {name: Worker(__file__, args.threads, env) for name, env in ENVIRONMENTS.items()}
    print("dtype      shape  tokens   default     tuned      cast     forge     limit  default×   tuned×  limit%")
    rows = []
    for dtype in args.dtypes:
        for tokens in args.tokens:
            rows.append(
                measure_layer(workers, dtype, out_features, in_features, tokens, args.rounds, args.threads)
            )
            print_row(rows[-1])
    write_rows(args.json, rows)
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    serve(Server)
