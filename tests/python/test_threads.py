"""Python threads that share weights, gradients and optimizers, or drop them: as torch, and never waiting for ever.

Each scene runs in a process of its own, a fork of one that has done nothing yet. Where it does not end by itself, it
ends with every thread's traceback.
"""

import copy
import faulthandler
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import SCHEDULES, assert_same_weights, difference  # noqa: E402
from torch import nn  # noqa: E402

SECONDS = 60


def together(*functions):
    """Runs each in a thread of its own, and raises what the first raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def layers(count=4, width=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(count)])


def rows(seed, width=16):
    return torch.randn(4, width, generator=torch.Generator().manual_seed(seed))


# ---- Scenes ----------------------------------------------------------------------------------------------


def backward_passes_that_share_weights_lose_nothing():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, ids):
            return self.down(self.up(self.embedding(ids)).tanh()) @ self.embedding.weight.t()

    for collapse in ("auto", "never"):
        theirs, ours = Model(), Model()
        pairs = (
            (theirs, torch.optim.SGD(theirs.parameters(), lr=0.01)),
            (ours, forge.SGD(ours, 0.01, collapse=collapse)),
        )
        for model, optimizer in pairs:
            for _ in range(3):

                def passes(thread, model=model):
                    for i in range(25):
                        ids = torch.randint(20, (6,), generator=torch.Generator().manual_seed(100 * thread + i))
                        model(ids).square().mean().backward()

                together(*[lambda t=t: passes(t) for t in range(4)])
                optimizer.step()
                optimizer.zero_grad()
        assert_same_weights(ours, theirs)


def replicas_as_in_data_parallel_add_to_one_gradient():
    """torch.nn.DataParallel's parallel_apply: one forward pass a thread, one backward pass for all."""
    theirs, ours = layers(), layers()
    pairs = (theirs, torch.optim.SGD(theirs.parameters(), lr=0.01)), (ours, forge.SGD(ours, lr=0.01))
    for model, optimizer in pairs:
        for step in range(20):
            losses = [None] * 4

            def replica(i, step=step, model=model, losses=losses):
                losses[i] = model(rows(4 * step + i)).square().mean()

            together(*[lambda i=i: replica(i) for i in range(4)])
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
    assert_same_weights(ours, theirs)


def optimizers_step_in_threads_of_their_own():
    models = [layers(seed=i) for i in range(4)]
    expected = copy.deepcopy(models)

    def train(model, optimizer):
        for i in range(40):
            optimizer.zero_grad()
            model(rows(i)).square().mean().backward()
            optimizer.step()

    runs = [(model, forge.AdamW(model, 1e-3, schedule=SCHEDULES[i % 2])) for i, model in enumerate(models)]
    together(*[lambda run=run: train(*run) for run in runs])
    for model, reference in zip(models, expected, strict=True):
        train(reference, torch.optim.AdamW(reference.parameters(), 1e-3))
        assert_same_weights(model, reference)


def backward_passes(model, running):
    """A thread of them, of which running[0] are at work."""

    def backward():
        try:
            for i in range(60):
                model(rows(i)).square().mean().backward()
        finally:
            running[0] -= 1

    return backward


def gradients_are_read_while_others_run_backward():
    model = layers()
    optimizer = forge.AdamW(model)
    running = [2]
    backward = backward_passes(model, running)

    def reading(read):
        def until_done():
            while running[0]:
                for layer in model:
                    if (grad := layer.weight.grad) is not None:
                        read(grad)

        return until_done

    def copy_and_change(grad):
        other = grad.clone()
        other.mul_(2.0)
        other.add_(grad)
        other.zero_()

    def clip(_):
        nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        forge.clip_grad_norm_(model.parameters(), 1e9)

    readers = [lambda g: (g.norm(), repr(g), g.isfinite().all()), copy_and_change, clip]
    readers.append(lambda g: (forge.report(optimizer), optimizer.state_dict(), optimizer.reset_peak_memory()))
    together(backward, backward, *map(reading, readers))
    expected = copy.deepcopy(model)
    for i in (*range(60), *range(60)):
        expected(rows(i)).square().mean().backward()
    for layer, reference in zip(model, expected, strict=True):
        torch.testing.assert_close(layer.weight.grad.dense(), reference.weight.grad, rtol=1e-4, atol=1e-5)


