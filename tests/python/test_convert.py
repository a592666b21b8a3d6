"""State of bitsandbytes, torchao and torch.optim in ours and back: the same numbers, and the same next step."""

import copy
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from forge_optim import block_codes  # noqa: E402
from library_cases import (  # noqa: E402
    Case,
    codes_of,
    every_case,
    library,
    net,
    numbers_of,
    of_blocks,
    our_numbers,
    scales_of,
    torchao_numbers,
    train,
)
from models import through_a_file  # noqa: E402
from rule_distance import ulp  # noqa: E402
from torch import nn  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs" / "pytorch.md"

# One step of each side from the same state, in units of docs/numerics.md: twice the worst rule's bound.
UNITS = 16

pytestmark = [
    pytest.mark.filterwarnings("ignore:no parameter belongs to a fused module"),
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"),
]


def off_by_fp32(case, t, beta1=0.9, beta2=0.999):
    """torchao takes 1 − βᵗ in fp32: β and the power are rounded, (1 + t / 2)·2⁻²⁴, and the difference is small."""
    if case.name != "torchao":
        return 0.0
    return (1 + t / 2) * 2**-24 * (1 / (1 - beta1**t) + 0.5 / (1 - beta2**t))


def assert_same_step(case, model, optimizer, other, other_optimizer):
    """Of both from here, with the same gradients."""
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, steps=1, first=3)
    train(other, other_optimizer, steps=1, first=3)
    for p, q, old in zip(model.parameters(), other.parameters(), before, strict=True):
        change = (p.detach() - old).abs()
        distance = (p.detach().double() - q.detach().double()).abs()
        assert change.max() > 1e-4
        assert (distance <= UNITS * (ulp(old) + ulp(change)) + off_by_fp32(case, t=4) * change).all()


def assert_same_tensors(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_tensors(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        parts = ("codes", "scale") if hasattr(one, "codes") else ()
        assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in parts)
        assert parts or torch.equal(one, other)


# ---- Into ours -----------------------------------------------------------------------------------------------------


@every_case
def test_moments_are_the_numbers_that_the_library_reads_and_the_next_step_is_its_own(case):
    case = Case(case)
    model, theirs = case.trained()
    ours_model, ours = case.carried_in(through_a_file(theirs.state_dict()), model)
    for p, q in zip(model.parameters(), ours_model.parameters(), strict=True):
        expected, found = numbers_of(case, theirs, p), our_numbers(ours, q)
        assert expected.keys() == found.keys() and expected
        for key in expected:
            assert found[key].dtype == torch.float32 and torch.equal(found[key], expected[key]), key
            assert found[key].any()
    assert_same_step(case, model, theirs, ours_model, ours)


@pytest.mark.parametrize("case", ["bitsandbytes AdamW8bit", "torchao AdamW4bit", "torchao AdamW8bit"])
def test_steps_and_options_are_the_checkpoints(case):
    case = Case(case)
    model, theirs = case.trained()
    theirs.param_groups[0]["initial_lr"] = 0.5  # of a scheduler
    _, ours = case.carried_in(
        through_a_file(theirs.state_dict()), model, lr=9.0, eps=0.1, betas=(0.1, 0.2), maximize=True
    )
    assert {float(of["step"]) for of in ours.state.values()} == {3.0}
    group = ours.param_groups[0]
    assert (group["betas"], group["maximize"], group["initial_lr"]) == ((0.9, 0.999), False, 0.5)
    assert group["eps"] == 1e-8
    assert isinstance(group["lr"], float) and group["lr"] == pytest.approx(1e-2)


@pytest.mark.parametrize("case", ["bitsandbytes AdamW8bit", "torchao AdamW8bit", "bitsandbytes AdEMAMix alpha over 10"])
def test_either_side_goes_on_without_the_other(case):
    case = Case(case)
    model, theirs = case.trained()
    before = through_a_file(theirs.state_dict())["state"]  # torchao's have no deepcopy
    ours_model, ours = case.carried_in(theirs.state_dict(), model)
    train(ours_model, ours, steps=1, first=3)
    saved = forge.convert.to_state_dict(ours, *case.layout())
    kept = through_a_file(saved)["state"]
    train(ours_model, ours, steps=1, first=4)
    for old, new in ((before, theirs.state_dict()["state"]), (kept, saved["state"])):
        assert_same_tensors(old, new)


def test_bitsandbytes_schedules_of_ademamix_have_our_names():
    case = Case("bitsandbytes AdEMAMix8bit alpha over 10")
    model, theirs = case.theirs(alpha=4.0, t_beta3=7)
    train(model, theirs)
    ours_model, ours = case.carried_in(theirs.state_dict(), model)
    group = ours.param_groups[0]
    assert (group["alpha"], group["alpha_warmup"], group["beta3_warmup"]) == (4.0, 10, 7)
    back = forge.convert.to_state_dict(ours, "bitsandbytes")["param_groups"][0]
    assert {key: back[key] for key in back} == theirs.state_dict()["param_groups"][0]


@pytest.mark.parametrize("case", ["bitsandbytes AdamW8bit", "bitsandbytes AdEMAMix8bit alpha over 10"])
def test_the_layout_without_nesting_is_read_too(case):
    case = Case(case)
    model, theirs = case.trained()
    nested = through_a_file(theirs.state_dict())
    flat = copy.deepcopy(nested)
    flat["state"] = {i: of | of.pop(forge.convert.NESTED) for i, of in flat["state"].items()}
    (one, first), (other, second) = case.carried_in(nested, model), case.carried_in(flat, model)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(x, second.state[q][key]) for key, x in first.state[p].items())


