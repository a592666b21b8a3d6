"""A plain PyTorch loop with clipping, accumulation and a schedule; only the line that makes the optimizer is new.

Learns the bytes of this very file.
"""

from pathlib import Path

import forge_optim as forge
import torch
from torch import nn

CONTEXT, WIDTH, BATCH, ACCUMULATE, STEPS = 8, 128, 16, 4, 40

torch.manual_seed(0)
model = nn.Sequential(
    nn.Embedding(256, WIDTH),
    nn.Flatten(),
    nn.Linear(CONTEXT * WIDTH, 4 * WIDTH),
    nn.GELU(),
    nn.LayerNorm(4 * WIDTH),
    nn.Linear(4 * WIDTH, 256),
)
optimizer = forge.AdamW(model, lr=3e-3, weight_decay=0.1, verbose=True)  # was: torch.optim.AdamW(…)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

text = torch.tensor(list(Path(__file__).read_bytes()))
windows = text.unfold(0, CONTEXT + 1, 1)
for step in range(STEPS):
    total = 0.0
    for _ in range(ACCUMULATE):
        batch = windows[torch.randint(len(windows), (BATCH,))]
        loss = nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1]) / ACCUMULATE
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 5 == 0 or step == STEPS - 1:
        print(f"step {step:3}  loss {total:.4f}  gradient norm {norm:.3f}")

print(forge.report(optimizer))
