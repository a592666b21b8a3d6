"""A rule of one's own, from its C++ file to training with it (docs/rules.md)."""

import copy
import inspect
import math
import os
import pickle
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

import published_formulas  # noqa: E402
from forge_optim import own_rules  # noqa: E402
from models import assert_equal_bits, difference, mlp, through_a_file, train_mlp  # noqa: E402
from published_formulas import Sum, average  # noqa: E402
from rule_distance import distance_to_formula  # noqa: E402
from test_rules import K  # noqa: E402
from torch import nn  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/rules/cwd_adamw.cpp"

# Another rule, of which a test changes parts: w ← w − lr · (FORMULA).
RULE = """
#include "forge/kernels/register_optimizer.h"

using namespace forge;

struct Options {
  static constexpr const char* kName = "NAME";
  double lr = 0.5;
  int power = 1;
  bool up = false;
  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"power"}, o.power);
    f(Field{"up"}, o.up);
  }
};

struct Rule {
  using Options = ::Options;
  static constexpr const char* kName = "NAME rule";
  static constexpr std::array kMoments = {MOMENTS};
  struct Step {
    float change[CONSTANTS];
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {{static_cast<float>((o.up ? 1 : -1) * std::pow(o.lr, o.power))}};
  }
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    moment[0] = g;
    w = w + V(s.change[0]) * (FORMULA);
  }
};

FORGE_REGISTER_OPTIMIZER(Options, Rule);
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "forge_optim"


@pytest.fixture(scope="module")
def example(cache):
    return forge.load_rule(EXAMPLE)


@pytest.fixture
def plain(monkeypatch):
    """Compiles for `ref` alone: half the time, where it is not about arithmetic."""
    monkeypatch.setattr(own_rules, "_isas", lambda compiler: [])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_rule(tmp_path_factory.mktemp("rules"), "Ours")


@pytest.fixture(scope="module")
def ours(cache, file):
    return forge.load_rule(file)


def write_rule(folder, name, formula="g", moments='Moment{"last"}', constants=1):
    text = RULE.replace("NAME", name).replace("FORMULA", formula).replace("MOMENTS", moments)
    file = folder / f"{name}.cpp"
    file.write_text(text.replace("CONSTANTS", str(constants)))
    return file


def updated(cls, *args, **options):
    p = nn.Parameter(torch.tensor([1.0, 2.0, -3.0]))
    optimizer = cls([p], *args, **options)
    p.grad = torch.tensor([0.5, -0.25, 4.0])
    optimizer.step()
    return p.tolist()


# ---- The class -----------------------------------------------------------------------------------------------------


def test_it_is_an_optimizer_with_the_options_of_its_rule(example):
    assert issubclass(example, forge.FusedOptimizer) and issubclass(example, torch.optim.Optimizer)
    parameters = inspect.signature(example).parameters
    assert list(parameters) == ["params", "lr", "betas", "eps", "weight_decay", "options"]
    optimizer = example(mlp(), 0.25, weight_decay=0.5, schedule="at_step")
    assert optimizer.defaults == dict(lr=0.25, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5)


def test_wrong_arguments_are_refused(example):
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match="momentum"):
        example([p], momentum=0.5)
    with pytest.raises(TypeError, match="too many positional"):
        example([p], 1, (0.9, 0.9), 1, 1, 1)
    with pytest.raises(RuntimeError, match="CwdAdamW: beta2 is 1"):
        example([p], betas=(0.5, 1.0))


def cwd_adamw(w, g, s, o, t):
    (b1, b2), lr = o["betas"], o["lr"]
    m = average(b1, s["exp_avg"], Sum(g))
    v = average(b2, s["exp_avg_sq"], Sum(g).square())
    step = lr / (1 - b1**t) * m / (v.value.sqrt() / math.sqrt(1 - b2**t) + o["eps"])
    decay = torch.where(m.value * w >= 0, lr * o["weight_decay"] * w, 0.0)
    return Sum(-decay) - step, {"exp_avg": m, "exp_avg_sq": v}


@pytest.mark.parametrize("options", [{}, dict(lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)])
def test_a_step_is_the_formula(example, options, monkeypatch):
    monkeypatch.setitem(published_formulas.FORMULAS, "CwdAdamW", cwd_adamw)
    monkeypatch.setattr(forge, "CwdAdamW", example, raising=False)
    assert distance_to_formula("CwdAdamW", options) <= K["AdamW"]  # the same sums


def test_weights_decay_only_where_that_is_no_work_against_the_step(example):
    """So that the test above would notice: half of these weights are apart from AdamW's."""
    w, g = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    weights = []
    for cls in (example, forge.AdamW):
        p = nn.Parameter(w.clone())
        optimizer = cls([p], lr=0.1, weight_decay=0.5)
        p.grad = g.clone()
        optimizer.step()
        weights.append(p.detach())
    assert torch.isclose(*weights).tolist() == [True, False, False, True]


@pytest.mark.parametrize("more", [{}, dict(state_format="int8"), dict(schedule="in_backward")], ids=str)
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(example, more):
    whole, resumed = mlp(), mlp()
    train_mlp(whole, example(whole, **more), steps=5)
    first = example(resumed, **more)
    train_mlp(resumed, first, steps=3)
    again = mlp(seed=1)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    second = example(again, lr=9.0, **more)
    second.load_state_dict(through_a_file(first.state_dict()))
    train_mlp(again, second, first=3, steps=2)
    assert_equal_bits(again, whole)
    assert difference(whole, mlp()) > 0


