"""A module is cast, moved, shared, copied or exported while it has gradients: torch converts them, and so do we."""

import copy

import forge_optim as forge
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::forge_optim.CollapseWarning")


class Tied(nn.Module):
    """An embedding and a head of one weight, and a layer between."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index):
        return self.head(self.layer(self.embedding(index)).relu())


def pair(**options):
    """A fused model with forge.SGD, and the same with torch.optim.SGD."""
    torch.manual_seed(0)
    plain = Tied()
    fused = copy.deepcopy(plain)
    forge.fuse(fused, verbose=False)
    ours = forge.SGD(fused.named_parameters(), lr=0.1, momentum=0.9, **options)
    return (fused, ours), (plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9))


def backward(model, seed=0):
    model(torch.randint(12, (5,), generator=torch.Generator().manual_seed(seed))).float().square().mean().backward()


def assert_close(fused, plain):
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        for a, b in ((ours.detach(), theirs.detach()), (ours.grad, theirs.grad)):
            assert a.dtype == b.dtype
            ulps = 64 * torch.finfo(a.dtype).eps * b.double().abs().max().item()
            torch.testing.assert_close(a.clone() + 0, b, rtol=0, atol=ulps)


# ---- Casts -----------------------------------------------------------------------------------------------------------

CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to(dtype)": lambda m: m.to(torch.bfloat16),
    "to(tensor)": lambda m: m.to(torch.ones(1, dtype=torch.float64)),
    "one layer": lambda m: m.layer.half(),
    "share_memory": lambda m: m.share_memory(),
    "zeroed": lambda m: m._apply(torch.zeros_like),
    "a copy": lambda m: m._apply(torch.clone),
    "nothing to do": lambda m: m.cpu().float().to("cpu"),
}


@pytest.mark.parametrize("cast", CASTS)
def test_gradients_are_cast_with_their_module(cast):
    (fused, _ours), (plain, _) = pair()
    for model in (fused, plain):
        backward(model)
        CASTS[cast](model)
    assert_close(fused, plain)


@pytest.mark.parametrize("cast", CASTS)
def test_training_goes_on_after_a_cast_and_back(cast):
    """The gradient that was cast is accumulated to and applied; the next one is factored again."""
    (fused, ours), (plain, theirs) = pair()
    for model, opt in ((fused, ours), (plain, theirs)):
        backward(model)
        CASTS[cast](model)
        model.float()
        backward(model, 1)
        opt.step()
    assert_close(fused, plain)
    for model, opt in ((fused, ours), (plain, theirs)):
        opt.zero_grad()
        backward(model, 2)
        assert isinstance(model.layer.weight.grad, forge.FactoredGrad) == (model is fused)
        opt.step()
    assert_close(fused, plain)


def test_a_step_in_bfloat16_takes_the_gradients_that_were_cast():
    (fused, ours), (plain, theirs) = pair()
    for model, opt in ((fused, ours), (plain, theirs)):
        backward(model)
        model.bfloat16()
        opt.step()
    assert_close(fused, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_step_in_another_dtype_says_so_and_changes_nothing(dtype):
    (fused, ours), _ = pair()
    backward(fused)
    fused.to(dtype)
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(RuntimeError, match="is (Half|Double), expected Float"):
        ours.step()
    for name, weight in fused.state_dict().items():
        assert torch.equal(weight, before[name])


def test_what_converts_nothing_keeps_a_gradient_factored():
    (fused, _ours), _ = pair()
    backward(fused)
    fused.cpu().float().to("cpu").to(torch.float32).requires_grad_(True)
    weight = fused.layer.weight
    weight.grad.data = weight.grad.detach()
    assert "dYᵀX" in repr(weight.grad)


def test_a_converted_gradient_is_an_ordinary_tensor_of_the_same_identity():
    (fused, _ours), _ = pair()
    backward(fused)
    grad = fused.layer.weight.grad
    fused.bfloat16()
    assert grad is fused.layer.weight.grad and type(grad) is torch.Tensor and grad.dtype == torch.bfloat16
    assert not hasattr(grad, "_gradient") and grad.data_ptr() != 0
    assert "FactoredGrad" not in repr(grad)


def test_moving_to_meta_multiplies_nothing_out():
    (fused, ours), _ = pair()
    backward(fused)
    before = forge.report(ours).reasons
    fused.to("meta")
    assert all(w.grad.device.type == "meta" and w.grad.shape == w.shape for w in fused.parameters())
    assert forge.report(ours).reasons == before


def test_to_empty_makes_gradients_without_a_value():
    (fused, ours), _ = pair()
    backward(fused)
    fused.to_empty(device="cpu")
    for weight in fused.parameters():
        assert type(weight.grad) is torch.Tensor and weight.grad.shape == weight.shape
        weight.data.zero_()
        weight.grad.fill_(1)
    ours.step()
    assert all(torch.equal(w.detach(), torch.full_like(w, -0.1)) for w in fused.parameters())


def test_swapping_conversion_takes_a_gradient_without_its_optimizer():
    (fused, ours), (plain, _) = pair()
    backward(fused), backward(plain)
    forge.unfuse(fused)
    del ours
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for layer in (fused.layer, plain.layer):
            layer.half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_close(fused, plain)
    assert type(fused.layer.weight.grad) is torch.Tensor


# ---- A gradient that was applied in backward -------------------------------------------------------------------------


@pytest.mark.parametrize("cast", ["half", "double", "share_memory"])
def test_after_training_in_backward_a_module_can_be_cast(cast):
    (fused, ours), (plain, theirs) = pair(schedule="in_backward")
    for model, opt in ((fused, ours), (plain, theirs)):
        backward(model)
        opt.step()
        CASTS[cast](model)
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_training_in_backward_goes_on_after_to_empty():
    (fused, ours), (plain, theirs) = pair(schedule="in_backward")
    start = copy.deepcopy(plain.state_dict())
    for model, opt in ((fused, ours), (plain, theirs)):
        backward(model)
        opt.step()
        model.to_empty(device="cpu").load_state_dict(start)
        for seed in (1, 2):
            opt.zero_grad()
            backward(model, seed)
            opt.step()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert "applied in backward" in repr(fused.layer.weight.grad)


# ---- Fake tensors and export -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["at_step", "in_backward"])
def test_a_module_with_gradients_is_exported_and_keeps_them(schedule):
    (fused, _ours), (plain, _) = pair(schedule=schedule)
    for model in (fused, plain):
        backward(model)
    index = torch.arange(4)
    exported = torch.export.export(fused, (index,))
    torch.testing.assert_close(exported.module()(index), fused(index))
    assert isinstance(fused.layer.weight.grad, forge.FactoredGrad) and "dense" not in repr(fused.layer.weight.grad)


def test_a_parameter_becomes_fake_with_its_gradient():
    (fused, _ours), _ = pair()
    backward(fused)
    weight = fused.layer.weight
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(weight)
        assert fake.grad.shape == weight.shape and fake.grad.dtype == weight.dtype
        assert (fake.grad * 2).sum().shape == ()
        assert mode.from_tensor(weight.grad).device == weight.device
    assert "dYᵀX" in repr(weight.grad)


def test_a_storage_tells_its_size_and_no_address():
    (fused, _ours), _ = pair()
    backward(fused)
    storage = fused.layer.weight.grad.untyped_storage()
    assert (storage.nbytes(), storage.device.type, storage.is_shared()) == (16 * 16 * 4, "cpu", False)
    for read in (storage.data_ptr, storage.tolist, storage.clone, storage._share_fd_cpu_, lambda: storage.resize_(0)):
        with pytest.raises(RuntimeError, match="take p.grad.dense()"):
            read()
