"""torch's FLOP counter and the product of a weight gradient."""

import pytest
import torch
from forge_optim import flops
from torch.utils import flop_counter


@pytest.fixture
def outer_term(monkeypatch):
    """The operator that a record calls where somebody watches the dispatcher, made here where the library has none."""
    monkeypatch.setattr(flop_counter, "flop_registry", dict(flop_counter.flop_registry))
    library = None
    if not hasattr(torch.ops.forge, "outer_term"):
        library = torch.library.Library("forge", "FRAGMENT")
        library.define("outer_term(Tensor dY, Tensor X) -> ()")
        library.impl("outer_term", lambda dY, X: None, "CompositeExplicitAutograd")
    flop_counter.flop_registry.pop(torch.ops.forge.outer_term, None)
    flops.register()
    yield torch.ops.forge.outer_term
    if library is not None:
        library._destroy()


@pytest.mark.parametrize("tokens, out, columns", [(16, 32, 64), (1, 8, 8), (0, 4, 5)])
def test_a_term_counts_as_the_product_that_it_stands_for(outer_term, tokens, out, columns):
    dY, X = torch.ones(tokens, out), torch.ones(tokens, columns)
    with flop_counter.FlopCounterMode(display=False) as ours:
        outer_term(dY, X)
    with flop_counter.FlopCounterMode(display=False) as theirs:
        dY.t() @ X
    assert ours.get_total_flops() == theirs.get_total_flops() == 2 * tokens * out * columns
