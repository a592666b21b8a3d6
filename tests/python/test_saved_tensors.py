"""Saved-tensor hooks, checkpoints and gradients in buffers: a recorded X or dY is what it was in backward."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from models import (  # noqa: E402
    WIDTH,
    assert_same_weights,
    both,
    is_factored,
    mlp,
    mlp_loss,
    points,
    schedules,
    text,
    text_loss,
    tokens,
    train,
)
from torch import nn  # noqa: E402
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

# ---- Hooks: (pack, unpack), made anew for each run ---------------------------------------------------------


class Staging:
    """One buffer for each shape and dtype."""

    def __init__(self):
        self.buffers = {}

    def buffer(self, like):
        key = (like.shape, like.dtype)
        return self.buffers.setdefault(key, torch.zeros_like(like, memory_format=torch.contiguous_format))


def clone(t):
    return t.detach().clone()


def copied_into_a_buffer():
    staging = Staging()
    return clone, lambda t: staging.buffer(t).copy_(t)


def written_through_numpy():
    staging = Staging()

    def unpack(t):
        buffer = staging.buffer(t)
        buffer.numpy()[...] = t.numpy()
        return buffer

    return clone, unpack


def pieces_of_one_buffer():
    memory, used, pieces = torch.zeros(1 << 16), [0], {}

    def unpack(t):
        if t.dtype != torch.float32:
            return t
        if t.shape not in pieces:
            pieces[t.shape] = memory[used[0] : used[0] + t.numel()].view(t.shape)
            used[0] += t.numel()
        pieces[t.shape].numpy()[...] = t.numpy()
        return pieces[t.shape]

    return clone, unpack


def the_same_tensor():
    return (lambda t: t), (lambda t: t)


def a_detached_alias():
    return (lambda t: t.detach()), (lambda t: t)


def compressed_to(dtype):
    def hooks():
        def pack(t):
            return (t.dtype, t.detach().to(dtype) if t.is_floating_point() else t)

        return pack, lambda packed: packed[1].to(packed[0])

    hooks.__name__ = f"compressed to {dtype}"
    return hooks


def only_large_ones():
    staging = Staging()

    def pack(t):
        return (True, clone(t)) if t.numel() >= 100 else (False, t)

    return pack, lambda packed: staging.buffer(packed[1]).copy_(packed[1]) if packed[0] else packed[1]


HOOKS = [
    copied_into_a_buffer,
    written_through_numpy,
    pieces_of_one_buffer,
    the_same_tensor,
    a_detached_alias,
    compressed_to(torch.bfloat16),
    compressed_to(torch.float8_e4m3fn),
    only_large_ones,
]
hooked = pytest.mark.parametrize("hooks", HOOKS, ids=lambda f: f.__name__)
LOSSES = {"mlp": (mlp, mlp_loss, points), "text": (text, text_loss, tokens)}


def under(hooks, loss):
    """The loss, whose forward pass saves by these hooks."""

    def of(model, data):
        with saved_tensors_hooks(*hooks):
            return loss(model, data)

    return of


@schedules
@hooked
@pytest.mark.parametrize("model", LOSSES)
def test_training_under_hooks_is_torchs(model, hooks, schedule):
    make, loss, data = LOSSES[model]
    pairs = both(make(), "AdamW", schedule, lr=1e-2)
    for m, optimizer in pairs:
        train(m, optimizer, loss=under(hooks(), loss), data=data)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


@hooked
def test_micro_batches_under_hooks_are_torchs(hooks):
    pairs = both(text(), "AdamW", lr=1e-2)
    for m, optimizer in pairs:
        train(m, optimizer, loss=under(hooks(), text_loss), micro=3, steps=2)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)
    assert is_factored(ours.blocks[0].up.weight)


@schedules
def test_save_on_cpu_is_torchs(schedule):
    pairs = both(text(), "AdamW", schedule, lr=1e-2)
    for m, optimizer in pairs:

        def loss(model, ids):
            with save_on_cpu():
                return text_loss(model, ids)

        train(m, optimizer, loss=loss)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


def test_one_graph_used_twice_under_hooks_is_torchs():
    for hooks in (copied_into_a_buffer, written_through_numpy):
        pairs = both(mlp(), "SGD", lr=0.1)
        for m, optimizer in pairs:
            loss = under(hooks(), mlp_loss)(m, points(0))
            loss.backward(retain_graph=True)
            (2 * loss).backward()
            optimizer.step()
        (theirs, _), (ours, _) = pairs
        assert_same_weights(ours, theirs, "SGD")


def test_hooks_of_one_node_are_heard():
    """torch's own nodes show what they saved; ours keep theirs in C++, and the default hooks are for all."""
    model = mlp()
    optimizer = forge.AdamW(model)
    packed = []
    with saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        loss = mlp_loss(model, points(0))
    assert torch.Size([5, 12]) in packed and torch.Size([5, 20]) in packed
    loss.backward()
    optimizer.step()


