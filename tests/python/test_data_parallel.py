"""Two ranks train as one rank with torch.optim does on the whole batch: DistributedDataParallel and FSDP2."""

import contextlib
import copy
import warnings
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

forge = pytest.importorskip("forge_optim")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

RANKS, STEPS = 2, 3
# Below the break-even of the layers, so that terms arrive at the reducer as terms; half of the rows are a rank's.
ROWS, LENGTH = 8, 3
VOCABULARY, HIDDEN, INNER = 96, 64, 128

NUMBERS = 1e-5  # losses and norms, relative
OPTIMIZERS = {
    # The bound on the weights, relative L2: AdamW divides by the square root of second moments that may be tiny.
    "AdamW": (dict(lr=1e-3, weight_decay=0.1), 3e-4),
    "SGD": (dict(lr=0.1, momentum=0.9, weight_decay=0.01), 1e-6),
}


class Model(nn.Module):
    """Token 0 in front of a row sends it through `extra`, which is unused where no row has one."""

    def __init__(self, tied=False, checkpointed=None):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.up = nn.Linear(HIDDEN, INNER)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.norm = nn.LayerNorm(HIDDEN)
        self.extra = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.checkpointed = checkpointed  # use_reentrant, or None

    def block(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.block(x) if self.checkpointed is None else checkpoint(self.block, x, use_reentrant=self.checkpointed)
        routed = (tokens[:, 0] == 0).view(-1, 1, 1)
        if routed.any():
            x = x + routed * self.extra(x)
        return self.head(x)


@dataclass
class Case:
    name: str
    model: dict = field(default_factory=dict)
    ddp: dict = field(default_factory=dict)
    optimizer: dict = field(default_factory=dict)  # arguments of ours beyond those of torch
    built: str = "before wrapping"  # the optimizer; or "from the wrapped model", "from its parameters"
    clip: float | None = 1.0
    our_clip: bool = False
    micro_batches: int = 1
    sync_each: bool = False  # micro-batch, and not the last alone
    set_to_none: bool = True
    hook: str | None = None
    routed: str = "always"  # "by step": on both ranks, on one, on none
    policy: MixedPrecisionPolicy | None = None  # of FSDP2
    ours: bool = True  # else torch.optim on the same ranks

    def __str__(self):
        return self.name


def batches(case):
    """Tokens of each step and micro-batch: (ROWS, LENGTH); rank r has the rows of its half."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (STEPS, case.micro_batches, ROWS, LENGTH + 1), generator=random)
    for step in range(STEPS):
        ranks = range(RANKS) if case.routed == "always" else range(RANKS - step)
        for rank in ranks:
            tokens[step, :, rank * ROWS // RANKS, 0] = 0
    return tokens


def make_model(case):
    torch.manual_seed(0)
    return Model(**case.model)


def train(model, optimizer, case, tokens, clip, no_sync=contextlib.nullcontext):
    """Losses and norms of all steps."""
    losses, norms = [], []
    for step in range(STEPS):
        for i, micro_batch in enumerate(tokens[step]):
            last = i == case.micro_batches - 1
            with contextlib.nullcontext() if last or case.sync_each else no_sync():
                logits = model(micro_batch[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), micro_batch[:, 1:].flatten()) / case.micro_batches
                loss.backward()
                losses.append(loss.item())
        if case.clip is not None:
            norm = clip(model.parameters(), case.clip)
            norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=case.set_to_none)
    return torch.tensor(losses), torch.tensor(norms)


def on_one_rank(case, name):
    model = make_model(case)
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name][0])
    losses, norms = train(model, optimizer, case, batches(case), nn.utils.clip_grad_norm_)
    return losses, norms, model.state_dict()


def relative_distance(weights, expected):
    assert weights.keys() == expected.keys()
    flat, flat_expected = (torch.cat([w[k].double().flatten() for k in expected]) for w in (weights, expected))
    return float((flat - flat_expected).norm() / flat_expected.norm())


def assert_same_training(ranks, expected, bound, numbers=NUMBERS):
    losses = torch.stack([losses for losses, *_ in ranks]).mean(0)
    torch.testing.assert_close(losses, expected[0], rtol=numbers, atol=0)
    for _, norms, weights in ranks:
        torch.testing.assert_close(norms, expected[1], rtol=numbers, atol=0)
        assert relative_distance(weights, expected[2]) <= bound
        for key, value in weights.items():
            assert torch.equal(value, ranks[0][2][key]), f"the ranks differ in {key}"


def make_optimizer(name, params, case):
    if not case.ours:
        params = params.parameters() if isinstance(params, nn.Module) else params
        return getattr(torch.optim, name)(params, **OPTIMIZERS[name][0])
    return getattr(forge, name)(params, **OPTIMIZERS[name][0], **case.optimizer)


def results(wrapped, optimizer, case, rank, no_sync):
    tokens = batches(case).chunk(RANKS, dim=2)[rank]
    clip = forge.clip_grad_norm_ if case.our_clip else nn.utils.clip_grad_norm_
    losses, norms = train(wrapped, optimizer, case, tokens, clip, no_sync)
    weights = wrapped.module.state_dict() if isinstance(wrapped, DistributedDataParallel) else wrapped.state_dict()
    return losses, norms, {k: w.full_tensor() if isinstance(w, DTensor) else w for k, w in weights.items()}


# ---- DistributedDataParallel -----------------------------------------------------------------------------------------


def wrap_and_build(case, name):
    warnings.simplefilter("ignore", forge.CollapseWarning)  # a reducer needs the gradients multiplied out
    model = make_model(case)
    early = make_optimizer(name, model, case) if case.built == "before wrapping" else None
    if case.built == "from its parameters":
        forge.fuse(model, verbose=False)
    wrapped = DistributedDataParallel(model, **case.ddp)
    if case.hook:
        wrapped.register_comm_hook(None, getattr(default_hooks, case.hook))
    late = wrapped.parameters() if case.built == "from its parameters" else wrapped
    return wrapped, early or make_optimizer(name, late, case)


def on_ddp_rank(rank, case):
    trained = {}
    for name in OPTIMIZERS:
        wrapped, optimizer = wrap_and_build(case, name)
        trained[name] = results(wrapped, optimizer, case, rank, wrapped.no_sync)
    return trained


VIEWS = dict(gradient_as_bucket_view=True)
DDP_CASES = [
    Case("unclipped", clip=None),
    Case("clipped"),
    Case("clipped in one call", our_clip=True),
    Case("clipped hard", clip=0.01),
    Case("accumulated without sync", micro_batches=3),
    Case("accumulated, each synchronized", micro_batches=2, sync_each=True),
    Case("bucket views", ddp=VIEWS),
    Case("bucket views, accumulated", ddp=VIEWS, micro_batches=2),
    Case("bucket views, accumulated, each synchronized", ddp=VIEWS, micro_batches=2, sync_each=True),
    Case("bucket views, zeroed in place", ddp=VIEWS, set_to_none=False),
    Case("zeroed in place, accumulated", set_to_none=False, micro_batches=2),
    Case("small buckets", ddp=dict(bucket_cap_mb=0.01)),
    # Without sync, the first backward of a static graph fails in torch as well.
    Case("static graph", ddp=dict(static_graph=True), micro_batches=2, sync_each=True),
    Case("static graph, bucket views", ddp=dict(static_graph=True, **VIEWS)),
    Case("unused parameters", ddp=dict(find_unused_parameters=True), routed="by step"),
    Case("unused parameters, bucket views", ddp=dict(find_unused_parameters=True, **VIEWS), routed="by step"),
    Case("tied", model=dict(tied=True)),
    Case("tied, bucket views, accumulated", model=dict(tied=True), ddp=VIEWS, micro_batches=2),
    Case("built from the wrapped model", built="from the wrapped model"),
    Case("built from the wrapped model, bucket views", built="from the wrapped model", ddp=VIEWS),
    Case("built from its parameters", built="from its parameters", micro_batches=2),
    Case("checkpointed", model=dict(checkpointed=False)),
    Case("checkpointed, tied, accumulated", model=dict(checkpointed=False, tied=True), micro_batches=2),
    Case("checkpointed reentrantly", model=dict(checkpointed=True), ddp=dict(static_graph=True)),
    Case("no-op hook", hook="allreduce_hook", micro_batches=2),
    Case("no-op hook, bucket views", hook="allreduce_hook", ddp=VIEWS),
    Case("never collapsed", optimizer=dict(collapse="never"), micro_batches=2),
    Case("exact", optimizer=dict(exact=True), micro_batches=2),
]


@pytest.mark.parametrize("case", DDP_CASES, ids=str)
def test_ddp_equals_one_rank_on_the_whole_batch(case):
    ranks = run_ranks(on_ddp_rank, RANKS, case)
    for name, (_, bound) in OPTIMIZERS.items():
        assert_same_training([rank[name] for rank in ranks], on_one_rank(case, name), bound)


@pytest.mark.parametrize("ddp", [{}, VIEWS], ids=["copied", "bucket views"])
def test_a_compressing_hook_does_what_it_does_with_torch(ddp):
    """Gradients are rounded to fp16: where their fp32 bits differ, a few jump by 2⁻¹¹ of themselves."""
    case = Case("compressed", hook="fp16_compress_hook", ddp=ddp, micro_batches=2)
    ours, theirs = (run_ranks(on_ddp_rank, RANKS, replace(case, ours=o)) for o in (True, False))
    for name, (_, bound) in OPTIMIZERS.items():
        expected = theirs[0][name]
        mean_loss = torch.stack([rank[name][0] for rank in theirs]).mean(0)
        assert_same_training([rank[name] for rank in ours], (mean_loss, *expected[1:]), bound)


def keeps_the_terms_of_unsynchronized_micro_batches(rank):
    wrapped, optimizer = wrap_and_build(Case("", optimizer=dict(collapse="never")), "SGD")
    tokens = batches(Case(""))[0, 0].chunk(RANKS)[rank]
    with wrapped.no_sync():
        for _ in range(2):
            wrapped(tokens).square().mean().backward()
    report = forge.report(optimizer)
    described = repr(wrapped.module.up.weight.grad)
    wrapped(tokens).square().mean().backward()
    return report.held_terms > 0, report.collapses, described, repr(wrapped.module.up.weight.grad)


def test_without_sync_gradients_stay_expressions_and_sync_multiplies_them_out():
    tokens = ROWS // RANKS * (LENGTH + 1)
    for held, collapses, before, after in run_ranks(keeps_the_terms_of_unsynchronized_micro_batches, RANKS):
        assert held and collapses == 0
        assert before.count(f"[{tokens} tokens]") == 2, before
        assert "FactoredGrad(dense" in after, after


def in_backward_is_refused(rank, built, kind):
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    unfused = nn.Sequential(nn.Embedding.from_pretrained(torch.ones(9, 8)), nn.LayerNorm(8))
    model = Model() if kind == "fused" else unfused
    before = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        if built == "before wrapping":
            optimizer = forge.SGD(model, lr=0.1, schedule="in_backward")
        wrapped = DistributedDataParallel(model)
        if built == "from the wrapped model":
            optimizer = forge.SGD(wrapped, lr=0.1, schedule="in_backward")
        if built == "from its parameters":
            forge.fuse(wrapped, verbose=False)
            optimizer = forge.SGD(wrapped.parameters(), lr=0.1, schedule="in_backward")
        wrapped(torch.full((2, 3), rank)).square().sum().backward()
        optimizer.step()
        message = None
    except RuntimeError as error:
        message = str(error)
    return message, all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


BUILT = ["before wrapping", "from the wrapped model", "from its parameters"]


@pytest.mark.parametrize("kind", ["fused", "unfused"])
@pytest.mark.parametrize("built", BUILT)
def test_in_backward_under_ddp_is_refused_before_a_weight_is_touched(built, kind):
    for message, untouched in run_ranks(in_backward_is_refused, RANKS, built, kind):
        assert message is not None, "it was not refused"
        assert "in_backward" in message and "DistributedDataParallel" in message and "at_step" in message
        assert untouched


# ---- FSDP2 -----------------------------------------------------------------------------------------------------------


def shard(case, name):
    model = make_model(case)
    if case.built == "after fusing":
        forge.fuse(model, verbose=False)
    policy = {"mp_policy": case.policy} if case.policy else {}
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, **policy)
    if case.built == "before fusing":
        forge.fuse(model, verbose=False)
    warnings.filterwarnings("ignore", "no parameter belongs to a fused module")
    params = model if case.built == "from the model" else model.parameters()
    return model, make_optimizer(name, params, case)


def on_fsdp_rank(rank, case):
    trained = {}
    for name in OPTIMIZERS:
        model, optimizer = shard(case, name)

        @contextlib.contextmanager
        def no_sync(model=model):
            model.set_requires_gradient_sync(False)
            yield
            model.set_requires_gradient_sync(True)

        trained[name] = results(model, optimizer, case, rank, no_sync)
    return trained


FSDP_CASES = [
    Case("fused, then sharded", built="after fusing"),
    Case("sharded, then fused", built="before fusing"),
    Case("built from the model", built="from the model"),
    Case("unclipped", built="from the model", clip=None),
    Case("clipped by our function", built="after fusing", our_clip=True),
    Case("accumulated without sync", built="after fusing", micro_batches=3),
    Case("accumulated, each synchronized", built="from the model", micro_batches=2, sync_each=True),
    Case("zeroed in place", built="from the model", set_to_none=False),
    Case("tied", built="after fusing", model=dict(tied=True), micro_batches=2),
    Case("checkpointed", built="after fusing", model=dict(checkpointed=False)),
    Case("exact", built="from the model", optimizer=dict(exact=True)),
]


@pytest.mark.parametrize("case", FSDP_CASES, ids=str)
def test_fsdp2_equals_one_rank_on_the_whole_batch(case):
    ranks = run_ranks(on_fsdp_rank, RANKS, case)
    for name, (_, bound) in OPTIMIZERS.items():
        assert_same_training([rank[name] for rank in ranks], on_one_rank(case, name), bound)


def test_fsdp2_in_mixed_precision_does_what_it_does_with_torch():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    case = Case("bf16", built="after fusing", policy=policy)
    ours, theirs = (run_ranks(on_fsdp_rank, RANKS, replace(case, ours=o)) for o in (True, False))
    for name, (_, bound) in OPTIMIZERS.items():
        # The products are torch's own, and the same.
        torch.testing.assert_close(ours[0][name][0], theirs[0][name][0], rtol=NUMBERS, atol=0)
        assert relative_distance(ours[0][name][2], theirs[0][name][2]) <= bound


def optimizer_state_on_fsdp_rank(rank, name):
    """Each state of the sharded weights as (key, is it a DTensor, placements, values), ours and torch's."""
    states = []
    for ours in (True, False):
        case = Case("", built="from the model", ours=ours)
        model, optimizer = shard(case, name)
        results(model, optimizer, case, rank, contextlib.nullcontext)
        rows = {}
        for parameter, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                sharded = isinstance(value, DTensor)
                rows[parameter, key] = (
                    sharded,
                    str(value.placements) if sharded else None,
                    value.full_tensor() if sharded else value,
                )
        states.append(rows)
    return states


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fsdp2_state_is_sharded_as_torch_shards_it(name):
    for ours, theirs in run_ranks(optimizer_state_on_fsdp_rank, RANKS, name):
        assert ours.keys() == theirs.keys()
        for key, (sharded, placements, value) in ours.items():
            assert (sharded, placements) == theirs[key][:2]
            torch.testing.assert_close(value, theirs[key][2], rtol=1e-3, atol=1e-6)
        assert any(sharded for sharded, *_ in ours.values())


def what_fuse_says_of_a_sharded_model(rank, order):
    model, _ = shard(Case("", built=order), "SGD")
    report = forge.fuse(model, verbose=False)
    return {row.name: row.reason for row in report.rows}


@pytest.mark.parametrize("order", ["after fusing", "before fusing"])
def test_fuse_says_that_sharded_weights_are_not_fused(order):
    for reasons in run_ranks(what_fuse_says_of_a_sharded_model, RANKS, order):
        assert all(reasons.values())
        assert "DTensor" in reasons["up.weight"] and "DTensor" in reasons["embedding.weight"]


def in_backward_on_fsdp(rank, built):
    try:
        shard(Case("", built=built, optimizer=dict(schedule="in_backward")), "AdamW")
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("built", ["after fusing", "before fusing", "from the model"])
def test_in_backward_on_sharded_parameters_is_refused_at_construction(built):
    for message in run_ranks(in_backward_on_fsdp, RANKS, built):
        assert message is not None, "it was not refused"
        assert "FSDP2" in message and "at_step" in message


# ---- torch.distributed.checkpoint ------------------------------------------------------------------------------------


def resumed_results(make, name, case, options, rank, ours):
    """Of STEPS more steps: with the model as it is, and with a new one that took its state over."""
    first, second = (replace(case, ours=o) for o in ours)
    model, optimizer = make(first, name)
    results(model, optimizer, first, rank, contextlib.nullcontext)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed, new_optimizer = make(second, name)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    set_optimizer_state_dict(resumed, new_optimizer, state, options=options)
    went_on = results(model, optimizer, first, rank, contextlib.nullcontext)
    return went_on, results(resumed, new_optimizer, second, rank, contextlib.nullcontext)


def make_plain(case, name):
    model = make_model(case)
    return model, make_optimizer(name, model, case)


def assert_resumed(went_on, resumed, name, ours):
    assert_same_training([resumed], went_on, 0 if ours == (True, True) else OPTIMIZERS[name][1])


FROM_TO = [(True, True), (True, False), (False, True)]
FROM_TO_IDS = ["ours", "to torch", "from torch"]


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ours", FROM_TO, ids=FROM_TO_IDS)
def test_a_distributed_checkpoint_of_one_rank_resumes(ours, name, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    case = Case("", model=dict(tied=True))
    assert_resumed(*resumed_results(make_plain, name, case, options, 0, ours), name, ours)


def on_fsdp_rank_resumed(rank, full, ours):
    options = StateDictOptions(full_state_dict=full)
    case = Case("", built="from the model")
    return {name: resumed_results(shard, name, case, options, rank, ours) for name in OPTIMIZERS}


@pytest.mark.parametrize("full", [False, True], ids=["sharded", "full"])
@pytest.mark.parametrize("ours", FROM_TO, ids=FROM_TO_IDS)
def test_a_distributed_checkpoint_of_fsdp2_resumes(ours, full):
    for rank in run_ranks(on_fsdp_rank_resumed, RANKS, full, ours):
        for name in OPTIMIZERS:
            assert_resumed(*rank[name], name, ours)


def on_ddp_rank_resumed(rank, ours):
    case = Case("", built="from the wrapped model")
    return {name: resumed_results(wrap_and_build, name, case, StateDictOptions(), rank, ours) for name in OPTIMIZERS}


@pytest.mark.parametrize("ours", FROM_TO, ids=FROM_TO_IDS)
def test_a_distributed_checkpoint_of_ddp_resumes(ours):
    for rank in run_ranks(on_ddp_rank_resumed, RANKS, ours):
        for name in OPTIMIZERS:
            assert_resumed(*rank[name], name, ours)
