"""What `forge train --out` writes opens in transformers and computes the same logits, and the other way round."""

import json

import pytest
from test_app_cli import BINARY, SMALL, TEXT, TINY, run_forge, train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is not built: make build")
IDS = [(7 * i + i * i) % 250 for i in range(48)]
TOLERANCE = 1e-4


def their_logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def our_logits(folder):
    result = run_forge("logits", "--model", folder, "--ids", ",".join(map(str, IDS)))
    assert result.returncode == 0, result.stderr
    return torch.tensor(json.loads(result.stdout))


def assert_same_logits(folder):
    theirs = their_logits(folder)
    assert theirs.std() > 0.01
    torch.testing.assert_close(our_logits(folder), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("flags", [[], ["--tied"], ["--weights", "bf16"], ["--rope-theta", "500", "--norm-eps", "1e-3"],
                                   ["--hidden", "48", "--heads", "3", "--kv-heads", "1"]],
                         ids=lambda flags: " ".join(flags) or "default")
def test_transformers_open_what_forge_wrote(tmp_path, flags):
    text = tmp_path / "text.py"
    text.write_text(TEXT)
    train(tmp_path / "out", "--data", text, *SMALL, "--steps", "6", "--lr", "1e-2", *flags)
    assert_same_logits(tmp_path / "out")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["50KB", "1GB"])
def test_forge_opens_what_transformers_wrote(tmp_path, tied, shard):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=256, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
                                      initializer_range=0.2, rope_theta=1000.0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "50KB")
    assert_same_logits(tmp_path)


def test_the_trained_tokenizer_decodes_what_it_encodes(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.py"
    text.write_text(TEXT)
    train(tmp_path / "out", "--data", text, *TINY, "--vocab-size", "300", "--steps", "1")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out/tokenizer.model"))
    for sample in (TEXT, "  two\n\n\ttab π "):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
