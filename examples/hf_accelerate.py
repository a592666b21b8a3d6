"""accelerate with a scheduler, accumulation and clipping.

A tiny Llama learns the bytes of this very file.
"""

from pathlib import Path

import forge_optim as forge
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

SEQUENCE, BATCH, ACCUMULATE, STEPS = 32, 8, 2, 20

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4)
)
text = torch.tensor(list(Path(__file__).read_bytes()))
windows = text.unfold(0, SEQUENCE, 1)[: STEPS * ACCUMULATE * BATCH]
loader = DataLoader(windows, batch_size=BATCH, shuffle=True)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
optimizer = forge.AdamW(model, lr=3e-3, weight_decay=0.1, verbose=True)  # was: torch.optim.AdamW(…)
scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=STEPS)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

for i, batch in enumerate(loader):
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            print(f"step {i // ACCUMULATE:3}  loss {loss.item():.4f}  gradient norm {norm:.3f}")
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

print(forge.report(optimizer))
