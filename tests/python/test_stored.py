"""Whatever makes a held weight's gradient an ordinary one is right, reported with its reason and warned of once."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from models import assert_same_weights, is_factored  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

IDS = torch.tensor([1, 2, 2, 3])


def points(i):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(i))


def two():
    return nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 5, bias=False))


def table(**options):
    return nn.Embedding(9, 6, **options)


def tied(**options):
    model = nn.Sequential(table(**options), nn.Linear(6, 9, bias=False))
    model[1].weight = model[0].weight
    return model


def steps(model, optimizer, use, edit, count=3):
    """Steps of training, and what they warned of: (file, category, message)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        edit(model, optimizer)
        for i in range(count):
            optimizer.zero_grad()
            y = use(model, points(i))
            if y is not None:
                y.float().square().mean().backward()
            optimizer.step()
    return [(w.filename, str(w.message)) for w in caught if issubclass(w.category, forge.StoredGradientWarning)]


def nothing(model, optimizer):
    pass


def both(make, use, edit=nothing, by_parameters=False):
    """Trains with torch and here; returns our model, our optimizer and the warnings."""
    torch.manual_seed(0)
    theirs = make()
    torch.manual_seed(0)
    ours = make()
    steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), use, edit)
    optimizer = forge.SGD(ours.parameters() if by_parameters else ours, lr=0.1)
    warned = steps(ours, optimizer, use, edit)
    assert_same_weights(ours, theirs, "SGD")
    return ours, optimizer, warned


# ---- Stored, and said ------------------------------------------------------------------------------------------------


