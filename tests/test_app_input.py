"""What the program is given to start from: models with their files, numbers, memory that is not there."""

import json
import math
import os
import random
import shutil
import struct
import subprocess

import pytest
from test_app_cli import BINARY, SMALL, TEXT, TINY, assert_refused, run_forge

np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file  # noqa: E402

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")

FROM = ["--tokenizer", "bytes", "--seq", "16", "--batch", "2", "--steps", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.py").write_text(TEXT)
    result = run_forge("train", "--data", folder / "text.py", *SMALL, "--steps", "1", "--out", folder / "model")
    assert result.returncode == 0, result.stderr
    return folder / "model"


@pytest.fixture
def model(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.parent / "text.py", tmp_path)
    shutil.copytree(trained, tmp_path / "model")
    return tmp_path / "model"


def start_from(model):
    return run_forge("train", "--data", "text.py", *FROM, "--init", model, "--out", "out")


def assert_taken(model):
    result = start_from(model)
    assert result.returncode == 0, result.stderr


def assert_not_taken(model, *names):
    result = start_from(model)
    assert "step 1/" not in result.stdout
    for name in names:
        assert_refused(result, name, model.parent / "out")


def change_config(model, **values):
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- A config and its weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("values", [
    {"num_hidden_layers": 10**9}, {"vocab_size": 10**9}, {"hidden_size": 10**6, "head_dim": 16},
    {"intermediate_size": 2**31 - 1}, {"num_hidden_layers": 2**62}, {"vocab_size": 2**63 + 256}, {"head_dim": 2**40},
    {"num_attention_heads": 2**31 - 2, "num_key_value_heads": 1}, {"num_hidden_layers": 1}, {"num_hidden_layers": 2.5},
    {"vocab_size": "256"}, {"num_hidden_layers": True}, {"rms_norm_eps": -1.0}, {"rms_norm_eps": 1e39},
    {"rope_theta": 1e39}, {"rope_theta": 0},
], ids=str)
def test_a_config_that_is_not_that_of_its_weights_is_refused(model, values):
    change_config(model, **values)
    assert_not_taken(model, "forge: ")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_named(model, bad):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, model / "model.safetensors")
    assert_not_taken(model, "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_rotary_frequencies_of_old_files_are_passed_over(model, dtype):
    weights = load_file(model / "model.safetensors")
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(8, dtype)
    save_file(weights, model / "model.safetensors")
    assert_taken(model)


# ---- Shards ---------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(model):
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, model / shard)
    (model / "model.safetensors").unlink()
    index = {"weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def change_shard(model, shard):
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = shard
    path.write_text(json.dumps(index))


def test_shards_are_one_model(sharded):
    assert_taken(sharded)


@pytest.mark.parametrize("shard", [7, None, ["model-1.safetensors"], "", "../model/model-1.safetensors",
                                   "/etc/passwd", "model-1.safetensors\0", "sub/model-1.safetensors", 1.5], ids=repr)
def test_a_shard_that_is_no_name_beside_the_index_is_refused(sharded, shard):
    change_shard(sharded, shard)
    assert_not_taken(sharded, "model.norm.weight")


@pytest.mark.parametrize("name", ["model-1.safetensors", "model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("what", ["loop", "pipe", "folder", "absent"])
def test_what_is_no_file_is_refused(sharded, name, what):
    path = sharded / name
    path.unlink()
    {"loop": lambda: path.symlink_to(name), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
     "absent": lambda: None}[what]()
    assert_not_taken(sharded, str(sharded))


def test_a_single_file_that_links_to_itself_is_refused(model):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("model.safetensors")
    assert_not_taken(model, "model.safetensors")


# ---- The layout of a file -------------------------------------------------------------------------------


def parts_of(path):
    raw = path.read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def write_parts(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def shapes_of(header):
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def library_takes(path):
    try:
        with safetensors.safe_open(path, "numpy"):
            return True
    except safetensors.SafetensorError:
        return False


def exchange(header, random_):
    one, two = random_.sample([name for name in header if name != "__metadata__"], 2)
    header[one]["data_offsets"], header[two]["data_offsets"] = header[two]["data_offsets"], header[one]["data_offsets"]


def entry_of(header, random_):
    return header[random_.choice([name for name in header if name != "__metadata__"])]


def shift(header, random_):
    offsets = entry_of(header, random_)["data_offsets"]
    offsets[random_.randrange(2)] += random_.choice([-8, -4, -1, 1, 4, 8, 0.0, 0.5, 2**63, -2**40])


def reshape(header, random_):
    shape = entry_of(header, random_)["shape"]
    change = random_.choice(["turn", "one", "none", "float", "more", "negative", "text"])
    if change == "turn":
        shape.reverse()
    elif change in ("one", "none"):
        shape.append(1 if change == "one" else 0)
    elif change in ("float", "text"):
        shape[0] = float(shape[0]) if change == "float" else str(shape[0])
    else:
        shape[0] = shape[0] + 1 if change == "more" else -shape[0]


def add_empty(header, random_):
    place = random_.choice([0, 64, 100, entry_of(header, random_)["data_offsets"][1]])
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"dtype": "F32", "shape": [0],
                                                             "data_offsets": [place, place]}


def add_metadata(header, random_):
    header["__metadata__"] = random_.choice([None, {}, {"a": "b"}, {"a": 1}, [], "text", {"a": None}])


@pytest.mark.parametrize("change", [exchange, shift, reshape, add_empty, add_metadata],
                         ids=lambda change: change.__name__)
def test_files_are_taken_where_the_library_takes_them(model, change):
    """A tensor of another shape is whole for the library, and refused as none of this model's."""
    header, data = parts_of(model / "model.safetensors")
    random_ = random.Random(change.__name__)
    taken = 0
    for _ in range(6):
        changed = json.loads(json.dumps(header))
        change(changed, random_)
        write_parts(model / "model.safetensors", changed, data)
        result = run_forge("logits", "--model", model, "--ids", "1,2")
        same_shapes = shapes_of(changed).items() >= shapes_of(header).items()
        expected = library_takes(model / "model.safetensors") and same_shapes
        assert (result.returncode == 0) == expected, (result.stderr, changed)
        assert result.returncode in (0, 1)
        taken += expected
    assert taken < 6


@pytest.mark.parametrize("head, inside, tail", [
    (b"", b"", b"\0"), (b"", b"", b"\0" * 4096), (b"\xef\xbb\xbf", b"", b""), (b"", b"\0\0", b""), (b"  ", b"  ", b""),
    (b"", b"}", b""),
], ids=repr)
def test_bytes_around_are_taken_where_the_library_takes_them(model, head, inside, tail):
    header, data = parts_of(model / "model.safetensors")
    write_parts(model / "model.safetensors", head + json.dumps(header).encode() + inside, data + tail)
    (assert_taken if library_takes(model / "model.safetensors") else assert_not_taken)(model)


# ---- Memory that is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("command, names", [
    (["train", "--hidden", "1000000"], "bytes"),
    (["train", "--layers", "100000000"], "bytes"),
    (["train", "--intermediate", "2000000000"], "bytes"),
    (["train", "--hidden", "4611686018427387904"], "4611686018427387904"),
    (["train", "--batch", "100000000000"], "bytes"),
    (["train", "--batch", "9223372036854775807"], "bytes"),
    (["train", "--threads", "100000"], "--threads"),
    (["train", "--threads", "4294967297"], "--threads"),
    (["compare", "--threads", "99999"], "--threads"),
    (["compare", "--tokenizer", "bytes", "--vocab-size", "2000000000", "--tokens", "4"], "bytes"),
    (["verify", "--shape", "1000000x10000000"], "bytes"),
    (["bench", "update", "--shape", "1000000x10000000"], "bytes"),
    (["bench", "update", "--tokens", "1000000000000"], "bytes"),
    (["bench", "update", "--threads", "100000"], "--threads"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_memory_that_is_not_there_is_a_sentence(tmp_path, command, names):
    (tmp_path / "text.py").write_text(TEXT)
    flags = ["--data", tmp_path / "text.py"] if command[0] in ("train", "compare") else []
    if command[0] == "train":
        given = set(command)
        small = [word for flag, value in zip(SMALL[::2], SMALL[1::2], strict=True) if flag not in given
                 for word in (flag, value)]
        flags += [*small, "--out", tmp_path / "out"]
    assert_refused(run_forge(*command, *flags), names, tmp_path / "out")


def test_a_limit_of_the_process_counts(tmp_path):
    (tmp_path / "text.py").write_text(TEXT)
    command = " ".join(map(str, [BINARY, "train", "--data", tmp_path / "text.py", *SMALL, "--hidden", 4096, "--out",
                                 tmp_path / "out"]))
    result = subprocess.run(["bash", "-c", f"ulimit -v 4000000; {command}"], capture_output=True, text=True)
    assert_refused(result, "4096000000", tmp_path / "out")


# ---- Text -----------------------------------------------------------------------------------------------


def test_text_comes_from_a_pipe_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.py").write_text(TEXT)
    command = " ".join(map(str, [BINARY, "train", *SMALL, "--steps", 1, "--data"]))
    for out, line in (("a", f"cat text.py | {command} /dev/stdin --out a"), ("b", f"{command} <(cat text.py) --out b")):
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert f"read {len(TEXT)} bytes" in result.stdout and (tmp_path / out / "config.json").exists()


def test_a_pipe_that_nobody_writes_to_and_a_device_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for data, names in ((tmp_path / "pipe", "nobody writes"), ("/dev/zero", "/dev/zero"), ("/dev/null", "/dev/null")):
        assert_refused(run_forge("train", "--data", data, *SMALL, "--out", tmp_path / "out"), names, tmp_path / "out")


def test_long_lines_count_in_a_trained_tokenizer(tmp_path):
    """One line of JSON, of which not a word stands in a shorter line."""
    (tmp_path / "a.json").write_text(json.dumps([{"identifier": f"value{i}", "zeta": [i, i]} for i in range(2000)]))
    result = run_forge("train", "--data", tmp_path / "a.json", "--vocab-size", "300", *TINY, "--steps", "1", "--out",
                       tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert b"identi" in (tmp_path / "out/tokenizer.model").read_bytes()
