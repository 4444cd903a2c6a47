"""The method in a training loop of stable-audio-tools' DiffusionTransformer. Under a minute on one CPU core.

Its pinned dependencies would take torch and much else back by years; the model itself needs einops alone:

    pip install --no-deps stable-audio-tools && pip install einops
    python examples/foreign/stable_audio_tools_dit.py [EXAMPLES]
"""

import sys

import torch
from stable_audio_tools.models.dit import DiffusionTransformer
from textures import CHANNELS, CLASSES, FRAMES, clips, teacher
from torch.nn import functional as F

from segue import ConditionGain, Stage

TOTAL = int(sys.argv[1]) if len(sys.argv) > 1 else 4_800
BATCH = 32

torch.manual_seed(0)
data, classes = clips(2048, seed=1)
held_out, held_classes = clips(32, seed=2)
captions = torch.randn(CLASSES, 4, 32)  # stands for the text encoder: four tokens a class
model = DiffusionTransformer(
    io_channels=CHANNELS,
    embed_dim=64,  # rotary positions want 32 features a head or more
    depth=6,
    num_heads=2,
    cond_token_dim=32,
    diffusion_objective="rectified_flow",
)

features = teacher(data)
measure = ConditionGain(model, lambda x_t, t, rows: model(x_t, t, captions[held_classes[rows]]), held_out, teacher)
stage = Stage(model.transformer.layers, total_examples=TOTAL, measure=measure, targets=features, prepended=1)
optimizer = torch.optim.AdamW([*model.parameters(), *stage.parameters()], lr=2e-3)

for step in range(TOTAL // BATCH):
    rows = torch.randint(len(data), (BATCH,))
    t = stage.timesteps(BATCH)
    x_0 = data[rows]
    eps = torch.randn(BATCH, CHANNELS, FRAMES)
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * eps
    loss = F.mse_loss(model(x_t, t, captions[classes[rows]], use_checkpointing=False), eps - x_0)
    optimizer.zero_grad()
    (loss + stage.alignment(features[rows], t)).backward()
    optimizer.step()
    stage.after_step(BATCH)
    if step % max(1, TOTAL // BATCH // 8) == 0 or step == TOTAL // BATCH - 1:
        print(f"step {step}: loss {loss:.3f}")