class Product(torch.autograd.Function):
    """A head with a backward of its own, as cut-cross-entropy has it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, dY):
        x, weight = ctx.saved_tensors
        return dY @ weight, dY.t() @ x


class ChunkedLoss(torch.autograd.Function):
    """A head that computes its gradients in forward, chunk by chunk, as Liger does."""

    @staticmethod
    def forward(ctx, x, weight):
        loss, dW, dX = torch.zeros(()), torch.zeros_like(weight), []
        for part in x.chunk(2):
            (dx, dw), value = torch.func.grad_and_value(
                lambda x, w: F.linear(x, w).square().sum() / 100, argnums=(0, 1)
            )(part, weight)
            loss, dW = loss + value, dW + dw
            dX.append(dx)
        ctx.save_for_backward(torch.cat(dX), dW)
        return loss

    @staticmethod
    def backward(ctx, dY):
        dX, dW = ctx.saved_tensors
        return dY * dX, dY * dW


def watch(model, optimizer):
    """As wandb.watch does."""
    model[1].weight.register_hook(lambda g: None)


def after_accumulation(model, optimizer):
    model[1].weight.register_post_accumulate_grad_hook(lambda p: None)


def create_graph(model, x):
    loss = model(x).square().mean()
    loss.backward(create_graph=True)


def grads_of_the_users(model, x):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model(x)


def hooked(t):
    t.register_hook(lambda g: 2 * g)
    return t


def input_gradient(model, x):
    x.requires_grad_()
    (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return dx


def assigned(model, x):
    """As loops do that average or edit gradients by hand."""
    given = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    for p, g in zip(model.parameters(), given, strict=True):
        p.grad = g


def transposed_weight():
    model = two()
    model[1].weight = nn.Parameter(torch.randn(6, 5).t())
    return model


PAST = "used by something other than F.linear"
STORED = {
    "a gradient hook": (two, lambda m, x: m(x), watch, ["1.weight"], "gradient hooks"),
    "a hook after accumulation": (two, lambda m, x: m(x), after_accumulation, ["1.weight"], "gradient hooks"),
    "a head of its own": (two, lambda m, x: Product.apply(m[0](x), m[1].weight), nothing, ["1.weight"], PAST),
    "a chunked loss": (two, lambda m, x: ChunkedLoss.apply(m[0](x), m[1].weight), nothing, ["1.weight"], PAST),
    "einsum": (two, lambda m, x: torch.einsum("ti,oi->to", m[0](x), m[1].weight), nothing, ["1.weight"], PAST),
    "torch.mm": (two, lambda m, x: torch.mm(m[0](x), m[1].weight.t()), nothing, ["1.weight"], PAST),
    "a slice": (two, lambda m, x: F.linear(m[0](x), m[1].weight[:3]), nothing, ["1.weight"], PAST),
    "rows by index": (table, lambda m, x: m.weight[IDS], nothing, ["weight"], PAST),
    "embedding_bag": (table, lambda m, x: F.embedding_bag(IDS[None], m.weight), nothing, ["weight"], PAST),
    "scale_grad_by_freq": (
        table,
        lambda m, x: F.embedding(IDS, m.weight, scale_grad_by_freq=True),
        nothing,
        ["weight"],
        "scale_grad_by_freq",
    ),
    "tied to an embedding by frequency": (
        lambda: tied(scale_grad_by_freq=True),
        lambda m, x: m(IDS),
        nothing,
        ["0.weight"],
        "scale_grad_by_freq",
    ),
    "create_graph": (two, create_graph, nothing, ["0.weight", "1.weight"], "differentiated twice"),
    "a .grad of the user's": (two, grads_of_the_users, nothing, ["0.weight", "1.weight"], "an ordinary tensor already"),
    "a hook on a transpose": (
        two,
        lambda m, x: m[0](x) @ hooked(m[1].weight.t()),
        nothing,
        ["1.weight"],
        "a cast or transpose",
    ),
    "a penalty on the input's gradient": (
        two,
        input_gradient,
        nothing,
        ["0.weight", "1.weight"],
        "differentiated twice",
    ),
    "gradients that the loop assigns": (two, assigned, nothing, ["0.weight", "1.weight"], "assigned"),
    "a transposed parameter": (transposed_weight, lambda m, x: m(x), nothing, ["1.weight"], "not a contiguous matrix"),
    "a penalty on all weights": (
        two,
        lambda m, x: m(x).mean() + sum(p.square().mean() for p in m.parameters()),
        nothing,
        ["0.weight", "1.weight"],
        PAST,
    ),
}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_a_stored_gradient_is_right_and_reported_and_warned_of_once_at_the_users_line(how):
    make, use, edit, names, reason = STORED[how]
    model, optimizer, warned = both(make, use, edit)
    stored = forge.report(optimizer).ordinary
    assert list(stored) == names
    assert all(reason in why for why in stored.values())
    assert [file for file, _ in warned] == [__file__]
    assert names[0] in warned[0][1] and reason in warned[0][1]
    assert len(names) == 1 or "and 1 more" in warned[0][1]
    assert f"stored: {names[0]}" in str(forge.report(optimizer))
    assert sum(n for why, n in forge.report(optimizer).reasons.items() if reason in why) == 3 * len(names)


# What fuse has said in its table is no surprise.
TOLD = {
    "an embedding by frequency": (lambda: table(scale_grad_by_freq=True), lambda m, x: m(IDS), ["weight"]),
    "a layer with weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5))),
        lambda m, x: m(x),
        ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"],
    ),
    "LSTM": (lambda: nn.LSTM(6, 5), lambda m, x: m(x)[0], ["weight_ih_l0", "weight_hh_l0"]),
    "attention between tensors": (
        lambda: nn.MultiheadAttention(6, 2),
        lambda m, x: m(x, x.clone(), x.clone())[0],
        ["in_proj_weight"],
    ),
}


@pytest.mark.parametrize("what", TOLD)
def test_what_the_table_says_is_reported_and_not_warned_of(what):
    make, use, names = TOLD[what]
    _, optimizer, warned = both(make, use)
    assert (list(forge.report(optimizer).ordinary), warned) == (names, [])


def test_what_unfuse_was_asked_for_is_reported_and_not_warned_of():
    _, optimizer, warned = both(two, lambda m, x: m(x), lambda m, o: forge.unfuse(m[1]))
    stored = forge.report(optimizer).ordinary
    assert list(stored) == ["1.weight"] and "unfuse" in stored["1.weight"]
    assert warned == []


def test_a_pruned_weight_is_reported_by_its_name():
    def make():
        model = two()
        prune.l1_unstructured(model[1], "weight", 0.3)
        return model

    _, optimizer, _ = both(make, lambda m, x: m(x))
    assert list(forge.report(optimizer).ordinary) == ["1.weight_orig"]


def test_without_fuse_a_compiled_model_and_conv1d_say_that_fuse_is_missing():
    utils = pytest.importorskip("transformers.pytorch_utils")
    torch._dynamo.reset()

    def compiled(m, x):
        return torch.compile(m, backend="aot_eager")(x)

    for make, use, count in ((two, compiled, 2), (lambda: utils.Conv1D(5, 6), lambda m, x: m(x), 1)):
        _, optimizer, warned = both(make, use, by_parameters=True)
        assert len(forge.report(optimizer).ordinary) == count
        assert len(warned) == 1 and "forge_optim.fuse(model)" in warned[0][1]
        _, optimizer, warned = both(make, use)
        assert (forge.report(optimizer).ordinary, warned) == ({}, [])


def test_in_backward_a_weight_with_hooks_is_updated_in_step_and_said():
    torch.manual_seed(0)
    theirs = two()
    ours = copy.deepcopy(theirs)
    steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), lambda m, x: m(x), watch)
    optimizer = forge.SGD(ours, lr=0.1, schedule="in_backward")
    warned = steps(ours, optimizer, lambda m, x: m(x), watch)
    assert_same_weights(ours, theirs, "SGD")
    assert list(forge.report(optimizer).ordinary) == ["1.weight"]
    assert [file for file, _ in warned] == [__file__]


def test_each_reason_is_said_and_a_weight_that_moves_to_another_place_is_not_said_again():
    torch.manual_seed(0)
    model = two()
    optimizer = forge.SGD(model.parameters(), lr=0.1)

    def einsum(m, x):
        return torch.einsum("ti,oi->to", x, m[0].weight)

    assert len(steps(model, optimizer, einsum, nothing)) == 1
    optimizer.param_groups[0]["params"].reverse()
    assert steps(model, optimizer, einsum, nothing) == []
    assert list(forge.report(optimizer).ordinary) == ["1"]
    model[0].weight.register_hook(lambda g: None)
    assert len(steps(model, optimizer, lambda m, x: m[0](x), nothing)) == 1


def test_two_weights_of_one_name_are_both_reported():
    first, second = nn.Linear(6, 5), nn.Linear(6, 5)
    optimizer = forge.SGD([{"params": first.named_parameters()}, {"params": second.named_parameters()}], lr=0.1)
    for layer in (first, second):
        torch.einsum("ti,oi->to", points(0), layer.weight).sum().backward()
    with pytest.warns(forge.StoredGradientWarning):
        optimizer.step()
    assert len(forge.report(optimizer).ordinary) == 2


def test_where_the_warning_is_an_error_the_step_is_done():
    torch.manual_seed(0)
    model, optimizer, _ = both(two, lambda m, x: m(x))
    torch.einsum("ti,oi->to", points(0), model[0].weight).sum().backward()
    before = model[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(forge.StoredGradientWarning):
            optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model[0].weight, before)


# ---- Recorded, though it was not always ------------------------------------------------------------------------------


class Casting(nn.Linear):
    """nanochat's: kept in fp32, multiplied in the dtype of x."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

    def forward(self, x):
        return self.base(x) + self.B(self.A(x))


