"""transformers' Trainer with accumulation, clipping and gradient checkpointing; stops half-way and resumes.

A tiny Llama learns the bytes of this very file.
"""

import tempfile
from pathlib import Path

import forge_optim as forge
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

SEQUENCE = 32
text = torch.tensor(list(Path(__file__).read_bytes()))
data = [{"input_ids": window, "labels": window} for window in text.unfold(0, SEQUENCE, SEQUENCE // 4)]


def trainer(folder, **changes):
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4)
    )
    args = TrainingArguments(
        output_dir=folder,
        max_steps=20,
        learning_rate=3e-3,
        weight_decay=0.1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_grad_norm=0.5,
        gradient_checkpointing=True,
        lr_scheduler_type="cosine",
        save_steps=10,
        logging_steps=5,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    chosen = forge.hf.optimizer(model, args, verbose=True)
    return Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=chosen, **changes)


with tempfile.TemporaryDirectory() as folder:
    whole = trainer(folder)
    whole.train()
    resumed = trainer(folder)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-10")

for first, again in zip(whole.state.log_history, resumed.state.log_history, strict=True):
    if "loss" in first:
        print(f"step {first['step']:3}  loss {first['loss']:.4f}  resumed at step 10: {again['loss']:.4f}")
print(forge.report(resumed.optimizer))