def test_blocks_of_2048_of_earlier_versions_are_told_by_their_number():
    case = Case("bitsandbytes AdamW8bit")
    model, theirs = case.trained()
    saved = theirs.state_dict()
    table, codes = block_codes.dynamic_map(True), torch.randint(256, (100, 53), dtype=torch.uint8)
    scale = torch.tensor([1.0, 10.0, 100.0])
    saved["state"][2][forge.convert.NESTED] |= {"state1": codes, "absmax1": scale}
    ours_model, ours = case.carried_in(saved, model)
    assert torch.equal(ours.state[ours_model.ragged.weight]["exp_avg"].flatten(), of_blocks(codes, table, scale, 2048))


@pytest.mark.parametrize("case", ["bitsandbytes AdamW8bit", "torchao AdamW8bit"])
@pytest.mark.parametrize("kind, bound", [("int8", 2e-2), ("fp8", 6e-2), ("bf16", 4e-3)])
def test_moments_get_the_format_that_is_asked_for(case, kind, bound):
    case = Case(case)
    model, theirs = case.trained()
    ours_model, ours = case.carried_in(through_a_file(theirs.state_dict()), model, state_format=kind)
    ours.param_groups[0]["betas"] = (0.999999, 0.999999)
    train(ours_model, ours, steps=1, first=3)
    p, q = ours_model.ragged.weight, model.ragged.weight
    kept = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16}[kind]
    assert ours.state[p]["exp_avg"].dtype == kept
    before, after = numbers_of(case, theirs, q)["exp_avg"], our_numbers(ours, p)["exp_avg"].float()
    assert (after - before).norm() < bound * before.norm()


