"""Fused models under torch.compile: they train as the same models do unfused and not compiled."""

import copy
import functools
import io

import pytest
from compiling import (  # noqa: F401  (fixtures)
    BACKENDS,
    Side,
    backends,
    matrices,
    need_compiler,
    nothing_is_compiled_yet,
    nothing_stays_compiled,
    sides,
    two_layers,
    whole_graph,
)
from models import (
    RULES,
    SCHEDULES,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    both,
    difference,
    forge,
    is_factored,
    points,
    quietly,
    schedules,
    snapshot,
    text,
    text_loss,
    tokens,
    torch,
    torch_optimizer,
    train,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

# ---- Whole models ----------------------------------------------------------------------------------------------------

TIED, UNTIED, CONV1D, CHECKPOINTED = {}, {"tied": False}, {"conv1d": True}, {"checkpoint": "nonreentrant"}

WHOLE_MODELS = [
    (TIED, "AdamW", "at_step", "eager"),
    (TIED, "AdamW", "in_backward", "aot_eager"),
    (TIED, "SGD", "at_step", "aot_eager"),
    (UNTIED, "SGD", "in_backward", "eager"),
    (CONV1D, "SGD", "at_step", "eager"),
    (CONV1D, "AdamW", "in_backward", "aot_eager"),
    (CHECKPOINTED, "AdamW", "at_step", "aot_eager"),
    # Not with "eager", which runs the block again from what it was given, and that includes weights already updated.
    (CHECKPOINTED, "SGD", "in_backward", "aot_eager"),
]


def trains_as_torch(model, rule, schedule, backend, **options):
    (theirs, their_opt), (ours, our_opt) = both(model, schedule=schedule, **RULES[rule])
    call, recorded = whole_graph(ours, backend, **options), []

    def look(i):
        recorded.append(is_factored(*matrices(ours)))

    losses = train(call, our_opt, steps=3, before_step=look)
    assert recorded == [True] * 3
    assert_same_losses(losses, train(theirs, their_opt, steps=3))
    assert_same_weights(ours, theirs, rule)


@pytest.mark.parametrize(("kwargs", "rule", "schedule", "backend"), WHOLE_MODELS)
def test_a_compiled_model_trains_as_torch_does(kwargs, rule, schedule, backend):
    if "conv1d" in kwargs:
        pytest.importorskip("transformers")
    trains_as_torch(text(blocks=1, **kwargs), rule, schedule, backend)


def test_a_model_compiled_by_inductor_trains_as_torch_does():
    need_compiler()
    trains_as_torch(text(blocks=1, **CHECKPOINTED), "AdamW", "at_step", "inductor", mode="reduce-overhead")


# ---- One graph for many ----------------------------------------------------------------------------------------------


def test_one_graph_serves_every_optimizer():
    counter = CompileCounterWithBackend("eager")
    theirs, ours = sides(backend=counter)
    for side in (theirs, ours):
        side.compile()
        for i in range(10):  # more than a function may be compiled for
            side.schedule = SCHEDULES[i % 2]
            side.optimize()
            side.step(i)
    assert counter.frame_count == 1
    assert_same_weights(ours.model, theirs.model, "SGD")


@backends
def test_one_graph_serves_blocks_that_are_alike_and_each_keeps_its_gradient(backend):
    counter = CompileCounterWithBackend(backend)
    torch.manual_seed(0)
    theirs = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    ours = copy.deepcopy(theirs)
    forge.fuse(ours, verbose=False)
    # The last block is nobody's.
    their_opt = torch.optim.SGD(theirs[:3].parameters(), lr=0.1)
    our_opt = forge.SGD(ours[:3].parameters(), lr=0.1)
    for block in ours:
        block.compile(backend=counter, fullgraph=True)
    for model, optimizer in ((theirs, their_opt), (ours, our_opt)):
        for i in range(3):
            model.zero_grad()
            x = points(i)[:, :6].requires_grad_() * 1  # as between blocks
            model(x).square().sum().backward()
            optimizer.step()
    assert counter.frame_count == 2  # one for what is recorded and one for what is not
    assert [is_factored(block.weight) for block in ours] == [True, True, True, False]
    torch.testing.assert_close(ours[3].weight.grad, theirs[3].weight.grad)
    assert_same_weights(ours, theirs, "SGD")


def test_a_model_that_came_through_a_file_has_gradients_of_its_own():
    _, ours = sides()
    ours.optimize()
    ours.compile()
    file = io.BytesIO()
    torch.save(ours.model, file)
    file.seek(0)
    read = Side(torch.load(file, weights_only=False), fused=True)
    read.compile()
    ours.backward(0)
    read.backward(1)
    assert (ours.recorded, read.recorded) == ([True], [False])
    assert all(len(p.grad._gradient.terms) == 1 for p in matrices(ours.model))


def test_a_model_whose_optimizer_has_ended_is_compiled_as_any_other():
    theirs, ours = sides()
    ours.optimize()
    ours.drop()
    ours.compile()
    gradients = []
    for side in (theirs, ours):
        side.model[0].weight.register_hook(lambda g: 2 * g)
        gradients.append(torch.autograd.grad(side.loss(0), matrices(side.model)))
    torch.testing.assert_close(*gradients)


@pytest.fixture
def process_group():
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("order", ["compiled inside", "compiled outside"])
def test_under_ddp_it_records_and_trains_as_torch_does(order, process_group):
    ddp = torch.nn.parallel.DistributedDataParallel
    theirs, ours = sides()
    for side in (theirs, ours):
        side.optimize()
    if order == "compiled inside":
        ours.call = ddp(whole_graph(ours.model))
    else:
        ours.call = torch.compile(ddp(ours.model), backend="aot_eager")
    for side in (theirs, ours):
        quietly(side.steps, 0, 1)
    assert all(isinstance(p.grad, forge.FactoredGrad) for p in matrices(ours.model))  # multiplied out to be averaged
    assert_same_weights(ours.model, theirs.model, "SGD")


# ---- What is in a graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_gradient_of_a_matrix_is_stored(schedule):
    _, ours = sides(schedule)
    ours.optimize()
    ours.compile()
    ours.step(0, count=1)
    weights = sum(p.numel() for p in matrices(ours.model))
    terms = sum(sum(p.shape) for p in matrices(ours.model))
    vectors = sum(p.numel() for p in ours.model.parameters()) - weights
    assert forge.report(ours.optimizer).peak_gradient <= 4 * (terms + vectors) < 4 * weights / 2


@pytest.mark.parametrize(("backend", "dtype"), [("eager", torch.bfloat16), ("aot_eager", torch.float32)])
def test_its_bits_are_those_of_the_fused_model_that_is_not_compiled(backend, dtype):
    plain, compiled = (text(blocks=1).to(dtype) for _ in range(2))
    for model in (plain, compiled):
        optimizer = forge.SGD(model, lr=0.1, momentum=0.9)
        train(model if model is plain else whole_graph(model, backend), optimizer, steps=2)
    assert_equal_bits(plain, compiled)


@pytest.mark.parametrize(("backend", "dtype"), [("eager", torch.float16), ("aot_eager", torch.bfloat16)])
def test_under_autocast_it_trains_as_near_to_fp32_as_torch_does(backend, dtype):
    def autocast_loss(model, ids):
        with torch.autocast("cpu", dtype=dtype):
            return text_loss(model, ids)

    reference = text(blocks=1)
    (theirs, their_opt), (ours, our_opt) = both(text(blocks=1), **RULES["SGD"])
    train(reference, torch_optimizer(params=reference, **RULES["SGD"]), steps=3)
    train(theirs, their_opt, steps=3, loss=autocast_loss)
    call = whole_graph(ours, backend)
    train(call, our_opt, steps=3, loss=autocast_loss)
    assert is_factored(*matrices(ours))
    # The factors have the same few bits; torch rounds their product to as many, we do not.
    assert difference(ours, reference) <= 1.2 * difference(theirs, reference)
    assert text_loss(call, tokens(9)) == text_loss(ours, tokens(9))  # without autocast again


SHAPES = {
    "one vector": lambda: points(0)[0],
    "a batch of sequences": lambda: points(0, 6).view(2, 3, 12),
    "no sequences": lambda: torch.empty(2, 0, 12),
    "columns of another tensor": lambda: torch.arange(60.0).view(12, 5).t() / 60,
    "an expanded row": lambda: points(0)[:1].expand(4, 12),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_of_any_shape_give_torchs_gradients(shape):
    theirs, ours = sides()
    ours.optimize()
    ours.compile()
    for side in (theirs, ours):
        side.call(SHAPES[shape]()).square().sum().backward()
    ours.look()
    assert ours.recorded == [True]
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad.dense() if a.dim() == 2 else a.grad, b.grad)


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_padding_is_left_out_whatever_arrives_there(index):
    torch.manual_seed(0)
    theirs = nn.Embedding(6, 4, padding_idx=2)
    ours = copy.deepcopy(theirs)
    optimizer = forge.SGD(ours, lr=0.1)
    call = whole_graph(ours)
    ids = torch.tensor([[0, 2, 5], [5, 2, 1]], dtype=index)
    for model in (theirs, call):
        (model(ids) * torch.where(ids == 2, torch.inf, 0.5).unsqueeze(2)).sum().backward()
    assert is_factored(ours.weight)
    assert torch.equal(ours.weight.grad.dense(), theirs.weight.grad)
    optimizer.step()


def test_a_mismatch_of_dtypes_is_refused_as_it_is_without_compiling():
    _, ours = sides()
    ours.optimize()
    ours.compile()
    with pytest.raises(RuntimeError, match="dtype"):
        ours.call(points(0).double())


# ---- Function transforms ---------------------------------------------------------------------------------------------

TRANSFORMED = {
    "vmap": lambda model, x: torch.func.vmap(model)(x).square().sum(),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).square().sum())(x).square().sum(),
}


