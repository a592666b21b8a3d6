"""bench/peers.py step: its rows, that methods which take the same step agree, and that it tells where one does not."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

PEERS = Path(__file__).resolve().parent.parent / "bench/peers.py"
KEYS = {"method", "tokens", "clip", "accum", "ms", "peak_bytes", "gradient_bytes", "loss", "note"}
SETTINGS = {(clip, accum) for clip in (False, True) for accum in (1, 4)}
PLAIN = (False, 1)


def measure(file, *methods):
    """method → (clip, accum) → row."""
    options = ["--quick", "--threads", "1", "--methods", ",".join(methods), "--json", file]
    result = subprocess.run([sys.executable, PEERS, "step", *options], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    rows = {method: {} for method in methods}
    for row in json.loads(file.read_text()):
        assert set(row) == KEYS
        rows[row["method"]][row["clip"], row["accum"]] = row
    return rows


@pytest.fixture(scope="module")
def torch_rows(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("torch") / "rows.json", "torch_fused", "torch_hook")


@pytest.fixture(scope="module")
def forge_rows(tmp_path_factory):
    if importlib.util.find_spec("forge_optim") is None:
        pytest.skip("the package forge_optim is not installed")
    return measure(tmp_path_factory.mktemp("forge") / "rows.json", "forge_at_step", "forge_in_backward")


def test_every_setting_has_a_row_with_figures(torch_rows):
    for rows in torch_rows.values():
        assert set(rows) == SETTINGS
        for row in rows.values():
            assert row["ms"] > 0 and row["loss"] > 0
            assert row["peak_bytes"] > row["gradient_bytes"] > 0


def test_the_hook_agrees_where_it_takes_the_same_step(torch_rows):
    fused, hook = (rows[PLAIN] for rows in torch_rows.values())
    assert hook["note"] == fused["note"] == ""
    assert hook["loss"] == pytest.approx(fused["loss"], rel=1e-6)
    assert hook["gradient_bytes"] < fused["gradient_bytes"]


def test_the_hook_is_caught_where_it_does_not(torch_rows):
    hook = torch_rows["torch_hook"]
    assert hook[True, 1]["note"] == "ignores silently: unclipped"
    assert hook[False, 4]["note"] == "ignores silently: steps at every micro-batch"
    assert hook[True, 4]["note"] == "ignores silently: unclipped, steps at every micro-batch"


def test_at_step_takes_every_step_that_torch_takes(torch_rows, forge_rows):
    for setting, row in forge_rows["forge_at_step"].items():
        assert row["note"] == ""
        assert row["loss"] == pytest.approx(torch_rows["torch_fused"][setting]["loss"], rel=1e-5)


def test_in_backward_agrees_or_refuses(torch_rows, forge_rows):
    for setting, row in forge_rows["forge_in_backward"].items():
        if setting == PLAIN:
            assert row["note"] == ""
            assert row["loss"] == pytest.approx(torch_rows["torch_fused"][setting]["loss"], rel=1e-5)
        else:
            assert row["note"].startswith("refuses: ") and row["ms"] is None
