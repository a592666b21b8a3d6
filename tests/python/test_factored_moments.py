"""Adafactor and AdaLomo: numbers of rows and columns, for which no gradient is stored either."""

import copy

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import assert_equal_bits, mlp, mlp_loss, points, through_a_file  # noqa: E402
from rule_cases import FACTORED  # noqa: E402
from torch import nn  # noqa: E402

LINES = {"Adafactor": ("row_var", "col_var"), "AdaLomo": ("exp_avg_sq_row", "exp_avg_sq_col")}
both = pytest.mark.parametrize("cls", FACTORED)


@both
@pytest.mark.parametrize("state_format", [None, "int8", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_columns_have_one_fp32_number_each(cls, dtype, state_format):
    layer = nn.Linear(96, 64).to(dtype)
    optimizer = getattr(forge, cls)(layer, state_format=state_format)
    layer(torch.ones(3, 96, dtype=dtype)).sum().backward()
    optimizer.step()
    row, column = (optimizer.state[layer.weight][key] for key in LINES[cls])
    assert (row.shape, row.dtype, column.shape, column.dtype) == ((64, 1), torch.float32, (1, 96), torch.float32)
    assert forge.report(optimizer).state < layer.weight.nbytes / 4


@both
def test_no_gradient_is_stored_in_backward(cls):
    layer = nn.Linear(512, 256, bias=False)
    optimizer = getattr(forge, cls)(layer, schedule="in_backward")
    x = torch.randn(4, 512)
    layer(x).sum().backward()
    optimizer.step()  # the state is there
    optimizer.zero_grad()
    with forge.AllocationRecorder() as recorder:
        layer(x).sum().backward()
    assert recorder.peak_bytes < layer.weight.nbytes / 2
    assert isinstance(layer.weight.grad, forge.FactoredGrad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(eps=(1e-3, 1e-2), weight_decay=0.1)], ids=str)
def test_a_checkpoint_of_a_model_goes_to_torch_and_back(dtype, options):
    def step(model, optimizer, t):
        optimizer.zero_grad()
        mlp_loss(model, points(t).to(dtype)).backward()
        optimizer.step()

    straight, carried = mlp().to(dtype), mlp().to(dtype)
    whole = torch.optim.Adafactor(straight.parameters(), **options)
    there = torch.optim.Adafactor(carried.parameters(), **options)
    for t in range(6):
        if t in (2, 4):  # to us, and back
            before, cls = there, torch.optim.Adafactor if t == 4 else forge.Adafactor
            there = cls(carried if t == 2 else carried.parameters(), lr=9.0)
            there.load_state_dict(through_a_file(before.state_dict()))
        step(straight, whole, t)
        step(carried, there, t)
    bits = {torch.float32: 2**-16, torch.bfloat16: 2**-5}[dtype]
    for a, b in zip(straight.parameters(), carried.parameters(), strict=True):
        torch.testing.assert_close(b.float(), a.float(), rtol=bits, atol=bits)
        assert whole.state[a].keys() == there.state[b].keys()


def test_the_epsilon_is_the_weights_dtypes_where_none_is_given():
    """Gradients far below it, so that it alone decides."""
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.ones(4, 8, dtype=dtype))
        optimizer = forge.Adafactor([p], lr=1e-2)
        p.grad = torch.full((4, 8), torch.finfo(dtype).eps / 2, dtype=dtype)
        optimizer.step()
        # U is one half, below d, so that it is not clipped.
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 1e-2 / 2), rtol=torch.finfo(dtype).eps, atol=0)


@both
@pytest.mark.parametrize("parameter", [torch.zeros(2, 3, 4), torch.zeros(4, 3).t()], ids=["3-D", "transposed"])
def test_what_has_no_rows_and_columns_is_refused_with_the_remedy(cls, parameter):
    with pytest.raises(RuntimeError, match="contiguous vectors and matrices.*AdamW"):
        getattr(forge, cls)([nn.Parameter(parameter)])


@both
def test_state_of_another_shape_is_refused(cls):
    p = nn.Parameter(torch.ones(4, 6))
    optimizer = getattr(forge, cls)([p])
    p.grad = torch.ones(4, 6)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0][LINES[cls][0]] = torch.ones(6, 1)
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=rf"{LINES[cls][0]}.* is \[6, 1\]"):
        optimizer.load_state_dict(state)
    optimizer.step()
    assert not torch.equal(p, before)


@both
def test_a_part_of_a_weight_is_refused(cls):
    """As FSDP2 has it in a DTensor, of which the engine sees that it has a local part."""

    class Part(torch.Tensor):
        def to_local(self):
            return torch.zeros(2, 2)

    optimizer = getattr(forge, cls)([nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(RuntimeError, match="sums over whole weights"):
        optimizer._engine.add(torch.zeros(2, 2).as_subclass(Part), optimizer.param_groups[0], "weight", False)


# ---- AdaLomo's own loop --------------------------------------------------------------------------------------------


def losses(model, steps=3):
    for t in range(steps):
        yield mlp_loss(model, points(t))


@pytest.mark.parametrize(
    "options", [{}, dict(clip_grad_norm=0.5), dict(schedule="in_backward"), dict(loss_scale=None)], ids=str
)
def test_fused_backward_is_backward_and_step_with_that_rate(options):
    a, b = mlp(), mlp()
    fused, plain = forge.AdaLomo(a, **options), forge.AdaLomo(b, **options)
    for t, (of_a, of_b) in enumerate(zip(losses(a), losses(b), strict=True)):
        fused.fused_backward(of_a, lr=0.1 / (t + 1))
        assert all(p.grad is None for p in a.parameters())
        plain.param_groups[0]["lr"] = 0.1 / (t + 1)
        of_b.backward()
        plain.step()
        plain.zero_grad()
    assert_equal_bits(a, b)  # loss_scale is a power of two
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), mlp().parameters(), strict=True))


def test_fused_backward_scales_the_loss_it_is_given():
    model = mlp()
    seen = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm().item()))
    optimizer = forge.AdaLomo(model.parameters(), loss_scale=8.0)
    for loss in losses(model, 1):
        expected = torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0].norm().item()
        optimizer.fused_backward(loss, lr=1e-3)
    assert seen == [pytest.approx(8 * expected, rel=1e-5)]


def test_grad_norm_says_what_clips_instead():
    with pytest.raises(RuntimeError, match="fused_backward clips"):
        forge.AdaLomo(mlp()).grad_norm(torch.zeros(()))
