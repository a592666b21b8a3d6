"""formats.py: what a storage format costs in quality, on real text.

Trains one small Llama from the same weights, in the same order of text, with AdamW in each pair of formats, for each
seed; the loss is the mean of the last steps. Deviation is measured against fp32 of the same seed. One command makes
docs/formats.json, docs/formats.svg and the table that docs/formats.md holds:

    bench/formats.py --data some/text
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORGE = ROOT / "build/release/forge"
# name → (--weights, --state)
PAIRS = {
    "fp32": ("fp32", "fp32"),
    "bf16 to nearest": ("bf16", "bf16"),
    "bf16 stochastic": ("bf16_stochastic", "bf16_stochastic"),
    "24 bits + int8": ("bf16_plus8", "int8"),
    "bf16 stochastic + int8": ("bf16_stochastic", "int8"),
    "bf16 stochastic + fp8": ("bf16_stochastic", "fp8"),
    "fp32 + int8": ("fp32", "int8"),
    "fp32 + fp8": ("fp32", "fp8"),
}
LAST = 50  # steps that the final loss is the mean of
MODEL = "--tokenizer bytes --hidden 64 --layers 2 --batch 4 --seq 64 --lr 3e-3 --threads 1"


def losses(pair, seed, args, folder):
    """The loss of every step of one run."""
    weights, state = PAIRS[pair]
    log = Path(folder) / "log.jsonl"
    flags = ["--steps", str(args.steps), "--seed", str(seed), "--weights", weights, "--state", state]
    command = [FORGE, "train", "--data", *args.data, "--out", Path(folder) / "model", "--force"]
    subprocess.run([*command, "--log", log, *MODEL.split(), *flags], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def summary(runs):
    """name → (mean final loss, mean and spread of its deviation from fp32 of the same seed)."""
    final = {name: [statistics.mean(run[-LAST:]) for run in of_seeds] for name, of_seeds in runs.items()}
    rows = {}
    for name, values in final.items():
        deviations = [a - b for a, b in zip(values, final["fp32"], strict=True)]
        rows[name] = (statistics.mean(values), statistics.mean(deviations), max(deviations) - min(deviations))
    return rows


def table(rows):
    lines = ["| weights, moments | final loss | above fp32 | spread over seeds |", "|---|---|---|---|"]
    lines += [f"| {name} | {loss:.4f} | {above:+.4f} | {spread:.4f} |" for name, (loss, above, spread) in rows.items()]
    return "\n".join(lines)


def plot(runs, path):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "forge"  # the same file from the same numbers
    figure, axes = plt.subplots(figsize=(7, 4))
    exact = [statistics.mean(step) for step in zip(*runs["fp32"], strict=True)]
    for name, of_seeds in runs.items():
        if name == "fp32":
            continue
        mean = [statistics.mean(step) for step in zip(*of_seeds, strict=True)]
        above = [a - b for a, b in zip(mean, exact, strict=True)]
        smooth = [statistics.mean(above[max(0, i - LAST) : i + 1]) for i in range(len(above))]
        axes.plot(smooth, label=name, linewidth=1)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="step", ylabel="loss above that of fp32", title=f"mean of {len(runs['fp32'])} seeds, {LAST} steps")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="text files")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for formats.json and formats.svg")
    args = parser.parse_args()
    runs = {name: [] for name in PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name in PAIRS:
                runs[name].append(losses(name, seed, args, folder))
                print(f"seed {seed}  {name:24} {statistics.mean(runs[name][-1][-LAST:]):.4f}", file=sys.stderr)
    rows = summary(runs)
    (args.out / "formats.json").write_text(json.dumps({n: dict(zip(("loss", "above_fp32", "spread"), r, strict=True))
                                                       for n, r in rows.items()}, indent=1) + "\n")
    plot(runs, args.out / "formats.svg")
    print(table(rows))


if __name__ == "__main__":
    main()
