"""What may happen around a compiled model: optimizers that come and go, gradients and weights that are changed."""

import copy

import pytest
from compiling import (  # noqa: F401  (fixtures)
    BACKENDS,
    Side,
    need_compiler,
    nothing_is_compiled_yet,
    nothing_stays_compiled,
    sides,
    whole_graph,
)
from models import (
    RULES,
    SCHEDULES,
    assert_same_weights,
    forge,
    mlp_loss,
    points,
    quietly,
    schedules,
    torch,
    torch_optimizer,
)
from torch import nn

STORIES = {}  # name: (what is done to a side, what of it is recorded, its schedules, its backends)


def story(recorded, only=SCHEDULES, backends=("eager",)):
    """`recorded`: for each backward whether it is to be recorded; one value stands for all."""

    def enter(function):
        STORIES[function.__name__.replace("_", " ")] = (function, recorded, only, backends)
        return function

    return enter


def tell(name, schedule, backend):
    function, recorded, *_ = STORIES[name]
    theirs, ours = sides(schedule, backend=backend)
    quietly(function, ours)
    function(theirs)
    assert_same_weights(ours.model, theirs.model, "SGD")
    # In in_backward a weight's .grad only says that it was applied, whatever it was.
    if schedule == "at_step":
        assert ours.recorded == ([recorded] * len(ours.recorded) if isinstance(recorded, bool) else recorded)


# ---- Stories of optimizers -------------------------------------------------------------------------------------------


@story(recorded=True)
def an_optimizer_is_made_before_compiling(side):
    side.optimize()
    side.compile()
    side.steps(0, 1, 2)


@story(recorded=True)
def an_optimizer_is_made_before_the_first_call(side):
    side.compile()
    side.optimize()
    side.steps(0, 1, 2)


@story(recorded=[False, True, True])
def an_optimizer_is_made_after_the_first_call(side):
    side.compile()
    side.backward(0)
    side.optimize()
    side.steps(1, 2)


@story(recorded=[False, False, True], only=["at_step"])
def an_optimizer_is_made_with_gradients_there(side):
    side.compile()
    side.backward(0)
    side.optimize()
    side.backward(1)
    side.optimizer.step()
    side.step(2)


@story(recorded=True, backends=BACKENDS)
def an_optimizer_is_replaced(side):
    side.compile()
    for i in range(3):
        side.optimize()
        side.steps(2 * i, 2 * i + 1)


@story(recorded=True)
def an_optimizer_is_replaced_and_lives_on(side):
    side.compile()
    kept = []
    for i in range(3):
        side.optimize()
        kept.append(side.optimizer)
        side.steps(2 * i, 2 * i + 1)


@story(recorded=True)
def an_optimizer_of_the_other_schedule_takes_over(side):
    side.compile()
    side.optimize()
    side.steps(0, 1)
    side.schedule = next(s for s in SCHEDULES if s != side.schedule)
    side.optimize()
    side.steps(2, 3)


@story(recorded=[True, True, False, False, True])
def an_optimizer_of_torch_takes_over_for_a_while(side):
    side.compile()
    side.optimize()
    side.steps(0, 1)
    side.drop()
    side.optimizer = torch_optimizer(params=side.model.parameters(), **RULES["SGD"])
    side.steps(2, 3)
    side.optimize()
    side.step(4)


@story(recorded=[True, False, True], backends=BACKENDS)
def an_optimizer_ends_between_forward_and_backward(side):
    side.compile()
    side.optimize()
    side.step(0)
    side.optimizer.zero_grad()
    loss = side.loss(1)
    side.drop()
    loss.backward()
    side.look()
    side.optimize()
    side.optimizer.step()
    side.step(2)


@story(recorded=True)
def an_optimizer_takes_over_between_forward_and_backward(side):
    side.compile()
    side.optimize()
    side.step(0)
    side.optimizer.zero_grad()
    loss = side.loss(1)
    side.optimize()
    loss.backward()
    side.look()
    side.optimizer.step()
    side.step(2)


@story(recorded=True, only=["at_step"])
def an_optimizer_takes_over_between_backward_and_step(side):
    side.compile()
    side.optimize()
    side.backward(0)
    side.optimize()
    side.backward(1)
    side.optimizer.step()


@story(recorded=True)
def an_optimizer_loads_its_state(side):
    side.compile()
    side.optimize()
    for i in range(3):
        side.step(i)
        side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))


@story(recorded=True)
def two_optimizers_have_half_of_the_model_each(side):
    parameters = list(side.model.parameters())
    side.compile()
    one, other = side.new_optimizer(parameters[:2]), side.new_optimizer(parameters[2:])
    for i in range(3):
        side.model.zero_grad()
        side.backward(i)
        one.step()
        other.step()


