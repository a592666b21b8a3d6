"""A run that is killed anywhere leaves the whole old model or a whole new one, which readers open as it lies there.

FORGE_KILLS=100 kills that many runs in each place instead of a few.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_app_cli import BINARY, TEXT, run_forge
from test_app_out import mounted

load_file = pytest.importorskip("safetensors.numpy").load_file

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")

KILLS = int(os.environ.get("FORGE_KILLS", "8"))
RUN = ["--steps", "2", "--batch", "2", "--seq", "16", "--threads", "1"]
# Other sizes, and a tokenizer that only one of the two has.
OLD = ["--hidden", "64", "--layers", "1", "--heads", "4", "--vocab-size", "300", "--seed", "1", *RUN]
NEW = ["--hidden", "96", "--layers", "2", "--heads", "4", "--tokenizer", "bytes", "--seed", "2", *RUN]
NAMES = {"config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
         "tokenizer.model", "tokenizer_config.json"}


def train(data, out, *flags):
    result = run_forge("train", "--data", data, "--out", out, *flags)
    assert result.returncode == 0, result.stderr


def model_in(folder):
    """All files of the model that a reader finds, with their bytes."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def assert_opens(folder):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert tensors["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert sum(name.endswith("q_proj.weight") for name in tensors) == config["num_hidden_layers"]


def took(command):
    """How long a run takes in all, and from the first new file to the end."""
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        saving = start
        for line in process.stdout:
            saving = time.monotonic() if line.startswith("step 2/") else saving
    return time.monotonic() - start, time.monotonic() - saving


def kill_at_random(command, random_, whole, saving):
    """Half of the kills fall while the model is saved, which takes the smaller part of the time."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        if random_.random() < 0.5:
            time.sleep(random_.uniform(0, whole))
        else:
            for line in process.stdout:
                if line.startswith("step 2/"):
                    break
            time.sleep(random_.uniform(0, saving))
        process.send_signal(signal.SIGKILL)


def kill_runs(tmp_path, place):
    data = tmp_path / "text.py"
    data.write_text(TEXT)
    train(data, tmp_path / "old", *OLD)
    train(data, tmp_path / "new", *NEW)
    old, new = model_in(tmp_path / "old"), model_in(tmp_path / "new")
    assert old.keys() != new.keys()
    command = [str(BINARY), "train", "--data", str(data), "--out", str(place), "--force", *NEW]
    shutil.copytree(tmp_path / "old", place, dirs_exist_ok=True)
    whole, saving = took(command)
    random_ = random.Random(3)
    left = {"old": 0, "new": 0}
    for _ in range(KILLS):
        for name in NAMES:
            (place / name).unlink(missing_ok=True)
        shutil.copytree(tmp_path / "old", place, dirs_exist_ok=True)
        kill_at_random(command, random_, whole, saving)
        found = model_in(place)
        assert found in (old, new), sorted(place.iterdir())
        assert_opens(place)
        left["old" if found == old else "new"] += 1
    print(f"{KILLS} kills left {left}")
    train(data, place, "--force", *NEW)
    assert {path.name for path in place.iterdir()} == new.keys()
    assert model_in(place) == new


def test_kills_in_a_folder_leave_a_whole_model(tmp_path):
    kill_runs(tmp_path, tmp_path / "out")


def test_kills_on_a_mount_point_leave_a_whole_model(tmp_path):
    with mounted(tmp_path / "mount", size="16m") as mount:
        kill_runs(tmp_path, mount)


def test_transformers_open_what_a_kill_between_renames_leaves(tmp_path):
    """The state in which files are links, made by hand: the old model is current, then the new one is."""
    transformers = pytest.importorskip("transformers")
    data = tmp_path / "text.py"
    data.write_text(TEXT)
    out = tmp_path / "out"
    for name, flags in (("old", OLD), ("new", NEW)):
        train(data, out / ".forge-partial" / name, *flags)
    for name in model_in(out / ".forge-partial/old") | model_in(out / ".forge-partial/new"):
        (out / name).symlink_to(Path(".forge-partial/current") / name)
    for name, hidden in (("old", 64), ("new", 96)):
        current = out / ".forge-partial/current"
        current.unlink(missing_ok=True)
        current.symlink_to(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert model.config.hidden_size == hidden
    result = run_forge("train", "--data", data, "--out", out, *NEW)
    assert result.returncode == 1 and "--force" in result.stderr
    assert {path.name for path in out.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert not any(path.is_symlink() for path in out.iterdir())