# ---- Checkpoints -----------------------------------------------------------------------------------------


class Attention(nn.Module):
    """q, k and v of one X."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH) if normed else nn.Identity()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.norm(x.flatten(0, -2)).view(x.shape)
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


class Checkpointed(nn.Module):
    def __init__(self, how: bool | None, normed: bool = True, inside=None) -> None:
        super().__init__()
        self.how, self.inside = how, inside
        self.layers = nn.ModuleList(Attention(normed) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = x + (layer(x) if self.how is None else checkpoint(self._hooked(layer), x, use_reentrant=self.how))
        return x

    def _hooked(self, layer):
        if self.inside is None:
            return layer

        def forward(x):
            with saved_tensors_hooks(*self.inside()):
                return layer(x)

        return forward


def checkpointed(*args, **kwargs):
    torch.manual_seed(0)
    return Checkpointed(*args, **kwargs)


def sequences(seed):
    return torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def squares(model, x):
    return model(1.5 * x).square().mean()


@schedules
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "not reentrant"])
@hooked
def test_checkpoints_whose_inputs_are_staged_are_torchs(hooks, how, normed, schedule):
    pairs = both(checkpointed(how, normed), "AdamW", schedule, lr=1e-2)
    for m, optimizer in pairs:
        train(m, optimizer, loss=under(hooks(), squares), data=sequences, steps=3)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


@schedules
@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "not reentrant"])
@hooked
def test_hooks_inside_of_checkpoints_are_torchs(hooks, how, schedule):
    kept = hooks()  # one staging buffer for all layers
    pairs = both(checkpointed(how, inside=None), "AdamW", schedule, lr=1e-2)
    for m, optimizer in pairs:
        m.inside = lambda: kept
        train(m, optimizer, loss=squares, data=sequences, steps=3)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("how", [True, False], ids=["reentrant", "not reentrant"])
def test_q_k_and_v_share_one_x_under_checkpoints(how, normed):
    held = []
    for checkpointing in (None, how):
        model = checkpointed(checkpointing, normed)
        optimizer = forge.SGD(model, lr=0.1, collapse="never")
        squares(model, sequences(0)).backward()
        held.append(forge.report(optimizer).held_terms)
    if how and not normed:
        return  # X is the checkpoint's own detached input, whose memory may be the user's
    assert held[1] <= held[0]


# ---- Gradients in buffers --------------------------------------------------------------------------------


def multiplied_into(buffer, grad):
    return torch.mul(grad, 0.5, out=buffer)


def written_by_numpy(buffer, grad):
    buffer.numpy()[...] = 0.5 * grad.numpy()
    return buffer


def as_a_view(buffer, grad):
    buffer.numpy()[...] = 0.5 * grad.numpy()
    return buffer.view(-1).view(buffer.shape)


class HalvedInABuffer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, buffer):
        ctx.buffer = buffer
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return written_by_numpy(ctx.buffer, grad), None


def by_a_function(x, buffer):
    return HalvedInABuffer.apply(x, buffer)


def by_a_hook(write):
    def through(x, buffer):
        x.register_hook(lambda grad: write(buffer, grad))
        return x

    through.__name__ = write.__name__
    return through


THROUGH = [by_a_function, *map(by_a_hook, (multiplied_into, written_by_numpy, as_a_view))]


@schedules
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24)])
@pytest.mark.parametrize("through", THROUGH, ids=lambda f: f.__name__)
def test_gradients_that_come_in_one_buffer_are_torchs(through, shape, schedule):
    """torch has consumed a gradient when the next is written."""
    torch.manual_seed(0)
    pairs = both(nn.ModuleList(nn.Linear(24, 24) for _ in range(3)), "AdamW", schedule, lr=1e-2)
    for layers, optimizer in pairs:
        buffer = torch.zeros(shape)

        def loss(layers, seed, buffer=buffer):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            for layer in layers:
                x = through(layer(x), buffer)
            return x.square().mean()

        train(layers, optimizer, loss=loss, data=lambda seed: seed, steps=3)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


@schedules
def test_gradients_of_embeddings_that_come_in_one_buffer_are_torchs(schedule):
    torch.manual_seed(0)
    pairs = both(nn.ModuleList(nn.Embedding(9, 8) for _ in range(3)), "AdamW", schedule, lr=1e-2)
    for tables, optimizer in pairs:
        buffer = torch.zeros(4, 8)

        def loss(tables, seed, buffer=buffer):
            index = torch.tensor([1, 3, 3, 7])
            return sum((i + 1) * by_a_function(table(index), buffer).square().sum() for i, table in enumerate(tables))

        train(tables, optimizer, loss=loss, data=lambda seed: seed, steps=3)
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


# ---- Memory that is swapped ------------------------------------------------------------------------------


@schedules
def test_a_weight_with_other_memory_in_backward_is_differentiated_as_it_was_used(schedule):
    pairs = both(mlp(), "SGD", schedule, lr=0.1)
    for model, optimizer in pairs:
        loss = mlp_loss(model, points(0))
        model[2].weight.data = 3 * model[2].weight.data
        loss.backward()
        optimizer.step()
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, "SGD")


@schedules
def test_an_input_with_other_memory_before_step_was_what_it_was(schedule):
    pairs = both(mlp(), "AdamW", schedule, lr=1e-2)
    for model, optimizer in pairs:
        x = points(0).requires_grad_()
        seen = 1.0 * x
        loss = mlp_loss(model, seen.view(5, 12))
        loss.backward()
        seen.data = torch.zeros(5, 12)
        x.data.numpy()[...] = 7
        optimizer.step()
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


@schedules
def test_the_users_own_tensor_seen_through_a_view_may_be_filled_again_before_step(schedule):
    pairs = both(mlp(), "AdamW", schedule, lr=1e-2)
    for model, optimizer in pairs:
        x = points(0).view(1, 5, 12).requires_grad_()
        mlp_loss(model, x.flatten(0, 1)).backward()
        with torch.no_grad():
            x.fill_(7)
        optimizer.step()
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs)


def freed(activation):
    activation.untyped_storage().resize_(0)


def changed(activation):
    activation.mul_(0)


@pytest.mark.parametrize("spoil", [freed, changed], ids=lambda f: f.__name__)
def test_an_activation_that_is_gone_before_step_is_refused_and_no_weight_moves(spoil):
    model = mlp()
    optimizer = forge.AdamW(model)
    kept = []
    model[1].register_forward_hook(lambda module, args, y: kept.append(y.detach()))
    mlp_loss(model, points(0)).backward()
    before = [p.detach().clone() for p in model.parameters()]
    spoil(kept[0])
    for call in (optimizer.step, lambda: model[2].weight.grad.norm(), lambda: model[2].weight.grad.dense()):
        with pytest.raises(RuntimeError, match="after backward"):
            call()
    assert all(map(torch.equal, before, model.parameters()))
