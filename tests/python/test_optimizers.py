"""The optimizers beside those of torch.optim, on the inputs of torch's own tests among others."""

import sys
import types
import unittest
import warnings
from itertools import chain

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    both,
    difference,
    forge_optimizer,
    mlp,
    mlp_loss,
    points,
    rules,
    schedules,
    text,
    through_a_file,
    torch_optimizer,
    train,
    train_mlp,
)
from torch import nn  # noqa: E402


def pytorchs_own_inputs():
    """The tables of torch's own optimizer tests, by name."""
    # They import expecttest, a package for torch's developers, and say that global flags must not change any more.
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    own = sys.modules.setdefault("expecttest", stand_in)
    flag, threads = torch.backends.__allow_nonbracketed_mutation_flag, torch.get_num_threads()
    try:
        from torch.testing._internal.common_optimizers import optim_db
    finally:
        torch.backends.__allow_nonbracketed_mutation_flag = flag
        torch.set_num_threads(threads)
        if own is stand_in:
            del sys.modules["expecttest"]
    return {info.optim_cls.__name__: info for info in optim_db if hasattr(forge, info.optim_cls.__name__)}


OWN = pytorchs_own_inputs()
REFUSED = ("capturable", "differentiable")

MORE_INPUTS = {
    "AdamW": [
        ("tensor lr", dict(lr=torch.tensor(0.01))),
        ("tensor lr of one element in a row", dict(lr=torch.tensor([0.01]))),
        ("tensor betas", dict(betas=(torch.tensor(0.8), torch.tensor(0.95)))),
        ("lr of zero", dict(lr=0.0, weight_decay=0.1)),
        ("betas of zero", dict(betas=(0.0, 0.0))),
        ("no decay", dict(weight_decay=0.0)),
        ("large eps", dict(eps=0.1)),
        ("foreach", dict(foreach=True)),
        ("fused", dict(fused=True)),
    ],
    "SGD": [
        ("nesterov, maximize", dict(momentum=0.5, nesterov=True, maximize=True)),
        ("dampening of one", dict(momentum=0.9, dampening=1.0, weight_decay=0.1)),
        ("lr of zero", dict(lr=0.0, momentum=0.9)),
        ("foreach", dict(momentum=0.9, foreach=True)),
        ("fused", dict(momentum=0.9, fused=True)),
    ],
}

# torch's Muon iterates in bf16; test_muon.py compares it.
INPUTS = [
    pytest.param(cls, kwargs, id=f"{cls}: {about}")
    for cls in OWN
    if cls != "Muon"
    for about, kwargs in chain(
        ((own.desc, own.kwargs) for own in OWN[cls].optim_inputs_func(device="cpu")), MORE_INPUTS.get(cls, [])
    )
    if not any(kwargs.get(key) for key in REFUSED)
]


# ---- Construction ----------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("cls, kwargs", INPUTS)
def test_every_input_of_pytorchs_own_tests_trains_the_same(cls, kwargs, schedule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), cls, schedule, **kwargs)
    their_losses = train_mlp(theirs, their_opt)
    assert_same_losses(train_mlp(ours, our_opt), their_losses)
    # Without momentum or decay SGD's weights are as near as with.
    assert_same_weights(ours, theirs, cls)
    if kwargs.get("lr") != 0:
        assert difference(ours, mlp()) > 1e-5  # they did train


@pytest.mark.parametrize(
    "cls, argument",
    [("AdamW", "capturable"), ("AdamW", "differentiable"), ("SGD", "differentiable")],
)
def test_an_argument_that_is_not_supported_is_refused_in_one_sentence(cls, argument):
    with pytest.raises(RuntimeError) as refusal:
        forge_optimizer(cls, mlp(), **{argument: True})
    assert f"{cls}: {argument}=True" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pytorchs_own_inputs_that_are_refused_are_those_named():
    for cls, info in OWN.items():
        for own in info.optim_inputs_func(device="cpu"):
            if any(own.kwargs.get(key) for key in REFUSED):
                with pytest.raises(RuntimeError, match="is not supported"):
                    forge_optimizer(cls, mlp(), **own.kwargs)


