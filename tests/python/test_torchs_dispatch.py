"""Whatever torch does with F.linear, F.embedding and @ goes on working while an optimizer holds the weight."""

import copy
import functools
import io
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import torch.nn.functional as F  # noqa: E402
from models import assert_equal_bits, is_factored  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::forge_optim.StoredGradientWarning",
    "ignore::DeprecationWarning",
    "ignore:.*prototype stage:UserWarning",
    "ignore:.*beta state:UserWarning",
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([1, 2, 2, 3])


def linear():
    return nn.Linear(6, 5)


def square():
    return nn.Linear(6, 6)


def no_bias():
    return nn.Linear(6, 5, bias=False)


def table(**options):
    return nn.Embedding(9, 4, **options)


def text():
    return nn.Sequential(nn.Embedding(9, 6), linear())


def learn(y):
    """A backward pass from y."""
    (y.abs() if y.is_complex() else y.float()).square().sum().backward()
    return y


def run(make, use, held):
    """What `use` gives and the weights after a step; or what was raised."""
    torch.manual_seed(0)
    model = make()
    optimizer = forge.SGD(model, lr=0.1) if held else torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        given = use(model)
    except Exception as error:
        return type(error), str(error)
    optimizer.step()
    return [t.detach() if isinstance(t, torch.Tensor) else t for t in tree_leaves(given)], list(model.parameters())