def adapt_later(model, optimizer):
    torch.manual_seed(3)
    model[1] = Adapted(model[1])
    optimizer.add_param_group({"params": [*model[1].A.parameters(), *model[1].B.parameters()]})


def frozen():
    model = two()
    model[1].requires_grad_(False)
    return model


def thaw(model, optimizer):
    model[1].requires_grad_(True)


def attend(model, x):
    return model(x, x, x)[0]


RECORDED = {
    "a head by F.linear": (two, lambda m, x: F.linear(m[0](x), m[1].weight), nothing),
    "a head by @": (two, lambda m, x: m[0](x) @ m[1].weight.t(), nothing),
    "a casting subclass": (
        lambda: nn.Sequential(Casting(6, 6), Casting(6, 5)),
        lambda m, x: m(x.bfloat16().float()),
        nothing,
    ),
    "unfrozen": (frozen, lambda m, x: m(x), thaw),
    "LoRA added later": (two, lambda m, x: m(x), adapt_later),
    "tied": (tied, lambda m, x: m(IDS), nothing),
    "sparse": (lambda: table(sparse=True), lambda m, x: m(IDS), nothing),
    "max_norm": (lambda: table(max_norm=0.5), lambda m, x: m(IDS), nothing),
    "attention of one tensor": (lambda: nn.MultiheadAttention(6, 2), lambda m, x: attend(m, x[None]), nothing),
    "a cell": (lambda: nn.LSTMCell(6, 5), lambda m, x: m(x)[0], nothing),
    "vmap": (two, lambda m, x: torch.vmap(m)(x), nothing),
}


@pytest.mark.parametrize("by_parameters", [False, True], ids=["by model", "by parameters"])
@pytest.mark.parametrize("how", RECORDED)
def test_what_is_used_by_linear_embedding_and_matmul_is_recorded_wherever_it_is(how, by_parameters):
    make, use, edit = RECORDED[how]
    model, optimizer, warned = both(make, use, edit, by_parameters)
    assert (forge.report(optimizer).ordinary, warned) == ({}, [])
    optimizer.zero_grad()
    use(model, points(9)[:1]).square().mean().backward()
    assert is_factored(*(p for p in model.parameters() if p.dim() == 2 and p.grad is not None))
