"""Runs a function on several gloo ranks, each a process of its own."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

TIMEOUT = 60  # seconds

# One server imports torch; ranks are forked from it, so that each costs no import and inherits no threads.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "torch.distributed", "forge_optim"])


def run_ranks(function, world_size, *args):
    """function(rank, *args) on each rank, one thread each; returns what they return, in rank order.

    The function and its arguments must be picklable. The first error is raised here, with the rank's traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks, results = {}, {}
        try:
            for rank in range(world_size):
                reader, writer = _processes.Pipe(duplex=False)
                task = (function, rank, world_size, f"file://{folder}/store", args)
                process = _processes.Process(target=_run, args=(writer, *task), daemon=True)
                process.start()
                writer.close()
                ranks[reader] = rank, process
            deadline = time.monotonic() + TIMEOUT
            while len(results) < world_size:
                ready = wait([r for r in ranks if ranks[r][0] not in results], deadline - time.monotonic())
                assert ready, f"ranks {sorted(set(range(world_size)) - set(results))} did not end in {TIMEOUT} s"
                for reader in ready:
                    rank = ranks[reader][0]
                    results[rank] = _receive(reader, rank)
        finally:
            for _, process in ranks.values():
                if len(results) < world_size:
                    process.kill()  # it waits for a rank that has failed
                process.join()
    return [results[rank] for rank in range(world_size)]


def _receive(reader, rank):
    try:
        error, result = pickle.loads(reader.recv_bytes())
    except EOFError:
        error = "it ended without a word"
    if error:
        raise RuntimeError(f"rank {rank}: {error}")
    return result


def _run(writer, function, rank, world_size, store, args):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=TIMEOUT)
        )
        message = None, function(rank, *args)
        dist.barrier()  # no rank leaves while another still talks to it
        # Plain pickle: tensors sent by multiprocessing live in the memory of the sender.
        message = pickle.dumps(message)
    except BaseException:
        message = pickle.dumps((traceback.format_exc(), None))
    writer.send_bytes(message)
    if dist.is_initialized():
        dist.destroy_process_group()