def test_bf16_moments_of_torchaos_small_tensors_stay_as_they_are():
    case = Case("torchao AdamW8bit", torch.bfloat16)
    model, theirs = case.trained()
    ours_model, ours = case.carried_in(through_a_file(theirs.state_dict()), model)
    small, whole = (ours.state[p]["exp_avg"] for p in (ours_model.small.weight, ours_model.whole.weight))
    assert (small.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(small, theirs.state[model.small.weight]["exp_avg"])
    train(ours_model, ours, steps=1, first=3)
    ours.state[ours_model.small.weight]["exp_avg"] = small.float()
    saved = forge.convert.to_state_dict(ours, "torchao")["state"]
    assert saved[3]["exp_avg"].dtype == torch.bfloat16


def test_sgd_gets_no_count_of_steps_that_it_would_not_keep():
    case = Case("bitsandbytes SGD8bit")
    model, theirs = case.trained()
    _, ours = case.carried_in(theirs.state_dict(), model)
    assert all(of.keys() == {"momentum_buffer"} for of in ours.state.values())


def test_torchs_sgd_without_momentum_has_nothing_to_carry():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    theirs, ours = torch.optim.SGD([p], lr=0.1), forge.SGD([q], lr=0.5)
    saved = theirs.state_dict() | {"state": {0: {"momentum_buffer": None}}}  # as torch saves it
    ours.load_state_dict(forge.convert.from_state_dict(saved, ours))
    assert ours.param_groups[0]["lr"] == 0.1


def test_what_we_saved_ourselves_passes_as_it_is():
    model = net(torch.bfloat16)
    ours = train(model, forge.AdamW(model, state_format="int8", weight_format="bf16_plus8"))
    same = forge.convert.from_state_dict(ours.state_dict(), ours)
    assert same["state"].keys() == ours.state_dict()["state"].keys()
    assert all(same["state"][i][key] is x for i, of in ours.state_dict()["state"].items() for key, x in of.items())


# ---- Out of ours ---------------------------------------------------------------------------------------------------


def assert_nearest(x, stored, table, scale):
    """Each within half a step of codes, and scales no larger than a block's largest number asks for."""
    block = 256 if len(scale) == -(-x.numel() // 256) else 128
    part = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % block)).view(-1, block).double()
    found = torch.nn.functional.pad(stored.flatten(), (0, -x.numel() % block)).view(-1, block).double()
    codes = table.double() * scale.double().unsqueeze(1)
    above = torch.searchsorted(codes, part).clamp(1, len(table) - 1)
    nearest = torch.minimum(*((codes.gather(1, i) - part).abs() for i in (above, above - 1)))
    # Of a quotient and of a product, each rounded.
    slack = 2**-22 * torch.maximum(part.abs(), found.abs())
    assert ((found - part).abs() <= nearest + slack).all()
    largest, lowest = part.abs().amax(1), -table.min() if table.min() < 0 else table.max()
    least = largest.clamp(min=1e-12 * table.max())  # torchao's, in fp8
    assert (scale * torch.minimum(table.max(), lowest) <= least * (1 + 2**-22)).all()
    assert (scale * torch.maximum(table.max(), lowest) >= largest * (1 - 2**-22)).all()


@every_case
@pytest.mark.parametrize("formats", [{}, dict(state_format="int8"), dict(state_format="fp8")], ids=str)
def test_the_library_goes_on_with_our_state(case, formats):
    case = Case(case)
    model, ours = case.ours_trained(**formats)
    theirs_model, theirs = case.carried_out(ours, model)
    assert theirs.state_dict()["param_groups"] == case.theirs()[1].state_dict()["param_groups"]
    coded = 0
    for p, q in zip(model.parameters(), theirs_model.parameters(), strict=True):
        mine, its = our_numbers(ours, p), numbers_of(case, theirs, q)
        assert mine.keys() == its.keys() and mine
        scales = scales_of(case, theirs.state[q])
        for key, x in mine.items():
            if key in scales:
                assert_nearest(x, its[key], *scales[key])
            else:
                assert torch.equal(its[key], x), key
        coded += len(scales)
    assert (coded > 0) == any(name in case.their_cls for name in ("8bit", "4bit", "Fp8"))
    # Their numbers in ours again, so that both start from the same.
    again_model, again = case.carried_in(through_a_file(theirs.state_dict()), theirs_model)
    assert_same_step(case, theirs_model, theirs, again_model, again)