@pytest.mark.parametrize("transform", TRANSFORMED)
def test_under_a_function_transform_gradients_are_ordinary_and_right(transform):
    theirs, ours = sides(backend="aot_eager")
    ours.optimize()
    for side in (theirs, ours):
        function = functools.partial(TRANSFORMED[transform], side.model)
        (whole_graph(function) if side.fused else function)(points(0)).backward()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_an_exported_model_has_none_of_our_operations():
    _, ours = sides()
    ours.optimize()
    program = torch.export.export(ours.model, (points(0),))
    assert not [node for node in program.graph.nodes if "forge" in str(node.target)]
    assert torch.equal(program.module()(points(1)), ours.model(points(1)))


# ---- What is refused -------------------------------------------------------------------------------------------------

REFUSED = {}  # name: (what is done to a side, the message, its backends)


def refused(message, backends=BACKENDS):
    def enter(function):
        REFUSED[function.__name__.replace("_", " ")] = (function, message, backends)
        return function

    return enter


@refused("got gradient hooks after its graph was compiled")
def a_hook_after_compiling(side, undo):
    undo.append(side.model[0].weight.register_hook(lambda g: 2 * g).remove)
    side.backward(1)


@refused("got gradient hooks after its graph was compiled")
def a_hook_after_accumulation_after_compiling(side, undo):
    undo.append(side.model[0].weight.register_post_accumulate_grad_hook(lambda p: None).remove)
    side.backward(1)


