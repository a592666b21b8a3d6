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
from factored import IN, OUT, Side, assert_same, numbers, whole
from ranks import run_ranks
from torch import nn

forge = pytest.importorskip("forge_optim")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

RANKS = 2


def lines(text):
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


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

# Each call once and, where it says so, once more with its Work waited for. Ordinary tensors are part of the result.
CALLS = lines("""
    dist.all_reduce(g, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.AVG, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.MAX, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.MIN, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.PRODUCT, async_op=later)
    dist.all_reduce(g, op=dist.ReduceOp.BOR)
    dist.all_reduce(p.grad, group=group, async_op=later)
    dist.all_reduce(g.detach(), async_op=later)
    dist.all_reduce(g.data, async_op=later)
    dist.all_reduce(g.view(-1), async_op=later)
    dist.all_reduce(g[2:4], async_op=later)
    dist.all_reduce(g.clone(), async_op=later)
    dist.all_reduce(g.t(), async_op=later)
    dist.all_reduce_coalesced([g, h, v], async_op=later)
    dist.all_reduce_coalesced([d, h, e], async_op=later)
    dist.all_reduce_coalesced([v, g], op=dist.ReduceOp.MAX, async_op=later)
    dist.broadcast(g, src=0, async_op=later)
    dist.broadcast(g, group_src=1, async_op=later)
    dist.broadcast(d if rank else g, src=0, async_op=later)
    dist.broadcast(d if rank else g, src=1, async_op=later)
    dist.reduce(g, dst=0, async_op=later)
    dist.reduce(g, dst=1, op=dist.ReduceOp.MAX, async_op=later)
    dist.reduce(d if rank else g, dst=0, async_op=later)
    dist.reduce(d if rank else g, dst=1, async_op=later)

    dist.all_gather([d, e], g, async_op=later)
    dist.all_gather([g, h], d, async_op=later)
    dist.all_gather([g, d], h, async_op=later)
    dist.all_gather([d, h], e, async_op=later)
    dist.all_gather([g, h], g, async_op=later)
    dist.all_gather([g, g.clone()], h, async_op=later)
    dist.all_gather([g[0], h[1]], g[2], async_op=later)
    dist.all_gather([g, h], v, async_op=later)
    dist.all_gather([d, e] if rank else [g, h], e if rank else h, async_op=later)
    dist.all_gather_into_tensor(both, g, async_op=later)
    dist.all_gather_into_tensor(both.view(2, OUT, IN), g, async_op=later)
    dist.all_gather_into_tensor(g, half, async_op=later)
    dist.all_gather_into_tensor(g, h[:4], async_op=later)
    dist.all_gather_single(both, g, async_op=later)
    dist.all_gather_single(g, half, async_op=later)
    dist._all_gather_base(g, half, async_op=later)
    dist.all_gather_coalesced([[g, h], [d, e]], [d, e], async_op=later)
    dist.all_gather_coalesced([[d, e], [d + 1, e + 1]], [g, h], async_op=later)
    dist.all_gather_coalesced([[g, d], [e, h]], [h, e], async_op=later)
    dist.gather(g, [d, e] if rank == 0 else None, async_op=later)
    dist.gather(d, [g, h] if rank == 0 else None, async_op=later)
    dist.gather(h, [g, e] if rank == 1 else None, dst=1, async_op=later)
    dist.gather(g, [g, h] if rank == 0 else None, async_op=later)

    dist.scatter(g, [d, e] if rank == 0 else None, async_op=later)
    dist.scatter(g, [h, d] if rank == 1 else None, src=1, async_op=later)
    dist.scatter(d, [g.view(OUT, IN), h.view(OUT, IN)] if rank == 0 else None, async_op=later)
    dist.reduce_scatter(g, [d, e], async_op=later)
    dist.reduce_scatter(g, [h, d], op=dist.ReduceOp.MAX, async_op=later)
    dist.reduce_scatter(half, list(g.chunk(2)), async_op=later)
    dist.reduce_scatter_tensor(g, both, async_op=later)
    dist.reduce_scatter_tensor(half, g, async_op=later)
    dist.reduce_scatter_tensor(g[:4], h, async_op=later)
    dist.reduce_scatter_single(g, both, async_op=later)
    dist.reduce_scatter_single(half, g, async_op=later)
    dist._reduce_scatter_base(half, g, async_op=later)
    dist.all_to_all([g, h], [d, e], async_op=later)
    dist.all_to_all([d, e], [g, h], async_op=later)
    dist.all_to_all([g, d], [e, h], async_op=later)
    dist.all_to_all([d, e] if rank else [g, h], [h, g] if rank else [e, d], async_op=later)
    dist.all_to_all_single(g, d, async_op=later)
    dist.all_to_all_single(d, g, async_op=later)
    dist.all_to_all_single(g, h, [3, 5] if rank else [5, 3], [3, 5] if rank else [5, 3], async_op=later)
    dist.all_to_all_single(g.view(-1), h.view(-1), async_op=later)

    dist.recv(g, src=0) if rank else dist.send(g, dst=1)
    dist.recv(g) if rank else dist.send(h, dst=1)
    dist.recv(d, src=0) if rank else dist.send(g, dst=1)
    dist.recv(g, src=0, tag=3) if rank else dist.send(d, dst=1, tag=3)
    dist.irecv(g, src=0) if rank else dist.isend(h, dst=1)
    dist.irecv(g) if rank else dist.isend(d, dst=1)
    dist.irecv(d, src=0) if rank else dist.isend(g, dst=1)
    dist.send(g, dst=rank)
""")

