"""Two ranks send, receive and reduce p.grad of a fused weight: every collective beside torch's own training."""

import ast
import functools
import inspect
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import models
import pytest
import torch
from collective_lines import CALLS, LINES, ROUNDED
from factored import IN, OUT, Side, assert_same, lines, numbers, whole
from ranks import run_ranks
from torch import nn

forge = pytest.importorskip("forge_optim")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

RANKS = 2


# ---- The two sides on a rank -----------------------------------------------------------------------------------------

# On each line g is p.grad, h that of a second fused weight, v that of a bias; d, e, both and half are ordinary tensors.
# All differ between the ranks.
NAMES = """
import collections
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as through
import torch.distributed.tensor as dtensor
from factored import IN, OUT
from torch import nn
from torch.distributed.algorithms.model_averaging import averagers, hierarchical_model_averager, utils as averaging
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
rank, other, group = dist.get_rank(), 1 - dist.get_rank(), dist.group.WORLD
name, backend = group.group_name, group._get_backend(torch.device("cpu"))
native, mesh = torch.ops._c10d_functional, dtensor.DeviceMesh.from_group(group, "cpu")
"""

EXPOSED = "held.append((g.view(-1), h.view(-1)))"
STATES = {
    "a term": dict(steps=["backward(1 + 10 * rank)"]),
    "rows, scaled, bf16": dict(
        steps=["backward(1 + 10 * rank)", "g.mul_(0.5); h.mul_(0.5)", "backward(2 + 10 * rank)"],
        kind="embedding",
        dtype=torch.bfloat16,
    ),
    "exposed": dict(steps=["backward(1 + 10 * rank)", EXPOSED, "backward(2 + 10 * rank)"]),
    "outgrown, exposed on one rank": dict(steps=["backward(1 + 10 * rank, tokens=12)", f"rank and {EXPOSED}"]),
    "zeroed": dict(steps=["backward(1 + 10 * rank)", "g.zero_(); h.zero_()"]),
}
CORE = ("a term", "exposed", "zeroed")  # the others see the plain calls only, to save time


@functools.cache
def names():
    common = {}
    exec(NAMES, common)
    return common


@functools.cache
def compiled(line):
    """With what its last expression gives as `result`."""
    tree = ast.parse(line)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("result", ast.Store())], tree.body[-1].value)
    return compile(ast.fix_missing_locations(tree), line, "exec")


