"""A LightningModule with clipping, accumulation and a schedule; only the line that makes the optimizer is new.

Learns the bytes of this very file.
"""

from pathlib import Path

import forge_optim as forge
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

CONTEXT, WIDTH, BATCH, STEPS = 8, 128, 16, 20


class NextByte(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Embedding(256, WIDTH),
            nn.Flatten(),
            nn.Linear(CONTEXT * WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.LayerNorm(4 * WIDTH),
            nn.Linear(4 * WIDTH, 256),
        )

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self.model(batch[:, :-1]), batch[:, -1])
        if index % 16 == 0:
            print(f"batch {index:3}  loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self):
        optimizer = forge.AdamW(self, lr=3e-3, weight_decay=0.1, verbose=True)  # was: torch.optim.AdamW(…)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


lightning.seed_everything(0, verbose=False)
text = torch.tensor(list(Path(__file__).read_bytes()))
windows = text.unfold(0, CONTEXT + 1, 1)
loader = DataLoader(windows, batch_size=BATCH, shuffle=True)

module = NextByte()
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=STEPS,
    gradient_clip_val=1.0,
    accumulate_grad_batches=4,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, loader)
print(forge.report(trainer.optimizers[0]))
