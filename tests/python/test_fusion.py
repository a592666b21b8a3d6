"""fuse() and unfuse(): which weights, what they say of the rest, and that nothing else changes."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    VOCABULARY,
    WIDTH,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    both,
    difference,
    is_factored,
    kinds,
    make,
    mlp,
    mlp_loss,
    points,
    rules,
    schedules,
    square_loss,
    text,
    text_loss,
    tokens,
    train,
    train_both,
    train_mlp,
)
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402


class OwnForward(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnName(nn.Linear):
    """A subclass that leaves forward alone."""

    def extra_repr(self):
        return "mine"


class Adapted(nn.Module):
    """As PEFT does it: the base is frozen, two small factors train."""

    def __init__(self):
        super().__init__()
        self.base, self.A, self.B = nn.Linear(6, 8), nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.B(self.A(x))


# A model, the parameter in question and why it is not fused; None where it is.
ROWS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4)), "0.weight", None),
    "bias": (lambda: nn.Sequential(nn.Linear(3, 4)), "0.bias", "no weight of a linear layer or embedding"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(3, 4)), "0.weight", None),
    "embedding with padding": (lambda: nn.Sequential(nn.Embedding(3, 4, padding_idx=-1)), "0.weight", None),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(3)), "0.weight", "used by LayerNorm"),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "0.weight", "used by Conv2d"),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(3, 4)), "0.weight", "used by EmbeddingBag"),
    "bilinear": (lambda: nn.Sequential(nn.Bilinear(3, 4, 5)), "0.weight", "used by Bilinear"),
    "own forward": (lambda: nn.Sequential(OwnForward(3, 4)), "0.weight", "by use: OwnForward's forward"),
    "own name": (lambda: nn.Sequential(OwnName(3, 4)), "0.weight", None),
    "frozen": (lambda: nn.Sequential(nn.Linear(3, 4).requires_grad_(False)), "0.weight", "frozen"),
    "frozen base": (Adapted, "base.weight", "frozen"),
    "adapter": (Adapted, "A.weight", None),
    "max_norm": (lambda: nn.Sequential(nn.Embedding(3, 4, max_norm=1.0)), "0.weight", None),
    "by frequency": (lambda: nn.Sequential(nn.Embedding(3, 4, scale_grad_by_freq=True)), "0.weight", "scale_grad_by_"),
    "sparse": (lambda: nn.Sequential(nn.Embedding(3, 4, sparse=True)), "0.weight", None),
    "fp64": (lambda: nn.Sequential(nn.Linear(3, 4).double()), "0.weight", "float64, not fp32 or bf16"),
    "fp16": (lambda: nn.Sequential(nn.Linear(3, 4).half()), "0.weight", "float16, not fp32 or bf16"),
    "bf16": (lambda: nn.Sequential(nn.Linear(3, 4).bfloat16()), "0.weight", None),
    "meta": (lambda: nn.Sequential(nn.Linear(3, 4, device="meta")), "0.weight", "on meta, for which this library"),
    # Whole where queries, keys and values are one tensor, in parts where they are not.
    "attention's input": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight", "by use: MultiheadAttention's"),
    "attention's output": (lambda: nn.MultiheadAttention(4, 2), "out_proj.weight", None),
    "recurrent cell": (lambda: nn.RNNCell(3, 4), "weight_ih", "by use: RNNCell's forward"),
}


@pytest.mark.parametrize("what", ROWS)
def test_fuse_says_of_every_parameter_whether_it_is_fused_or_why_not(what, capsys, caplog):
    make_model, name, reason = ROWS[what]
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    with caplog.at_level("INFO", logger="forge_optim"):
        report = forge.fuse(model)
    assert caplog.messages == [report.summary()]
    assert capsys.readouterr().out == ""
    assert [row.name for row in report.rows] == names
    assert sorted(r.name for r in report.fused + report.unfused + report.by_use) == sorted(names)
    row = next(row for row in report.rows if row.name == name)
    assert row.shape == tuple(dict(model.named_parameters())[name].shape)
    if reason is None:
        assert row.reason is None
    else:
        assert row.by_use == reason.startswith("by use: ")
        assert reason.removeprefix("by use: ") in (row.reason or "")
    forge.fuse(model, verbose=True)
    printed = capsys.readouterr().out
    assert printed.rstrip() == str(report)
    assert printed.count("\n") <= len(names) + 2


def test_the_table_puts_like_rows_together_and_sums_up():
    report = forge.fuse(text(), verbose=False)
    lines = str(report).splitlines()
    assert lines[0].split() == ["parameters", "shape", "values", "gradient"]
    up = next(line for line in lines if line.startswith("blocks.0.up.weight and 1 more"))
    assert up.split("  ")[1:] and "48 × 24" in up and "2,304" in up and up.endswith("fused")
    fused = sum(row.numel for row in report.fused)
    total = sum(p.numel() for p in text().parameters())
    assert lines[-1] == f"forge_optim: {fused:,} of {total:,} values ({fused / total:.1%}) are fused"
    assert str(forge.fuse(nn.ReLU(), verbose=False)).endswith("forge_optim: 0 of 0 values (none) are fused")


@kinds
def test_fusing_changes_nothing_that_can_be_seen_and_unfuse_takes_it_back(kind):
    plain, model = make(kind), make(kind)
    before = [set(vars(m)) for m in model.modules()]
    forge.fuse(model)
    assert repr(model) == repr(plain)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(model(tokens(0)), plain(tokens(0)))
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    forge.fuse(model)  # twice is fine
    assert forge.unfuse(model) is model
    assert [set(vars(m)) for m in model.modules()] == before
    forge.unfuse(model)


def test_a_forward_that_somebody_gave_an_instance_stays():
    layer = nn.Linear(3, 4)
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)  # as accelerate's hooks do
    theirs = layer.forward
    optimizer = forge.SGD(layer, lr=0.1)
    assert layer.forward is theirs
    layer(torch.ones(2, 3)).sum().backward()
    assert is_factored(layer.weight)
    assert torch.equal(layer.weight.grad.dense(), torch.full((4, 3), 4.0))
    forge.unfuse(layer)
    assert layer.forward is theirs
    del optimizer


@schedules
def test_after_unfuse_the_same_optimizer_goes_on_with_dense_gradients(schedule):
    pairs = both(text(), "AdamW", schedule, lr=1e-2)
    for model, optimizer in pairs:
        train(model, optimizer, steps=2)
        forge.unfuse(model)
        train(model, optimizer, first=2, steps=2)
        if schedule == "at_step":
            assert all(type(p.grad) is torch.Tensor for p in model.parameters())
    assert_same_weights(pairs[1][0], pairs[0][0])


@schedules
def test_weights_frozen_when_fusing_are_fused_once_unfrozen(schedule):
    pairs = []
    for optim in (torch.optim, forge):
        model = Adapted()
        torch.manual_seed(0)
        for p in model.parameters():
            nn.init.normal_(p)
        params, extra = (model, dict(schedule=schedule)) if optim is forge else (model.named_parameters(), {})
        pairs.append((model, optim.AdamW(params, lr=1e-2, **extra)))
    for model, optimizer in pairs:
        train(model, optimizer, loss=square_loss, data=lambda i: points(i)[:2, :6], steps=2)
        model.base.requires_grad_(True)
        train(model, optimizer, loss=square_loss, data=lambda i: points(i)[:2, :6], first=2, steps=2)
    assert_same_weights(pairs[1][0], pairs[0][0])
    assert is_factored(pairs[1][0].base.weight) or schedule == "in_backward"


class Odds(nn.Module):
    """Modules that record none of their gradients, or not all."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, scale_grad_by_freq=True)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.own = OwnForward(WIDTH, WIDTH)
        self.named = OwnName(WIDTH, WIDTH)
        self.normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.spectral = parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.adapted = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.bilinear = nn.Bilinear(WIDTH, WIDTH, 6)
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.named(torch.tanh(self.own(x)))
        x = self.spectral(torch.tanh(self.normed(x)))
        x = self.adapted(self.cell(x)[0])
        return self.head(self.bilinear(x, x))