@every_case
def test_what_came_from_a_library_goes_back_with_the_same_codes(case):
    """Numbers that were decoded lie on codes, none between two, so that no tie can fall otherwise. In a block of zeros
    codes mean nothing."""
    case = Case(case)
    model, theirs = case.trained()
    ours_model, ours = case.carried_in(through_a_file(theirs.state_dict()), model)
    _, again = case.carried_out(ours, ours_model)
    if case.name == "bitsandbytes":  # its own Embedding has 32 bits
        del theirs.state[model.embedding.weight]
        for key in [key for key in again.state if key.shape == (80, 64)]:
            del again.state[key]
    before, after = codes_of(theirs), codes_of(again)
    assert before.keys() == after.keys()
    for (i, key, part), x in before.items():
        if part == "scale":
            x, y = (torch.where(s > 1e-12, s, 0) for s in (x, after[i, key, part]))
            torch.testing.assert_close(y, x, rtol=2**-22, atol=0)
        else:
            scale = before.get((i, key, "scale"), before.get((i, key.replace("state", "absmax"), "scale")))
            empty = scale.le(1e-12).repeat_interleave(-(-x.numel() // scale.numel()))
            same = x.view(torch.uint8) == after[i, key, part].view(torch.uint8)
            assert same.flatten()[~empty[: x.numel()]].all(), key


def test_torch_gets_numbers_and_its_own_options():
    model = net()
    ours = train(model, forge.AdamW([{"params": model.parameters(), "state_format": "int8"}], seed=3))
    saved = forge.convert.to_state_dict(ours, "torch")
    theirs = torch.optim.AdamW(model.parameters())
    assert saved["param_groups"][0].keys() <= theirs.state_dict()["param_groups"][0].keys() | {"param_names"}
    train(model, theirs)
    assert all(described(saved["state"][i]) == described(of) for i, of in theirs.state_dict()["state"].items())


def described(state):
    return {key: (x.dtype, x.shape) if isinstance(x, torch.Tensor) else x for key, x in state.items()}


def test_bitsandbytes_tables_and_layout_are_its_own():
    functional = pytest.importorskip("bitsandbytes").functional
    for signed in (True, False):
        assert torch.equal(block_codes.dynamic_map(signed), functional.create_dynamic_map(signed))
    case = Case("bitsandbytes AdamW8bit")
    model, theirs = case.trained()
    its = theirs.state_dict()
    ours = forge.convert.to_state_dict(case.ours_trained()[1], "bitsandbytes")
    assert ours["param_groups"] == its["param_groups"]
    for i in (1, 2, 3, 4):
        nested = its["state"][i].pop(forge.convert.NESTED)
        assert described(its["state"][i] | nested) == described(ours["state"][i])
    assert ours["state"][0]["state1"].dtype == torch.float32  # the embedding


def test_a_weight_that_lies_otherwise_has_its_state_in_the_order_of_rows():
    p = nn.Parameter(torch.randn(72, 96).t())
    p.grad = torch.randn(96, 72)
    optimizer = forge.AdamW([{"params": [p]}], state_format="fp32")
    optimizer.step()
    m = optimizer.state[p]["exp_avg"]
    state = forge.convert.to_state_dict(optimizer, "bitsandbytes")["state"][0]
    numbers = of_blocks(state["state1"], state["qmap1"], state["absmax1"], 256).view(96, 72)
    assert (numbers - m).norm() < 0.05 * m.norm()
    plain = forge.convert.to_state_dict(optimizer, "bitsandbytes", "32bit")["state"][0]["state1"]
    assert plain.is_contiguous() and torch.equal(plain, m)
    library("torchao")
    for kind, bound in (("8bit", 0.05), ("4bit", 0.3), ("fp8", 0.05)):
        coded = forge.convert.to_state_dict(optimizer, "torchao", kind)["state"][0]["exp_avg"]
        assert (torchao_numbers(coded) - m).norm() < bound * m.norm()


# ---- The documentation ---------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    library("bitsandbytes")
    example = re.search(r"## Moving between libraries.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    case = Case("bitsandbytes AdamW8bit")
    model, theirs = case.trained()
    monkeypatch.chdir(tmp_path)
    torch.save(theirs.state_dict(), "adamw8bit.pt")
    names = {"forge": forge, "torch": torch, "model": copy.deepcopy(model)}
    exec(example, names)
    assert names["opt"].state[names["model"].whole.weight]["step"] == 3
    theirs.load_state_dict(torch.load("back.pt"))
    train(model, theirs, steps=1, first=3)
