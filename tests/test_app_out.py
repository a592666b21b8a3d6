"""A trained model reaches --out, or --out is refused before training; the rest of the disk stays as it was."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from test_app_cli import BINARY, SMALL, TEXT, run_forge

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")

STEPS = ["--steps", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.py").write_text(TEXT)
    return tmp_path


def run(out, *flags):
    steps = [] if "--steps" in flags else STEPS
    return run_forge("train", "--data", "text.py", *SMALL, *steps, "--out", out, *flags)


@contextlib.contextmanager
def begun(*flags):
    """A run that has done its first step; its stdout and stderr are pipes."""
    command = [str(BINARY), "train", "--data", "text.py", *SMALL, "--out", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("step 1/"):
            assert process.poll() is None
        yield process


def assert_written(out, *flags):
    result = run(out, *flags)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in Path(out).iterdir()} >= {"config.json", "model.safetensors"}
    assert not list(Path(out).glob(".forge*"))


def assert_refused_before_training(out, names, *flags):
    result = run(out, *flags)
    assert result.returncode == 1
    assert "step 1/" not in result.stdout
    assert names in result.stderr and len(result.stderr.strip().splitlines()) == 1


@contextlib.contextmanager
def mounted(place, size="8m"):
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", ["n" * 255, "a/b/c/", "with space", "ä/ö", "."], ids=lambda name: name[:9])
def test_a_name_that_can_be_a_folder_becomes_one(folder, name):
    assert_written(folder / "inner" / name)


@pytest.mark.parametrize("out, names", [("text.py", "Not a directory"), ("text.py/below", "Not a directory"),
                                        ("n" * 256, "name too long"), ("", "empty"), ("/proc/out", "/proc")],
                         ids=["file", "below a file", "long", "empty", "proc"])
def test_a_name_that_cannot_is_refused_before_training(folder, out, names):
    assert_refused_before_training(out, names)
    assert [path.name for path in folder.iterdir()] == ["text.py"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_in_place_of_a_models_file_is_refused_before_training(folder, name):
    (folder / "out" / name).mkdir(parents=True)
    assert_refused_before_training("out", name, "--force")
    assert (folder / "out" / name).is_dir()


def test_a_mount_point_takes_a_model_and_another(folder):
    with mounted(folder / "mount") as mount:
        assert_written(mount)
        first = (mount / "model.safetensors").read_bytes()
        (mount / "notes").write_text("mine")
        assert_written(mount, "--force", "--seed", "5")
        assert (mount / "model.safetensors").read_bytes() != first
        assert (mount / "notes").read_text() == "mine"


def test_a_disk_without_room_is_refused_before_training(folder):
    with mounted(folder / "mount", size="100k") as mount:
        assert_refused_before_training(mount, "room")
        assert_refused_before_training(mount / "inner", "room", "--weights", "bf16")
        assert not list(mount.iterdir())


def test_a_disk_that_fills_while_training_costs_no_model(folder, monkeypatch):
    (folder / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
    with mounted(folder / "mount", size="2m") as mount:
        assert_written(mount)
        old = {path.name: path.read_bytes() for path in mount.iterdir()}
        with begun(mount, "--force", "--steps", "300") as process:
            with contextlib.suppress(OSError), open(mount / "full", "wb", buffering=0) as full:
                while full.write(bytes(4096)) == 4096:
                    pass
            _, stderr = process.communicate()
        (mount / "full").unlink()
        assert process.returncode == 1 and "cannot be written" in stderr
        assert {path.name: path.read_bytes() for path in mount.iterdir()} == old
    rescued, = (folder / "temporary").iterdir()
    assert str(rescued) in stderr and (rescued / "config.json").exists()
    assert (rescued / "model.safetensors").stat().st_size == len(old["model.safetensors"])


def test_a_folder_that_is_ones_own_where_one_may_not_write(folder):
    """An empty folder of another user's folder: only root can make the pair."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.chmod(0o755)
    for parent in list(folder.parents)[:3]:
        parent.chmod(0o755)
    own = folder / "theirs/own"
    own.mkdir(parents=True)
    os.chown(own, 65534, 65534)
    command = [str(BINARY), "train", "--data", "text.py", *SMALL, *STEPS, "--out"]
    kept = {"capture_output": True, "text": True, "user": 65534, "group": 65534}
    probe = subprocess.run([str(BINARY), "--help"], **kept)
    if probe.returncode:
        pytest.skip("another user cannot run the program here")
    result = subprocess.run([*command, str(own)], **kept)
    assert result.returncode == 0, result.stderr
    assert (own / "model.safetensors").exists()
    refused = subprocess.run([*command, str(folder / "theirs/new")], **kept)
    assert refused.returncode == 1 and "Permission denied" in refused.stderr and "step 1/" not in refused.stdout


def test_a_link_stays_a_link(folder):
    (folder / "disk").mkdir()
    (folder / "out").symlink_to("disk")
    assert_written("out")
    assert_written("out", "--force")
    assert (folder / "out").is_symlink() and (folder / "disk/config.json").is_file()


def test_shards_of_the_old_model_go_and_other_files_stay(folder):
    out = folder / "out"
    out.mkdir()
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "../text.py", "d": "notes", "e": 7}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in ("model-1.safetensors", "model-2.safetensors", "mine.safetensors", "notes"):
        (out / name).write_text(name)
    assert_written(out, "--force")
    assert {path.name for path in out.iterdir()} == {"config.json", "generation_config.json", "model.safetensors",
                                                    "mine.safetensors", "notes"}
    assert (folder / "text.py").read_text() == TEXT


def test_a_second_run_to_one_folder_is_refused(folder):
    with begun("out", "--steps", "100000") as first:
        assert_refused_before_training("out", "another run", "--force")
        first.kill()
    assert_written("out")


# ---- What is written besides the model ------------------------------------------------------------------


@pytest.mark.parametrize("flags", [["--temperature", "1e-45"], ["--temperature", "1e-300"], ["--temperature", "1e30"],
                                   ["--sample-tokens", "1", "--temperature", "0"]], ids=" ".join)
def test_a_sample_costs_no_model(folder, flags):
    assert_written("out", "--sample", "x", *flags)


def test_a_log_that_cannot_be_written_is_said_before_training(folder):
    assert_refused_before_training("out", "--log", "--log", "/dev/full")
    assert not (folder / "out").exists()


def test_a_log_that_fills_its_disk_is_said_after_the_model_is_kept(folder):
    with mounted(folder / "small", size="8k") as small:
        result = run("out", "--log", small / "log", "--steps", "60")
    assert result.returncode == 1 and "--log" in result.stderr
    assert (folder / "out/model.safetensors").exists()


@pytest.mark.parametrize("sample", [[], ["--sample", "x", "--sample-tokens", "3"], ["--count-rounding"]], ids=str)
def test_a_stdout_that_cannot_be_written_is_said_after_the_model_is_kept(folder, sample):
    command = [str(BINARY), "train", "--data", "text.py", *SMALL, *STEPS, "--out", "out", *sample]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and "cannot be written" in result.stderr
    assert (folder / "out/model.safetensors").exists()


def test_a_reader_of_stdout_that_goes_costs_no_model(folder):
    with begun("out", "--steps", "50") as process:
        process.stdout.close()
        assert process.wait(60) == 1 and "cannot be written" in process.stderr.read()
    assert (folder / "out/model.safetensors").exists()
