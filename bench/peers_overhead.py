"""peers.py overhead: what fusing costs the host, where the arithmetic is nothing.

Forward + backward, dX included, of one bias-free linear of 64 x 64 with one token, interleaved in one process.
zero_grad and step() are not timed. `in_backward` has the update inside backward, so its figure contains the update of
4096 elements; `torch_hook` is PyTorch's own way of doing that (AdamW(fused=True) in a hook). One thread, unless asked
otherwise: a second one has nothing to do here but to be waited for.
"""

import statistics
import time

from peers_methods import METHODS
from peers_worker import TUNED, Worker, serve, write_rows

SIDE = 64
# A row's name → the method that trains the layer.
ROWS = {
    "plain": "torch_fused",
    "torch_hook": "torch_hook",
    "forge_at_step": "forge_at_step",
    "forge_in_backward": "forge_in_backward",
}


def make_layer(method):
    """The layer and its method; the same weight at every call."""
    import torch

    torch.manual_seed(0)
    # A container: a package that replaces modules does so inside a model.
    model = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE, bias=False))
    return model, METHODS[method](model)


def forward_backward(model, x, dy):
    """Host time in microseconds."""
    start = time.perf_counter()
    model(x).backward(dy)
    return (time.perf_counter() - start) * 1e6


class Server:
    """The worker process, which has the environment of the other measurements."""

    def measure(self, repetitions):
        """method → median microseconds, and method → why there is no figure."""
        import torch

        layers, missing = {}, {}
        for name, method in ROWS.items():
            try:
                layers[name] = make_layer(method)
            except ImportError as error:
                missing[name] = f"not installed: {error}"
        x = torch.randn(1, SIDE).requires_grad_()
        dy = torch.randn(1, SIDE)
        times = {name: [] for name in layers}
        warm = repetitions // 10
        for repetition in range(warm + repetitions):
            for name, (model, method) in layers.items():
                x.grad = None
                method.optimizer.zero_grad(set_to_none=True)
                us = forward_backward(model, x, dy)
                method.optimizer.step()
                if repetition >= warm:
                    times[name].append(us)
        return {name: statistics.median(t) for name, t in times.items()}, missing


def overhead(args):
    worker = Worker(__file__, args.threads, TUNED)
    medians, missing = worker.ask("measure", repetitions=args.repetitions)
    worker.close()
    rows = [{"method": n, "us": us, "above_plain_us": us - medians["plain"]} for n, us in medians.items()]
    print(f"{'method':19} {'us':>8} {'above plain':>12}")
    for row in rows:
        print(f"{row['method']:19} {row['us']:8.1f} {row['above_plain_us']:12.1f}")
    for name, why in missing.items():
        print(f"{name:19} {why}")
    write_rows(args.json, rows)


if __name__ == "__main__":
    serve(Server)