def assert_as_without_an_optimizer(make, use):
    theirs, ours = run(make, use, held=False), run(make, use, held=True)
    if isinstance(theirs[0], type):
        assert ours == theirs
        return
    assert not isinstance(ours[0], type), ours
    for a, b in zip(ours[0], theirs[0], strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
        elif b.is_nested:
            torch.testing.assert_close(a.unbind(), b.unbind())
        else:
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


# ---- Operands --------------------------------------------------------------------------------------------------------


class Tagged(torch.Tensor):
    pass


class Wrapped(torch.Tensor):
    """A subclass that has another tensor inside, as torchao's and DTensor do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def bare(t):
            return t.inner if isinstance(t, Wrapped) else t

        args, kwargs = torch.utils._pytree.tree_map(bare, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))


def jagged(*rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


def cast_changed_in_place(m):
    w = m.weight.bfloat16()
    with torch.no_grad():
        w[0] = 0
    y = F.linear(X.bfloat16(), w)
    return y, torch.autograd.grad(y.float().sum(), m.bias, allow_unused=True)


OPERANDS = {
    "x of one dimension": (linear, lambda m: learn(m(X[0]))),
    "x of none": (linear, lambda m: learn(m(X[0, 0]))),
    "x of four": (linear, lambda m: learn(m(X.view(1, 2, 2, 6)))),
    "no token": (linear, lambda m: learn(m(X[:0]))),
    "no token of three dimensions": (linear, lambda m: learn(m(torch.zeros(2, 0, 6)))),
    "no column": (lambda: nn.Linear(0, 5), lambda m: learn(m(torch.zeros(3, 0)))),
    "no row": (lambda: nn.Linear(6, 0), lambda m: learn(m(X))),
    "too wide": (linear, lambda m: learn(m(torch.ones(3, 7)))),
    "double": (linear, lambda m: learn(m(X.double()))),
    "half": (linear, lambda m: learn(m(X.half()))),
    "int": (linear, lambda m: learn(m(X.long()))),
    "complex": (linear, lambda m: learn(m(X.to(torch.complex64)))),
    "the imaginary part of a conjugate": (linear, lambda m: learn(m(torch.complex(X, X).conj().imag))),
    "expanded": (linear, lambda m: learn(m(X[:1].expand(4, 6)))),
    "with gaps": (linear, lambda m: learn(m(torch.cat([X, X], 1)[:, ::2]))),
    "sparse": (no_bias, lambda m: learn(m(X.to_sparse()))),
    "sparse rows": (no_bias, lambda m: learn(m(X.to_sparse_csr()))),
    "sparse @": (no_bias, lambda m: learn(X.to_sparse() @ m.weight.t())),
    "nested": (linear, lambda m: m(torch.nested.nested_tensor([X, X[:2]]))),
    "jagged": (linear, lambda m: learn(m(jagged(X, X[:2])).values())),
    "a subclass": (linear, lambda m: type(learn(m(X.as_subclass(Tagged)))).__name__),
    "a wrapper": (linear, lambda m: m(Wrapped(X)).inner),
    "a bias of two dimensions": (linear, lambda m: learn(F.linear(X, m.weight, torch.ones(1, 5)))),
    "a bias of one number": (linear, lambda m: learn(F.linear(X, m.weight, torch.ones(1)))),
    "a bias of doubles": (linear, lambda m: learn(F.linear(X, m.weight, torch.ones(5).double()))),
    "a weight of one dimension": (lambda: nn.ParameterList([torch.ones(6)]), lambda m: learn(F.linear(X, m[0]))),
    "W @ vector": (linear, lambda m: learn(m.weight @ X[0])),
    "vector @ Wᵀ": (linear, lambda m: learn(X[0] @ m.weight.T)),
    "W @ Wᵀ": (linear, lambda m: learn(m.weight @ m.weight.T)),
    "Wᵀ @ W": (linear, lambda m: learn(m.weight.T @ m.weight)),
    "W @ batches of columns": (linear, lambda m: learn(m.weight @ X.view(1, 2, 2, 6).mT)),
    "there and back": (linear, lambda m: learn(X @ m.weight.t() @ m.weight)),
    "transposed twice": (linear, lambda m: learn(F.linear(X, m.weight.t().t()))),
    "swapped from behind": (linear, lambda m: learn(X @ m.weight.transpose(-1, -2))),
    "permuted to itself": (linear, lambda m: learn(F.linear(X, m.weight.permute(0, 1)))),
    "a square one swapped and copied": (square, lambda m: learn(X @ m.weight.transpose(0, 1).to(X, copy=True))),
    "contiguous": (linear, lambda m: learn(X @ m.weight.t().contiguous())),
    "a slice": (linear, lambda m: learn(F.linear(X, m.weight[:3]))),
    "chunks": (linear, lambda m: learn(F.linear(X, torch.cat(m.weight.chunk(2))))),
    "detached": (linear, lambda m: learn(F.linear(X, m.weight.detach(), m.bias))),
    "a cast changed in place": (linear, cast_changed_in_place),
    "out=": (linear, lambda m: torch.matmul(X, m.weight.t().detach(), out=torch.empty(4, 5))),
    "out= with history": (linear, lambda m: torch.matmul(X, m.weight.t(), out=torch.empty(4, 5))),
    "int32 ids": (table, lambda m: learn(m(IDS.int()))),
    "int16 ids": (table, lambda m: learn(m(IDS.short()))),
    "ids of floats": (table, lambda m: learn(m(IDS.float()))),
    "an id too large": (table, lambda m: learn(m(torch.tensor([9])))),
    "no id": (table, lambda m: learn(m(IDS[:0]))),
    "an id of no dimension": (table, lambda m: learn(m(IDS[0]))),
    "expanded ids": (table, lambda m: learn(m(IDS[:1].expand(5)))),
    "jagged ids": (table, lambda m: learn(m(jagged(IDS, IDS[:2])).values())),
    "wrapped ids": (table, lambda m: m(Wrapped(IDS)).inner),
    "sparse gradient": (lambda: table(sparse=True), lambda m: learn(m(IDS))),
    "max_norm": (lambda: table(max_norm=0.5), lambda m: learn(m(IDS))),
    "by frequency": (lambda: table(scale_grad_by_freq=True), lambda m: learn(m(IDS))),
    "padding": (lambda: table(padding_idx=-7), lambda m: learn(m(IDS))),
}


@pytest.mark.parametrize("what", OPERANDS)
def test_any_operand_is_taken_or_refused_as_without_an_optimizer(what):
    assert_as_without_an_optimizer(*OPERANDS[what])


# ---- Transforms, modes, modules --------------------------------------------------------------------------------------


def doubled(m):
    return {name: 2 * p for name, p in m.named_parameters()}


def ensemble(m):
    parameters, buffers = stack_module_state([copy.deepcopy(m) for _ in range(3)])
    base = copy.deepcopy(m).to("meta")
    return vmap(lambda p, b: functional_call(base, (p, b), (X,)))(parameters, buffers)


class Doubling(TorchFunctionMode):
    """Makes something else of F.linear, and so of its gradient."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return 2 * y if function is F.linear else y


def under(context, use):
    def go(m):
        with context():
            return use(m)

    return go


def with_hooks(m):
    seen = []
    m.register_forward_pre_hook(lambda m, args: (args[0] + 1,))

    def note(m, args, kwargs, y):
        seen.append((len(args), sorted(kwargs)))
        return 2 * y

    m.register_forward_hook(note, with_kwargs=True)
    everywhere = nn.modules.module.register_module_forward_hook(lambda m, args, y: 3 * y)
    try:
        return learn(m(X)), seen
    finally:
        everywhere.remove()


def patched(owner, name, replacement, use):
    def go(m):
        theirs = getattr(owner, name)
        setattr(owner, name, replacement(theirs))
        try:
            return use(m)
        finally:
            setattr(owner, name, theirs)

    return go


def twice(theirs):
    def product(*args, **kwargs):
        return 2 * theirs(*args, **kwargs)

    return product


def attention():
    return nn.MultiheadAttention(6, 2, batch_first=True)


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()


def attend(m):
    return m(X[None], X[None], X[None])[0]


PADDED = torch.tensor([[False, False, True, True]])


def pruned():
    model = linear()
    prune.l1_unstructured(model, "weight", 0.3)
    return model


USES = {
    "vmap": (linear, lambda m: learn(vmap(m)(X))),
    "vmap of ids": (table, lambda m: learn(vmap(m)(IDS.view(2, 2)))),
    "jvp": (linear, lambda m: jvp(m, (X,), (X,))),
    "grad": (linear, lambda m: grad(lambda x: m(x).square().sum())(X)),
    "grad in the loss": (linear, lambda m: learn(m(X).sum() * grad(lambda x: m(x).square().sum())(X))),
    "jacrev": (linear, lambda m: jacrev(m)(X)),
    "functional_call of its own": (linear, lambda m: learn(functional_call(m, dict(m.named_parameters()), (X,)))),
    "functional_call of the doubled": (linear, lambda m: learn(functional_call(m, doubled(m), (X,)))),
    "an ensemble": (linear, ensemble),
    "no_grad": (linear, under(torch.no_grad, lambda m: m(X))),
    "inference": (linear, under(torch.inference_mode, lambda m: (m(X) + X @ m.weight.t()).clone())),
    "a function mode": (linear, under(Doubling, lambda m: learn(m(X)))),
    "a default device": (linear, under(lambda: torch.device("cpu"), lambda m: learn(m(X)))),
    "hooks": (linear, with_hooks),
    "F.linear patched": (linear, patched(F, "linear", twice, lambda m: learn(m(X)))),
    "nn.Linear.forward patched": (linear, patched(nn.Linear, "forward", twice, lambda m: learn(m(X)))),
    "weight_norm": (lambda: parametrizations.weight_norm(linear()), lambda m: learn(m(X))),
    "spectral_norm": (lambda: parametrizations.spectral_norm(linear()), lambda m: learn(m(X))),
    "pruned": (pruned, lambda m: learn(m(X))),
    "attention": (attention, lambda m: learn(attend(m))),
    "attention, evaluated": (lambda: attention().eval(), under(torch.no_grad, attend)),
    "an encoder, evaluated": (encoder, under(torch.no_grad, lambda m: m(X[None], src_key_padding_mask=PADDED))),
    "an encoder in inference": (encoder, under(torch.inference_mode, lambda m: m(X[None]).clone())),
    "an encoder with gradients": (encoder, lambda m: learn(m(X[None]))),
    "a transformer": (
        lambda: nn.Transformer(6, 2, 1, 1, 12, dropout=0.0, batch_first=True),
        lambda m: learn(m(X[None], X[None])),
    ),
    "LSTM": (lambda: nn.LSTM(6, 5, 2, proj_size=3), lambda m: learn(m(X)[0])),
    "GRU": (lambda: nn.GRU(6, 5, 2), lambda m: learn(m(X)[0])),
    "LSTMCell": (lambda: nn.LSTMCell(6, 5), lambda m: learn(m(X)[0])),
    "Bilinear": (lambda: nn.Bilinear(6, 6, 5), lambda m: learn(m(X, X))),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 4), lambda m: learn(m(IDS[None]))),
}


