import json

import pytest
import torch

pl = pytest.importorskip("lightning.pytorch")

from segue.integrations.lightning import SegueCallback, Stage, batch_size_of  # noqa: E402
from segue.stage.alignment import AlignmentConfig  # noqa: E402
from segue.stage.policy import Policy  # noqa: E402
from segue.stage.regime import RegimeConfig  # noqa: E402
from segue.stage.timesteps import TimestepsConfig  # noqa: E402
from segue.types import UserError  # noqa: E402

RAMP = Policy(regime=RegimeConfig(signal="time"), timesteps=TimestepsConfig("stage"), alignment=AlignmentConfig(0.5))


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.stage = Stage(self.blocks, RAMP, total_examples=400, targets=torch.randn(8, 6, 5), log=lambda line: None)

    def training_step(self, batch, _):
        x, features = batch
        t = self.stage.timesteps(len(x))
        for block in self.blocks:
            x = block(x)
        return (t[:, None, None] * x).square().mean() + self.stage.alignment(features, t)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder, steps, resume=None):
    data = torch.utils.data.TensorDataset(torch.randn(40, 7, 4), torch.randn(40, 6, 5))
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=steps,
        accelerator="cpu",
        callbacks=[SegueCallback(module.stage)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, 8), ckpt_path=resume)
    return trainer


def test_the_callback_counts_trains_the_projector_and_is_kept(tmp_path):
    module = Tiny()
    before = [p.detach().clone() for p in module.stage.projector.parameters()]
    trainer = fit(module, tmp_path, 12)
    assert module.stage.examples_seen == 12 * 8
    assert any(not torch.equal(a, b) for a, b in zip(before, module.stage.projector.parameters()))
    assert trainer.logged_metrics["segue/alignment_weight"] == module.stage.decision.alignment_weight
    trainer.save_checkpoint(tmp_path / "kept.ckpt")

    resumed = Tiny()
    fit(resumed, tmp_path, 13, resume=tmp_path / "kept.ckpt")
    assert resumed.stage.examples_seen == 13 * 8
    module.stage.after_step(8)
    assert module.stage.decision is not None
    assert json.dumps(resumed.stage.state_dict()) == json.dumps(module.stage.state_dict())
    assert resumed.segue_projector is resumed.stage.projector


def test_the_size_of_a_batch_is_that_of_its_first_tensor():
    x = torch.zeros(5, 2)
    assert batch_size_of(x) == batch_size_of(("name", x)) == batch_size_of({"id": 3, "x": x}) == 5
    with pytest.raises(UserError, match="batch_size="):
        batch_size_of(["a", "b"])
