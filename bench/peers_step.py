"""peers.py step: whole training steps of a Llama of 70 M parameters (fp32, untied head), AdamW, random tokens.

  torch_fused        torch.optim.AdamW(fused=True)
  torch_hook         one of those per parameter, stepped in register_post_accumulate_grad_hook, gradient set to None
  optimi_release     torch-optimi, gradient release; accumulates into the moments (optimizer_accumulation)
  bnb8, torchao8     moments in 8 bits: bitsandbytes, torchao
  forge_at_step, forge_in_backward

A row for each method, number of tokens (of one micro-batch), clip (global norm 1.0) and accum (micro-batches a step):
  ms              median of zero_grad + (forward + backward) · accum + clip + step, all methods in alternating rounds
  peak_bytes      most bytes allocated by torch at once in an untimed step, above the model's weights; it includes the
                  optimizer's state, gradients or terms, activations and temporaries
  gradient_bytes  most bytes of p.grad at once; for FORGE of held terms and dense gradients together
  loss            of the first batch after three steps from the seed: methods that agree have the same
  note            what peers_behaviour.py found; "refuses: …" and "not installed: …" have no figures
One process per method, each with PyTorch tuned as peers_worker.TUNED says.
"""

import gc
import statistics
import sys
import time

from peers_methods import METHODS
from peers_worker import TUNED, Refused, Worker, serve, write_rows

TOKENS = (16, 64, 128, 512)
MEASURED = ("peak_bytes", "gradient_bytes", "loss")  # what a worker says when it has prepared a setting
SETTINGS = [(clip, accum) for accum in (1, 4) for clip in (False, True)]
STEPS_TO_LOSS = 3
MIB = 2**20


class Server:
    """What a worker process does: trains one model at a time by one method."""

    def __init__(self, name):
        self.name = name
        self.model = self.method = None

    def behaviours(self):
        from peers_behaviour import behaviour

        return [(clip, accum, behaviour(self.name, clip, accum)) for clip, accum in SETTINGS]

    def prepare(self, size, tokens, clip, accum):
        """Trains a fresh model for a few steps and measures what is not time."""
        import torch
        from peers_memory import recorder
        from peers_model import Data, make_model

        self.release()
        self.model = make_model(size)
        self.data, self.clip, self.accum = Data(size, tokens), clip, accum
        first = Data(size, tokens).batches(1)[0]
        with recorder() as memory:
            self.method = METHODS[self.name](self.model)
            for _ in range(STEPS_TO_LOSS):
                self.train()
            with torch.no_grad():
                loss = self.model(input_ids=first, labels=first).loss.item()
            self.method.optimizer.zero_grad()
            self.method.sample_gradients()
            memory.reset_peak()
            self.train()
            gradient_bytes = self.method.gradient_bytes()
        return {"peak_bytes": memory.peak_bytes, "gradient_bytes": gradient_bytes, "loss": loss}

    def release(self):
        """Lets the model go. Hooks refer to what refers to them, through C++, where no collector follows."""
        for p in self.model.parameters() if self.model else ():
            if p._post_accumulate_grad_hooks:
                p._post_accumulate_grad_hooks.clear()
        self.model = self.method = None
        gc.collect()

    def train(self):
        """One step, in ms."""
        from peers_model import train_step

        batches = self.data.batches(self.accum)
        start = time.perf_counter()
        train_step(self.model, self.method, batches, self.clip)
        return (time.perf_counter() - start) * 1e3

    def measure(self, steps):
        """Steps in ms. One is enough of what takes seconds."""
        times = []
        while len(times) < steps and sum(times) < 2e3:
            times.append(self.train())
        return times


def find_notes(names, threads):
    """(method, clip, accum) → note. In processes of their own: a refusal may leave a library half way."""
    notes = {}
    for name in names:
        worker = Worker(__file__, threads, TUNED, [name])
        try:
            found = worker.ask("behaviours")
        except Refused as refusal:  # what does not even begin: its package is missing or does not load
            found = [(clip, accum, f"not installed: {refusal}") for clip, accum in SETTINGS]
        notes.update({(name, clip, accum): note for clip, accum, note in found})
        worker.close()
    return notes


def runs(note):
    return not note.startswith(("refuses", "not installed"))


def measure(workers, notes, size, tokens, clip, accum, rounds, steps):
    """The rows of one setting: what is not time method by method, then rounds in a rotated order."""
    setting = {"tokens": tokens, "clip": clip, "accum": accum}
    rows = {}
    for name, worker in workers.items():
        note = notes[name, clip, accum]
        rows[name] = {"method": name, **setting, "ms": None, **dict.fromkeys(MEASURED), "note": note}
        if not runs(note):
            continue
        try:
            rows[name].update(worker.ask("prepare", size=size, **setting))
        except Refused as refusal:  # the small model of the notes went through and this one does not
            rows[name]["note"] = f"refuses: {refusal}"
    active = [name for name in rows if runs(rows[name]["note"])]
    times = {name: [] for name in active}
    for r in range(rounds if active else 0):
        turn = r % len(active)
        for name in active[turn:] + active[:turn]:
            times[name] += workers[name].ask("measure", steps=steps)
    for name in active:
        rows[name]["ms"] = statistics.median(times[name])
    return list(rows.values())


def print_row(row, reference):
    figures = f"{'-':>9} {'-':>6} {'-':>9} {'-':>9} {'-':>8}"
    if row["ms"] is not None:
        speed = f"{reference['ms'] / row['ms']:6.2f}" if reference else f"{'-':>6}"
        figures = (
            f"{row['ms']:9.1f} {speed} {row['peak_bytes'] / MIB:9.1f} {row['gradient_bytes'] / MIB:9.1f}"
            f" {row['loss']:8.4f}"
        )
    print(
        f"{row['method']:19} {row['tokens']:6} {'yes' if row['clip'] else 'no':>4} {row['accum']:5} {figures}"
        f"  {row['note']}",
        flush=True,
    )


def step(args):
    size = "tiny" if args.quick else "70m"
    rounds, steps = (1, 1) if args.quick else (args.rounds, 2)
    notes = find_notes(args.methods, args.threads)
    workers = {name: Worker(__file__, args.threads, TUNED, [name]) for name in args.methods}
    print("method              tokens clip accum        ms      ×  peak MiB  grad MiB     loss  note")
    rows = []
    for tokens in args.tokens or ([16] if args.quick else TOKENS):
        for clip, accum in SETTINGS:
            new = measure(workers, notes, size, tokens, clip, accum, rounds, steps)
            reference = next((row for row in new if row["method"] == "torch_fused"), None)
            for row in new:
                print_row(row, reference)
            rows += new
            write_rows(args.json, rows)  # a long run that is cut short leaves what it has
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    serve(Server, sys.argv[1])
