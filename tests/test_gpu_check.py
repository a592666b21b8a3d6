"""The check of a GPU, on the emulated one: whatever it would find wrong there is right here."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build/release/gpu_check_emulated"


def rows_of(part):
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built: make build")
    done = subprocess.run([PROGRAM, part, "--small"], capture_output=True, text=True, timeout=300)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_kernels_have_the_bits_of_plain_loops():
    code, rows = rows_of("bits")
    assert [row for row in rows if row["wrong"]] == [] and code == 0
    assert {row["check"]: row["runs"] >= 3 for row in rows} == dict.fromkeys(
        [
            "update_rows_equals_ref",
            "ffma_equals_ref",
            "ffma_equals_ref_from_bf16",
            "mma_of_whole_numbers_equals_ref",
            "mma_of_whole_fp16_numbers_equals_ref",
            "fused_equals_two_phase",
            "norm_equals_ref",
            "lines_equal_ref",
        ],
        True,
    )


def test_gradients_are_close_to_float64():
    code, rows = rows_of("gradient")
    assert code == 0 and len(rows) == 2
    assert all(0 < row["relative_error"] <= row["bound"] for row in rows)


def test_hoppers_own_kernels_are_right():
    code, rows = rows_of("hopper")
    gradients, checks = [r for r in rows if "bound" in r], [r for r in rows if "check" in r]
    assert code == 0 and len(gradients) == 3
    assert all(row["relative_error"] <= row["bound"] and row["largest_error"] <= row["bound"] for row in gradients)
    assert {row["check"] for row in checks} == {"whole_numbers_equal_ref", "fused_equals_two_phase"}
    assert all(row["runs"] >= 3 and row["wrong"] == 0 for row in checks)


def test_what_only_a_gpu_can_tell_is_refused():
    code, rows = rows_of("speed")
    assert code == 1 and "measured on a GPU" in rows[0]["error"]
