"""The forge program from outside: what it trains, and what it says to wrong input."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("FORGE_BINARY", ROOT / "build/release/forge")).resolve()
OWN_RULE = BINARY.parent / "libcwd_adamw.so"  # of examples/rules
TEXT = "".join(f"def step_{i}(x):\n    return x * {i} + {i % 7}\n\n" for i in range(300))
# One thread: at this size a second one only waits, the longer the busier the machine.
TINY = ["--preset", "tiny", "--batch", "2", "--seq", "32", "--threads", "1"]
SMALL = ["--tokenizer", "bytes", *TINY]

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")


def run_forge(*arguments, **environment):
    command = [str(BINARY), *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "errors": "replace", "timeout": 120}
    return subprocess.run(command, env=os.environ | environment, **settings)


def train(out, *arguments):
    """Trains, and returns the log's records of steps."""
    log = out.with_suffix(".jsonl")
    result = run_forge("train", "--out", out, "--log", log, *arguments)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record for record in records if record["event"] == "step"]


def weights(out):
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "steps.py"
    path.write_text(TEXT)
    return path


# ---- Wrong input ----------------------------------------------------------------------------------------

# Arguments, in files made below, and what the one sentence has to name.
WRONG = [
    ("--data absent", "absent"),
    ("--data empty.txt", "empty.txt"),
    ("--data binary.txt", "binary.txt"),
    ("--data nothing", "--data"),
    ("--data short.txt", "--seq"),
    ("", "--data"),
    ("--data text.py --batsh 2", "did you mean --batch?"),
    ("--data text.py stray", "stray"),
    ("--data text.py --optimizer adan2", "adamw"),
    ("--data text.py --preset huge", "demo-10m"),
    ("--data text.py --steps -3", "--steps"),
    ("--data text.py --lr fast", "--lr"),
    ("--data text.py --tokenizer garbage.model", "garbage.model"),
    ("--data text.py --tokenizer absent.model", "absent.model"),
    ("--data text.py --vocab-size 90000", "--vocab-size"),
    ("--data text.py --tokenizer bytes --vocab-size 9", "--vocab-size"),
    ("--data text.py --hidden 100 --heads 3", "--heads"),
    ("--data text.py --hidden 96 --heads 3 --kv-heads 2", "--kv-heads"),
    ("--data text.py --init nothing", "config.json"),
    ("--data text.py --init garbled", "config.json"),
    ("--data text.py --init other", "model_type"),
    ("--data text.py --schedule in_backward --clip 1", "--clip 0"),
    ("--data text.py --schedule in_backward --accumulation 2", "--accumulation 1"),
    ("--data text.py --schedule in_backward --no-fuse", "--no-fuse"),
    ("--data text.py --log absent/run.jsonl", "--log"),
    ("--data text.py --config absent.toml", "absent.toml"),
    ("--data text.py --config wrong.toml", "did you mean --steps?"),
    ("--data text.py --rule-library absent.so", "absent.so"),
    ("--data text.py --config library.toml", "not in --config"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "garbled", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.py").write_text(TEXT)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "garbage.model").write_text("no model")
    (tmp_path / "wrong.toml").write_text("stepz = 3\n")
    (tmp_path / "library.toml").write_text('rule-library = "rule.so"\n')
    (tmp_path / "garbled/config.json").write_text("{")
    (tmp_path / "other/config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


def assert_refused(result, names, out):
    assert result.returncode > 0
    assert names in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}.partial*"))


@pytest.mark.parametrize("arguments, names", WRONG, ids=[arguments or "nothing" for arguments, _ in WRONG])
def test_wrong_input_is_one_sentence_and_writes_nothing(folder, arguments, names):
    # bytes, where the case is not about the tokenizer: a trained one takes longer and wants more text.
    bytes_too = [] if {"--tokenizer", "--vocab-size", "--init"} & set(arguments.split()) else ["--tokenizer", "bytes"]
    result = run_forge("train", "--out", folder / "out", *bytes_too, *arguments.split())
    assert_refused(result, names, folder / "out")


def test_an_unknown_command_is_told_its_nearest():
    result = run_forge("trian")
    assert result.returncode > 0 and "did you mean train?" in result.stderr


def test_an_out_that_is_not_empty_is_left_alone_unless_forced(folder):
    out = folder / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    arguments = ["--data", folder / "text.py", *SMALL, "--steps", "2"]
    result = run_forge("train", "--out", out, *arguments)
    assert result.returncode > 0 and "--force" in result.stderr
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    train(out, "--force", *arguments)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "model.safetensors").exists()


def test_a_loss_that_is_no_number_stops_and_writes_nothing(folder):
    result = run_forge("train", "--out", folder / "out", "--data", folder / "text.py", *SMALL, "--lr", "1e20",
                       "--warmup", "0", "--clip", "0", "--steps", "50")
    assert_refused(result, "--lr", folder / "out")


def test_an_init_of_a_smaller_vocabulary_is_refused(folder):
    base = folder / "base"
    train(base, "--data", folder / "text.py", *SMALL, "--steps", "2")
    result = run_forge("train", "--out", folder / "out", "--data", folder / "text.py", "--init", base)
    assert_refused(result, "--tokenizer", folder / "out")
    (base / "model.safetensors").write_bytes(weights(base)[:-100])
    result = run_forge("train", "--out", folder / "out", "--data", folder / "text.py", "--init", base, "--tokenizer",
                       "bytes")
    assert_refused(result, "model.safetensors", folder / "out")


# ---- Training -------------------------------------------------------------------------------------------


def test_help_groups_the_flags_and_shows_defaults():
    help_text = run_forge("train", "--help").stdout
    for words in ("Data:", "Model:", "Optimizer:", "--no-fuse", "[1000]", "never on norms"):
        assert words in help_text


@pytest.mark.parametrize("flags", [
    [],
    ["--schedule", "in_backward"],
    ["--no-fuse"],
    ["--accumulation", "2"],
    ["--weights", "bf16", "--state", "bf16"],
    ["--optimizer", "sgd", "--lr", "0.5", "--momentum", "0.9", "--nesterov"],
    ["--tied"],
], ids=lambda flags: " ".join(flags) or "default")
def test_the_loss_falls(text, tmp_path, flags):
    lr = [] if "--lr" in flags else ["--lr", "3e-3"]
    steps = train(tmp_path / "out", "--data", text, *SMALL, "--steps", "40", *lr, *flags)
    assert len(steps) == 40
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5


@pytest.mark.parametrize("flags", [[], ["--accumulation", "3"], ["--optimizer", "sgd", "--momentum", "0.9"],
                                   ["--weights", "bf16", "--state", "bf16"], ["--tied"]],
                         ids=lambda flags: " ".join(flags) or "default")
def test_exact_training_has_the_bits_of_two_phase_training(text, tmp_path, flags):
    common = ["--data", text, *SMALL, "--steps", "6", "--exact", *flags]
    train(tmp_path / "fused", *common)
    steps = train(tmp_path / "two_phase", *common, "--no-fuse")
    assert weights(tmp_path / "fused") == weights(tmp_path / "two_phase")
    assert min(step["dense_gradient_bytes"] for step in steps) > 0


def test_in_backward_has_the_bits_of_unclipped_two_phase_training(text, tmp_path):
    common = ["--data", text, *SMALL, "--steps", "6", "--exact", "--clip", "0"]
    steps = train(tmp_path / "in_backward", *common, "--schedule", "in_backward")
    train(tmp_path / "two_phase", *common, "--no-fuse")
    assert weights(tmp_path / "in_backward") == weights(tmp_path / "two_phase")
    assert max(step["dense_gradient_bytes"] for step in steps) == 0


def test_the_same_seed_gives_the_same_bits(text, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, "--data", text, *SMALL, "--steps", "6", "--seed", seed)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_training_goes_on_from_what_it_wrote(text, tmp_path):
    first = train(tmp_path / "first", "--data", text, *TINY, "--vocab-size", "300", "--steps", "40", "--lr", "3e-3")
    assert (tmp_path / "first/tokenizer.model").exists()
    then = train(tmp_path / "then", "--data", text, "--init", tmp_path / "first", "--seq", "32", "--batch", "2",
                 "--steps", "1", "--threads", "1")
    assert then[0]["loss"] < first[0]["loss"] - 0.3


def test_options_come_from_a_file(text, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'data = ["{text}"]\ntokenizer = "bytes"\npreset = "tiny"\nsteps = 3\nseq = 16\nthreads = 1\n')
    assert len(train(tmp_path / "out", "--config", config)) == 3


def test_rounding_is_counted_and_changes_no_bit(text, tmp_path):
    """At this learning rate bf16 to nearest loses most updates, and 16 more bits lose none."""
    common = ["--data", text, *SMALL, "--steps", "3", "--lr", "1e-5", "--state", "int8", "--weights"]
    lost = {}
    for weight_format in ("bf16", "bf16_plus16"):
        result = run_forge("train", "--out", tmp_path / weight_format, "--log", tmp_path / "log.jsonl", *common,
                           weight_format, "--count-rounding")
        assert result.returncode == 0, result.stderr
        assert "of weights' and" in result.stdout
        table = [line.split()[:2] for line in result.stdout.splitlines()]
        assert ["weight", weight_format] in table and ["exp_avg_sq", "int8"] in table
        records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        steps, rows = [r for r in records if r["event"] == "step"], records[-1]["rounding"]
        for of in ("weights", "moments"):
            for key in ("elements", "lost", "saturated", "not_finite"):
                total = sum(row[key] for row in rows if (row["of"] == "weight") == (of == "weights"))
                assert total == sum(step[f"{of}_rounding"][key] for step in steps)
        row, = (row for row in rows if row["of"] == "weight")
        lost[weight_format] = row["lost"] / row["elements"]
    assert lost["bf16"] > 0.5 and lost["bf16_plus16"] == 0
    steps = train(tmp_path / "uncounted", *common, "bf16")
    assert "weights_rounding" not in steps[0]
    assert weights(tmp_path / "uncounted") == weights(tmp_path / "bf16")


def test_a_rule_of_ones_own_trains(text, tmp_path):
    refused = run_forge("train", "--out", tmp_path / "out", "--data", text, *SMALL, "--optimizer", "cwdadamw")
    assert_refused(refused, "cwdadamw is none of", tmp_path / "out")
    library = ["--rule-library", OWN_RULE]
    help_text = " ".join(run_forge("train", *library, "--help").stdout.split())
    assert "cwdadamw" in help_text and "cwdadamw (0.1)" in help_text
    flags = ["--data", text, *SMALL, "--optimizer", "cwdadamw", "--lr", "3e-3", "--weight-decay", "0.3", *library]
    steps = train(tmp_path / "out", *flags, "--steps", "2", "--exact")
    train(tmp_path / "two_phase", *flags, "--steps", "2", "--exact", "--no-fuse")
    assert len(steps) == 2
    assert weights(tmp_path / "out") == weights(tmp_path / "two_phase")


def test_a_rule_of_ones_own_is_verified():
    result = run_forge("verify", f"--rule-library={OWN_RULE}", "--rule", "cwdadamw", "--shape", "40x70", "--tokens",
                       "5", "--state", "int8")
    assert result.returncode == 0, result.stderr
    assert "Three updates by cwdadamw" in result.stdout and "NO " not in result.stdout


def test_a_sample_begins_with_its_prompt(text, tmp_path):
    result = run_forge("train", "--out", tmp_path / "out", "--data", text, *SMALL, "--steps", "2",
                       "--sample", "def step", "--sample-tokens", "8")
    assert "\ndef step" in result.stdout


def test_compare_reports_every_mode(text, tmp_path):
    rows_file = tmp_path / "rows.json"
    result = run_forge("compare", "--data", text, "--tokenizer", "bytes", "--preset", "tiny", "--tokens", "4", "8",
                       "--steps", "3", "--exact-steps", "2", "--threads", "1", "--json", rows_file)
    assert result.returncode == 0, result.stderr
    rows = json.loads(rows_file.read_text())
    assert [(row["tokens"], row["mode"]) for row in rows] == [
        (tokens, mode) for tokens in (4, 8) for mode in ("two_phase", "at_step", "two_phase_unclipped", "in_backward")]
    for row in rows:
        assert row["same_bits_as_two_phase"] is True
        assert (row["dense_gradient_bytes"] > 0) == row["mode"].startswith("two_phase")
        assert row["peak_bytes"] > 0 and row["step_ms"] > 0


# ---- The environment ------------------------------------------------------------------------------------


def test_forge_target_chooses_the_instructions():
    command = ["verify", "--shape", "9x9", "--tokens", "3"]
    chosen = run_forge(*command, FORGE_TARGET="ref")
    assert chosen.returncode == 0, chosen.stderr
    assert "3 tokens each, ref instructions" in chosen.stdout
    refused = run_forge(*command, FORGE_TARGET="mmx")
    assert refused.returncode == 1
    assert refused.stderr.startswith("forge: FORGE_TARGET is mmx; this machine has ref")