@pytest.mark.parametrize("how", USES)
def test_transforms_modes_and_modules_of_torch_do_what_they_do_without_an_optimizer(how):
    assert_as_without_an_optimizer(*USES[how])


class Operations(TorchDispatchMode):
    """Notes what reaches a device, as selective checkpointing and profilers see it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def operations_of(use):
    def go(m):
        with Operations() as operations:
            y = use(m)
        learn(y)
        return operations.seen

    return go


def checkpointed(m):
    """Products are kept, the rest is computed again: what the policy is asked for tells what it sees."""
    asked = []

    def policy(ctx, operation, *args, **kwargs):
        asked.append((str(operation), ctx.is_recompute))
        product = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if product else CheckpointPolicy.PREFER_RECOMPUTE

    x = X.clone().requires_grad_()
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    learn(checkpoint(lambda x: torch.tanh(m(x)), x, use_reentrant=False, context_fn=contexts))
    return x.grad, asked


# Views, copies and sums around them may differ.
PRODUCTS = {f"aten.{name}.default" for name in ("mm", "addmm", "bmm", "mv", "addmv", "linear", "matmul")}

SEEN = {
    "F.linear": operations_of(lambda m: m(X)),
    "F.linear of three dimensions": operations_of(lambda m: m(X.view(2, 2, 6))),
    "F.linear of three dimensions with gaps": operations_of(lambda m: m(X.view(2, 2, 6).transpose(0, 1))),
    "F.linear without a bias": operations_of(lambda m: F.linear(X, m.weight)),
    "F.linear without a bias, of three dimensions": operations_of(lambda m: F.linear(X.view(2, 2, 6), m.weight)),
    "@": operations_of(lambda m: X @ m.weight.t()),
    "@ of a cast": operations_of(lambda m: X.bfloat16() @ m.weight.t().bfloat16()),
    "W @ columns": operations_of(lambda m: m.weight @ X.t()),
    "selective checkpointing": checkpointed,
}


@pytest.mark.parametrize("how", SEEN)
def test_a_dispatch_mode_sees_the_products_that_it_sees_without_an_optimizer(how):
    (given, _), (expected, _) = (run(linear, SEEN[how], held) for held in (True, False))
    given, expected = ([x for x in seen if isinstance(x, str) and x in PRODUCTS] for seen in (given, expected))
    assert given == expected and expected


def of_a_transpose(edit):
    def go(m):
        w = m.weight.t()
        edit(w)
        learn(X @ w)
        return w.grad if w.retains_grad else None

    return go


def asked_for(m):
    w = m.weight.t()
    given = torch.autograd.grad((X @ w).square().sum(), w)
    learn(X @ w)
    return given


def hooked_node(m):
    w = m.weight.t()
    w.grad_fn.register_prehook(lambda grads: tuple(3 * g for g in grads))
    return learn(X @ w)


def hooked_cast(m):
    w = m.weight.to(torch.float32, copy=True)
    w.register_hook(lambda g: 2 * g)
    return learn(F.linear(X, w))


def of_columns(m):
    w = m.weight.to(torch.float32, copy=True)
    w.retain_grad()
    learn(w @ X.t())
    return w.grad


def to_a_transpose_only(m):
    w = m.weight.t()
    w.retain_grad()
    (X @ w).square().sum().backward(inputs=[w])
    return w.grad


BETWEEN = {
    "a hook on a transpose": of_a_transpose(lambda w: w.register_hook(lambda g: 2 * g)),
    "a transpose that retains its gradient": of_a_transpose(lambda w: w.retain_grad()),
    "a transpose that is asked for": asked_for,
    "a hook on a transpose's node": hooked_node,
    "a hook on a cast": hooked_cast,
    "a copy before columns": of_columns,
    "backward to a transpose alone": to_a_transpose_only,
}


@pytest.mark.parametrize("how", BETWEEN)
def test_who_waits_between_a_weight_and_its_use_gets_the_gradient_that_torch_gives_him(how):
    assert_as_without_an_optimizer(linear, BETWEEN[how])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make, use", [(linear, lambda m: m(X)), (text, lambda m: m(IDS)), (attention, attend)])
def test_autocast_computes_the_same_and_keeps_more_of_the_gradient(make, use, dtype):
    def cast(m):
        with torch.autocast("cpu", dtype=dtype):
            y = use(m)
        learn(y)
        grads = [p.grad.dense() if is_factored(p) else p.grad for p in m.parameters()]
        return y, [g.double() for g in grads]

    (y, *grads), _ = run(make, cast, held=True)
    (expected, *expected_grads), _ = run(make, cast, held=False)
    assert torch.equal(y, expected)
    for ours, theirs in zip(grads, expected_grads, strict=True):  # torch rounds dYᵀX to autocast's dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * torch.finfo(dtype).eps * theirs.abs().max().item())


def test_a_module_on_a_mesh_of_one_rank_does_what_it_does_without_an_optimizer():
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))

        def use(m):
            return learn(m(distribute_tensor(X, mesh, [Replicate()]))).full_tensor()

        results = []
        for optimizer_class in (torch.optim.SGD, forge.SGD):
            torch.manual_seed(0)
            model = distribute_module(linear(), mesh)
            optimizer = optimizer_class(model.parameters(), lr=0.1)
            y = use(model)
            optimizer.step()
            results.append([y, *(p.full_tensor() for p in model.parameters())])
        torch.testing.assert_close(results[1], results[0])
    finally:
        dist.destroy_process_group()


# ---- Programs --------------------------------------------------------------------------------------------------------


def exported(m, strict):
    return torch.export.export(m, (IDS,), strict=strict)


def after_a_backward(use):
    return lambda m: (learn(m(IDS)), use(m))[1]


def fx(m):
    traced = torch.fx.symbolic_trace(m)
    return traced.code, learn(traced(IDS))


def scripted_and_saved(m):
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(m), file)
    file.seek(0)
    return torch.jit.load(file)(IDS)


def made_by_fx(mode):
    allowed = {} if mode == "real" else {"_allow_non_fake_inputs": True}
    return lambda m: make_fx(m, tracing_mode=mode, **allowed)(IDS).code


PROGRAMS = {
    "export": lambda m: str(exported(m, strict=False)),
    "export, strict": lambda m: exported(m, strict=True).graph_module.code,
    "export with gradients there": after_a_backward(lambda m: str(exported(m, strict=False))),
    "what was exported trains": lambda m: learn(exported(m, strict=False).module()(IDS)),
    "decomposed": lambda m: exported(m, strict=False).run_decompositions().graph_module.code,
    "unflattened": lambda m: torch.export.unflatten(exported(m, strict=False))(IDS),
    "make_fx": made_by_fx("real"),
    "make_fx, fake": made_by_fx("fake"),
    "make_fx, symbolic": made_by_fx("symbolic"),
    "fx": fx,
    "jit.trace": lambda m: learn(torch.jit.trace(m, (IDS[:2],))(IDS)),
    "jit.script": lambda m: learn(torch.jit.script(m)(IDS)),
    "the code of a script": lambda m: torch.jit.script(m[1]).code,
    "a script from a file": scripted_and_saved,
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_programs_made_of_a_model_are_those_made_without_an_optimizer(how):
    assert_as_without_an_optimizer(text, PROGRAMS[how])


# ---- Tools that look at modules --------------------------------------------------------------------------------------


def quantized(m):
    small = torch.ao.quantization.quantize_dynamic(m, {nn.Linear})
    return type(small[1]).__module__, small(IDS)


def swapped_by_exact_type(m):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for name, child in m.named_children():
        if type(child) is nn.Linear:
            mine = Twice(child.in_features, child.out_features)
            mine.weight, mine.bias = child.weight, child.bias
            setattr(m, name, mine)
    return learn(m(IDS)), type(m[1]).__name__


def class_swapped(m):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    m[1].__class__ = Twice
    return learn(m(IDS))


def copied_and_given_another_weight(m):
    twin = copy.copy(m[1])
    twin._parameters = {"weight": nn.Parameter(torch.ones(5, 6)), "bias": None}
    return twin(X)


TOOLS = {
    "quantize_dynamic": quantized,
    "quantize_dynamic with gradients there": after_a_backward(quantized),
    "modules swapped by exact type": swapped_by_exact_type,
    "the class swapped": class_swapped,
    "a shallow copy": copied_and_given_another_weight,
    "fused with a batch norm": lambda m: nn.utils.fusion.fuse_linear_bn_eval(m[1].eval(), nn.BatchNorm1d(5).eval())(X),
}


@pytest.mark.parametrize("how", TOOLS)
def test_tools_find_the_modules_that_they_find_without_an_optimizer(how):
    assert_as_without_an_optimizer(text, TOOLS[how])


def test_a_model_that_was_saved_whole_opens_without_this_package_and_is_torchs_own(tmp_path):
    model = text()
    optimizer = forge.SGD(model, lr=0.1)
    learn(model(IDS))
    torch.save(model, tmp_path / "model.pt")
    program = f"""
