"""Training loops over a fused model: each beside torch on an unfused copy that is fed the same data."""

import copy

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from models import (  # noqa: E402
    RULES,
    SCHEDULES,
    SECOND_UPDATE,
    VOCABULARY,
    WIDTH,
    assert_equal_bits,
    assert_same_weights,
    assert_unchanged,
    both,
    difference,
    forge_optimizer,
    is_factored,
    kinds,
    make,
    mlp,
    points,
    quietly,
    rules,
    schedules,
    snapshot,
    square_loss,
    text,
    text_loss,
    tokens,
    torch_optimizer,
    train,
    train_both,
    train_mlp,
)
from torch import nn  # noqa: E402

# ---- The plain loop --------------------------------------------------------------------------------------


@schedules
@rules
@kinds
def test_a_model_trains_as_with_torch(kind, rule, schedule):
    train_both(both(make(kind), schedule=schedule, **RULES[rule]), rule, steps=10)


@rules
@kinds
def test_micro_batches_accumulate(kind, rule):
    train_both(both(make(kind), **RULES[rule]), rule, micro=3)


@rules
@kinds
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("collapse", ["auto", "never"])
def test_in_backward_has_the_bits_of_at_step(kind, rule, exact, collapse):
    models = []
    for schedule in SCHEDULES:
        model = make(kind)
        optimizer = forge_optimizer(params=model, schedule=schedule, exact=exact, collapse=collapse, **RULES[rule])
        train(model, optimizer)
        models.append((model, optimizer))
    (one, one_opt), (other, other_opt) = models
    assert_equal_bits(one, other)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert one_opt.state[a].keys() == other_opt.state[b].keys()
        assert all(torch.equal(one_opt.state[a][key], other_opt.state[b][key]) for key in one_opt.state[a])


def test_bf16_weights_have_the_bits_of_at_step_in_backward_too():
    models = [text().bfloat16() for _ in SCHEDULES]
    for model, schedule in zip(models, SCHEDULES, strict=True):
        train(model, forge.AdamW(model, lr=1e-2, schedule=schedule, collapse="never"))
    assert_equal_bits(*models)
    assert difference(models[0], text().bfloat16()) > 1e-3


@schedules
def test_bf16_weights_train_as_near_to_fp32_as_torchs_do(schedule):
    reference = text()
    (theirs, their_opt), (ours, our_opt) = both(text().bfloat16(), "SGD", schedule, lr=0.1, momentum=0.9)
    train(reference, torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9))
    train(theirs, their_opt)
    train(ours, our_opt)
    # Each rounds its weights to 8 bits in every step.
    assert difference(ours, reference) <= 1.5 * difference(theirs, reference)


# ---- Several backward passes, weights used several times -------------------------------------------------


@rules
def test_backward_through_a_kept_graph_adds_up(rule):
    pairs = both(text(), **RULES[rule])
    for model, optimizer in pairs:
        for i in range(3):
            optimizer.zero_grad()
            loss = text_loss(model, tokens(i))
            loss.backward(retain_graph=True)
            (0.5 * loss).backward()
            optimizer.step()
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


def second_micro_batch(model):
    text_loss(model, tokens(1)).backward()


def kept_graph(model):
    loss = text_loss(model, tokens(1))
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("second", [second_micro_batch, kept_graph])
@rules
def test_in_backward_a_second_backward_before_step_raises_and_changes_no_weight(rule, second):
    model = text()
    optimizer = forge_optimizer(params=model, schedule="in_backward", **RULES[rule])
    text_loss(model, tokens(0)).backward()
    if second is kept_graph:
        optimizer.step()
        optimizer.zero_grad()
    before = None

    def after_first(grad):
        nonlocal before
        before = snapshot(model, optimizer)

    if second is second_micro_batch:
        after_first(None)
        with pytest.raises(RuntimeError, match=SECOND_UPDATE) as refusal:
            second(model)
        assert_unchanged(model, optimizer, before)
        assert "at_step" in str(refusal.value)
    else:  # the weights that backward needs were changed by the first pass, which autograd itself says
        with pytest.raises(RuntimeError, match=SECOND_UPDATE + "|modified by an inplace operation"):
            second(model)
    optimizer.step()
    optimizer.zero_grad()
    train(model, optimizer, first=2, steps=1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.hidden, self.output = nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = torch.tanh(self.input(x[:, t]) + self.hidden(h))
        return self.output(h)


def recurrent():
    torch.manual_seed(0)
    return Recurrent()


def series(seed):
    return torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(seed))