def a_gradient_is_multiplied_out_while_others_add_to_it():
    model = layers()
    optimizer = forge.SGD(model, lr=0.1)

    def backward():
        for i in range(40):
            model(rows(i)).square().mean().backward()

    def read():
        for _ in range(40):
            for layer in model:
                if layer.weight.grad is not None:
                    (layer.weight.grad + 1).sum().item()

    together(backward, backward, read)
    expected = copy.deepcopy(model)
    for i in (*range(40), *range(40)):
        expected(rows(i)).square().mean().backward()
    for layer, reference in zip(model, expected, strict=True):
        torch.testing.assert_close(layer.weight.grad.dense(), reference.weight.grad, rtol=1e-4, atol=1e-5)
    del optimizer


def one_thread_steps_while_another_differentiates_other_weights():
    model = layers(2)
    optimizers = [forge.AdamW(model[0], 1e-3), forge.AdamW(model[1], 1e-3, schedule="in_backward")]

    def train(layer, optimizer):
        for i in range(60):
            optimizer.zero_grad()
            layer(rows(i)).square().mean().backward()
            optimizer.step()

    expected = copy.deepcopy(model)
    together(*[lambda pair=pair: train(*pair) for pair in zip(model, optimizers, strict=True)])
    for layer in expected:
        train(layer, torch.optim.AdamW(layer.parameters(), 1e-3))
    assert difference(model, expected) < 1e-4


def optimizers_are_collected_while_others_run_backward():
    model = layers()
    optimizer = forge.AdamW(model)
    running = [2]
    backward = backward_passes(model, running)

    def churn():
        while running[0]:
            other = layers(2, 8)
            gone = forge.SGD(other, lr=0.1, schedule="in_backward")
            gone.cycle = gone
            other(rows(0, 8)).sum().backward()
            del gone
            gc.collect()

    together(backward, backward, churn)
    optimizer.step()


def an_optimizer_that_updates_in_backward_is_dropped_by_another_thread():
    for _ in range(50):
        model = layers(8, 8)
        kept = [forge.AdamW(model, schedule="in_backward")]
        loss = model(rows(0, 8)).sum()
        together(loss.backward, kept.clear)
        for p in model.parameters():
            assert p.grad is not None  # applied, or an ordinary one


def an_optimizer_that_updates_in_backward_is_collected_by_its_own_thread():
    gc.disable()
    for _ in range(30):
        model = layers(4, 8)
        optimizer = forge.AdamW(model, schedule="in_backward")
        optimizer.cycle = optimizer
        middle = model[:2](rows(0, 8))
        middle.register_hook(lambda grad: gc.enable())
        loss = model[2:](middle).sum()
        gc.set_threshold(1, 1, 1)
        del optimizer
        loss.backward()
        gc.disable()


SCENES = [
    backward_passes_that_share_weights_lose_nothing,
    replicas_as_in_data_parallel_add_to_one_gradient,
    optimizers_step_in_threads_of_their_own,
    gradients_are_read_while_others_run_backward,
    a_gradient_is_multiplied_out_while_others_add_to_it,
    one_thread_steps_while_another_differentiates_other_weights,
    optimizers_are_collected_while_others_run_backward,
    an_optimizer_that_updates_in_backward_is_dropped_by_another_thread,
    an_optimizer_that_updates_in_backward_is_collected_by_its_own_thread,
]


@pytest.fixture(scope="module")
def endings():
    """What became of each scene: its exit status (negative: a signal) and what it said."""
    command = [sys.executable, "-W", "ignore", "-X", "faulthandler", __file__]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("scene", SCENES, ids=lambda f: f.__name__)
def test(scene, endings):
    status, said = endings[scene.__name__]
    assert status == 0, said


def play(scene):
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        scene()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_a_fork(scene):
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()  # of a process with one thread
        if child == 0:
            os.dup2(said.fileno(), 2)
            play(scene)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status, said.read()[-4000:]


if __name__ == "__main__":
    print(json.dumps({scene.__name__: in_a_fork(scene) for scene in SCENES}))