@schedules
@rules
def test_a_model_of_modules_that_are_not_fused_trains_as_with_torch(rule, schedule):
    torch.manual_seed(0)
    pairs = both(Odds(), schedule=schedule, **RULES[rule])
    # Through so many rounded sums two correct ways of adding differ more; SGD's bound is for what is fused.
    for model, optimizer in pairs:
        train(model, optimizer)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, "AdamW")


@schedules
def test_attention_that_passes_by_its_output_layer_trains_as_with_torch(schedule):
    torch.manual_seed(0)

    def loss(model, x):
        return model(x, x, x)[0].square().mean()

    # Not AdamW: the gradient of the keys' bias is zero but for rounding, which it would blow up.
    pairs = both(nn.MultiheadAttention(12, 2), "SGD", schedule, lr=0.1, momentum=0.9)
    train_both(pairs, "SGD", loss=loss, data=points)


@schedules
def test_a_weight_parametrized_or_pruned_after_fusing_trains_as_with_torch(schedule):
    pairs = []
    for optim in (torch.optim, forge):
        model, extra = mlp(), {}
        if optim is forge:
            forge.fuse(model, verbose=False)
            extra = dict(schedule=schedule)
        parametrizations.weight_norm(model[0])
        prune.l1_unstructured(model[2], "weight", 0.3)
        pairs.append((model, optim.AdamW(model.parameters(), lr=1e-2, **extra)))
    train_both(pairs, "AdamW", loss=mlp_loss, data=points)


