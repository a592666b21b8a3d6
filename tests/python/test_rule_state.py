"""State of every optimizer: what it is called, checkpoints, copies, and the methods that change it."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")

from models import assert_equal_bits, difference, mlp, mlp_loss, points, through_a_file, train_mlp  # noqa: E402
from rule_cases import CASES, TORCHS_OF_ANY_SHAPE, every_case, every_optimizer, moments_of, ours_of, third, torchs_cases  # noqa: E402
from torch import nn  # noqa: E402

schedules = pytest.mark.parametrize("schedule", ["at_step", "in_backward"])
torchs_optimizers = pytest.mark.parametrize("cls", TORCHS_OF_ANY_SHAPE)

# ---- Resuming and copying ------------------------------------------------------------------------------------------


@schedules
@every_case
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(cls, options, schedule):
    whole, resumed = mlp(), mlp()
    train_mlp(whole, ours_of(cls, whole, schedule=schedule, **options), steps=5)
    first = ours_of(cls, resumed, schedule=schedule, **options)
    train_mlp(resumed, first, steps=3)
    again = mlp(seed=1)
    again.load_state_dict(through_a_file(resumed.state_dict()))
    # What a checkpoint has is not asked for again, a function excepted.
    second = ours_of(cls, again, schedule=schedule, **{k: x for k, x in options.items() if k == "clip_lambda"}, lr=9.0)
    second.load_state_dict(through_a_file(first.state_dict()))
    train_mlp(again, second, first=3, steps=2)
    assert_equal_bits(again, whole)
    assert difference(whole, mlp()) > 0


def torch_saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@schedules
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), torch_saved])
@every_optimizer
def test_a_copy_goes_on_as_the_original_and_apart_from_it(cls, how, schedule):
    model = mlp()
    optimizer = ours_of(cls, model, schedule=schedule, **CASES[cls][-1])
    train_mlp(model, optimizer, steps=2)
    twin, twin_optimizer = how((model, optimizer))
    assert_equal_bits(twin, model)
    train_mlp(twin, twin_optimizer, first=2, steps=2)
    assert difference(twin, model) > 0
    train_mlp(model, optimizer, first=2, steps=2)
    assert_equal_bits(twin, model)
    assert type(twin_optimizer) is type(optimizer)


# ---- Names and types -----------------------------------------------------------------------------------------------

KEYS = {
    "Lion": "exp_avg",
    "Signum": "momentum_buffer",
    "Adan": "exp_avg exp_avg_diff exp_avg_sq neg_pre_grad",
    "AdEMAMix": "exp_avg_fast exp_avg_slow exp_avg_sq",
    "ADOPT": "exp_avg exp_avg_sq",
    "ScheduleFreeAdamW": "exp_avg_sq lr_max weight_sum z_minus_y",
    "ScheduleFreeSGD": "lr_max weight_sum z_minus_y",
    "SophiaG": "exp_avg hessian",
    "MARS": "exp_avg exp_avg_sq last_grad",
    "Grams": "exp_avg exp_avg_sq",
    "CautiousAdamW": "exp_avg exp_avg_sq",
    "StableAdamW": "exp_avg exp_avg_sq",
    "LAMB": "exp_avg exp_avg_sq",
    "AdaLomo": "exp_avg_sq_col exp_avg_sq_row",
}
VECTOR_KEYS = {"AdaLomo": "exp_avg_sq"}


@pytest.mark.parametrize("cls", KEYS)
def test_published_ones_have_the_keys_of_their_authors(cls):
    model = mlp()
    optimizer = ours_of(cls, model)
    train_mlp(model, optimizer, steps=2)
    for p in model.parameters():
        keys = KEYS | VECTOR_KEYS if p.dim() < 2 else KEYS
        assert sorted(moments_of(optimizer, p)) == keys[cls].split()
        assert optimizer.state[p]["step"].dtype == torch.float32 and optimizer.state[p]["step"] == 2


def test_more_is_kept_where_an_option_asks_for_it():
    for cls, options, key in (
        ("MARS", dict(amsgrad=True), "max_exp_avg_sq"),
        ("ScheduleFreeAdamW", dict(inner_momentum=0.5), "exp_avg"),
    ):
        model = mlp()
        optimizer = ours_of(cls, model, **options)
        train_mlp(model, optimizer, steps=1)
        assert sorted(moments_of(optimizer, model[0].weight)) == sorted([*KEYS[cls].split(), key])


def described(optimizer):
    """Keys, shapes and types; of a number only that it is there, as torch casts numbers too when it loads them."""
    return [
        {key: (x.dtype, x.shape) if x.dim() else None for key, x in of.items() if x is not None}
        for of in optimizer.state_dict()["state"].values()
        if of
    ]


def steps_by_hand(p, optimizer, first, steps):
    for t in range(first, first + steps):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t)).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torchs_cases
def test_a_checkpoint_goes_to_torch_and_back(cls, options, dtype):
    start = torch.randn(40, generator=torch.Generator().manual_seed(9))
    straight, carried = nn.Parameter(start.to(dtype)), nn.Parameter(start.to(dtype))
    whole = getattr(torch.optim, cls)([straight], foreach=False, **copy.deepcopy(options))
    steps_by_hand(straight, whole, 0, 6)
    first = getattr(torch.optim, cls)([carried], foreach=False, **copy.deepcopy(options))
    steps_by_hand(carried, first, 0, 2)
    # Moments of fp32 beside bf16 weights, which torch would cast.
    second = ours_of(cls, [carried], state_format="fp32", lr=9.0)
    second.load_state_dict(through_a_file(first.state_dict()))
    steps_by_hand(carried, second, 2, 2)
    kept = {of.dtype for of in moments_of(second, carried).values() if of.dim()}
    assert kept <= {torch.float32}
    third_one = getattr(torch.optim, cls)([carried], lr=9.0)
    third_one.load_state_dict(through_a_file(second.state_dict()))
    assert described(third_one) == described(whole)
    steps_by_hand(carried, third_one, 4, 2)
    bits = {torch.float32: 2**-20, torch.bfloat16: 2**-5}[dtype]
    torch.testing.assert_close(carried, straight, rtol=bits, atol=bits)
    assert third_one.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


@torchs_optimizers
def test_without_a_format_moments_have_the_type_that_torch_gives_them(cls):
    for dtype in (torch.float32, torch.bfloat16):
        of_both = []
        for optim in (torch.optim, forge):
            p = nn.Parameter(torch.ones(40, dtype=dtype))
            optimizer = getattr(optim, cls)([p], **CASES[cls][-1])
            steps_by_hand(p, optimizer, 0, 2)
            of_both.append(described(optimizer))
        assert of_both[0] == of_both[1]


# ---- Checkpoints of the authors' classes ---------------------------------------------------------------------------


def as_the_authors_save(optimizer, groups_step=False, without=()):
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in without:
            del group[key]
        if groups_step:
            group["step"] = 3
    for of in saved["state"].values():
        of["step"] = int(of["step"])
        if groups_step:
            del of["step"]
    return saved


@pytest.mark.parametrize(
    "cls, changes",
    [
        ("Adan", dict(groups_step=True)),
        ("ADOPT", dict(without=["clip_value"])),
        ("ScheduleFreeAdamW", dict(without=["inner_momentum"])),
        ("AdEMAMix", {}),
    ],
)
def test_a_checkpoint_that_lacks_what_we_alone_keep_is_continued(cls, changes):
    model = mlp()
    optimizer = ours_of(cls, model)
    train_mlp(model, optimizer, steps=3)
    again = copy.deepcopy(model)
    other = ours_of(cls, again)
    other.load_state_dict(as_the_authors_save(optimizer, **changes))
    for m, o in ((model, optimizer), (again, other)):
        train_mlp(m, o, first=3, steps=2)
    assert_equal_bits(again, model)


def test_a_moment_that_is_missing_leaves_those_after_it():
    """AdEMAMix's authors save None for exp_avg_fast where beta1 is 0."""
    p = nn.Parameter(torch.ones(5))
    optimizer = forge.AdEMAMix([p], betas=(0.0, 0.999, 0.9))
    steps_by_hand(p, optimizer, 0, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg_fast"] = None
    slow = saved["state"][0]["exp_avg_slow"].clone()
    optimizer.load_state_dict(saved)
    p.grad = torch.zeros(5)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_slow"], 0.9 * slow)


# ---- ADOPT and Sophia ----------------------------------------------------------------------------------------------


@schedules
def test_adopts_clip_is_the_functions_at_every_update(schedule):
    ends = {}
    for name, clip in (("default", {}), ("same", lambda k: k**0.25), ("third", third), ("none", None)):
        ends[name] = mlp()
        given = {} if name == "default" else {"clip_lambda": clip}
        train_mlp(ends[name], forge.ADOPT(ends[name], lr=0.1, betas=(0.5, 0.5), schedule=schedule, **given), steps=5)
    assert_equal_bits(ends["same"], ends["default"])
    assert min(difference(ends[name], ends["default"]) for name in ("third", "none")) > 1e-3


def test_sophias_hessian_is_all_that_its_update_changes_and_bs_scales_it():
    weights = []
    for bs in ([], [5120], [1]):
        model = mlp()
        optimizer = forge.SophiaG(model, lr=0.1, betas=(0.9, 0.5))
        mlp_loss(model, points(0)).backward()
        optimizer.update_hessian()
        assert_equal_bits(model, mlp())
        for p in model.parameters():
            g = p.grad.clone().dense() if isinstance(p.grad, forge.FactoredGrad) else p.grad
            torch.testing.assert_close(optimizer.state[p]["hessian"], 0.5 * g * g)
            assert optimizer.state[p]["step"] == 0 and not optimizer.state[p]["exp_avg"].any()
        optimizer.step(None, *bs)
        weights.append(model)
    assert_equal_bits(weights[0], weights[1])
    assert difference(weights[0], weights[2]) > 1e-3


def test_sophias_hessian_needs_gradients_that_are_not_spent():
    model = mlp()
    optimizer = forge.SophiaG(model, schedule="in_backward")
    mlp_loss(model, points(0)).backward()
    with pytest.raises(RuntimeError, match='schedule="at_step"'):
        optimizer.update_hessian()
