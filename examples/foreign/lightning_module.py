"""The method in a Lightning trainer, as a callback. Under a minute on one CPU core.

pip install lightning
python examples/foreign/lightning_module.py [EXAMPLES]
"""

import sys

import lightning.pytorch as pl
import torch
from textures import CHANNELS, CLASSES, clips, teacher
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from segue.integrations.lightning import ConditionGain, SegueCallback, Stage

TOTAL = int(sys.argv[1]) if len(sys.argv) > 1 else 4_800
BATCH = 32
WIDTH = 48


class Flow(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.read = nn.Conv1d(CHANNELS, WIDTH, 3, padding=1)
        self.write = nn.Linear(WIDTH, CHANNELS)
        self.label = nn.Embedding(CLASSES, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, F.silu, batch_first=True, norm_first=True)
            for _ in range(6)
        )

    def forward(self, x_t, t, labels):
        x = self.read(x_t).transpose(1, 2) + (self.label(labels) + self.time(t[:, None]))[:, None]
        for block in self.blocks:
            x = block(x)
        return self.write(x).transpose(1, 2)

    def training_step(self, batch, _):
        x_0, labels, features = batch
        t = self.stage.timesteps(len(x_0))
        eps = torch.randn_like(x_0)
        x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * eps
        loss = F.mse_loss(self(x_t, t, labels), eps - x_0)
        self.log("flow_loss", loss)
        return loss + self.stage.alignment(features, t)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


pl.seed_everything(0, verbose=False)
data, classes = clips(2048, seed=1)
held_out, held_classes = clips(32, seed=2)
features = teacher(data)
module = Flow()
measure = ConditionGain(module, lambda x_t, t, rows: module(x_t, t, held_classes[rows]), held_out, teacher)
module.stage = Stage(module.blocks, total_examples=TOTAL, measure=measure, targets=features)
trainer = pl.Trainer(
    max_steps=TOTAL // BATCH,
    accelerator="cpu",
    callbacks=[SegueCallback(module.stage)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
loader = DataLoader(TensorDataset(data, classes, features), BATCH, shuffle=True, drop_last=True)
trainer.fit(module, loader)
print({name: round(float(value), 3) for name, value in trainer.logged_metrics.items()})