ERROR_INPUTS = [
    pytest.param(cls, error, id=f"{cls}: {error.optimizer_error_input.desc}")
    for cls, info in OWN.items()
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    if "complex" not in error.optimizer_error_input.desc  # at its step; here at construction, as of any optimizer
]


@pytest.mark.parametrize("cls, error", ERROR_INPUTS)
def test_invalid_input_raises_what_torch_raises(cls, error):
    given = error.optimizer_error_input
    params = [nn.Parameter(torch.zeros(2, 2))] if given.params is None else given.params
    if given.kwargs.get("foreach"):  # changes nothing here, so it has no restrictions either
        forge_optimizer(cls, mlp(), **given.kwargs)
        return
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex), pytest.raises(RuntimeError, match="given twice"):
            forge_optimizer(cls, params, **given.kwargs)
        return
    with pytest.raises(error.error_type, match=error.error_regex):
        forge_optimizer(cls, params, **given.kwargs)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(schedule="sometimes"), "schedule"),
        (dict(collapse="maybe"), "collapse"),
        (dict(state_format="fp16"), "there is no format"),
        (dict(state_format="bf16_plus8"), "state_format"),
        (dict(seed=-1), "seed is -1"),
        (dict(seed=2**64), "seed is 18446744073709551616"),
        (dict(seed=0.5), "seed is 0.5"),
    ],
)
@pytest.mark.parametrize("cls", OWN)
def test_a_wrong_option_is_refused_by_name(cls, options, named):
    with pytest.raises(RuntimeError, match=named):
        forge_optimizer(cls, mlp(), **options)


@pytest.mark.parametrize("cls", OWN)
def test_an_empty_list_raises_what_torch_raises(cls):
    for optim in (torch.optim, forge):
        with pytest.raises(ValueError, match="empty parameter list"):
            getattr(optim, cls)([], lr=0.1)


def odd_parameter(kind):
    two = torch.zeros(2, 2)
    return {
        "fp64": lambda: nn.Parameter(two.double()),
        "fp16": lambda: nn.Parameter(two.half()),
        "complex": lambda: nn.Parameter(two.to(torch.complex64)),
        "expanded": lambda: nn.Parameter(torch.zeros(1, 2).expand(2, 2)),
        "sparse": lambda: nn.Parameter(two.to_sparse()),
    }[kind]()


@pytest.mark.parametrize(
    "kind, said",
    [
        ("fp64", "Double"),
        ("fp16", "Half"),
        ("complex", "ComplexFloat"),
        ("expanded", "strides"),
        ("sparse", "[Ss]parse"),
    ],
)
def test_a_parameter_that_kernels_cannot_read_is_refused_in_one_sentence(kind, said):
    with pytest.raises(RuntimeError, match=said) as refusal:
        forge.AdamW([odd_parameter(kind)], lr=0.1)
    assert "\n" not in str(refusal.value)


def test_a_tensor_that_is_no_leaf_raises_what_torch_raises():
    x = torch.zeros(2, 2, requires_grad=True) * 2
    for optim in (torch.optim, forge):
        with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
            optim.AdamW([x], lr=0.1)


def test_a_model_gives_the_groups_that_its_parameters_give():
    model = text()
    (from_model,) = forge.AdamW(model).param_groups
    assert [id(p) for p in from_model["params"]] == [id(p) for p in model.parameters()]
    # torch names parameters in a group and in checkpoints where it is given names, and only there.
    assert "param_names" not in from_model
    names = [name for name, _ in model.named_parameters()]
    assert forge.AdamW(model.named_parameters()).param_groups[0]["param_names"] == names


