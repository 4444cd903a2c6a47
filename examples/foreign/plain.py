"""The method in a plain PyTorch loop. About twenty seconds on one CPU core.

python examples/foreign/plain.py [EXAMPLES]
"""

import sys

import torch
from textures import CHANNELS, CLASSES, FRAMES, clips, teacher
from torch import nn
from torch.nn import functional as F

from segue import ConditionGain, Stage

TOTAL = int(sys.argv[1]) if len(sys.argv) > 1 else 8_000
BATCH = 32
WIDTH = 48


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.place = nn.Parameter(0.02 * torch.randn(FRAMES, WIDTH))
        self.time = nn.Linear(16, WIDTH)
        self.label = nn.Embedding(CLASSES, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, F.silu, batch_first=True, norm_first=True)
            for _ in range(6)
        )

    def forward(self, x_t, t, labels):
        angles = t[:, None] * torch.arange(1, 9) * torch.pi
        condition = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(labels)
        x = self.read(x_t.transpose(1, 2)) + self.place + condition[:, None]
        for block in self.blocks:
            x = block(x)
        return self.write(x).transpose(1, 2)


torch.manual_seed(0)
data, classes = clips(2048, seed=1)
held_out, held_classes = clips(32, seed=2)
model = Net()
features = teacher(data)
measure = ConditionGain(model, lambda x_t, t, rows: model(x_t, t, held_classes[rows]), held_out, teacher)
stage = Stage(model.blocks, total_examples=TOTAL, measure=measure, targets=features)
optimizer = torch.optim.AdamW([*model.parameters(), *stage.parameters()], lr=2e-3)

for step in range(TOTAL // BATCH):
    rows = torch.randint(len(data), (BATCH,))
    t = stage.timesteps(BATCH)
    x_0 = data[rows]
    eps = torch.randn(BATCH, CHANNELS, FRAMES)
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * eps
    loss = F.mse_loss(model(x_t, t, classes[rows]), eps - x_0)
    optimizer.zero_grad()
    (loss + stage.alignment(features[rows], t)).backward()
    optimizer.step()
    stage.after_step(BATCH)
    if step % max(1, TOTAL // BATCH // 8) == 0 or step == TOTAL // BATCH - 1:
        print(f"step {step}: loss {loss:.3f}")
