"""Training on a GPU, on the emulated one: the PyTorch package and the program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "build/release/libforge_emulated_gpu.so"
PROGRAM = ROOT / "build/release/forge"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built: make build")


def test_loops_of_pytorch():
    script = ROOT / "tests/emulator/gpu/loops.py"
    done = subprocess.run([sys.executable, script, LIBRARY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def trained(folder, device, *flags):
    """The losses and norms of each step."""
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    command = [PROGRAM, "train", "--data", text, "--out", folder / device, "--log", folder / f"{device}.jsonl"]
    command += ["--tokenizer", "bytes", "--hidden", "64", "--layers", "1"]
    command += ["--seq", "16", "--batch", "2", "--steps", "3"]
    done = subprocess.run(
        [*command, "--device", device, "--sample", "the", "--sample-tokens", "3", *flags],
        env=os.environ | {"LD_PRELOAD": str(LIBRARY)},
        capture_output=True,
        text=True,
        errors="replace",  # three sampled bytes need be no text
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in (folder / f"{device}.jsonl").read_text().splitlines()]
    assert (folder / device / "model.safetensors").stat().st_size > 10_000
    return [x for event in events if event["event"] == "step" for x in (event["loss"], event["grad_norm"])]


@pytest.mark.parametrize("flags", [("--clip", "0.5"), ("--schedule", "in_backward", "--optimizer", "lion")])
def test_the_program(tmp_path, flags):
    gpu, cpu = (trained(tmp_path, device, *flags) for device in ("emulated", "cpu"))
    assert gpu == pytest.approx(cpu, rel=1e-5)


def test_a_device_without_kernels_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    command = [PROGRAM, "train", "--data", tmp_path / "text.txt", "--out", tmp_path / "out", "--device", "xpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "--device xpu: this build has no kernels for it" in done.stderr