@refused("torch.autograd.grad for a weight")
def autograd_grad_for_a_weight(side, undo):
    torch.autograd.grad(side.loss(1), [side.model[2].weight])


@refused("create_graph", backends=["aot_eager"])
def create_graph(side, undo):
    side.loss(1).backward(create_graph=True)


@refused("copy of a weight", backends=["aot_eager"])
def saved_tensor_hooks_that_copy_weights(side, undo):
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.clone, lambda t: t):
        loss = side.loss(1)
    loss.backward()


@refused("compiled_args|compiled autograd is not supported")
def compiled_autograd(side, undo):
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend=side.backend)):
        side.backward(1)


@refused("torch.autograd.grad for a weight")
def a_backward_pass_in_the_graph(side, undo):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace backward passes")

    def backward(model, x):
        loss = model(x).square().sum()
        loss.backward()
        return loss.detach()

    side.optimizer.zero_grad()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        whole_graph(backward, side.backend)(side.model, points(1))


@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name, (_, _, backends) in REFUSED.items() for backend in backends]
)
def test_refused_with_one_error_and_training_goes_on(name, backend):
    function, message, _ = REFUSED[name]
    theirs, ours = sides(backend=backend)
    for side in (theirs, ours):
        side.optimize()
        side.compile()
        side.step(0)
    before, undo = snapshot(ours.model, ours.optimizer), []
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        function(ours, undo)
    assert ours.optimizer.state_dict()["state"].keys() == before[1].keys()
    assert_equal_bits([p.detach() for p in ours.model.parameters()], before[0])
    for end in undo:
        end()
    for side in (theirs, ours):
        side.step(2)
    assert_same_weights(ours.model, theirs.model, "SGD")