class RankSide(Side):
    def __init__(self, fused, state):
        options = dict(STATES[state])
        steps = options.pop("steps")
        super().__init__(fused, **options)
        rank = dist.get_rank()
        d, e = whole(7, OUT, IN, dtype=self.dtype) + rank, whole(8, OUT, IN, dtype=self.dtype) + 0.5 - rank
        self.names = names() | {
            "model": self.model, "opt": self.opt, "p": self.p, "q": self.q, "b": self.b,
            "d": d, "e": e, "both": torch.cat([d, e]), "half": d[: OUT // 2].clone(),
            "held": self.held, "backward": self.backward,
        }  # fmt: skip
        for step in steps:
            self.do(step)
        assert isinstance(self.p.grad, forge.FactoredGrad) == fused

    def do(self, line, **more):
        scope = self.names | {"g": self.p.grad, "h": self.q.grad, "v": self.b.grad} | more
        exec(compiled(line), scope)
        return scope.get("result")

    def attempt(self, line):
        """What the line gives, or the kind of error that it raises. An attribute may be of a newer torch."""
        try:
            return self.do(line)
        except (RuntimeError, ValueError, AttributeError) as error:
            return f"raises {type(error).__name__}"


# ---- What is equal ---------------------------------------------------------------------------------------------------

ULPS = 64


def variants(call):
    """The call as a line, twice where it says `later`."""
    return [f"w = {call.replace('later', later)}; w and w.wait(); d, e, both, half" for later in ways(call)]


def ways(call):
    return ["False", "True"] if "later" in call else [""]


# Each line with the ulps that it may be off by.
TABLE = {line: 0 for call in CALLS for line in variants(call)} | dict.fromkeys(LINES, 0) | dict.fromkeys(ROUNDED, ULPS)


def lines_in(state):
    return [line for line in TABLE if state in CORE or line not in LINES]


# ---- Equal -----------------------------------------------------------------------------------------------------------


def first_difference(line, state, goes_on):
    """Runs the line on both sides, then an update, with another backward pass between or not; what differs first.

    Nothing is raised before the end: the other rank is at the same line and waits.
    """
    sides = RankSide(True, state), RankSide(False, state)
    results = [side.attempt(line) for side in sides]
    if goes_on:  # a view sees what happens to the gradient, a copy does not
        for side in sides:
            side.do("backward(3); p.grad is None or p.grad.mul_(0.5)")
    difference = compare("the result and the gradients", line, results, [side.gradients() for side in sides])
    for side in sides:
        side.opt.step()
    return difference or compare("the rest", line, [side.held for side in sides], [side.weights() for side in sides])


def compare(what, line, *pairs):
    ours, theirs = zip(*pairs, strict=True)
    try:
        assert_same(ours, theirs, TABLE[line])
    except AssertionError as error:
        return f"{what}: {ours}\ninstead of {theirs}: {error}"


def differences_on_rank(rank, state, progress):
    found = {}
    for i, line in enumerate(lines_in(state)):
        Path(progress, str(rank)).write_text(line)
        try:
            found[line] = first_difference(line, state, goes_on=(i + list(STATES).index(state)) % 2)
        except Exception:
            found[line] = traceback.format_exc()
    return found


@functools.cache
def run_once(function, *args):
    """What the ranks return, and what ended them otherwise."""
    with tempfile.TemporaryDirectory() as progress:
        try:
            return run_ranks(function, RANKS, *args, progress), None
        except (AssertionError, RuntimeError) as error:
            lines_of_ranks = [f"rank {path.name} was at {path.read_text()}" for path in Path(progress).iterdir()]
            return None, "\n".join([str(error), *lines_of_ranks])


def on_ranks(*args):
    """What each rank found, by line. All lines share two processes; where these do not end, no line passes."""
    found, error = run_once(*args)
    assert error is None, error
    return found


@pytest.mark.parametrize(("state", "line"), [(state, line) for state in STATES for line in lines_in(state)])
def test_a_collective_does_with_a_factored_gradient_what_it_does_with_a_dense_one(line, state):
    for rank, found in enumerate(on_ranks(differences_on_rank, state)):
        assert found[line] is None, f"on rank {rank}, {found[line]}"


# ---- Equal or refused ------------------------------------------------------------------------------------------------

# The dispatcher sees no list of lists beside ordinary tensors, and nothing that is asked of the backend itself.
PAST_THE_DISPATCHER = lines("""
    dist.scatter(d, [g, h] if rank == 0 else None, group=group); d
    dist.scatter(d, [e, h] if rank == 1 else None, src=1, group=group); d
    dist.scatter(d, [g, h] if rank == 0 else None, group=group, async_op=True).wait()
    dist.reduce_scatter(d, [g, h], group=group); d
    group.scatter([d], [[g, h]] if rank == 0 else []).wait(); d
    through.scatter([g, h], 0, group)
    through.all_to_all([d, e], [g, h], group=group)
    averaging.average_parameters(iter([g, h]), group)
    backend.allreduce([g]).wait()
    backend.allreduce([d] if rank else [g]).wait()
    backend.broadcast([g]).wait()
    backend.broadcast([d if rank else g]).wait()
    backend.broadcast([g if rank else d]).wait()
    backend.reduce([g]).wait()
    backend.scatter([g], [[d, e]] if rank == 0 else []).wait()
    backend.scatter([d], [[g, h]] if rank == 0 else []).wait(); d
    backend._reduce_scatter_base(half, g).wait(); half
    backend.alltoall_base(g, d, [], []).wait()
    backend.alltoall_base(d, g, [], []).wait(); d
    (backend.recv([g], 0, 0) if rank else backend.send([d], 1, 0)).wait()
    (backend.recv_anysource([g], 0) if rank else backend.send([d], 1, 0)).wait()
""")


def on_own_group(side, line):
    """What the line gives, and its error. A rank that is refused leaves, so that the other does not wait for long."""
    group = dist.new_group()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2), group)
    dist.barrier()  # nobody leaves while another still joins
    try:
        return side.do(line, group=group, backend=group._get_backend(torch.device("cpu"))), None
    except RuntimeError as error:
        return None, str(error)
    finally:
        dist.destroy_process_group(group)


def refusals_on_rank(rank, state, progress):
    """By line: the error, and whether all is as after the line with dense gradients, and as without the line."""
    found = {}
    for line in PAST_THE_DISPATCHER:
        Path(progress, str(rank)).write_text(line)
        fused, plain, untouched = sides = RankSide(True, state), RankSide(False, state), RankSide(False, state)
        expected = plain.do(line)
        result, error = on_own_group(fused, line)
        ends = []
        for side in sides:
            gradients = [numbers(g).clone() for g in side.gradients()]
            side.do("backward(3)")
            side.opt.step()
            ends.append((gradients, side.gradients(), side.weights()))
        found[line] = error, same((result, ends[0]), (expected, ends[1])), same(ends[0], ends[2])
    return found


def same(ours, theirs):
    try:
        assert_same(ours, theirs)
        return True
    except AssertionError:
        return False


@pytest.mark.parametrize("state", CORE)
@pytest.mark.parametrize("line", PAST_THE_DISPATCHER)
def test_what_goes_past_the_dispatcher_is_right_or_is_refused_and_changes_nothing(line, state):
    ranks = [found[line] for found in on_ranks(refusals_on_rank, state)]
    errors = [error for error, _, _ in ranks if error]
    if errors:
        assert any("data pointer" in error or "FactoredGrad" in error for error in errors), errors
        assert all(unchanged for _, _, unchanged in ranks)
    else:
        assert all(equal for _, equal, _ in ranks)


