"""rounding.py: what rounding loses of AdamW's updates, and what counting it costs.

Trains one small Llama with each format and learning rate, `forge train --count-rounding`, and prints the shares of
updates that were lost; then steps one weight with and without counting in turn, and prints the ratio of times. This
makes the tables of docs/formats.md:

    PYTHONPATH=build/release/python bench/rounding.py --data some/text
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

FORGE = Path(__file__).resolve().parent.parent / "build/release/forge"
RATES = ("1e-5", "1e-4", "1e-3")
WEIGHTS = ("bf16", "bf16_stochastic", "bf16_plus8", "bf16_plus16")
MOMENTS = ("bf16", "int8", "fp8")
MODEL = "--tokenizer bytes --hidden 64 --layers 2 --batch 2 --seq 64 --warmup 0 --beta2 0.999 --threads 1"
PAIRS = [("fp32", "fp32"), ("bf16", "bf16"), ("bf16_plus16", "bf16"), ("bf16_stochastic", "int8")]


def lost(weights, moments, lr, args):
    """Name of a matrix, "weight" or a moment's key → the share of its updates that was lost, where its format is the
    one that was asked for."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        command = [FORGE, "train", "--data", *args.data, "--out", Path(folder) / "model", "--log", log, *MODEL.split()]
        flags = ["--weights", weights, "--state", moments, "--lr", lr, "--min-lr", lr, "--steps", str(args.steps)]
        subprocess.run([*command, *flags, "--count-rounding"], check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(log.read_text().splitlines()[-1])["rounding"]
    return {row["of"]: row["lost"] / row["elements"] for row in rows if row["format"] in (weights, moments)}


def table(title, rows):
    lines = [f"| {title} | " + " | ".join(f"lr {lr}" for lr in RATES) + " |", "|---" * (1 + len(RATES)) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{100 * share:.3g} %" for share in shares) + " |" for name, shares in rows]
    return "\n".join(lines) + "\n"


def tables(args):
    pairs = dict.fromkeys([(w, "bf16") for w in WEIGHTS] + [("bf16_plus16", m) for m in MOMENTS])
    runs = {pair: [lost(*pair, lr, args) for lr in RATES] for pair in pairs}

    def shares(weights, moments, of):
        return [run[of] for run in runs[weights, moments]]

    print(table("weights", [(w, shares(w, "bf16", "weight")) for w in WEIGHTS]))
    print(table("moments", [(f"{m}, {of}", shares("bf16_plus16", m, of))
                            for of in ("exp_avg", "exp_avg_sq") for m in MOMENTS]))


def step_times(weights, moments, args):
    """Milliseconds that AdamW's steps on one weight keep a core busy, {counted: [times]}, one of each in turn."""
    import forge_optim as forge
    import torch

    torch.set_num_threads(1)
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    options = dict(weight_format=None if weights == "fp32" else weights, state_format=moments)
    layers = {on: torch.nn.Linear(args.width, args.width, bias=False, dtype=dtype) for on in (False, True)}
    for layer in layers.values():
        forge.fuse(layer, verbose=False)
    optimizers = {on: forge.AdamW(layer.parameters(), count_rounding=on, **options) for on, layer in layers.items()}
    x = torch.randn(args.tokens, args.width, dtype=dtype)
    times = {False: [], True: []}
    for i in range(2 * (args.repeats + 2)):
        on = i % 2 == 1
        layers[on](x).square().mean().backward()
        begin = time.process_time()
        optimizers[on].step()
        times[on].append(1e3 * (time.process_time() - begin))
        optimizers[on].zero_grad()
    return {on: of[2:] for on, of in times.items()}  # moments are made in the first step


def costs(args):
    print(f"| weights, moments | ms a step | counted | ratio |\n{'|---' * 4}|")
    for weights, moments in PAIRS:
        times = step_times(weights, moments, args)
        without, counted = (statistics.median(times[on]) for on in (False, True))
        print(f"| {weights}, {moments} | {without:.1f} | {counted:.1f} | {counted / without:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="text files")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=2048, help="of the square weight that is timed")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    tables(args)
    costs(args)


if __name__ == "__main__":
    main()
