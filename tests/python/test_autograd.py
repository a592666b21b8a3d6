"""What autograd offers beyond backward(): checkpointing, other derivatives, hooks."""

import copy

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import (  # noqa: E402
    RULES,
    SECOND_UPDATE,
    assert_same_weights,
    assert_unchanged,
    both,
    is_factored,
    mlp,
    mlp_loss,
    points,
    rules,
    schedules,
    snapshot,
    square_loss,
    text,
    text_loss,
    tokens,
    torch_clip,
    train,
    train_both,
)
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

# ---- Checkpointing ---------------------------------------------------------------------------------------


@schedules
@rules
@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("tied", [True, False])
def test_gradient_checkpointing_is_as_in_torch(kind, rule, schedule, tied):
    model = text(tied=tied, checkpoint=kind)
    train_both(both(model, schedule=schedule, **RULES[rule]), rule)


@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
def test_gradient_checkpointing_with_accumulation_and_clipping(kind):
    pairs = both(text(checkpoint=kind), "AdamW", lr=1e-2)
    for model, optimizer in pairs:
        train(model, optimizer, micro=3, before_step=lambda i, m=model: torch_clip(m.parameters(), 0.05))
    assert_same_weights(pairs[1][0], pairs[0][0])


class Shared(nn.Module):
    """One layer, used in several checkpointed blocks."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.layer, self.reentrant = nn.Linear(12, 12), nn.Linear(12, 12), reentrant

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = checkpoint(lambda x: torch.tanh(self.layer(x)), x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_shared_by_checkpointed_blocks_is_as_in_torch(reentrant):
    torch.manual_seed(0)
    train_both(both(Shared(reentrant), "AdamW", lr=1e-2), "AdamW", loss=square_loss, data=points)


def test_in_backward_a_layer_shared_by_checkpointed_blocks_is_right_or_raises():
    torch.manual_seed(0)
    train_both(both(Shared(False), "AdamW", "in_backward", lr=1e-2), "AdamW", loss=square_loss, data=points)
    # A reentrant block is a backward pass of its own: the layer would be updated once for each.
    model = Shared(True)
    forge.fuse(model, verbose=False)
    optimizer = forge.AdamW(model, schedule="in_backward")
    with pytest.raises(RuntimeError, match=SECOND_UPDATE):
        square_loss(model, points(0)).backward()
    del optimizer


# ---- Derivatives of other kinds --------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.filterwarnings("ignore:Using backward:UserWarning", "ignore::forge_optim.StoredGradientWarning")
def test_what_is_differentiated_twice_has_torchs_gradients(kind, schedule):
    if kind == "linear":
        layer, x = nn.Linear(3, 4), torch.ones(2, 3)
    else:
        layer, x = nn.Embedding(3, 4), torch.tensor([0, 2])
    pairs = both(layer, "SGD", schedule, lr=0.1)
    for model, optimizer in pairs:
        (first,) = torch.autograd.grad(model(x).pow(3).sum(), [model.weight], create_graph=True)
        first.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule == "at_step":
            model(x).square().sum().backward(create_graph=True)
            optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")
    assert ("weight" in forge.report(pairs[1][1]).ordinary) == (schedule == "at_step")


@rules
def test_a_gradient_penalty_on_the_input_is_as_in_torch(rule):
    def loss(model, x):
        x = x.clone().requires_grad_()
        y = mlp_loss(model, x)
        (dx,) = torch.autograd.grad(y, [x], create_graph=True)
        return y + (dx.square().sum(1).sqrt() - 1).square().mean()

    pairs = both(mlp(), **RULES[rule])
    train_both(pairs, rule, loss=loss, data=points)


@schedules
def test_autograd_grad_gives_a_dense_gradient_and_leaves_grad_alone(schedule):
    (theirs, _), (ours, our_opt) = both(text(), "AdamW", schedule)
    before = snapshot(ours, our_opt)
    grads = []
    for model in (theirs, ours):
        wanted = [model.embedding.weight, model.blocks[0].up.weight, model.blocks[0].up.bias]
        grads.append(torch.autograd.grad(text_loss(model, tokens(0)), wanted))
        assert all(p.grad is None for p in model.parameters())
    assert {type(g) for g in grads[1]} == {torch.Tensor}
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-7)
    assert_unchanged(ours, our_opt, before)
    # And the weights not asked for were not recorded.
    assert forge.report(our_opt).held_terms == 0


def test_autograd_grad_in_the_middle_of_accumulation_changes_nothing():
    pairs = both(text(), "SGD", lr=0.1)
    for model, optimizer in pairs:
        text_loss(model, tokens(0)).backward()
        torch.autograd.grad(text_loss(model, tokens(1)), [model.embedding.weight])
        text_loss(model, tokens(2)).backward()
        optimizer.step()
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


@schedules
def test_backward_with_inputs_reaches_those_only(schedule):
    pairs = both(text(), "SGD", schedule, lr=0.1)
    touched = []
    for model, optimizer in pairs:
        inputs = [model.blocks[1].up.weight, model.blocks[0].up.bias, model.embedding.weight]
        text_loss(model, tokens(0)).backward(inputs=inputs)
        touched.append([name for name, p in model.named_parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
    assert touched[0] == touched[1]
    (theirs, _), (ours, _) = pairs
    assert_same_weights(ours, theirs, "SGD")
    assert torch.equal(ours.blocks[1].down.weight, text().blocks[1].down.weight)


def stacked_grads(model, x):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)


TRANSFORMS = {
    "vmap": lambda m, x: torch.func.vmap(m)(x),
    "vmap of grad, by functional_call": stacked_grads,
    "grad": lambda m, x: torch.func.grad(lambda x: m(x).square().sum())(x),
    "jacrev": lambda m, x: torch.func.jacrev(m)(x),
    "jacfwd": lambda m, x: torch.func.jacfwd(m)(x),
    "hessian": lambda m, x: torch.func.hessian(lambda x: m(x).square().sum())(x),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),)),
    "vjp": lambda m, x: torch.func.vjp(m, x)[1](torch.ones(len(x), 7)),
    "jvp along the weights": lambda m, x: torch.func.jvp(
        lambda p: torch.func.functional_call(m, p, (x,)),
        ({"0.weight": m[0].weight.detach()},),
        ({"0.weight": torch.ones_like(m[0].weight)},),
    ),
    "forward AD": lambda m, x: forward_ad(m, x),
    "functional_call": lambda m, x: torch.func.functional_call(
        m, {name: 2 * p.detach() for name, p in m.named_parameters()}, (x,)
    ),
}


def forward_ad(model, x):
    with torch.autograd.forward_ad.dual_level():
        y = model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        return torch.autograd.forward_ad.unpack_dual(y)


@schedules
@pytest.mark.parametrize("how", TRANSFORMS)
def test_function_transforms_of_a_fused_module_are_right(how, schedule):
    (theirs, _), (ours, our_opt) = both(mlp(), "AdamW", schedule)
    before = snapshot(ours, our_opt)
    expected, got = (torch.utils._pytree.tree_leaves(TRANSFORMS[how](m, points(0))) for m in (theirs, ours))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in ours.parameters())
    assert_unchanged(ours, our_opt, before)


def test_no_grad_and_inference_mode_record_nothing_and_have_the_same_bits():
    (theirs, _), (ours, our_opt) = both(text(), "AdamW")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(ours(tokens(0)), theirs(tokens(0)))
    assert torch.equal(ours(tokens(0)), theirs(tokens(0)))
    assert forge.report(our_opt).held_terms == 0
    with torch.inference_mode():
        x = torch.ones(2, 12)
    layer = nn.Linear(12, 3)
    fused = copy.deepcopy(layer)
    optimizer = forge.AdamW(fused)
    for m in (layer, fused):
        m(x.clone()).sum().backward()
    torch.testing.assert_close(fused.weight.grad.dense(), layer.weight.grad)
    del optimizer


@schedules
def test_evaluation_between_steps_changes_nothing(schedule):
    def evaluate(i, model):
        model.eval()
        with torch.no_grad():
            text_loss(model, tokens(100 + i))
        with torch.inference_mode():
            text_loss(model, tokens(200 + i))
        model.train()

    pairs = both(text(), "AdamW", schedule, lr=1e-2)
    for model, optimizer in pairs:
        train(model, optimizer, after_step=lambda i, m=model: evaluate(i, m))
    assert_same_weights(pairs[1][0], pairs[0][0])


def test_module_and_tensor_hooks_see_what_they_see_with_torch():
    seen = []
    for model, optimizer in both(mlp(), "SGD", lr=0.1):
        notes = []
        model[2].register_forward_hook(lambda m, args, y, notes=notes: notes.append(y.detach().clone()))
        model[2].register_full_backward_hook(lambda m, dx, dy, notes=notes: notes.extend([*dx, *dy]))
        model[0].register_full_backward_pre_hook(lambda m, dy, notes=notes: notes.extend(dy))
        mlp_loss(model, points(0)).backward()
        optimizer.step()
        seen.append(notes)
    torch.testing.assert_close(seen[1], seen[0])
    assert len(seen[0]) == 4


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_weight_sees_the_dense_gradient_and_may_change_it(register):
    pairs = both(mlp(), "SGD", lr=0.1)
    seen = []
    for model, optimizer in pairs:

        def hook(given, seen=seen):
            grad = given if register == "register_hook" else given.grad
            seen.append(grad.clone())
            if register == "register_hook":
                return 2 * grad
            grad.mul_(2)

        getattr(model[0].weight, register)(hook)
        mlp_loss(model, points(0)).backward()
        assert type(model[0].weight.grad) is torch.Tensor
        optimizer.step()
    torch.testing.assert_close(seen[1], seen[0])
    assert_same_weights(pairs[1][0], pairs[0][0], "SGD")


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_that_is_gone_does_not_cost_a_dense_gradient(register):
    model = mlp()
    optimizer = forge.SGD(model, lr=0.1)
    getattr(model[0].weight, register)(lambda _: None).remove()
    mlp_loss(model, points(0, count=2)).backward()
    assert is_factored(model[0].weight)
    del optimizer
