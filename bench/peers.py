"""FORGE beside its peers, alternating in one run, so that its figures are ratios on one machine at one time.

    python bench/peers.py layer --json FILE [--shape 4096x4096] [--tokens 8,32,...] [--rounds 5]
    python bench/peers.py step --json FILE [--tokens 16,64,...] [--methods torch_fused,...] [--rounds 5] [--quick]
    python bench/peers.py overhead --json FILE [--repetitions 3000] [--threads 1]

`layer`     weight gradient + AdamW update of one linear layer (peers_layer.py)
`step`      whole training steps of a Llama: time, memory, and what becomes of clipping and accumulation
            (peers_step.py)
`overhead`  what fusing costs the host, forward + backward of a layer of 64 x 64 (peers_overhead.py)

Each method or environment of `layer` and `step` is a process of its own that sleeps while another is measured.
"""

import argparse
import os

import peers_layer
import peers_overhead
import peers_step
from peers_methods import METHODS


def names(known):
    """A parser of comma-separated lists of known names."""

    def parse(text):
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return text.split(",")

    return parse


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def add(name, run, help, threads=None):
        command = commands.add_parser(name, help=help)
        command.add_argument("--json", required=True, help="where the rows are written")
        command.add_argument("--threads", type=int, default=threads or os.cpu_count())
        command.set_defaults(run=run)
        return command

    layer = add("layer", peers_layer.layer, "gradient + update of one linear layer")
    layer.add_argument("--shape", default="4096x4096", help="OUTxIN of the weight")
    layer.add_argument("--tokens", type=numbers, default=peers_layer.TOKENS)
    layer.add_argument("--dtypes", type=names(peers_layer.DTYPES), default=peers_layer.DTYPES)
    layer.add_argument("--rounds", type=int, default=5)

    step = add("step", peers_step.step, "whole training steps of a Llama of 70 M parameters")
    step.add_argument("--tokens", type=numbers, help="tokens of a micro-batch (default: 16,64,128,512)")
    step.add_argument("--methods", type=names(METHODS), default=list(METHODS))
    step.add_argument("--rounds", type=int, default=5)
    step.add_argument("--quick", action="store_true", help="a tiny model, 16 tokens and one round: for tests")

    overhead = add("overhead", peers_overhead.overhead, "host time of forward + backward of a small layer", threads=1)
    overhead.add_argument("--repetitions", type=int, default=3000)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
