"""Checks of gradients for NaN, and warnings where a gradient takes memory after all."""

import warnings
from pathlib import Path

import forge_optim as forge
import numpy as np
import pytest
import torch
from factored import Side
from forge_optim import factored_grad

# ---- NaN checks, as training loops have them: each says whether the gradient is sound --------------------------------

CHECKS = {
    "isnan.any": lambda g: not torch.isnan(g).any(),
    "any(isnan)": lambda g: not torch.any(torch.isnan(g)),
    "isnan.any.item": lambda g: not g.isnan().any().item(),
    "isnan.sum": lambda g: g.isnan().sum() == 0,
    "isinf": lambda g: not (torch.isinf(g).any() or g.isnan().any()),
    "either": lambda g: not torch.logical_or(torch.isnan(g), torch.isinf(g)).any(),
    "one sign each": lambda g: not (torch.isposinf(g) | torch.isneginf(g) | torch.isnan(g)).any(),
    "isfinite.all": lambda g: torch.isfinite(g).all(),
    "all(isfinite)": lambda g: torch.all(g.isfinite()),
    "not isfinite": lambda g: not (~torch.isfinite(g)).any(),
    "count of finite": lambda g: g.isfinite().sum().item() == g.numel(),
    "isfinite of data": lambda g: torch.isfinite(g.data).all().item(),
    "without gradients": torch.no_grad()(lambda g: torch.isfinite(g).all()),
    "in inference mode": torch.inference_mode()(lambda g: torch.isfinite(g).all()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "embedding"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_of_a_sound_gradient_multiplies_nothing_out(check, kind, dtype):
    side = Side(True, kind, dtype)
    side.backward(1)
    before = repr(side.p.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CHECKS[check](side.p.grad)
    assert repr(side.p.grad) == before and "dense" not in before


@pytest.mark.filterwarnings("ignore::forge_optim.CollapseWarning")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf])
def test_a_check_finds_one_bad_token(check, factor):
    """As in torch, where a NaN or an infinity of X meets zeros of dY and makes NaN, too."""
    sound = []
    for fused in (True, False):
        side = Side(fused)
        x = torch.ones(3, 9)
        x[1, 4] = factor
        side.model(x)[0].relu().sum().backward()
        sound.append(bool(CHECKS[check](side.p.grad)))
    assert sound[0] == sound[1]
    assert not sound[0] or "isnan" in check


def test_a_large_gradient_is_sound_whatever_the_bound_says():
    """The product of the factors' norms is beyond fp32, no element is."""
    layer = torch.nn.Linear(9, 8)
    forge.fuse(layer, verbose=False)
    opt = forge.SGD(layer.named_parameters(), lr=1.0)
    (layer(torch.full((2, 9), 1e19)) * 1e19).sum().backward()
    assert torch.isfinite(layer.weight.grad).all() and not torch.isinf(layer.weight.grad).any()
    assert "dYᵀX" in repr(layer.weight.grad)
    layer.weight.grad.mul_(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.isinf(layer.weight.grad).all()
    opt.zero_grad()


def test_isfinite_of_other_subclasses_is_torchs():
    class Logged(torch.Tensor):
        pass

    with torch._subclasses.FakeTensorMode():
        assert torch.isfinite(torch.ones(3)).dtype == torch.bool
        with torch.inference_mode():
            assert torch.isfinite(torch.ones(3)).shape == (3,)
    assert torch.isfinite(torch.tensor([1.0, torch.nan]).as_subclass(Logged)).tolist() == [True, False]
    masked = torch.masked.masked_tensor(torch.tensor([1.0, torch.inf]), torch.tensor([True, True]))
    assert torch.isfinite(masked.get_data()).tolist() == [True, False]
    assert torch.vmap(torch.isfinite)(torch.tensor([1.0, torch.inf])).tolist() == [True, False]
    x = torch.ones(2, requires_grad=True)
    assert torch.isfinite(x * 2).all() and torch.isfinite(torch.tensor([1, 2])).all()


# ---- Warnings --------------------------------------------------------------------------------------------------------

READS = {
    "numpy": lambda g: g.numpy(),
    "numpy, forced": lambda g: g.numpy(force=True),
    "asarray": np.asarray,
    "numpy's own lines": np.linalg.norm,
    "tolist": lambda g: g.tolist(),
    "from_dlpack": torch.from_dlpack,
    "np.from_dlpack": np.from_dlpack,
    "item": lambda g: g[0, 0].item(),
    "abs().max()": lambda g: g.abs().max(),
    "grad.half()": lambda g: g.half(),
    "histc": lambda g: torch.histc(g, 4),
    "einsum": lambda g: torch.einsum("ij,ij->", g, g),
    "vector": lambda g: torch.nn.utils.parameters_to_vector([g]),
    "norm of rows": lambda g: torch.nn.functional.normalize(g),
}


@pytest.mark.parametrize("read", READS)
def test_what_multiplies_out_warns_at_the_users_line_and_once(read, monkeypatch):
    monkeypatch.setattr(factored_grad, "_warned_of", set())
    side = Side(True)
    for already in (False, True):
        side.backward(1)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", forge.CollapseWarning)
            READS[read](side.p.grad)
        seen = [w for w in seen if w.category is forge.CollapseWarning]
        assert len(seen) == (0 if already else 1)
        assert all(Path(w.filename) == Path(__file__) for w in seen)
        assert all("lambda" in _line(w) or w.lineno == READS_CALL for w in seen)
        side.opt.zero_grad()


READS_CALL = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "READS[read](side" in text)


def _line(warning):
    return Path(warning.filename).read_text().splitlines()[warning.lineno - 1]


def test_a_cast_of_a_module_warns_at_the_users_line(monkeypatch):
    monkeypatch.setattr(factored_grad, "_warned_of", set())
    side = Side(True)
    side.backward(1)
    with pytest.warns(forge.CollapseWarning, match="_to_copy") as seen:
        side.model.half()
    assert Path(seen[0].filename) == Path(__file__) and "side.model.half()" in _line(seen[0])


def test_dense_and_pickling_are_no_surprise(monkeypatch):
    """dense() is asked for; what is pickled is a copy, and the gradient stays as it is."""
    monkeypatch.setattr(factored_grad, "_warned_of", set())
    side = Side(True)
    side.backward(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        side.p.grad.__reduce_ex__(4)
        assert "dYᵀX" in repr(side.p.grad)
        side.p.grad.dense()