def test_moments_are_kept_in_8_bits(example):
    layer = nn.Linear(64, 64)
    optimizer = example(layer, state_format="int8")
    layer(torch.randn(4, 64, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    assert {key: x.dtype for key, x in state.items()} == {
        "step": torch.float32, "exp_avg": torch.int8, "exp_avg_scale": torch.bfloat16, "exp_avg_sq": torch.uint8,
        "exp_avg_sq_scale": torch.bfloat16}  # fmt: skip


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_as_the_original(example, how):
    model = mlp()
    optimizer = example(model)
    train_mlp(model, optimizer, steps=2)
    twin, twin_optimizer = how((model, optimizer))
    train_mlp(model, optimizer, first=2, steps=2)
    train_mlp(twin, twin_optimizer, first=2, steps=2)
    assert_equal_bits(twin, model)
    assert type(twin_optimizer) is example


def test_counts_and_flags_are_read(ours):
    assert inspect.signature(ours).parameters["up"].default is False
    assert updated(ours) == [0.75, 2.125, -5.0]
    assert updated(ours, 0.5, 2, up=True) == [1.125, 1.9375, -2.0]


def test_an_option_that_every_optimizer_has_is_refused(tmp_path, plain):
    file = write_rule(tmp_path, "Seeded")
    file.write_text(file.read_text().replace('"power"', '"seed"'))
    with pytest.raises(RuntimeError, match="Seeded: seed is an argument of every optimizer"):
        forge.load_rule(file)


# ---- Loading -------------------------------------------------------------------------------------------------------


def test_rules_of_equal_structs_stay_apart(ours, tmp_path):
    weight = forge.load_rule(write_rule(tmp_path, "Weight", "w"))
    assert updated(ours) == [0.75, 2.125, -5.0]
    assert updated(weight) == [0.5, 1.0, -1.5]


def test_a_file_is_compiled_once_and_gives_one_class(ours, file, monkeypatch, cache):
    monkeypatch.setattr(own_rules, "_build", lambda *_: pytest.fail("compiled again"))
    assert forge.load_rule(file) is ours
    (library,) = cache.glob("Ours*")
    assert forge.load_rule(str(library)) is ours, "a ready library"


def test_a_changed_file_is_compiled_again_and_its_name_refused(ours, tmp_path):
    with pytest.raises(RuntimeError, match="there is an optimizer Ours already"):
        forge.load_rule(write_rule(tmp_path, "Ours", "-g"))
    assert updated(ours) == [0.75, 2.125, -5.0]
    assert updated(forge.load_rule(write_rule(tmp_path, "Others", "-g"))) == [1.25, 1.875, -1.0]


def test_names_of_the_library_are_taken(tmp_path, plain):
    file = write_rule(tmp_path, "lion")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="there is an optimizer lion already; give Options::kName another"):
            forge.load_rule(file)
    file = write_rule(tmp_path, "Lioness")
    file.write_text(file.read_text().replace('"Lioness rule"', '"lion"'))
    with pytest.raises(RuntimeError, match="the optimizer Lioness has a rule lion, and there is a rule lion already"):
        forge.load_rule(file)
    assert updated(forge.Lion, lr=0.5) == [0.5, 2.5, -3.5]


# ---- What does not compile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(formula="h"), "‘h’ was not declared|use of undeclared identifier 'h'"),
        (dict(constants=25), "a rule's Step is at most 96 bytes"),
        (dict(moments=", ".join(f'Moment{{"m{i}"}}' for i in range(9))), "a rule keeps no more moments than"),
    ],
)
def test_the_compilers_message_is_shown(tmp_path, plain, change, sentence):
    file = write_rule(tmp_path, "Wrong", **change)
    with pytest.raises(RuntimeError, match=re.escape(f"load_rule: {file} does not compile:")) as error:
        forge.load_rule(file)
    assert re.search(sentence, str(error.value))


def test_what_registers_nothing_is_refused(tmp_path, plain):
    file = write_rule(tmp_path, "Silent")
    file.write_text(file.read_text().partition("FORGE_REGISTER")[0])
    with pytest.raises(RuntimeError, match="registers no optimizer; end the rule's file with FORGE_REGISTER_OPTIMIZER"):
        forge.load_rule(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=f"there is no file {tmp_path}/none.cpp"):
        forge.load_rule(tmp_path / "none.cpp")


def test_without_a_compiler_that_is_said(tmp_path, monkeypatch):
    file = write_rule(tmp_path, "Uncompiled")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="there is no C\\+\\+ compiler; install one"):
        forge.load_rule(file)
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(RuntimeError, match="no-such-compiler does not run"):
        forge.load_rule(file)


def test_without_highway_it_runs_in_plain_loops_and_that_is_said(ours, tmp_path, monkeypatch):
    if forge._C.kernels() == "ref":
        pytest.skip("there is no other loop")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in *" -") exit 1 ;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(RuntimeWarning, match="does not find hwy/highway.h"):
        slow = forge.load_rule(write_rule(tmp_path, "Slow"))
        assert own_rules._isas([str(compiler)]) == []
    assert updated(slow) == updated(ours)


def test_the_cache_is_in_the_home_folder(tmp_path, monkeypatch, plain):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_rules._compiled(write_rule(tmp_path, "Homely")).parent == tmp_path / ".cache/forge_optim"
    assert os.listdir(tmp_path / ".cache/forge_optim") == [own_rules._compiled(tmp_path / "Homely.cpp").name]