@backends
def test_a_second_backward_in_backward_is_refused_before_a_weight_is_touched(backend):
    _, ours = sides("in_backward", backend=backend)
    ours.optimize()
    ours.compile()
    ours.backward(0)
    before = [p.detach().clone() for p in ours.model.parameters()]
    with pytest.raises(RuntimeError, match="a second backward|applied inside backward"):
        ours.backward(1)
    assert_equal_bits([p.detach() for p in ours.model.parameters()], before)


# ---- The whole training step -----------------------------------------------------------------------------------------


def training_step(model, optimizer, x):
    optimizer.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    return loss.detach()


def test_a_training_step_compiled_as_a_whole_breaks_its_graph_and_is_right():
    (theirs, their_opt), (ours, our_opt) = both(two_layers(), **RULES["SGD"])
    compiled_step = torch.compile(training_step, backend="aot_eager")
    losses = [training_step(theirs, their_opt, points(i)) for i in range(2)]
    torch.testing.assert_close([quietly(compiled_step, ours, our_opt, points(i)) for i in range(2)], losses)
    assert is_factored(*matrices(ours))
    assert_same_weights(ours, theirs, "SGD")


def test_a_training_step_whose_graph_may_not_break_is_refused():
    (_, _), (ours, our_opt) = both(two_layers(), **RULES["SGD"])
    before = [p.detach().clone() for p in ours.parameters()]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole_graph(training_step)(ours, our_opt, points(0))
    assert_equal_bits([p.detach() for p in ours.parameters()], before)


@schedules
def test_step_and_zero_grad_may_be_compiled(schedule):
    theirs, ours = sides(schedule)
    for side in (theirs, ours):
        side.optimize()
        side.compile()
        compiler = torch.compile(backend="eager") if side.fused else (lambda function: function)
        step, zero_grad = compiler(side.optimizer.step), compiler(side.optimizer.zero_grad)
        for i in range(3):
            zero_grad()
            side.backward(i)
            step()
    assert ours.recorded == [True] * 3
    assert_same_weights(ours.model, theirs.model, "SGD")


@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_norm_, forge.clip_grad_norm_])
def test_clipping_may_be_compiled(clip):
    theirs, ours = sides()
    for side in (theirs, ours):
        side.optimize()
        side.compile()
        compiled_clip = torch.compile(clip, backend="eager") if side.fused else clip
        for i in range(2):
            side.optimizer.zero_grad()
            side.backward(i)
            quietly(compiled_clip, list(side.model.parameters()), 0.1)
            side.optimizer.step()
    assert_same_weights(ours.model, theirs.model, "SGD")


def test_a_function_of_a_gradient_may_be_compiled():
    theirs, ours = sides()
    for side in (theirs, ours):
        side.optimize()
        side.compile()
        side.backward(0)
    double = torch.compile(lambda p: p.grad.mul_(2), backend="eager")
    quietly(double, ours.model[0].weight)
    torch.testing.assert_close(ours.model[0].weight.grad.dense(), 2 * theirs.model[0].weight.grad)
