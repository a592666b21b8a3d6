"""Not one architecture: models of transformers and recurrent cells take three steps as with torch.

Of each model the table says how much of it is fused, what is not and why, and how often a weight is used.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from models import (  # noqa: E402
    LOSS_BOUND,
    RULES,
    WEIGHT_BOUND,
    assert_same_losses,
    assert_same_weights,
    difference,
    forge_optimizer,
    is_factored,
    rules,
    torch_clip,
    torch_optimizer,
    train,
)
from torch import nn  # noqa: E402

VOCABULARY, WIDTH, LAYERS, HEADS = 64, 32, 2, 4
STEPS, TIMES = 3, 20

NOT_A_WEIGHT = "no weight of a linear layer or embedding"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- Models of transformers, without dropout -------------------------------------------------------------------------


def pretrained(name, config, **settings):
    """A model with the weights that its class starts with, and no network."""
    transformers = pytest.importorskip("transformers", reason="the models are those of transformers")
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # each model says which kernels of CUDA it lacks
    try:
        torch.manual_seed(0)
        return getattr(transformers, name)(getattr(transformers, config)(**settings)).train()
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


LIKE_LLAMA = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=2 * WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def llama(tied):
    settings = dict(num_key_value_heads=HEADS // 2, tie_word_embeddings=tied)
    return pretrained("LlamaForCausalLM", "LlamaConfig", **LIKE_LLAMA, **settings)


def gpt2():
    shape = dict(vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return pretrained("GPT2LMHeadModel", "GPT2Config", **shape, **dropout, bos_token_id=0, eos_token_id=0)


def bert():
    return pretrained("BertForMaskedLM", "BertConfig", **LIKE_LLAMA, **NO_DROPOUT, max_position_embeddings=16)


def t5():
    shape = dict(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=2 * WIDTH)
    depth = dict(num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0)
    return pretrained("T5ForConditionalGeneration", "T5Config", **shape, **depth, decoder_start_token_id=0)


def vit():
    images = dict(image_size=12, patch_size=4, num_labels=5)
    return pretrained("ViTForImageClassification", "ViTConfig", **LIKE_LLAMA, **NO_DROPOUT, **images)


def mamba():
    shape = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, state_size=4, num_hidden_layers=LAYERS)
    return pretrained("MambaForCausalLM", "MambaConfig", **shape)


def mixtral():
    experts = dict(num_key_value_heads=HEADS // 2, num_local_experts=4, num_experts_per_tok=2)
    return pretrained("MixtralForCausalLM", "MixtralConfig", **LIKE_LLAMA, **experts)


def words(seed, length=6):
    ids = torch.randint(2, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))
    return dict(input_ids=ids, labels=ids)


def masked_words(seed):
    """Every third word is masked and to be guessed; the second row ends in padding.

    The others look at the padding too, so that its row of the embedding would have a gradient.
    """
    ids = words(seed)["input_ids"]
    ids[1, -2:] = 0
    labels = ids.where((torch.arange(6) % 3 == 0) & (ids > 0), -100)
    return dict(input_ids=ids.where(labels < 0, 1), attention_mask=torch.ones_like(ids), labels=labels)


def translation(seed):
    return dict(input_ids=words(seed)["input_ids"], labels=words(seed + 1000, length=4)["labels"])


def images(seed):
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return dict(pixel_values=pixels, labels=torch.tensor([seed % 5, (seed + 2) % 5]))


def their_loss(model, inputs):
    return model(**inputs).loss


# ---- Recurrent cells: every weight is used many times in one graph ---------------------------------------------------


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.hidden = nn.Linear(4, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.input(x) + self.hidden(h))


class Recurrent(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.output = cell, nn.Linear(8, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.output(h)


def recurrent(make_cell):
    torch.manual_seed(0)
    return Recurrent(make_cell())


def series(seed):
    drawn = torch.randn(2, TIMES * 4 + 3, generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-3].reshape(2, TIMES, 4), drawn[:, -3:]


def distance_to_target(model, data):
    x, target = data
    return F.mse_loss(model(x), target)


# ---- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    make: Callable[[], nn.Module]
    data: Callable[[int], object]
    share: float  # of the model's values at least so much is fused
    stored: dict[str, str]  # names of what is not, and why
    uses: dict[str, int] = field(default_factory=dict)  # how often a backward meets a weight, where not once
    by_use: dict[str, bool] = field(default_factory=dict)  # left open by the table, and whether a run records it
    loss: Callable[[nn.Module, object], torch.Tensor] = their_loss


def layer_norms(weight, *others):
    return {weight: "used by LayerNorm", **dict.fromkeys(("*bias", *others), NOT_A_WEIGHT)}


KINDS = {
    "Llama, tied": Kind(
        functools.partial(llama, tied=True),
        words,
        share=0.99,
        stored={"*norm.weight": "used by LlamaRMSNorm"},
        uses={"model.embed_tokens.weight": 2},
    ),
    "Llama, untied": Kind(
        functools.partial(llama, tied=False), words, share=0.99, stored={"*norm.weight": "used by LlamaRMSNorm"}
    ),
    "GPT-2": Kind(gpt2, words, share=0.96, stored=layer_norms("*.ln_*.weight"), uses={"transformer.wte.weight": 2}),
    "BERT": Kind(
        bert,
        masked_words,
        share=0.95,
        stored=layer_norms("*.LayerNorm.weight"),
        uses={"bert.embeddings.word_embeddings.weight": 2},
    ),
    "T5": Kind(
        t5,
        translation,
        share=0.99,
        stored={"*layer_norm.weight": "used by T5LayerNorm"},
        uses={"shared.weight": 3},  # encoder, decoder and head
    ),
    "ViT": Kind(
        vit,
        images,
        share=0.86,
        stored={"*.projection.weight": "used by Conv2d"}
        | layer_norms("*layernorm*.weight", "*.cls_token", "*.position_embeddings"),
    ),
    "Mamba": Kind(
        mamba,
        words,
        share=0.91,
        stored={
            "*norm*.weight": "used by MambaRMSNorm",
            "*.conv1d.weight": "used by Conv1d",
            **dict.fromkeys(("*.D", "*bias"), NOT_A_WEIGHT),
        },
        uses={"backbone.embeddings.weight": 2},
        by_use={"*.A_log": False},
    ),
    "Mixtral": Kind(
        mixtral,
        words,
        share=0.17,
        stored={
            "*norm.weight": "used by MixtralRMSNorm",
            "*.experts.*_proj": NOT_A_WEIGHT,
        },
        by_use={"*.gate.weight": True},
    ),
    "a cell of two linear layers": Kind(
        lambda: recurrent(Cell),
        series,
        share=0.9,
        stored={"*bias": NOT_A_WEIGHT},
        uses={"cell.input.weight": TIMES, "cell.hidden.weight": TIMES},
        loss=distance_to_target,
    ),
    "nn.RNNCell": Kind(
        lambda: recurrent(lambda: nn.RNNCell(4, 8)),
        series,
        share=0.17,
        stored={"cell.bias*": NOT_A_WEIGHT, "output.bias": NOT_A_WEIGHT},
        uses={"cell.weight_ih": TIMES, "cell.weight_hh": TIMES},
        by_use={"cell.weight_*": True},
        loss=distance_to_target,
    ),
}

kinds = pytest.mark.parametrize("kind", KINDS)


def any_match(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# ---- What is fused, and what is said of the rest ---------------------------------------------------------------------


@kinds
def test_the_report_names_everything_that_is_not_fused_and_why(kind):
    model, expected = KINDS[kind].make(), KINDS[kind].stored
    report = forge.fuse(model, verbose=False)
    assert [row.name for row in report.rows] == [name for name, _ in model.named_parameters()]
    unfused = {row.name: row.reason for row in report.unfused}
    # Both ways: nothing else is left out, and no line of the table is about nothing.
    assert unfused == {
        name: next((expected[pattern] for pattern in expected if fnmatchcase(name, pattern)), None) for name in unfused
    }
    assert {row.name for row in report.by_use} == {r.name for r in report.rows if any_match(r.name, KINDS[kind].by_use)}
    assert all(any_match(row.name, expected) == (row in report.unfused) for row in report.rows)
    assert all(any(fnmatchcase(name, pattern) for name in unfused) for pattern in expected)
    fused, total = (sum(row.numel for row in rows) for rows in (report.fused, report.rows))
    assert total == sum(p.numel() for p in model.parameters())
    assert fused >= KINDS[kind].share * total
    printed = str(report)
    assert all(f"stored: {reason}" in printed for reason in set(expected.values()))


# ---- What .grad is before step() -------------------------------------------------------------------------------------


def fused_model(kind, **options):
    """(model, optimizer, names of the weights that are to be recorded)."""
    model = KINDS[kind].make()
    report = forge.fuse(model, verbose=False)
    recorded = {row.name for row in report.fused} | {
        row.name for row in report.by_use for pattern, is_recorded in KINDS[kind].by_use.items()
        if is_recorded and fnmatchcase(row.name, pattern)
    }
    return model, forge_optimizer(params=model.named_parameters(), **options), recorded


def assert_gradients(model, recorded, schedule):
    """Expressions of the recorded weights, ordinary tensors of the others; in_backward: nothing."""
    for name, p in model.named_parameters():
        if schedule == "in_backward":
            assert p.grad._gradient.spent, name
        elif name in recorded:
            assert is_factored(p), name
        else:
            assert type(p.grad) is torch.Tensor, name


@kinds
def test_what_a_run_stores_is_what_the_table_says_or_leaves_open(kind):
    model = KINDS[kind].make()
    table = forge.fuse(model)
    optimizer = forge_optimizer(params=model.named_parameters(), **RULES["SGD"])
    KINDS[kind].loss(model, KINDS[kind].data(0)).backward()
    matrices = {name for name, p in model.named_parameters() if p.dim() == 2}
    stored = {name for name, p in model.named_parameters() if name in matrices and not is_factored(p)}
    assert stored == {
        row.name for row in table.by_use for pattern, is_recorded in KINDS[kind].by_use.items()
        if not is_recorded and fnmatchcase(row.name, pattern)
    } | {row.name for row in table.unfused if row.name in matrices}
    assert set(forge.report(optimizer).ordinary) == stored
    assert all("used by something other than F.linear" in why for why in forge.report(optimizer).ordinary.values())


@kinds
@pytest.mark.parametrize("micro", [1, 2])
def test_each_use_of_a_weight_is_a_term_and_outgrown_terms_only_are_multiplied_out(kind, micro):
    terms, needed = {}, {}
    for collapse in ("never", "auto"):
        model, optimizer, recorded = fused_model(kind, collapse=collapse, **RULES["SGD"])
        for k in range(micro):
            KINDS[kind].loss(model, KINDS[kind].data(k)).backward()
        assert_gradients(model, recorded, "at_step")
        gradients = {name: p.grad._gradient for name, p in model.named_parameters() if name in recorded}
        terms[collapse] = {name: [what for what, _ in g.terms] for name, g in gradients.items()}
        if collapse == "never":
            needed = {name: g.held_bytes() for name, g in gradients.items()}
            assert forge.report(optimizer).collapses == 0
    sizes = {name: p.nbytes for name, p in model.named_parameters()}
    assert {name: len(what) for name, what in terms["never"].items()} == {
        name: micro * KINDS[kind].uses.get(name, 1) for name in recorded
    }
    assert not any("dense" in what for what in terms["never"].values())
    outgrown = {name for name in recorded if needed[name] > sizes[name]}
    assert {name for name, what in terms["auto"].items() if "dense" in what} == outgrown
    assert (forge.report(optimizer).collapses > 0) == bool(outgrown)


# ---- Three steps -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    schedule: str = "at_step"
    collapse: str = "auto"
    micro: int = 1
    max_norm: float | None = None


LOOPS = {
    "at_step": Loop(),
    "in_backward": Loop(schedule="in_backward"),
    "terms kept": Loop(collapse="never"),
    "clipped": Loop(max_norm=0.1),
    "two micro-batches": Loop(micro=2),
    "two micro-batches, clipped, terms kept": Loop(micro=2, max_norm=0.1, collapse="never"),
}


def three_steps(kind, model, optimizer, micro, max_norm, check=lambda: None):
    """(losses, norms before clipping)."""
    norms = []

    def before_step(i):
        check()
        if max_norm is not None:
            norms.append(torch_clip(model.parameters(), max_norm).item())
            check()  # the norm and the scaling have multiplied nothing out

    row = KINDS[kind]
    losses = train(model, optimizer, steps=STEPS, micro=micro, loss=row.loss, data=row.data, before_step=before_step)
    return losses, norms


@functools.cache
def trained_by_torch(kind, rule, micro, max_norm):
    """(weights, losses, norms): the same for every schedule of ours."""
    model = KINDS[kind].make()
    start = copy.deepcopy(model)
    losses, norms = three_steps(kind, model, torch_optimizer(params=model, **RULES[rule]), micro, max_norm)
    # Else a bound on the difference would be one on nothing.
    assert difference(model, start) > 100 * WEIGHT_BOUND[rule]
    assert all(norm > max_norm for norm in norms)
    return [p.detach() for p in model.parameters()], losses, norms


# In GPT-2, BERT and ViT nearly all of AdamW's unclipped difference is in the biases of the keys: one number added to a
# whole row of scores does not change its softmax, so that their gradient is 0 and what is computed is rounding, about
# 1e-10 at most. Beside AdamW's eps of 1e-8 that moves them by some lr · 1e-2 a step, ours and torch's each by its own.
@rules
@kinds
@pytest.mark.parametrize("loop", LOOPS)
def test_three_steps_equal_torchs(kind, rule, loop):
    how = LOOPS[loop]
    weights, losses, norms = trained_by_torch(kind, rule, how.micro, how.max_norm)
    options = dict(schedule=how.schedule, collapse=how.collapse, **RULES[rule])
    model, optimizer, recorded = fused_model(kind, **options)
    check = functools.partial(assert_gradients, model, recorded, how.schedule)
    our_losses, our_norms = three_steps(kind, model, optimizer, how.micro, how.max_norm, check)
    assert_same_losses(our_losses, losses)
    assert_same_weights(model.parameters(), weights, rule)
    assert our_norms == pytest.approx(norms, rel=LOSS_BOUND, abs=0)
    if how.collapse == "never":
        assert forge.report(optimizer).collapses == 0
