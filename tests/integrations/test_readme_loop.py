"""README's method in a loop of one's own runs as it stands there, around a small model."""

import copy
import re
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
EXAMPLES, BATCH = 640, 16


def test_the_lines_of_readme_train_and_count(monkeypatch):
    code = re.search(r"<!-- test: own loop -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    body = code.split("\n\n", 1)[1].strip()
    assert len(body.splitlines()) == 8, "README says how short it is: eight lines behind the import"
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "foreign"))
    monkeypatch.delitem(sys.modules, "textures", raising=False)
    from textures import CHANNELS, CLASSES, clips, teacher

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.write = nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)
            self.label = nn.Embedding(CLASSES, 32)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(32, 2, 48, 0.0, F.silu, batch_first=True, norm_first=True) for _ in range(3)
            )

        def forward(self, x_t, t, labels):
            x = self.read(x_t.transpose(1, 2)) + (self.label(labels) + t[:, None])[:, None]
            for block in self.blocks:
                x = block(x)
            return self.write(x).transpose(1, 2)

    def flow_loss(model, x_0, t, labels):
        eps = torch.randn_like(x_0)
        mixed = (1 - t[:, None, None]) * x_0 + t[:, None, None] * eps
        return F.mse_loss(model(mixed, t, labels), eps - x_0)

    torch.manual_seed(0)
    data, classes = clips(EXAMPLES, seed=1)
    held_out, captions = clips(16, seed=2)
    model, features = Net(), teacher(data)
    before = copy.deepcopy(model.state_dict())
    batches = torch.arange(EXAMPLES).split(BATCH)
    scope = {
        "AdamW": torch.optim.AdamW, "N": EXAMPLES, "captions": captions, "ema": model, "features": features,
        "flow_loss": flow_loss, "held_out": held_out, "model": model, "teacher": teacher,
        "loader": [(data[rows], classes[rows], features[rows]) for rows in batches],
    }  # fmt: skip
    exec(code, scope)
    assert scope["stage"].examples_seen == EXAMPLES
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scope["stage"].state_dict()["steps"] == len(batches)