@schedules
@rules
@pytest.mark.parametrize("collapse", ["auto", "never"])
def test_a_weight_used_twenty_times_in_one_graph_is_updated_once(rule, schedule, collapse):
    (theirs, their_opt), (ours, our_opt) = both(recurrent(), schedule=schedule, **RULES[rule])
    our_opt = forge_optimizer(params=ours, schedule=schedule, collapse=collapse, **RULES[rule])
    train_both(((theirs, their_opt), (ours, our_opt)), rule, loss=square_loss, data=series)
    if schedule == "at_step" and collapse == "never":
        terms = ours.hidden.weight.grad._gradient.terms
        assert terms == [("dYᵀX", 2)] * 20
    if rule == "AdamW":
        assert our_opt.state[ours.hidden.weight]["step"] == 5


class UsedOutside(nn.Module):
    """The embedding's weight also takes part in an operation that is not a fused module's."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids):
        return self.mix(self.embedding(ids)) @ self.embedding.weight.t() + self.mix.weight.square().mean()


@schedules
@rules
def test_a_weight_that_is_also_used_outside_its_module_gets_both_parts(rule, schedule):
    torch.manual_seed(0)
    train_both(both(UsedOutside(), schedule=schedule, **RULES[rule]), rule)


@schedules
@rules
def test_no_token_is_a_gradient_of_zeros(rule, schedule):
    def loss(model, x):
        return model(x).sum()

    pairs = both(mlp(), schedule=schedule, **RULES[rule])
    for model, optimizer in pairs:
        train_mlp(model, optimizer, steps=2)
        train(model, optimizer, loss=loss, data=lambda i: torch.zeros(0, 12), steps=2)
        train(model, optimizer, loss=loss, data=lambda i: torch.zeros(2, 0, 12), steps=1)
    (theirs, _), (ours, our_opt) = pairs
    assert_same_weights(ours, theirs, rule)
    if rule == "AdamW":
        assert our_opt.state[ours[0].weight]["step"] == 5


@schedules
@rules
def test_an_embedding_without_tokens_and_one_of_padding_only(rule, schedule):
    def loss(model, ids):
        return model.norm(model.embedding(ids)).sum()

    pairs = both(text(), schedule=schedule, **RULES[rule])
    for model, optimizer in pairs:
        for ids in (torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), tokens(0)):
            train(model, optimizer, loss=loss, data=lambda i, ids=ids: ids, steps=2)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, rule)


def test_the_padding_row_gets_no_gradient_from_the_embedding():
    model = text(tied=False)
    forge.AdamW(model)
    optimizer = forge.AdamW(model)
    text_loss(model, tokens(1)).backward()
    G = quietly(model.embedding.weight.grad.dense)
    used = tokens(1)[:, :-1].unique()
    assert (G[0] == 0).all()
    assert (G[used[used > 0]] != 0).any(1).all()
    del optimizer


# ---- What linear and embedding layers are given ----------------------------------------------------------

INPUTS = {
    "a vector": lambda: torch.randn(12),
    "four dimensions": lambda: torch.randn(2, 1, 3, 12),
    "a transposed view": lambda: torch.randn(12, 5).t(),
    "an expanded view": lambda: torch.randn(1, 12).expand(4, 12),
    "a slice of a larger tensor": lambda: torch.randn(50, 30)[3:6, 7:19],
    "what requires a gradient": lambda: torch.randn(3, 12, requires_grad=True),
}


@schedules
@pytest.mark.parametrize("what", INPUTS)
def test_x_of_any_layout_is_right(what, schedule):
    torch.manual_seed(0)
    x = INPUTS[what]()
    pairs = both(mlp(), "SGD", schedule, lr=0.1, momentum=0.9)
    for model, optimizer in pairs:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


def test_a_buffer_that_the_user_refills_before_step_is_kept_as_it_was():
    buffer, ids = torch.empty(3, 12), torch.empty(3, dtype=torch.long)
    pairs = [(model, torch_or_ours) for model, torch_or_ours in both(Fed(), "SGD", lr=0.1)]
    for model, optimizer in pairs:
        for i in range(3):
            optimizer.zero_grad()
            for k in range(2):
                buffer.copy_(points(2 * i + k, count=3))
                ids.copy_(tokens(2 * i + k).flatten()[:3])
                model(buffer, ids).square().sum().backward()
            buffer.fill_(7)
            ids.fill_(1)
            optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


class Fed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.embedding = nn.Linear(12, 9), nn.Embedding(VOCABULARY, 9)

    def forward(self, x, ids):
        return self.linear(x) + self.embedding(ids)


@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Linear(3, 4), torch.ones(2, 5)),
        (nn.Linear(3, 4), torch.ones(2, 3).double()),
        (nn.Linear(3, 4), torch.ones(2, 3, dtype=torch.long)),
        (nn.Embedding(3, 4), torch.tensor([0, 3])),
        (nn.Embedding(3, 4), torch.tensor([-1])),
        (nn.Embedding(3, 4), torch.tensor([0.0])),
    ],
)
def test_wrong_input_of_a_layer_raises_what_torch_raises(layer, x):
    said = []
    for module, held in ((layer, False), (copy.deepcopy(layer), True)):
        optimizer = forge.SGD(module, lr=0.1) if held else None
        with pytest.raises((RuntimeError, IndexError)) as refusal:
            module(x)
        said.append((refusal.type, str(refusal.value)))
        del optimizer
    assert said[0] == said[1]


def test_a_smaller_index_dtype_is_taken_as_torch_takes_it():
    pairs = both(nn.Embedding(5, 4), "SGD", lr=0.1)
    for model, optimizer in pairs:
        model(torch.tensor([1, 3, 1], dtype=torch.int32)).square().sum().backward()
        optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


PAST_THE_MODULE = {
    "F.linear": (lambda x, w: F.linear(x, w), True),
    "F.linear of a cast": (lambda x, w: F.linear(x.bfloat16(), w.bfloat16()).float(), True),
    "@": (lambda x, w: x @ w.t(), True),
    "@ of .T": (lambda x, w: x @ w.T, True),
    "@ from the left": (lambda x, w: (w @ x.t()).t(), True),
    "torch.mm": (lambda x, w: torch.mm(x, w.t()), False),
    "einsum": (lambda x, w: torch.einsum("ti,oi->to", x, w), False),
    "F.linear of a part": (lambda x, w: F.linear(x, w[:2]), False),
    "F.linear of a scaled weight": (lambda x, w: F.linear(x, w * 2), False),
}


@schedules
@pytest.mark.parametrize("use", PAST_THE_MODULE)
@pytest.mark.filterwarnings("ignore::forge_optim.StoredGradientWarning")
def test_a_weight_that_is_used_past_its_module_is_recorded_or_named(use, schedule):
    product, recorded = PAST_THE_MODULE[use]
    pairs = both(nn.Linear(4, 3), "SGD", schedule, lr=0.1)
    for model, optimizer in pairs:
        product(torch.linspace(-1, 1, 8).view(2, 4), model.weight).square().sum().backward()
        if model is pairs[1][0] and schedule == "at_step":
            assert is_factored(model.weight) == recorded
        optimizer.step()
    if "cast" in use:  # torch rounds the gradient to bf16, of which a 256th of its size is left out of lr times it
        assert difference(pairs[1][0], pairs[0][0]) < 1e-3
    else:
        assert_same_weights(pairs[1][0], pairs[0][0], "SGD")
    assert list(forge.report(pairs[1][1]).ordinary) == ([] if recorded else ["weight"])


@schedules
def test_torchs_optimizer_on_a_fused_model_is_torchs_training(schedule):
    theirs, ours = text(), text()
    forge.fuse(ours, verbose=False)
    train(theirs, torch_optimizer("AdamW", theirs))
    train(ours, torch_optimizer("AdamW", ours))
    assert_equal_bits(ours, theirs)
