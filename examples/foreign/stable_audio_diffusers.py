"""The method in a training loop of diffusers' StableAudioDiTModel. Under a minute on one CPU core.

pip install 'segue-audio[hub]'
python examples/foreign/stable_audio_diffusers.py [EXAMPLES]
"""

import sys

import torch
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from textures import CHANNELS, CLASSES, FRAMES, clips, teacher
from torch.nn import functional as F

from segue import ConditionGain, Stage

TOTAL = int(sys.argv[1]) if len(sys.argv) > 1 else 4_800
BATCH = 32

torch.manual_seed(0)
data, classes = clips(2048, seed=1)
held_out, held_classes = clips(32, seed=2)
model = StableAudioDiTModel(
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    num_layers=6,
    attention_head_dim=16,
    num_attention_heads=3,
    num_key_value_attention_heads=3,
    cross_attention_dim=48,
    cross_attention_input_dim=32,
    global_states_input_dim=32,
    time_proj_dim=32,
)
captions = torch.randn(CLASSES, 4, 32)  # stands for the text encoder: four tokens a class
rotary = get_1d_rotary_pos_embed(8, FRAMES + 1, use_real=True, repeat_interleave_real=False)


def predict(x_t, t, labels):
    text = captions[labels]
    return model(x_t, t, text, text.mean(1, keepdim=True), rotary, return_dict=False)[0]


features = teacher(data)
measure = ConditionGain(model, lambda x_t, t, rows: predict(x_t, t, held_classes[rows]), held_out, teacher)
stage = Stage(model.transformer_blocks, total_examples=TOTAL, measure=measure, targets=features, prepended=1)
optimizer = torch.optim.AdamW([*model.parameters(), *stage.parameters()], lr=2e-3)

for step in range(TOTAL // BATCH):
    rows = torch.randint(len(data), (BATCH,))
    t = stage.timesteps(BATCH)
    x_0 = data[rows]
    eps = torch.randn(BATCH, CHANNELS, FRAMES)
    x_t = (1 - t[:, None, None]) * x_0 + t[:, None, None] * eps
    loss = F.mse_loss(predict(x_t, t, classes[rows]), eps - x_0)
    optimizer.zero_grad()
    (loss + stage.alignment(features[rows], t)).backward()
    optimizer.step()
    stage.after_step(BATCH)
    if step % max(1, TOTAL // BATCH // 8) == 0 or step == TOTAL // BATCH - 1:
        print(f"step {step}: loss {loss:.3f}")
