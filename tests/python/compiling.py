"""A training under torch.compile beside the same training as torch has it."""

import functools

import pytest
from models import (
    RULES,
    forge,
    forge_optimizer,
    is_factored,
    mlp_loss,
    points,
    torch,
    torch_optimizer,
)
from torch import nn

# Those that run what was traced as it is; the second also traces backward ahead of time, as inductor does.
BACKENDS = ("eager", "aot_eager")
backends = pytest.mark.parametrize("backend", BACKENDS)


# Fixtures of each module that imports them.
@pytest.fixture(autouse=True)
def nothing_is_compiled_yet():
    torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="module")
def nothing_stays_compiled():
    yield
    torch._dynamo.reset()


@functools.cache
def has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


def need_compiler() -> None:
    if not has_compiler():
        pytest.skip("inductor finds no C++ compiler")


def whole_graph(model, backend="aot_eager", **options):
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def matrices(model):
    return [p for p in model.parameters() if p.dim() == 2 and p.requires_grad]


class Side:
    """A training, of a model that is fused and compiled or as torch has it, to which a story is done."""

    def __init__(self, model, fused, schedule="at_step", rule="SGD", backend="eager"):
        self.model, self.fused, self.schedule, self.rule, self.backend = model, fused, schedule, rule, backend
        self.call, self.optimizer = model, None
        self.recorded = []  # for each backward, whether every matrix's gradient is a record
        if fused:
            forge.fuse(model, verbose=False)

    def compile(self):
        self.call = whole_graph(self.model, self.backend) if self.fused else self.model

    def new_optimizer(self, parameters=None):
        parameters = list(self.model.parameters()) if parameters is None else parameters
        if self.fused:
            return forge_optimizer(params=parameters, schedule=self.schedule, **RULES[self.rule])
        return torch_optimizer(params=parameters, **RULES[self.rule])

    def optimize(self, parameters=None):
        self.drop()
        self.optimizer = self.new_optimizer(parameters)

    def drop(self):
        """The optimizer ends."""
        self.optimizer = None

    def loss(self, i, count=5):
        return mlp_loss(self.call, points(i, count))

    def backward(self, i, count=5):
        self.loss(i, count).backward()
        self.look()

    def look(self):
        self.recorded.append(is_factored(*matrices(self.model)))

    def step(self, i, count=5):
        self.optimizer.zero_grad()
        self.backward(i, count)
        self.optimizer.step()

    def steps(self, *which):
        for i in which:
            self.step(i)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 7, bias=False))


def sides(*args, **kwargs):
    return Side(two_layers(), False, *args, **kwargs), Side(two_layers(), True, *args, **kwargs)