@story(recorded=True, only=["at_step"])
def two_optimizers_have_the_same_parameters(side):
    side.compile()
    one, other = side.new_optimizer(), side.new_optimizer()
    for i in range(3):
        side.model.zero_grad()
        side.backward(i)
        one.step()
        other.step()


@story(recorded=[False, True])
def the_second_half_gets_its_optimizer_later(side):
    parameters = list(side.model.parameters())
    side.compile()
    one = side.new_optimizer(parameters[:2])
    side.backward(0)
    one.step()
    side.model.zero_grad()
    other = side.new_optimizer(parameters[2:])
    side.backward(1)
    one.step()
    other.step()


# ---- Stories of gradients --------------------------------------------------------------------------------------------


@story(recorded=True, backends=["aot_eager"])
def the_number_of_tokens_varies(side):
    side.optimize()
    side.compile()
    for i, count in enumerate((5, 3, 1, 0, 7)):
        side.step(i, count)


@story(recorded=True, only=["at_step"], backends=["aot_eager"])
def gradients_add_up_over_micro_batches_of_any_size(side):
    side.optimize()
    side.compile()
    for i in range(3):
        side.optimizer.zero_grad()
        for k, count in enumerate((4, 0, 2)):
            side.backward(3 * i + k, count)
        side.optimizer.step()


@story(recorded=True, only=["at_step"])
def the_norm_is_clipped(side):
    side.optimize()
    side.compile()
    for i, clip in enumerate((torch.nn.utils.clip_grad_norm_, forge.clip_grad_norm_, torch.nn.utils.clip_grad_norm_)):
        side.optimizer.zero_grad()
        side.backward(i)
        clip(side.model.parameters(), 0.1)
        side.optimizer.step()


@story(recorded=True, only=["at_step"])
def losses_are_scaled(side):
    side.optimize()
    side.compile()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i in range(3):
        side.optimizer.zero_grad()
        scaler.scale(side.loss(i)).backward()
        side.look()
        scaler.unscale_(side.optimizer)
        scaler.step(side.optimizer)
        scaler.update()


@story(recorded=True)
def it_is_evaluated_between_steps(side):
    side.optimize()
    side.compile()
    for i, mode in enumerate((torch.no_grad, torch.inference_mode, torch.no_grad)):
        side.step(i)
        side.model.eval()
        with mode():
            assert not side.call(points(i)).requires_grad
        side.model.train()
    side.loss(3)  # and one whose gradient nobody takes
    side.step(4)


@story(recorded=True, only=["at_step"], backends=["aot_eager"])
def two_forward_passes_come_before_two_backward_passes(side):
    side.optimize()
    side.compile()
    first, second = side.loss(0), side.loss(1, 3)
    second.backward()
    first.backward()
    side.look()
    side.optimizer.step()


@story(recorded=True, backends=BACKENDS)
def the_model_is_used_twice_in_one_loss(side):
    side.optimize()
    side.compile()
    for i in range(2):
        side.optimizer.zero_grad()
        (side.loss(i) * side.loss(i + 5, 3)).backward()
        side.look()
        side.optimizer.step()


@story(recorded=True, only=["at_step"], backends=BACKENDS)
def a_graph_is_kept_and_used_again(side):
    side.optimize()
    side.compile()
    loss = side.loss(0)
    loss.backward(retain_graph=True)
    loss.backward()
    side.look()
    side.optimizer.step()


@story(recorded=True, backends=BACKENDS)
def only_the_gradient_of_the_input_is_asked_for(side):
    side.optimize()
    side.compile()
    for i in range(2):
        side.optimizer.zero_grad()
        x = points(i).requires_grad_()
        assert torch.autograd.grad(mlp_loss(side.call, x), x)[0].abs().sum() > 0
        assert all(p.grad is None for p in side.model.parameters())
        side.step(i)


@story(recorded=[False, True], only=["at_step"])
def only_some_weights_are_asked_for(side):
    side.optimize()
    side.compile()
    asked = [side.model[0].bias, side.model[2].weight]
    side.loss(0).backward(inputs=asked)
    side.look()
    assert [p.grad is not None for p in side.model.parameters()] == [
        any(p is a for a in asked) for p in side.model.parameters()
    ]
    side.optimizer.step()
    side.step(1)


@story(recorded=[False, True], only=["at_step"])
def an_ordinary_gradient_is_there_already(side):
    side.optimize()
    side.compile()
    for p in side.model.parameters():
        p.grad = torch.full_like(p, 0.5)
    side.backward(0)
    side.optimizer.step()
    side.step(1)