def test_lazy_layers_are_fused_after_their_first_call():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3))
    model(torch.ones(2, 5))
    report = forge.fuse(model, verbose=False)
    assert {row.name for row in report.fused} == {"0.weight", "2.weight"}


def test_lazy_layers_that_have_no_shape_yet_are_not_fused():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    report = forge.fuse(model, verbose=False)
    row = next(row for row in report.rows if row.name == "0.weight")
    assert "first call" in row.reason
    assert "0.weight" in str(report)
    assert model(torch.ones(2, 5)).shape == (2, 3)
    forge.fuse(model, verbose=False)
    optimizer = forge.AdamW(model)
    model(torch.ones(1, 5)).sum().backward()
    assert is_factored(model[2 - 1].weight)
    optimizer.step()


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, through_torch_save, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "torch.save", "pickle"],
)
@kinds
def test_a_copy_of_a_fused_model_is_fused_and_tied_and_apart(copied, kind):
    model = make(kind)
    optimizer = forge.AdamW(model)
    text_loss(model, tokens(0)).backward()  # .grad goes along where torch takes it along
    twin = copied(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert (twin.head.weight is twin.embedding.weight) == (model.head.weight is model.embedding.weight)
    assert_equal_bits(twin, model)
    optimizer.step()
    assert difference(twin, model) > 0
    forge.unfuse(twin)
    assert type(twin.blocks[0].down) is nn.Linear
    train(twin, torch.optim.AdamW(twin.parameters()), steps=1)


def test_fx_traces_a_fused_model_and_the_trace_records():
    theirs, ours = mlp(), mlp()
    forge.fuse(ours, verbose=False)
    traced = torch.fx.symbolic_trace(ours)
    assert [n.op for n in traced.graph.nodes] == [n.op for n in torch.fx.symbolic_trace(theirs).graph.nodes]
    optimizer = forge.AdamW(traced.parameters(), lr=1e-2)
    assert_same_losses(
        train_mlp(traced, optimizer), train_mlp(theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-2))
    )
    assert_same_weights(ours, theirs)
    mlp_loss(traced, points(0, count=2)).backward()
    assert isinstance(ours[0].weight.grad, forge.FactoredGrad)
