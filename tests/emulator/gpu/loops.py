"""The PyTorch package on the emulated GPU: the loops of tests/python, beside the CPU.

    tests/emulator/gpu/loops.py libforge_emulated_gpu.so

In a process of its own, since the library gives torch a device for as long as the process lives.
"""

import contextlib
import copy
import math
import sys
import types
import warnings

import forge_optim as forge
import torch
from torch import nn

torch.ops.load_library(sys.argv[1])
module = types.ModuleType("torch.emulated")  # what torch asks of torch.cuda and its like
module.is_available, module.device_count, module.current_device = (lambda: True), (lambda: 1), (lambda: 0)
module.manual_seed_all = lambda seed: None
module._is_in_bad_fork, module.is_initialized, module._lazy_init = (lambda: False), (lambda: True), (lambda: None)
torch._register_device_module("emulated", module)
GPU = torch.device("emulated")


ELEMENT_WISE = forge.AdamW, forge.SGD, forge.Lion, forge.RAdam
WITH_SUMS = forge.LAMB, forge.StableAdamW, forge.CautiousAdamW
WITH_LINES = forge.Adafactor, forge.AdaLomo  # which are brought up to date on the host


class Model(nn.Module):
    """An embedding tied to the head, a norm, and two linear layers of which one is used twice."""

    def __init__(self, device="cpu", dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(37, 24, padding_idx=0)
        self.norm = nn.LayerNorm(24)
        self.up = nn.Linear(24, 40)
        self.down = nn.Linear(40, 24, bias=False)
        self.head = nn.Linear(24, 37, bias=False)
        self.to(device, dtype)
        self.head.weight = self.table.weight  # tied here, since torch unties when it moves to a device like this

    def forward(self, tokens):
        h = self.table(tokens)
        for _ in range(2):
            h = h + self.down(torch.tanh(self.up(self.norm(h))))
        return nn.functional.cross_entropy(self.head(h)[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def batch(number):
    return torch.randint(0, 37, (2, 9), generator=torch.Generator().manual_seed(number))


def distance(ours, theirs):
    """Relative, over all parameters."""
    pairs = [(a.detach().cpu().float(), b.detach().float()) for a, b in zip(ours, theirs, strict=True)]
    return (sum((a - b).pow(2).sum() for a, b in pairs) / sum(b.pow(2).sum() for _, b in pairs)).sqrt().item()


@contextlib.contextmanager
def reading_back(times):
    """In which the host waits for the device so often; None: nobody counts."""
    before = torch.ops.emulated.read_backs()
    yield
    found = torch.ops.emulated.read_backs() - before
    assert times in (None, found), f"the host read {found} times from the device, expected {times}"


def train(device, clip, dtype=torch.float32, steps=3, accumulate=2, make=forge.AdamW, waits=0, **options):
    model = Model(device, dtype)
    optimizer = make(model, lr=1e-2, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(steps):
        for i in range(accumulate):
            (model(batch(accumulate * step + i).to(device)) / accumulate).backward()
        with reading_back(waits):
            norm = clip(model.parameters(), 0.1) if clip else None
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        assert norm is None or (norm.device.type == torch.device(device).type and 0.1 < norm.item() < 100), norm
    return model, optimizer


def whole_model_is_fused():
    report = forge.fuse(Model(GPU))
    assert {len(row.shape) for row in report.fused} == {2} and {len(row.shape) for row in report.unfused} == {1}, report


def loops_train_as_on_the_cpu():
    both = torch.nn.utils.clip_grad_norm_, forge.clip_grad_norm_
    for make in (*ELEMENT_WISE, *WITH_SUMS, *WITH_LINES):
        for clip in both:
            waits = None if make in WITH_LINES else 0
            gpu, optimizer = train(GPU, clip, make=make, waits=waits)
            assert distance(gpu.parameters(), train("cpu", clip, make=make)[0].parameters()) < 1e-5, make
            report = str(forge.report(optimizer))
            assert "emulated" not in report, report


def updates_in_backward():
    options = dict(clip=None, accumulate=1, schedule="in_backward")
    gpu, cpu = train(GPU, **options)[0], train("cpu", **options)[0]
    assert distance(gpu.parameters(), cpu.parameters()) < 1e-5


def sixteen_bits_train_with_eight_bit_state():
    for clip in (None, torch.nn.utils.clip_grad_norm_, forge.clip_grad_norm_):
        options = dict(clip=clip, dtype=torch.bfloat16, weight_format="bf16_plus16", state_format="int8")
        gpu, cpu = train(GPU, **options)[0], train("cpu", **options)[0]
        assert distance(gpu.parameters(), cpu.parameters()) < 1e-2


def optimizers_clip_as_on_the_cpu():
    for exact in (False, True):
        options = dict(clip=None, make=forge.LAMB, max_grad_norm=0.1, exact=exact)
        assert distance(train(GPU, **options)[0].parameters(), train("cpu", **options)[0].parameters()) < 1e-5


def train_scaled(device, make, clip):
    """With a GradScaler; the second of five steps has no finite gradient, and of the fourth one weight has not."""
    model = Model(device)
    optimizer = make(model)
    scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=2.0**10, growth_interval=2)
    scales = []
    for step in range(5):
        for i in range(2):
            loss = model(batch(2 * step + i).to(device))
            scaler.scale(loss * math.inf if step == 1 else loss).backward()
        if step == 3:
            model.down.weight.grad.mul_(torch.full((), math.inf, device=device))
        before = [p.detach().clone() for p in model.parameters()]
        with reading_back(None if device == "cpu" else 1):  # by torch, which asks whether to call optimizer.step()
            if clip:
                scaler.unscale_(optimizer)
                clip(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        same = [torch.equal(p.cpu(), q.cpu()) for p, q in zip(model.parameters(), before, strict=True)]
        assert all(same) if step in (1, 3) else not any(same), (step, same)
        scales.append(scaler.get_scale())
    return model, scales, {float(state["step"]) for state in optimizer.state.values()}


def a_grad_scaler_waits_once_and_skips_as_with_torch():
    def theirs(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    for clip in (None, torch.nn.utils.clip_grad_norm_, forge.clip_grad_norm_):
        expected, *numbers = train_scaled("cpu", theirs, clip and torch.nn.utils.clip_grad_norm_)
        for exact in (False, True):

            def ours(model, exact=exact):
                return forge.AdamW(model, lr=1e-2, exact=exact)

            gpu, *found = train_scaled(GPU, ours, clip)
            assert found == numbers, (found, numbers)
            assert distance(gpu.parameters(), expected.parameters()) < 1e-4
            assert distance(gpu.parameters(), train_scaled("cpu", ours, clip)[0].parameters()) < 1e-5


def step_counts_on_a_device_are_read_once():
    model = Model(GPU)
    optimizer = forge.AdamW(model, lr=1e-2)
    model(batch(0).to(GPU)).backward()
    optimizer.step()
    states = optimizer.state.values()
    for state in states:  # as torch.optim has them with fused=True
        state["step"] = state["step"].to(GPU)
    for times in (len(states), 0):
        with reading_back(times):
            optimizer.step()
    assert {float(state["step"]) for state in states} == {3}


def checkpoints_move_between_devices_and_optimizers():
    cpu = Model()
    theirs = torch.optim.AdamW(cpu.parameters(), lr=1e-2)
    gpu = Model(GPU)
    ours = forge.AdamW(gpu, lr=1e-2)
    cpu(batch(0)).backward()
    theirs.step()
    gpu.load_state_dict(cpu.state_dict())
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    theirs.zero_grad()
    cpu(batch(1)).backward()
    theirs.step()
    gpu(batch(1).to(GPU)).backward()
    ours.step()
    assert distance(gpu.parameters(), cpu.parameters()) < 1e-5
    moments = ours.state_dict()["state"][0]
    assert moments["exp_avg"].device.type == "emulated" and float(moments["step"]) == 2


def gradients_are_tensors_of_their_device():
    def gradient(device):
        model = Model(device)
        model.optimizer = forge.AdamW(model, lr=1e-2)  # kept alive
        model(batch(0).to(device)).backward()
        return model.up.weight, model

    (ours, _), (theirs, _) = gradient(GPU), gradient("cpu")
    assert ours.grad.device.type == "emulated" and "FactoredGrad" in repr(ours.grad), repr(ours.grad)
    found = torch.zeros(1, device=GPU), torch.zeros(1)
    for p, inf in ((ours, found[0]), (theirs, found[1])):
        torch._amp_foreach_non_finite_check_and_unscale_([p.grad], inf, torch.full((1,), 0.25, device=inf.device))
        assert inf.item() == 0
    for use in (lambda g: g.norm(), lambda g: g.clone(), lambda g: g * 2, lambda g: g.abs().sum(), lambda g: g[0]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", forge.CollapseWarning)
            a, b = use(ours.grad), use(theirs.grad)
        torch.testing.assert_close(torch.as_tensor(a + 0).cpu(), torch.as_tensor(b + 0), rtol=1e-5, atol=1e-7)


def what_has_no_kernel_is_refused():
    try:
        forge.AdamW(Model(GPU), lr=1e-2, count_rounding=True)
    except RuntimeError as error:
        assert "on a GPU" in str(error), error
    else:
        raise AssertionError("count_rounding is not refused")


for check in (
    whole_model_is_fused,
    loops_train_as_on_the_cpu,
    updates_in_backward,
    sixteen_bits_train_with_eight_bit_state,
    optimizers_clip_as_on_the_cpu,
    a_grad_scaler_waits_once_and_skips_as_with_torch,
    step_counts_on_a_device_are_read_once,
    checkpoints_move_between_devices_and_optimizers,
    gradients_are_tensors_of_their_device,
    what_has_no_kernel_is_refused,
):
    check()
    print(check.__name__, "ok", flush=True)
