"""accelerate, transformers' schedulers and Lightning drive the package as they drive torch.optim.

Each run stands beside the same run of an unfused copy with the optimizer of torch.
"""

import copy

import pytest
from integrating import (  # noqa: F401  (a fixture)
    ACCUMULATE,
    CLIP,
    SAMPLES,
    STEPS,
    accelerate,
    assert_trained,
    blank,
    both_optimizers,
    forge,
    quiet_on_one_thread,
    torch,
    transformers,
)
from models import (
    RULES,
    SCHEDULES,
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    difference,
    quietly,
    snapshot,
    text,
    text_loss,
    tokens,
)
from torch.utils.data import DataLoader

# ---- accelerate ------------------------------------------------------------------------------------------------------


def accelerated(model, optimizer, first=0, last=STEPS, resume=None, save=None):
    """Steps first … last - 1 of a run of STEPS; returns losses, norms and learning rates."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 2, STEPS)
    loader = DataLoader(SAMPLES, batch_size=2)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if resume:
        accelerator.load_state(resume)
    losses, norms, rates = [], [], []
    for i, batch in enumerate(accelerator.skip_first_batches(loader, first * ACCUMULATE), first * ACCUMULATE):
        if i == last * ACCUMULATE:
            break
        with accelerator.accumulate(model):
            loss = text_loss(model, batch)
            accelerator.backward(loss)
            losses.append(loss.item())
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), CLIP).item())
                rates += scheduler.get_last_lr()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    if save:
        accelerator.save_state(save)
    return losses, norms, rates


@pytest.mark.parametrize("rule", RULES)
def test_accelerate_accumulates_clips_and_schedules_as_with_torch(rule):
    (theirs, their_optimizer), (ours, our_optimizer) = both_optimizers(rule, collapse="never")
    start = text()
    their_losses, their_norms, their_rates = accelerated(theirs, their_optimizer)
    losses, norms, rates = accelerated(ours, our_optimizer)
    assert len(norms) == STEPS and max(their_norms) > CLIP
    assert rates == their_rates and len(set(rates)) > STEPS / 2
    assert_same_losses(losses, their_losses)
    assert_same_losses(norms, their_norms)
    assert_same_weights(ours, theirs, rule)
    assert_trained(ours, start)
    assert forge.report(our_optimizer).collapses == 0


@pytest.mark.parametrize("rule", RULES)
def test_accelerate_resumes_bit_for_bit(tmp_path, rule):
    def fresh():
        return both_optimizers(rule)[1]

    whole, resumed = fresh(), fresh()
    losses, *_ = quietly(accelerated, *whole)
    quietly(accelerated, *fresh(), last=5, save=tmp_path)
    blank(resumed[0])
    after, *_ = quietly(accelerated, *resumed, first=5, resume=tmp_path)
    assert after == losses[5 * ACCUMULATE :]
    assert_equal_bits(resumed[0], whole[0])


def test_preparing_an_optimizer_that_has_state_loses_nothing():
    model = text().to(torch.bfloat16)
    optimizer = forge.AdamW(model, lr=1e-2, state_format="fp32")
    text_loss(model, tokens(0)).backward()
    optimizer.step()
    optimizer.zero_grad()
    _, before = snapshot(model, optimizer)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, wrapped = accelerator.prepare(model, optimizer)
    after = wrapped.state_dict()["state"]
    assert after.keys() == before.keys()
    for i, state in before.items():
        assert state["exp_avg"].dtype == torch.float32
        for key, value in state.items():
            assert after[i][key].dtype == value.dtype and torch.equal(after[i][key], value), (i, key)
    # And what was bound anew updates still.
    weights = copy.deepcopy(model)
    accelerator.backward(text_loss(prepared, tokens(1)))
    wrapped.step()
    assert difference(model, weights) > 1e-3
    assert wrapped.state_dict()["state"][0]["step"] == 2


# ---- The schedulers of transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup", "inverse_sqrt",
     "warmup_stable_decay"],
)  # fmt: skip
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedulers_of_transformers_drive_the_update(name, schedule):
    specific = {"num_decay_steps": 4} if name == "warmup_stable_decay" else {}
    runs = []
    for model, optimizer in both_optimizers("SGD", schedule=schedule):
        scheduler = transformers.get_scheduler(name, optimizer, 3, STEPS, scheduler_specific_kwargs=specific)
        rates = []
        for i in range(STEPS):
            text_loss(model, tokens(i)).backward()
            optimizer.step()
            rates += scheduler.get_last_lr()
            scheduler.step()
            optimizer.zero_grad()
        runs.append((model, rates))
    (theirs, their_rates), (ours, rates) = runs
    assert rates == their_rates and rates[0] == 0 < rates[3]
    assert_same_weights(ours, theirs, "SGD")
    assert_trained(ours, text())


# ---- Lightning -------------------------------------------------------------------------------------------------------


def lightning_module(run, manual=False):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.own_optimizer = run
            self.losses = []
            self.automatic_optimization = not manual

        def configure_optimizers(self):
            scheduler = torch.optim.lr_scheduler.LinearLR(self.own_optimizer, total_iters=STEPS)
            return [self.own_optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def training_step(self, batch, index):
            loss = text_loss(self.model, batch)
            self.losses.append(loss.item())
            if manual:
                self.step_by_hand(loss / ACCUMULATE, index)
            return loss

        def step_by_hand(self, loss, index):
            self.manual_backward(loss)
            if (index + 1) % ACCUMULATE == 0:
                optimizer = self.optimizers()
                self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
                optimizer.step()
                self.lr_schedulers().step()
                optimizer.zero_grad()

    return Module()


def lightning_fit(module, folder, epochs=2, resume=None, **changes):
    """Two epochs make a run of STEPS."""
    import lightning

    settings = dict(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer = lightning.Trainer(**settings | changes)
    quietly(trainer.fit, module, DataLoader(SAMPLES[: len(SAMPLES) // 2], batch_size=2), ckpt_path=resume)
    return trainer


ACCUMULATED = dict(gradient_clip_val=CLIP, accumulate_grad_batches=ACCUMULATE)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("options", "settings", "manual"),
    [
        ({"collapse": "never"}, ACCUMULATED, False),
        ({}, ACCUMULATED | {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, False),
        ({"schedule": "in_backward"}, {}, False),
        ({"collapse": "never"}, {}, True),
    ],
    ids=["automatic", "clipped_by_value", "in_backward", "manual"],
)
def test_lightning_trains_as_with_torch(tmp_path, rule, options, settings, manual):
    theirs, ours = (lightning_module(run, manual) for run in both_optimizers(rule, **options))
    lightning_fit(theirs, tmp_path, **settings)
    trainer = lightning_fit(ours, tmp_path, **settings)
    assert trainer.global_step == (STEPS if settings or manual else STEPS * ACCUMULATE)
    assert len(ours.losses) == STEPS * ACCUMULATE
    assert_same_losses(ours.losses, theirs.losses)
    assert_same_weights(ours, theirs, rule)
    assert_trained(ours.model, text())
    if "collapse" in options:
        assert forge.report(trainer.optimizers[0]).collapses == 0


@pytest.mark.parametrize("rule", RULES)
def test_lightning_resumes_bit_for_bit(tmp_path, rule):
    def fresh():
        return lightning_module(both_optimizers(rule)[1])

    whole, resumed = fresh(), fresh()
    lightning_fit(whole, tmp_path, **ACCUMULATED)
    half = lightning_fit(fresh(), tmp_path, epochs=1, **ACCUMULATED)
    half.save_checkpoint(tmp_path / "half.ckpt")
    blank(resumed)
    lightning_fit(resumed, tmp_path, resume=tmp_path / "half.ckpt", **ACCUMULATED)
    assert resumed.losses == whole.losses[len(whole.losses) // 2 :]
    assert_equal_bits(resumed, whole)