# As they stand:
LINES = lines("""
    w = dist.all_reduce(g, async_op=True); w.wait(); w.result()
    w = dist.all_reduce(g, async_op=True); w.get_future().wait()
    w = dist.all_reduce(g, async_op=True); w.get_future().then(lambda f: f.value()[0].mul_(2)).wait(); g
    w = [dist.all_reduce(t, async_op=True) for t in (g, h, v)]; [x.wait() for x in w]
    w = dist.all_reduce(p.grad, async_op=True); p.grad = None; w.wait(); g
    w = dist.all_reduce(p.grad, async_op=True); opt.zero_grad(); w.wait(); backward(4); g
    w = dist.all_gather([g, h], d, async_op=True); opt.zero_grad(); w.wait(); g, h
    dist.all_reduce(g); dist.all_reduce(g); g.div_(4)
    dist.all_reduce(g); opt.step(); dist.all_reduce(p.grad)
    [dist.all_reduce(x.grad.div_(2)) for x in model.parameters()] and None
    with dist._coalescing_manager(): dist.all_reduce(g); dist.all_reduce(h)
    c = dist._coalescing_manager(async_ops=True); w = c.__enter__(); dist.all_reduce(g); dist.all_reduce(h); c.__exit__(None, None, None); w.wait()
    with dist._coalescing_manager(): dist.all_gather_into_tensor(g, half); dist.all_gather_into_tensor(both, h)
    with dist._coalescing_manager(): dist.reduce_scatter_tensor(half, g); dist.reduce_scatter_tensor(h, both)
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.isend, g, other), dist.P2POp(dist.irecv, h, other)])]
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.irecv, g, other), dist.P2POp(dist.isend, d, other)])]
    [w.wait() for w in dist.batch_isend_irecv([dist.P2POp(dist.isend, g, other), dist.P2POp(dist.irecv, d, other)])], d
    dist._broadcast_coalesced(group, [g, h, v], 1 << 20, 0)
    dist._broadcast_coalesced(group, [d, h], 100, 1); d
    dist._verify_params_across_processes(group, [g, h], None)
    t = torch._utils._flatten_dense_tensors([g, h]); dist.all_reduce(t); t
    t = torch._utils._flatten_dense_tensors([g, h]); dist.all_reduce(t); torch._foreach_copy_([g, h], list(torch._utils._unflatten_dense_tensors(t, [g, h])))
    t = (g != 0).any(); dist.all_reduce(t, op=dist.ReduceOp.MAX); t

    o = [None, None]; dist.all_gather_object(o, g); o
    o = [g, rank] if rank == 0 else [None, None]; dist.broadcast_object_list(o, src=0); o
    o = [None, None] if rank == 0 else None; dist.gather_object({"g": g}, o); o
    o = [None]; dist.scatter_object_list(o, [g, h] if rank == 0 else None); o
    o = [None]; dist.recv_object_list(o, src=0) if rank else dist.send_object_list([g], dst=1); o

    group.allreduce([g]).wait()
    group.allreduce(g, dist.ReduceOp.MAX).wait()
    group.allreduce_coalesced([g, h, d]).wait(); d
    o = dist.BroadcastOptions(); o.rootRank = 1; group.broadcast([g], o).wait()
    group.broadcast(g, 0).wait()
    o = dist.ReduceOptions(); o.rootRank = 1; group.reduce([g], o).wait()
    group.reduce(g, 1, dist.ReduceOp.SUM).wait()
    group.allgather([[d, e]], [g]).wait(); d, e
    group.allgather([[g, h]], [d]).wait()
    group.allgather([g, d], h).wait(); d
    group.allgather_coalesced([[g, h], [d, e]], [e, d]).wait(); d, e
    group.allgather_into_tensor_coalesced([both, g], [h, half]).wait(); both
    group._allgather_base(g, half).wait()
    group._allgather_base(both, g).wait(); both
    group.gather([[d, e]] if rank == 0 else [], [g]).wait(); d, e
    group.gather([[g, h]] if rank == 0 else [], [d]).wait()
    group.scatter([g], [[d, e]] if rank == 0 else []).wait()
    group.scatter([g], [[h, d]] if rank == 0 else []).wait()
    group.reduce_scatter([g], [[d, e]]).wait()
    group.reduce_scatter([g], [[h, d]]).wait()
    group._reduce_scatter_base(half, g).wait(); half
    group._reduce_scatter_base(g, both).wait()
    group.reduce_scatter_tensor_coalesced([half, g], [h, both]).wait(); half
    group.alltoall([g, d], [e, h]).wait(); d
    group.alltoall_base(g, h, [], []).wait()
    group.alltoall_base(d, g, [], []).wait(); d
    (group.recv([g], 0, 0) if rank else group.send([g], 1, 0)).wait()
    (group.recv([d], 0, 0) if rank else group.send([g], 1, 0)).wait(); d
    (group.recv_anysource([g], 0) if rank else group.send([d], 1, 0)).wait()

    backend.allreduce_coalesced([g, h]).wait()
    backend.allgather([[d, e]], [g]).wait(); d, e
    backend.allgather([[g, h]], [d]).wait()
    backend.allgather_coalesced([[g, h], [d, e]], [e, d]).wait(); d, e
    backend._allgather_base(both, g).wait(); both
    backend._allgather_base(g, half).wait()
    backend.gather([[d, e]] if rank == 0 else [], [g]).wait(); d, e
    backend.gather([[g, h]] if rank == 0 else [], [d]).wait()
    backend._reduce_scatter_base(g, both).wait()
    backend.alltoall([g, h], [d, e]).wait()
    backend.alltoall([d, e], [g, h]).wait(); d, e

    functional.wait_tensor(functional.all_reduce(g, "sum", group))
    functional.all_reduce(g, "avg", group).mul_(2)
    functional.wait_tensor(functional.all_reduce_coalesced([g, d, h], "max", group)[2])
    functional.wait_tensor(functional.broadcast(g, 1, group))
    functional.wait_tensor(functional.all_gather_tensor(g, 0, group))
    functional.wait_tensor(functional.all_gather_tensor(g, 1, group))
    functional.wait_tensor(functional.all_gather_tensor_autograd(g, 0, group))
    functional.wait_tensor(functional.all_gather_into_tensor_coalesced([g, d], group)[0])
    functional.wait_tensor(functional.reduce_scatter_tensor(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_tensor(g[:, :8], "sum", 1, group))
    functional.wait_tensor(functional.reduce_scatter_tensor_autograd(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_tensor_coalesced([d, g], "sum", [0, 0], group)[1])
    functional.wait_tensor(functional.all_to_all_single(g, None, None, group))
    functional.wait_tensor(functional.all_to_all_single_autograd(g, [4, 4], [4, 4], group))
    functional.wait_tensor(functional.permute_tensor(g.view(-1), [1, 0], group))
    functional.wait_tensor(g)
    functional.wait_tensor(functional.all_gather_single(g, 0, group))
    functional.wait_tensor(functional.all_gather_single_autograd(g, 0, group))
    functional.wait_tensor(functional.all_gather_single_coalesced([g, d], group)[0])
    functional.wait_tensor(functional.reduce_scatter_single(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_single_autograd(g, "sum", 0, group))
    functional.wait_tensor(functional.reduce_scatter_single_coalesced([d, g], "sum", [0, 0], group)[1])
    functional.irecv_inplace(g, 0, group=group).wait() if rank else functional.isend_inplace(d, 1, group=group).wait()
    functional.irecv_inplace(d, 0, group=group).wait() if rank else functional.isend_inplace(g, 1, group=group).wait(); d
    [t.wait() for t in functional.batch_p2p_ops_inplace(["isend", "irecv"], [other, other], [0, 0], [g, h], name)]
    functional.all_reduce_inplace(g, "sum", group)
    functional.all_gather_tensor_inplace(g, half, group)
    functional.all_gather_tensor_inplace(both, g, group); both
    functional.reduce_scatter_tensor_inplace(half, g, "sum", group); half
    functional.reduce_scatter_tensor_inplace(g, both, "sum", group)
    functional.all_to_all_inplace(g, h, None, None, group)
    functional.all_gather_inplace([g, d], h, group); d
    native.wait_tensor(native.all_reduce_(g, "sum", name))
    native.all_reduce_(g, "sum", name); native.wait_tensor(g)
    native.wait_tensor(native.all_reduce_coalesced_([g, d, h], "sum", name)[0]); [native.wait_tensor(t) for t in (d, h)]
    native.wait_tensor(native.broadcast_(g, 1, name))
    native.wait_tensor(native.all_gather_into_tensor_out(half, 2, name, out=g))
    native.wait_tensor(native.all_gather_into_tensor_out(g, 2, name, out=both)); both
    native.wait_tensor(native.reduce_scatter_tensor_out(both, "sum", 2, name, out=g))
    native.wait_tensor(native.reduce_scatter_tensor_out(g, "sum", 2, name, out=half)); half
    native.wait_tensor(native.irecv(g, 0, 0, name) if rank else native.isend(h, 1, 0, name))
    native.wait_tensor(native.irecv(d, 0, 0, name) if rank else native.isend(g, 1, 0, name)); d
    [native.wait_tensor(t) for t in native.batch_p2p_ops(["isend", "irecv"], [other, other], [0, 0], [g, h], name)]
    native.wait_tensor(torch.ops._c10d_functional_autograd.all_gather_into_tensor(g, 2, name))
    native.wait_tensor(torch.ops._c10d_functional_autograd.reduce_scatter_tensor(g, "sum", 2, name))
    native.wait_tensor(torch.ops._c10d_functional_autograd.all_to_all_single(g, [4, 4], [4, 4], name))

    through.all_reduce(g)
    through.broadcast(g, 0)
    through.reduce(g, 1)
    through.gather(g, 0)
    through.all_gather(g)
    through._all_gather_base(both, g), both
    through._all_gather_base(g, half)
    through.reduce_scatter(g, [d, e])
    through.reduce_scatter(g, [h, d])
    through.all_to_all([g, h], [d, e])
    through.all_to_all_single(d, g), d
    through.all_to_all_single(g, d)
    x = g.clone().requires_grad_(); through.all_reduce(x).sum().backward(); x.grad

    dtensor.DTensor.from_local(g, mesh, [dtensor.Partial()]).full_tensor()
    dtensor.DTensor.from_local(g, mesh, [dtensor.Shard(0)]).full_tensor()
    dtensor.DTensor.from_local(g, mesh, [dtensor.Shard(0)]).mul_(2).to_local()
    dtensor.DTensor.from_local(g, mesh, run_check=True).to_local()
    dtensor.distribute_tensor(g, mesh, [dtensor.Shard(0)]).to_local()
    dtensor.distribute_tensor(g, mesh, [dtensor.Replicate()]).to_local()

    averaging.average_parameters(model.parameters(), group)
    averagers.PeriodicModelAverager(period=1).average_parameters(model.parameters()); backward(4)
    hierarchical_model_averager.HierarchicalModelAverager(collections.OrderedDict([(1, 2)])).average_parameters(model.parameters())
    PostLocalSGDOptimizer(opt, averagers.PeriodicModelAverager(period=1)).step()
    o = PostLocalSGDOptimizer(opt, averagers.PeriodicModelAverager(period=2)); o.step(); o.zero_grad(); backward(4 + rank); o.step(); o.param_groups[0]["lr"]
    ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5).step()
    ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5, parameters_as_bucket_view=True).step()
    o = ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5); o.zero_grad(); backward(4); o.step(); backward(5); o.step()
    o = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.5); o.step(); backward(4 + rank); o.step()
    [dist.all_reduce(x.grad) for x in model.parameters()]; o = ZeroRedundancyOptimizer(model.parameters(), type(opt), lr=0.5, momentum=0.5); o.step(); o.consolidate_state_dict(); o.state_dict()["state"] if rank == 0 else None
""")  # noqa: E501

# The same but for a rounding: a norm is not summed up in torch's order.
ROUNDED = lines("""
    n = nn.utils.get_total_norm([g, h, v]); dist.all_reduce(n); nn.utils.clip_grads_with_norm_([p, q, b], 1.0, n); n
    n = g.norm().square(); dist.all_reduce(n); g.mul_(1 / (1 + n)); n
    n = torch.stack(torch._foreach_norm([g, h])); dist.all_reduce(n, op=dist.ReduceOp.MAX); n
    dist.all_reduce(g); nn.utils.clip_grad_norm_([p, q, b], 1.0)
    nn.utils.clip_grad_norm_([p, q], 1.0); dist.all_reduce(g)
    [dist.all_reduce(x.grad) for x in model.parameters()]; ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.5).step()
""")  # noqa: E501
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
    torch.multiprocessing.reductions.reduce_tensor(g)
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
