"""The examples do what their first lines say."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("FORGE_BUILD", ROOT / "build" / "release"))
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".cpp"))


def losses(printed):
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


def run(example):
    """What a Python example prints."""
    needed = re.findall(r"^(?:import|from) (\w+)", example.read_text(), re.MULTILINE)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    environment = {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"} | os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, example], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(example):
    assert len(example.read_text().splitlines()) < 60


def test_minimal_example_lowers_its_loss():
    printed = subprocess.run([BUILD / "example_minimal"], check=True, capture_output=True, text=True).stdout
    assert len(losses(printed)) == 5
    assert losses(printed)[-1] < 0.5 * losses(printed)[0]


@pytest.mark.parametrize("example", [path for path in EXAMPLES if path.suffix == ".py"], ids=lambda path: path.stem)
def test_python_examples_learn_and_report(example):
    printed = run(example)
    assert re.search(r"^forge_optim: [\d,]+ of [\d,]+ values \(9\d\.\d%\) are fused$", printed, re.MULTILINE)
    assert len(losses(printed)) >= 4
    assert losses(printed)[-1] < 0.8 * losses(printed)[0]
    rows = ("weights", "gradients, peak")
    weights, gradients = (float(re.search(rf"^{row} +([\d.]+) MiB$", printed, re.MULTILINE)[1]) for row in rows)
    assert weights > 0 and gradients > 0
    for loss, resumed in re.findall(r"loss ([\d.]+)  resumed at step \d+: ([\d.]+)", printed):
        assert loss == resumed