@story(recorded=[True, False], only=["at_step"])
def a_gradient_is_multiplied_out_and_added_to(side):
    side.optimize()
    side.compile()
    side.backward(0)
    for p in side.model.parameters():
        p.grad.clamp_(-0.1, 0.1)
    side.backward(1)
    side.optimizer.step()


@story(recorded=True, only=["at_step"])
def gradients_are_set_to_zero(side):
    side.optimize()
    side.compile()
    for i in range(3):
        side.optimizer.zero_grad(set_to_none=False)
        side.backward(i)
        side.optimizer.step()


@story(recorded=True, backends=["aot_eager"])
def an_input_buffer_is_filled_again_before_the_step(side):
    side.optimize()
    side.compile()
    buffer = torch.empty(5, 12)
    for i in range(3):
        side.optimizer.zero_grad()
        buffer.copy_(points(i))
        mlp_loss(side.call, buffer).backward()
        side.look()
        buffer.fill_(9)
        side.optimizer.step()


@story(recorded=[False, False, True])
def hooks_are_there_before_compiling(side):
    side.optimize()
    def halve(p):
        p.grad.mul_(0.5)

    hooks = [
        side.model[0].weight.register_hook(lambda g: 2 * g),
        side.model[2].weight.register_post_accumulate_grad_hook(halve),
    ]
    side.compile()
    side.steps(0, 1)
    for hook in hooks:
        hook.remove()
    torch._dynamo.reset()
    side.step(2)


# ---- Stories of modules ----------------------------------------------------------------------------------------------


@story(recorded=[True, False, True])
def a_model_is_unfused_and_fused_again(side):
    side.optimize()
    side.compile()
    side.step(0)
    if side.fused:
        forge.unfuse(side.model)
    side.step(1)
    if side.fused:
        forge.fuse(side.model, verbose=False)
    side.step(2)


@story(recorded=True)
def weights_are_frozen_for_a_while(side):
    side.optimize()
    side.compile()
    for i, trained in enumerate((True, False, True)):
        side.optimizer.zero_grad()
        side.model[0].weight.requires_grad_(trained)
        side.step(i)


@story(recorded=True)
def weights_are_frozen_when_the_optimizer_is_made(side):
    weight = side.model[2].weight.requires_grad_(False)
    side.optimize()
    weight.requires_grad_(True)
    side.compile()
    side.steps(0, 1)


@story(recorded=True)
def everything_else_is_frozen(side):
    for p in side.model.parameters():
        p.requires_grad_(p is side.model[2].weight)
    side.optimize()
    side.compile()
    side.steps(0, 1)


@story(recorded=[True, False, True])
def a_weight_is_replaced(side):
    side.optimize()
    side.compile()
    side.step(0)
    side.model[0].weight = nn.Parameter(2 * side.model[0].weight.detach())
    side.step(1)  # this optimizer does not know it
    assert side.model[0].weight.grad is not None
    side.optimize()
    side.step(2)


@story(recorded=True)
def the_memory_of_a_weight_is_replaced(side):
    side.optimize()
    side.compile()
    for i in range(2):
        side.step(i)
        side.model[0].weight.data = 0.5 * side.model[0].weight.data
    side.step(2)


@story(recorded=True)
def a_model_is_copied_and_both_go_on(side):
    side.optimize()
    side.compile()
    side.step(0)
    other = Side(copy.deepcopy(side.model), side.fused, side.schedule)
    other.compile()
    other.backward(1)  # no optimizer has it yet
    other.optimize()
    side.step(2)
    other.steps(3, 4)
    side.step(5)
    side.model.append(other.model)  # to be compared as well


@story(recorded=True)
def the_parameters_are_swapped_for_others_in_a_call(side):
    side.optimize()
    side.compile()
    side.step(0)
    others = {name: p.detach().clone().requires_grad_() for name, p in side.model.named_parameters()}
    call = side.call

    def swapped(x):
        return torch.func.functional_call(side.model, others, (x,))

    side.call = whole_graph(swapped, side.backend) if side.fused else swapped
    side.optimizer.zero_grad()
    side.loss(1).backward()
    assert all(p.grad is None for p in side.model.parameters())
    assert all(type(p.grad) is torch.Tensor for p in others.values())
    side.call = call
    side.step(2)


@pytest.mark.parametrize(
    ("name", "schedule", "backend"),
    [
        (name, schedule, backend)
        for name, (_, _, only, of_story) in STORIES.items()
        for schedule in only
        for backend in of_story
    ],
)
def test_a_compiled_model_is_right_where(name, schedule, backend):
    tell(name, schedule, backend)


@schedules
def test_what_inductor_records_is_right_though_memory_is_used_again(schedule):
    need_compiler()
    tell("an input buffer is filled again before the step", schedule, "inductor")
