"""Worker processes: each measures one method or environment, and sleeps while another is measured.

A file of methods ends with `serve(Server)`; the command line then talks to it through `Worker`, one JSON line a
request, one JSON line an answer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("FORGE_BUILD", ROOT / "build" / "release"))
# Ours is the one just built, also where none is installed.
PYTHONPATH = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(BUILD / "python")]))

# What PyTorch gains from on a CPU that is shared: fresh gradients on huge pages cost far fewer page faults, and idle
# OpenMP threads that sleep do not take the core from those that work.
TUNED = {"THP_MEM_ALLOC_ENABLE": "1", "OMP_WAIT_POLICY": "passive"}


class Refused(Exception):
    """What a worker raised: the first line of it."""


class Worker:
    def __init__(self, script, threads, environment, arguments=()):
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, **environment, "PYTHONPATH": PYTHONPATH, "FORGE_BENCH_THREADS": str(threads)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, what, **request):
        """Calls the method `what` of the worker's server; raises Refused where that raised."""
        self.process.stdin.write(json.dumps([what, request]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"peers: the worker stopped at {what} {request}; its error is above")
        answer = json.loads(answer)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["value"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(make_server, *arguments):
    """Answers requests until the standard input ends. An error of `make_server` itself ends the process."""
    import torch

    # Libraries print to the standard output; the answers go where it pointed before.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["FORGE_BENCH_THREADS"]))
    server = make_server(*arguments)
    for line in sys.stdin:
        what, request = json.loads(line)
        try:
            answer = {"value": getattr(server, what)(**request)}
        except Exception as error:
            answer = {"error": first_line(error)}
        print(json.dumps(answer), file=answers, flush=True)


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_rows(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(rows, indent=1) + "\n")
