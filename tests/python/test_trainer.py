"""transformers' Trainer, with and without PEFT, trains with the package as it does with torch.optim.

Each run stands beside the same run of an unfused copy with the optimizer of torch.
"""

import subprocess
import sys
import types

import pytest
from integrating import (  # noqa: F401  (a fixture)
    ACCUMULATE,
    CLIP,
    STEPS,
    assert_trained,
    blank,
    forge,
    quiet_on_one_thread,
    torch,
    transformers,
)
from models import (
    assert_equal_bits,
    assert_same_losses,
    assert_same_weights,
    difference,
    quietly,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback, TrainingArguments

VOCABULARY, SEQUENCE = 200, 12


# ---- transformers' Trainer -------------------------------------------------------------------------------------------

TRAINER_RULES = {"AdamW": dict(lr=1e-3), "SGD": dict(lr=0.1, momentum=0.9)}


class Trainer(transformers.Trainer):
    """One that keeps quiet, over a fixed set of texts."""

    def __init__(self, model, args, **kwargs):
        super().__init__(model, args, train_dataset=texts(96), eval_dataset=texts(4), **kwargs)
        self.remove_callback(PrinterCallback)

    def logged(self, key):
        return [entry[key] for entry in self.state.log_history if key in entry]


class TrainerInBackward(forge.hf.NoGradNorm, Trainer):
    pass


def texts(count):
    ids = torch.randint(0, VOCABULARY, (count, SEQUENCE), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def llama(tied=True):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def arguments(folder, **changes):
    settings = dict(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=CLIP,
        learning_rate=TRAINER_RULES["AdamW"]["lr"],
        weight_decay=0.1,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return TrainingArguments(**settings | changes)


def fit(trainer, resume=None):
    quietly(trainer.train, resume_from_checkpoint=resume)
    return trainer


def trainer_of_torch(model, args, rule="AdamW", **kwargs):
    sgd = (torch.optim.SGD, dict(TRAINER_RULES["SGD"])) if rule == "SGD" else None
    return Trainer(model, args, optimizer_cls_and_kwargs=sgd, **kwargs)


def trainer_of_forge(model, args, rule="AdamW", cls=Trainer, callbacks=None, **options):
    chosen = TRAINER_RULES[rule] | options
    optimizer = forge.hf.optimizer(model, args, getattr(forge, rule), verbose=False, **chosen)
    return cls(model, args, optimizer_cls_and_kwargs=optimizer, callbacks=callbacks)


def groups(trainer):
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return [group | {"params": [names[id(p)] for p in group["params"]]} for group in trainer.optimizer.param_groups]


@pytest.fixture(scope="module")
def torch_runs(tmp_path_factory):
    """(rule, tied) → the Trainer of torch after its run."""
    done = {}

    def run(rule, tied):
        if (rule, tied) not in done:
            model = llama(tied)
            done[rule, tied] = fit(trainer_of_torch(model, arguments(tmp_path_factory.mktemp("torch")), rule))
            assert_trained(model, llama(tied))
        return done[rule, tied]

    return run


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("rule", TRAINER_RULES)
def test_trainer_accumulates_clips_and_checkpoints_as_with_torch(tmp_path, torch_runs, rule, tied, reentrant):
    theirs = torch_runs(rule, tied)
    args = arguments(
        tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    ours = fit(trainer_of_forge(llama(tied), args, rule, collapse="never"))
    assert len(ours.logged("loss")) == STEPS
    assert min(theirs.logged("grad_norm")) > CLIP
    assert_same_losses(ours.logged("loss"), theirs.logged("loss"))
    assert_same_losses(ours.logged("grad_norm"), theirs.logged("grad_norm"))
    assert_same_weights(ours.model, theirs.model, rule)
    assert groups(ours) == groups(theirs)
    report = forge.report(ours.optimizer)
    assert report.collapses == 0
    # Of the vectors only: the norms' weights.
    assert report.dense_gradients <= 4 * 64 * 5


def test_trainer_keeps_its_decay_groups(tmp_path):
    model = llama()
    trainer = trainer_of_forge(model, arguments(tmp_path))
    trainer.create_optimizer()
    decaying, others = groups(trainer)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) == 1 + 2 * 7
    assert others["params"] and all("norm" in name for name in others["params"])


class TrainerWithItsModel(Trainer):
    """Makes the model, as TRL's do, so that there is none to fuse before there is a trainer."""

    def __init__(self, args):
        super().__init__(llama(), args)


@pytest.mark.parametrize(("rule", "options"), [("AdamW", {}), ("SGD", {}), ("AdamW", {"exact": True})])
def test_a_trainer_that_made_its_model_is_told_the_optimizer_before_it_trains(tmp_path, rule, options):
    args = arguments(tmp_path, max_steps=3)
    given = fit(trainer_of_forge(llama(), args, rule, **options))
    told = TrainerWithItsModel(args)
    chosen = TRAINER_RULES[rule] | options
    optimizer = forge.hf.optimizer(told.model, told.args, getattr(forge, rule), verbose=False, **chosen)
    told.optimizer_cls_and_kwargs = optimizer
    fit(told)
    assert isinstance(told.optimizer.optimizer, getattr(forge, rule))
    assert told.logged("loss") == given.logged("loss")
    assert_equal_bits(told.model, given.model)
    assert groups(told) == groups(given)


def test_trainer_resumes_bit_for_bit(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=5)
    whole = fit(trainer_of_forge(llama(), args))
    resumed = fit(trainer_of_forge(blank(llama()), args), resume=f"{tmp_path}/checkpoint-5")
    assert resumed.logged("loss") == whole.logged("loss")
    assert_equal_bits(resumed.model, whole.model)


@pytest.mark.parametrize("rule", TRAINER_RULES)
@pytest.mark.parametrize(
    ("saved_by", "resumed_by"),
    [(trainer_of_torch, trainer_of_forge), (trainer_of_forge, trainer_of_torch)],
    ids=["torch_to_forge", "forge_to_torch"],
)
def test_trainer_resumes_what_the_other_saved(tmp_path, torch_runs, saved_by, resumed_by, rule):
    whole = torch_runs(rule, True)
    args = arguments(tmp_path, save_strategy="steps", save_steps=5)

    class StopAtFive(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    fit(saved_by(llama(), args, rule, callbacks=[StopAtFive()]))
    resumed = fit(resumed_by(blank(llama()), args, rule), resume=f"{tmp_path}/checkpoint-5")
    assert_same_losses(resumed.logged("loss"), whole.logged("loss"))
    assert_same_weights(resumed.model, whole.model, rule)


@pytest.mark.parametrize("rule", TRAINER_RULES)
def test_trainer_under_bf16_autocast_stays_as_near_as_bf16_gradients_allow(tmp_path, rule):
    args = arguments(tmp_path, bf16=True)
    start = llama()
    ours = fit(trainer_of_forge(llama(), args, rule))
    theirs = fit(trainer_of_torch(llama(), args, rule))
    # torch rounds each micro-batch's dW to bf16, half an ulp of which is 2⁻⁹; the forward and backward that follow
    # round what differs again.
    way = difference(theirs.model, start)
    assert way > 1e-2
    assert difference(ours.model, theirs.model) < 2**-6 * way
    for key in ("loss", "grad_norm"):
        torch.testing.assert_close(
            torch.tensor(ours.logged(key)), torch.tensor(theirs.logged(key)), rtol=2**-8, atol=0
        )


def test_evaluating_in_between_records_nothing_and_changes_nothing(tmp_path):
    class EvaluateInBetween(TrainerCallback):
        held = []

        def evaluate(self, optimizer):
            before = forge.report(optimizer)
            self.trainer.evaluate()
            after = forge.report(optimizer)
            assert (after.held_terms, after.dense_gradients) == (before.held_terms, before.dense_gradients)
            self.held.append(after.held_terms + after.dense_gradients)

        def on_substep_end(self, args, state, control, optimizer, **kwargs):
            self.evaluate(optimizer)

        def on_step_end(self, args, state, control, optimizer, **kwargs):
            self.evaluate(optimizer)

    whole = fit(trainer_of_forge(llama(), arguments(tmp_path, max_steps=3)))
    callback = EvaluateInBetween()
    callback.trainer = trainer_of_forge(llama(), arguments(tmp_path, max_steps=3), callbacks=[callback])
    fit(callback.trainer)
    assert [held > 0 for held in callback.held] == 3 * ([True] * (ACCUMULATE - 1) + [False])
    assert_equal_bits(callback.trainer.model, whole.model)


@pytest.mark.parametrize("rule", TRAINER_RULES)
def test_trainer_updates_in_backward_where_it_need_not_log_a_norm(tmp_path, rule):
    args = arguments(tmp_path, max_grad_norm=0.0, gradient_accumulation_steps=1)
    ours = fit(trainer_of_forge(llama(), args, rule, TrainerInBackward, schedule="in_backward"))
    theirs = fit(trainer_of_torch(llama(), args, rule))
    assert_same_losses(ours.logged("loss"), theirs.logged("loss"))
    assert_same_weights(ours.model, theirs.model, rule)
    assert not ours.logged("grad_norm")
    assert_trained(ours.model, llama())


def test_a_trainer_that_logs_the_norm_says_that_gradients_were_applied_in_backward(tmp_path):
    args = arguments(tmp_path, max_grad_norm=0.0, gradient_accumulation_steps=1)
    trainer = trainer_of_forge(llama(), args, schedule="in_backward")
    with pytest.raises(RuntimeError, match="applied inside backward"):
        trainer.train()


# ---- forge.hf --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"schedule": "in_backward"}, "max_grad_norm=0.5.* use max_grad_norm=0, or"),
        (
            {"max_grad_norm": 0.0},
            {"schedule": "in_backward"},
            "gradient_accumulation_steps=4.* use gradient_accumulation_steps=1, or",
        ),
        ({}, {"weight_decay": 0.1}, "set it in TrainingArguments"),
    ],
    ids=["clips", "accumulates", "weight_decay"],
)
def test_what_cannot_work_is_refused_before_anything_is_changed(tmp_path, capsys, changes, options, message):
    model = llama()
    with pytest.raises(ValueError, match=message) as refusal:
        forge.hf.optimizer(model, arguments(tmp_path, **changes), **options)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().out == ""
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_a_device_without_kernels_is_refused(device):
    with pytest.raises(ValueError, match=f"model to {device}.*use_cpu=True"):
        forge.hf.optimizer(llama(), types.SimpleNamespace(device=torch.device(device)))


def test_an_optimizer_of_another_library_is_refused(tmp_path):
    with pytest.raises(TypeError, match="AdamW is none of forge_optim's"):
        forge.hf.optimizer(llama(), arguments(tmp_path), torch.optim.AdamW)


def test_the_arguments_are_those_of_training_arguments(tmp_path):
    args = arguments(
        tmp_path, learning_rate=3e-4, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, optim="adafactor"
    )
    assert forge.hf.optimizer(nn.Linear(2, 2), args, verbose=False) == (
        forge.AdamW,
        {"lr": 3e-4, "betas": (0.8, 0.95), "eps": 1e-6, "schedule": "at_step"},
    )
    assert args.optim == "adafactor"
    args = arguments(tmp_path, learning_rate=3e-4, optim_args="momentum=0.9,nesterov=true")
    assert forge.hf.optimizer(nn.Linear(2, 2), args, forge.SGD, collapse="never", verbose=False) == (
        forge.SGD,
        {"lr": 3e-4, "momentum": 0.9, "nesterov": True, "collapse": "never", "schedule": "at_step"},
    )


def test_transformers_is_imported_by_none_but_hf():
    script = """
import sys, forge_optim
assert "forge_optim.hf" not in sys.modules and "transformers" not in sys.modules
assert forge_optim.hf is sys.modules["forge_optim.hf"]
try:
    forge_optim.no_such_name
except AttributeError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed == "module 'forge_optim' has no attribute 'no_such_name'\n"


# ---- PEFT ------------------------------------------------------------------------------------------------------------


def lora():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = llama()
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("rule", TRAINER_RULES)
def test_lora_trains_as_with_torch_and_its_frozen_bases_are_left_alone(tmp_path, rule):
    args = arguments(tmp_path, label_names=["labels"])
    start = lora()
    theirs = fit(trainer_of_torch(lora(), args, rule))
    ours = fit(trainer_of_forge(lora(), args, rule, collapse="never"))
    trainable = [[p for p in model.parameters() if p.requires_grad] for model in (ours.model, theirs.model, start)]
    frozen = [[p for p in model.parameters() if not p.requires_grad] for model in (ours.model, start)]
    assert len(trainable[0]) == 2 * 3 * 2
    assert_same_losses(ours.logged("loss"), theirs.logged("loss"))
    assert_same_losses(ours.logged("grad_norm"), theirs.logged("grad_norm"))
    assert_same_weights(trainable[0], trainable[1], rule)
    assert_trained(trainable[0], trainable[2])
    assert_equal_bits(*frozen)
    assert forge.report(ours.optimizer).collapses == 0