import sys
sys.modules["forge_optim"] = None
import torch
from torch import nn
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
assert [type(m) for m in model] == [nn.Embedding, nn.Linear]
assert set(vars(model[1])) == set(vars(nn.Linear(1, 1))), vars(model[1]).keys()
torch.save(model(torch.tensor({IDS.tolist()})), {str(tmp_path / "y.pt")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), model(IDS))
    del optimizer


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_layer_have_what_torchs_own_has(copied):
    layer = linear()
    optimizer = forge.SGD(layer, lr=0.1)
    twin = copied(layer)
    assert type(layer) is type(twin) is nn.Linear
    assert set(vars(twin)) == set(vars(linear()))
    assert_equal_bits(twin, layer)
    forge.fuse(twin)
    forge.unfuse(twin)
    assert set(vars(twin)) == set(vars(linear()))
    del optimizer


def test_a_weight_that_nobody_holds_has_torchs_own_nodes():
    held, free, words = linear(), linear(), table()
    optimizer = forge.SGD(held, lr=0.1)
    names = [type(y.grad_fn).__name__ for y in (free(X), X @ free.weight.t(), words(IDS))]
    assert names == ["AddmmBackward0", "MmBackward0", "EmbeddingBackward0"]
    learn(held(X))
    assert is_factored(held.weight)
    del optimizer


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Casting(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def compiled(*args):
    def go(m):
        torch._dynamo.reset()
        return learn(torch.compile(m, backend="aot_eager")(*(args or (X,))))

    return go


def between(edit):
    """The graph is made, something is done to the model, and it is used again."""

    def go(m):
        torch._dynamo.reset()
        call = torch.compile(m, backend="aot_eager")
        call(X)
        edit(m)
        return learn(call(X))

    return go


def swap_class(m):
    m.__class__ = type("Twice", (nn.Linear,), {"forward": lambda self, x: 2 * F.linear(x, self.weight, self.bias)})


COMPILED = {
    "a layer": (linear, compiled()),
    "one dimension": (linear, compiled(X[0])),
    "no token": (linear, compiled(X[:0])),
    "sparse x": (no_bias, compiled(X.to_sparse())),
    "a casting subclass": (lambda: Casting(6, 5), compiled()),
    "an embedding by frequency": (lambda: table(scale_grad_by_freq=True), compiled(IDS)),
    "an embedding with max_norm": (lambda: table(max_norm=0.5), compiled(IDS)),
    "after unfuse": (linear, lambda m: compiled()(forge.unfuse(m))),
    "unfused between": (linear, between(forge.unfuse)),
    "the class swapped": (linear, lambda m: (swap_class(m), compiled()(m))[1]),
    "the class swapped between": (linear, between(swap_class)),
    "nn.Linear.forward patched": (linear, patched(nn.Linear, "forward", twice, compiled())),
    "F.linear patched": (linear, patched(F, "linear", twice, compiled())),
    "under a function mode": (linear, under(Doubling, compiled())),
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_computes_what_it_computes_without_an_optimizer(how):
    assert_as_without_an_optimizer(*COMPILED[how])


def test_a_default_device_does_not_cost_a_compiled_model_its_records():
    layer = linear()
    optimizer = forge.SGD(layer, lr=0.1)
    with torch.device("cpu"):
        compiled()(layer)
    assert is_factored(layer.weight)
    del optimizer