def test_weights_are_recorded_however_they_are_handed_over():
    for params in (lambda m: m, lambda m: m.parameters(), lambda m: [{"params": [p]} for p in m.parameters()]):
        model = mlp()
        optimizer = forge.AdamW(params(model))
        mlp_loss(model, points(0)).backward()
        assert all(isinstance(p.grad, forge.FactoredGrad) == (p.dim() == 2) for p in model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()


def test_weights_whose_gradients_are_stored_are_warned_of_once_at_the_users_line():
    model = mlp()
    optimizer = forge.AdamW(model.parameters())
    model[0].weight.register_hook(lambda g: None)
    for seen in (["stored, as without this library: the weight has gradient hooks"], []):
        mlp_loss(model, points(0)).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        assert len(caught) == len(seen) and all(s in str(w.message) for s, w in zip(seen, caught, strict=True))
        assert all(w.filename == __file__ and w.category is forge.StoredGradientWarning for w in caught)
    assert forge.report(optimizer).ordinary == {"0": "the weight has gradient hooks"}
    assert forge.report(optimizer).reasons["the weight has gradient hooks"] == 2
    assert "stored: 0 (the weight has gradient hooks)" in str(forge.report(optimizer))


# ---- Parameters of all kinds -----------------------------------------------------------------------------


@schedules
@rules
def test_a_weight_frozen_at_construction_trains_once_it_is_unfrozen(rule, schedule):
    model = text()
    model.blocks[0].requires_grad_(False)
    pairs = both(model, schedule=schedule, **RULES[rule])
    for model, optimizer in pairs:
        train(model, optimizer, steps=2)
        model.blocks[0].requires_grad_(True)
        train(model, optimizer, first=2, steps=3)
    (theirs, _), (ours, our_opt) = pairs
    assert_same_weights(ours, theirs, rule)
    assert our_opt.state[ours.blocks[0].up.weight]


@schedules
@rules
def test_a_weight_frozen_midway_stays_and_goes_on_later(rule, schedule):
    pairs = both(text(), schedule=schedule, **RULES[rule])
    frozen = []
    for model, optimizer in pairs:
        train(model, optimizer, steps=2)
        optimizer.zero_grad()
        model.blocks[0].requires_grad_(False)
        kept = model.blocks[0].up.weight.detach().clone()
        train(model, optimizer, first=2, steps=2)
        frozen.append(torch.equal(kept, model.blocks[0].up.weight))
        model.blocks[0].requires_grad_(True)
        train(model, optimizer, first=4, steps=2)
    assert frozen == [True, True]
    assert_same_weights(pairs[1][0], pairs[0][0], rule)


@schedules
@rules
def test_a_parameter_without_a_gradient_is_skipped(rule, schedule):
    def first_layers(model, x):
        return model[:3](x).square().mean()

    (theirs, their_opt), (ours, our_opt) = both(mlp(), schedule=schedule, **RULES[rule])
    train(theirs, their_opt, loss=first_layers, data=points, steps=2)
    train(ours, our_opt, loss=first_layers, data=points, steps=2)
    assert_equal_bits(ours[4], mlp()[4])
    assert not our_opt.state.get(ours[4].weight) and not our_opt.state.get(ours[4].bias)
    train_mlp(theirs, their_opt, first=2, steps=2)
    train_mlp(ours, our_opt, first=2, steps=2)
    assert_same_weights(ours, theirs, rule)


class Odd(nn.Module):
    """Parameters whose memory is not in row-major order, of other numbers of dimensions, and empty."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.linear = nn.Linear(4, 6)
        self.linear.weight = nn.Parameter(torch.randn(4, 6).t())  # transposed, dense
        self.embedding = nn.Embedding(5, 6)
        self.embedding.weight = nn.Parameter(torch.randn(6, 5).t())
        self.cube = nn.Parameter(torch.randn(6, 2, 3).permute(2, 0, 1))
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 6))
        self.one = nn.Parameter(torch.randn(1, 1))

    def forward(self, x):
        h = self.conv(x).mean((2, 3))
        y = self.linear(h) * self.scalar + self.embedding(torch.tensor([1, 3])) + self.empty.sum()
        return torch.einsum("bi,jik->bjk", y, self.cube) * self.one


def images(seed):
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


@schedules
@rules
def test_weights_that_are_not_row_major_or_no_matrix_train_the_same(rule, schedule):
    torch.manual_seed(0)
    settings = RULES[rule] | dict(lr=1e-2)
    (theirs, their_opt), (ours, our_opt) = both(Odd(), schedule=schedule, **settings)
    strides = [p.stride() for p in ours.parameters()]
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train(model, optimizer, loss=lambda m, x: m(x).square().mean(), data=images)
    assert_same_weights(ours, theirs, rule)
    assert [p.stride() for p in ours.parameters()] == strides
    if rule == "AdamW":  # the state's layout, too, is the parameter's, as in torch
        state = our_opt.state[ours.conv.weight]["exp_avg"]
        assert state.stride() == ours.conv.weight.stride()
        torch.testing.assert_close(state, their_opt.state[theirs.conv.weight]["exp_avg"])
    saved = through_a_file(our_opt.state_dict())
    their_opt.load_state_dict(saved)
    our_opt.load_state_dict(saved)


def test_a_moment_that_was_made_contiguous_elsewhere_is_read_right():
    torch.manual_seed(0)
    (theirs, their_opt), (ours, our_opt) = both(Odd(), "AdamW", lr=1e-2)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train(model, optimizer, loss=lambda m, x: m(x).square().mean(), data=images, steps=2)
        for state in optimizer.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].contiguous()
        train(model, optimizer, loss=lambda m, x: m(x).square().mean(), data=images, first=2, steps=2)
    assert_same_weights(ours, theirs)


@schedules
def test_an_embedding_with_sparse_gradients_trains_as_with_torch(schedule):
    pairs = both(nn.Embedding(5, 4, sparse=True), "SGD", schedule, lr=0.1)
    for model, optimizer in pairs:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([1, 2, 1])).square().sum().backward()
            optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")
    assert forge.report(pairs[1][1]).ordinary == {}


def test_a_sparse_gradient_that_the_user_made_is_what_its_numbers_are():
    dense, sparse = (nn.Parameter(torch.ones(5, 4)) for _ in range(2))
    dense.grad = torch.eye(5, 4)
    sparse.grad = dense.grad.to_sparse()
    for p in (dense, sparse):
        forge.AdamW([p], lr=0.1).step()
    assert torch.equal(dense, sparse)


def test_a_gradient_that_the_user_made_is_used():
    (theirs, their_opt), (ours, our_opt) = both(mlp(), "AdamW", lr=1e-2)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        for p in model.parameters():
            p.grad = torch.linspace(-1, 1, p.numel()).view_as(p)
        optimizer.step()
    assert_same_weights(ours, theirs)


@rules
def test_a_parameter_whose_data_was_replaced_goes_on_with_the_new_data(rule):
    (theirs, their_opt), (ours, our_opt) = both(mlp(), **RULES[rule])
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        train_mlp(model, optimizer, steps=2)
        model[0].weight.data = model[0].weight.detach() * 0.5
        train_mlp(model, optimizer, first=2, steps=2)
    assert_same_weights(ours, theirs, rule)


# ---- What others ask of an optimizer ---------------------------------------------------------------------


def test_it_is_one_of_torchs_optimizers():
    model = mlp()
    for cls in OWN:
        optimizer = forge_optimizer(cls, model, lr=0.1)
        assert isinstance(optimizer, getattr(torch.optim, cls))
        assert isinstance(optimizer, forge.FusedOptimizer)
        assert optimizer.step.__func__ and optimizer.step.__self__ is optimizer
        assert optimizer.defaults.keys() == torch_optimizer(cls, model, lr=0.1).defaults.keys()
        assert repr(optimizer).replace("forge_optim.", "").startswith(f"{cls} (")