# Pointers without a collective.
POINTERS = lines("""
    g.data_ptr()
    torch.Tensor.data_ptr(g)
    torch.Tensor.untyped_storage(g).data_ptr()
    torch.Tensor.untyped_storage(g).copy_(d.untyped_storage())
    torch.utils.dlpack.to_dlpack(g)
    torch.multiprocessing.reductions.reduce_tensor(g)[1][1].data_ptr()
    d.data = g; d.mul_(2)
    d.data = g; d.numpy()
    p.data = g; opt.step()
""")


@pytest.mark.parametrize("state", ["pass", "held.append(g.view(-1))", "g.zero_()"])
@pytest.mark.parametrize("line", POINTERS)
def test_a_raw_pointer_is_refused(line, state):
    fused, untouched = Side(True), Side(False)
    for side in (fused, untouched):
        side.backward(1)
        side.do(state)
    with pytest.raises(RuntimeError):
        fused.do(line)
    assert_same(fused.gradients(), untouched.gradients())


# ---- ZeroRedundancyOptimizer -----------------------------------------------------------------------------------------


def train_with_zero(rank, ours, rule, ddp, bucket_view):
    """(weights, moments) after some steps. Each rank updates its share of the weights and sends them."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of torch's own use of torch.jit

    model = models.mlp()
    if ours:
        forge.fuse(model, verbose=False)
    wrapped = nn.parallel.DistributedDataParallel(model) if ddp else model
    options = dict(models.RULES[rule])
    cls = getattr(forge if ours else torch.optim, options.pop("cls"))
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=cls, parameters_as_bucket_view=bucket_view, **options
    )
    for step in range(3):
        models.mlp_loss(wrapped, models.points(RANKS * step + rank)).backward()
        if not ddp:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    optimizer.consolidate_state_dict()
    state = optimizer.state_dict()["state"] if rank == 0 else {}
    moments = {(i, key): value for i in state for key, value in state[i].items()}
    return [p.detach() for p in model.parameters()], moments


CASES = [(rule, ddp, view) for rule in models.RULES for ddp in (False, True) for view in (False, True)]


def zero_on_rank(rank, progress):
    warnings.simplefilter("ignore")
    return {case: [train_with_zero(rank, ours, *case) for ours in (True, False)] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_zero_redundancy_optimizer_trains_and_saves_as_with_torch(case):
    rule = case[0]
    for found in on_ranks(zero_on_rank):
        (weights, moments), (expected_weights, expected_moments) = found[case]
        models.assert_same_weights(weights, expected_weights, rule)
        assert moments.keys() == expected_moments.keys()
        for key in moments:
            # Clipping multiplies gradients by a norm, and second moments square them.
            bound = 2 * models.LOSS_BOUND * expected_moments[key].abs().max().item()
            torch.testing.assert_close(moments[key], expected_moments[key], rtol=0, atol=bound)


# ---- Everything is in the table --------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def operations_on_rank(rank, progress):
    """What the lines come down to with dense gradients."""
    with Seen() as seen:
        for line in (line for line in TABLE if "async_op=True" not in line):
            Path(progress, str(rank)).write_text(line)
            RankSide(False, "a term").attempt(line)
    return seen.operations


WITHOUT_GRADIENTS = {
    "c10d::barrier",
    "c10d::monitored_barrier_",
    "c10d::check_for_nan",  # of CUDA tensors
    "_c10d_functional::_wrap_tensor_autograd",  # what wait_tensor gives to autograd
}


def test_every_operation_of_c10d_is_in_the_table():
    every = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    every = {name for name in every if name.split("::")[0] in ("c10d", "_c10d_functional", "_c10d_functional_autograd")}
    seen = set.union(*on_ranks(operations_on_rank))
    assert len(every) > 30
    assert every - WITHOUT_GRADIENTS - seen == set()


TENSORS = {"tensor", "tensors", "tensor_list", "self", "input", "inputs", "output", "output_tensor"}
TENSORS |= {"output_tensor_list", "output_tensor_lists"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("module", ["dist", "functional", "through"])
def test_every_function_that_takes_tensors_and_a_group_is_in_the_table(module):
    scope = {}
    exec("\n".join(line for line in NAMES.splitlines() if "import" in line), scope)
    every = set()
    for name, function in vars(scope[module]).items():
        if inspect.isfunction(function) and not name.startswith(("_", "legacy_")):
            parameters = list(inspect.signature(function).parameters)
            if parameters[:1] and parameters[0] in TENSORS and "group" in parameters:
                every.add(name)
    assert len(every) >= 9
    text = "\n".join([*TABLE, *PAST_THE_DISPATCHER])
    assert {name for name in every if f"{module}.{name}(" not in text} == set()
