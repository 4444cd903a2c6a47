import json

import numpy as np
import pytest
import soundfile


@pytest.fixture
def wave():
    t = np.arange(16000) / 16000
    return (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


def write_run(folder, wave):
    """A run folder as training leaves it, with a last line that a kill cut short."""
    (folder / "samples").mkdir(parents=True)
    run = {"recipe": "static-uniform", "train": {"total_examples": 6400}}
    (folder / "config.json").write_text(json.dumps({"segue": "0.1.0", "cache": "/data/cache", "run": run}))
    for seen, seconds in ((320, 61.0), (3200, 526.4)):
        state = folder / "checkpoints" / f"examples-{seen:010d}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"examples_seen": seen, "steps": seen // 32, "seconds": seconds}))
    lines = []
    for seen in range(0, 3201, 320):
        losses = {"0.1": 1.0 / (1 + seen), "0.9": 2.0 / (1 + seen)}
        lines.append({"event": "validation", "examples_seen": seen, "loss_by_t": losses, "loss": 0.5})
        train = {"loss": 1.0, "examples_per_sec": 100.0, "learning_rate": 1e-3, "grad_norm": 0.4, "timestep_mean": 0.5}
        lines.append({"event": "train", "examples_seen": seen, **train})
        lines.append({"event": "stage", "examples_seen": seen, "regime": 0.1, "alignment_weight": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"event": "tra')
    soundfile.write(folder / "samples" / "000.wav", wave, 16000)
    listed = [{"file": "000.wav", "prompt": "a <loud> violin", "held_out": True}]
    (folder / "samples" / "samples.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture
def run_dir(tmp_path, wave):
    return write_run(tmp_path / "static-uniform", wave)
