"""forge train learns what transformers learns: same weights, same batches, AdamW, clipping at 1."""

import argparse
import inspect
from pathlib import Path

import pytest
from test_app_cli import BINARY, ROOT, train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")

STORIES = ROOT.parent / "shared/data/stories260k/hf"
TEXT = inspect.getsource(argparse)
STEPS, BATCH, SEQ = 100, 4, 64
LR, BETAS, DECAY = 1e-3, (0.9, 0.95), 0.1
LARGEST_MEAN_DIFFERENCE = 0.01


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_llama(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def their_losses(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    tokens = torch.tensor(list(TEXT.encode()))
    starts = torch.arange(STEPS * BATCH).view(STEPS, BATCH, 1) * SEQ
    losses = []
    for step in range(STEPS):
        windows = tokens[starts[step] + torch.arange(SEQ + 1)]
        scores = model(windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(folder, out: Path):
    text = out.with_suffix(".txt")
    text.write_text(TEXT)
    steps = train(out, "--init", folder, "--data", text, "--tokenizer", "bytes", "--no-shuffle", "--steps", STEPS,
                  "--batch", BATCH, "--seq", SEQ, "--lr", LR, "--min-lr", LR, "--warmup", 0, "--beta1", BETAS[0],
                  "--beta2", BETAS[1], "--weight-decay", DECAY, "--clip", 1, "--threads", 1)
    return [step["loss"] for step in steps]


def assert_learns_the_same(folder, out):
    theirs, ours = their_losses(folder), our_losses(folder, out)
    assert len(ours) == STEPS
    assert theirs[-1] < theirs[0] - 0.5
    assert abs(ours[0] - theirs[0]) < 1e-5
    mean = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / STEPS
    assert mean <= LARGEST_MEAN_DIFFERENCE, mean


def test_a_model_from_scratch_learns_the_same(tiny_llama, tmp_path):
    assert_learns_the_same(tiny_llama, tmp_path / "out")


@pytest.mark.skipif(not STORIES.exists(), reason=f"no {STORIES}: data that is not part of the project")
def test_a_trained_model_learns_the_same(tmp_path):
    assert_learns_the_same(STORIES, tmp_path / "out")
