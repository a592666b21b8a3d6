"""What the same updates take in PyTorch on this GPU: cuBLAS products, then the fused AdamW. Rows of JSON."""

import json
import statistics

import torch

SHAPES = [(4096, 4096), (4096, 14336)]
TOKENS = [128, 512, 2048, 8192]


def milliseconds(f, warm_up=3, runs=21):
    times = []
    for run in range(-warm_up, runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        f()
        end.record()
        end.synchronize()
        if run >= 0:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def measure(out, columns, tokens, dtype):
    weight = torch.nn.Parameter(torch.randn(out, columns, device="cuda").to(dtype))
    weight.grad = torch.empty_like(weight)
    dy, x = (torch.randn(tokens, n, device="cuda").to(dtype) for n in (out, columns))
    optimizer = torch.optim.AdamW([weight], lr=1e-5, fused=True)

    def product():
        torch.mm(dy.t(), x, out=weight.grad)

    def both():
        product()
        optimizer.step()

    row = {"part": "torch", "dtype": str(dtype).removeprefix("torch."), "out": out, "in": columns, "tokens": tokens}
    row |= {"product_ms": milliseconds(product), "step_ms": milliseconds(optimizer.step)}
    print(json.dumps(row | {"both_ms": milliseconds(both)}), flush=True)


def main():
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        for out, columns in SHAPES:
            for tokens in TOKENS:
                for dtype in (torch.bfloat16, torch.float32):
                    if dtype == torch.bfloat16 or tokens <= 2048:
                        measure(out, columns, tokens, dtype)


if __name__ == "__main__":
    main()
