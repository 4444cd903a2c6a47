"""Frozen behaviour: what seven recipes do in two dozen steps, recorded in trajectories.json beside this file.

    python tests/invariants/trajectories.py            records anew; refuses a tree with uncommitted changes

Every other bit-for-bit test compares a version with itself. This one compares it with the version that made the record,
so that no change of the numerics passes in silence. Losses, decisions and a hash of the weights are kept for a run in
one process, in two, and for one that was cut and resumed. On the machine and torch version of the record they must be
equal bit for bit; elsewhere, where matrix products round otherwise, within `TOLERANCE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # conftest.py and running.py of the loop's tests

RECORD = Path(__file__).with_name("trajectories.json")
RECIPES = ("static-uniform", "stage", "stage-by-level", "time-ramp", "stage-per-time", "adaptive-timesteps", "sr-demo")
WAYS = ("one process", "two processes", "resumed")
TOLERANCE = 2e-3  # relative, of losses and decisions on another machine: rounding grows over two dozen steps
RATE_HZ, SECONDS = 2000, 0.512
CHANGES = (
    "model.preset=dit-tiny", "train.total_examples=192", "train.batch_size=8", "train.checkpoint_every=64",
    "train.log_every=8", "train.validate_every=96", "train.validation_clips=4", "train.tensorboard=false",
    "train.keep_last=9", "probe.clips=8", "probe.space=latent", "probe.spacing=1.2", "probe.first=0.1",
    "regime.level_open=0.99", "regime.level_closed=0.6", "timesteps.learn_every=40",
)  # fmt: skip
BY_TASK = {
    "generation": ["model.patch_frames=2"],
    "super-resolution": ["model.patch_frames=1", "degradation.cutoff_min_hz=400", "degradation.cutoff_max_hz=500"],
}


def make_caches(folder: Path) -> dict[str, Path]:
    """Task -> cache of 48 hissing tones whose ids and splits are written down, so that no rule of splitting enters."""
    from conftest import Bands, Letters
    from segue.codecs import load_codec
    from segue.data.encoding import build_cache
    from segue.data.manifest import load_manifest

    rows = []
    for index in range(48):
        samples = round(RATE_HZ * SECONDS * (1.0 if index % 3 else 0.6))
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (index % 5 / 5) * np.arange(samples) / RATE_HZ)
        hiss = np.random.default_rng(index).normal(size=samples)
        soundfile.write(folder / f"{index}.wav", tone + 0.02 * (1 + index % 5) * hiss, RATE_HZ)
        split = "valid" if index % 6 == 0 else "train"
        rows.append({"path": f"{index}.wav", "id": f"{index:02}", "caption": f"tone {index % 5}", "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    codecs = {"generation": "spectral", "super-resolution": "gain-shape"}
    for task, codec in codecs.items():
        out = folder / f"cache-{task}"
        clips = load_manifest(folder)
        build_cache(clips, load_codec(codec, RATE_HZ), Letters(), Bands(), out=out, seconds=SECONDS)
    return {task: folder / f"cache-{task}" for task in codecs}


def run_all(caches: dict[str, Path], out: Path, *, resume: bool = False) -> None:
    """Every recipe into out/RECIPE, in this process or as one of the ranks of its launcher."""
    from running import run

    from segue.data.open_cache import open_cache
    from segue.recipes import load_recipe
    from segue.training.config import override

    torch.set_num_threads(1)
    for name in RECIPES:
        config = load_recipe(name)
        config = override(config, [*CHANGES, *BY_TASK[config.train.task]])
        run(config, open_cache(caches[config.train.task]), out / name, resume=resume)


def cut(out: Path, keep: int = 1) -> None:
    """Take away all but the first checkpoints of each run, as a kill would have."""
    for name in RECIPES:
        for later in sorted((out / name / "checkpoints").glob("examples-*"))[keep:]:
            for file in later.iterdir():
                file.unlink()
            later.rmdir()


def run_two_processes(caches: dict[str, Path], out: Path) -> None:
    """The same over two ranks."""
    from running import two_ranks

    arguments = [json.dumps({task: str(path) for task, path in caches.items()}), str(out)]
    done = subprocess.run(
        [sys.executable, *two_ranks(29671), __file__, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def observe_all(out: Path) -> dict[str, dict]:
    """Recipe -> what its run did."""
    return {name: observe(out / name) for name in RECIPES}


def observe(run_dir: Path) -> dict:
    """Losses, decisions and the weights of one run."""
    from segue.training.log import read_log

    log = read_log(run_dir / "log.jsonl")
    trained = [e for e in log if e["event"] == "train"]
    checkpoint = sorted((run_dir / "checkpoints").glob("examples-*"))[-1]
    return {
        "losses": [[e["examples_seen"], e["loss"], e["alignment"]] for e in trained],
        "validation": [[e["examples_seen"], e["loss_by_t"]] for e in log if e["event"] == "validation"],
        "decisions": [
            [e["examples_seen"], e["regime"], _either(e, "alignment_weight", "guidance_weight"), e["timestep_mean"]]
            for e in log
            if e["event"] == "stage"
        ],
        "weights": weights_hash(load_file(checkpoint / "model.safetensors")),
    }


def weights_hash(tensors: dict[str, torch.Tensor]) -> str:
    """Of trained and averaged weights by value, so that neither a name nor an order of tensors counts."""
    kept = [v for name, v in tensors.items() if name.startswith(("model.", "ema."))]
    each = sorted(hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest() for v in kept)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _either(entry: dict, *names: str):
    return next(entry[name] for name in names if name in entry)


def machine() -> dict[str, str]:
    """What decides how float32 products round."""
    cpu = Path("/proc/cpuinfo")
    models = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    model = models[0].partition(":")[2].strip() if models else ""
    return {"torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability(), "processor": model}


def measure(folder: Path) -> dict[str, dict]:
    """Way -> recipe -> what its run did."""
    caches = make_caches(folder)
    found = {}
    run_all(caches, folder / "one")
    found["one process"] = observe_all(folder / "one")
    run_two_processes(caches, folder / "two")
    found["two processes"] = observe_all(folder / "two")
    cut(folder / "one")
    run_all(caches, folder / "one", resume=True)
    found["resumed"] = observe_all(folder / "one")
    return found


def record() -> None:
    """Write trajectories.json, with the commit that it was made at."""
    root = Path(__file__).parents[2]
    if subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True).stdout.strip():
        sys.exit("the tree has uncommitted changes; hint: commit them first, so that the record names what made it")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        found = {"commit": commit, "machine": machine(), "runs": measure(Path(folder))}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    print(f"recorded {len(WAYS) * len(RECIPES)} runs at {commit[:7]}: {RECORD}")


if __name__ == "__main__":
    if len(sys.argv) > 1:  # one of two ranks
        run_all({task: Path(path) for task, path in json.loads(sys.argv[1]).items()}, Path(sys.argv[2]))
    else:
        record()
