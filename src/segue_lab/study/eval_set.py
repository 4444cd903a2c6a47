"""What a study asks every run for and compares the answers with: prompts, reference, classifier; one for the study."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from segue.evaluation.frechet import frechet_between_gaussians, gaussian_of
from segue.files import write_bytes, write_text
from segue.pipeline import Sampling
from segue_lab.linear_classifier import LinearClassifier
from segue_lab.study.eval_audio import checkpoint_loader
from segue_lab.study.evaluation import Evaluator, Measures, resamples, save_arrays
from segue_lab.study.study_config import EvaluationSettings

NOTES, LOG_MEL = "note classifier", "log-mel"  # the spaces of the Frechet distance
FILE, FIRST_FILE = "eval-set.json", "listening.json"  # an earlier version's name for it


@dataclass(frozen=True)
class EvalSet:
    """Prompts and what generated clips are compared with.

    Attributes:
        space: NOTES or LOG_MEL: who embeds the clips.
        prompts: {"caption", "held_out", ...} for each clip; what else each says belongs to its evaluator.
        reference: [M, 64] embeddings of other clips of the data set.
        reference_kind: "real clips" or "decoded latents".
        ceilings: "real" and "codec_round_trip" -> measures of the clips that the prompts are of.
        key: hash of prompts, reference and classifier.
        classifier: of the linear probe; None where the study names no field.
        log_mel: [M, 64] log-mel statistics of the reference, where another space embeds the clips: a second distance,
            in numbers that nobody trained.
    """

    space: str
    prompts: list[dict]
    reference: np.ndarray
    reference_kind: str
    ceilings: dict[str, Measures]
    key: str
    classifier: LinearClassifier | None = None
    log_mel: np.ndarray | None = None


@dataclass(frozen=True)
class Space:
    """Clips where a Frechet distance between them is taken.

    Attributes:
        points: [N, D], of the clips that are measured.
        reference: [M, D], of those that they are compared with.
        fewest: clips that the distance takes at least, on both sides; with fewer it is left out.
    """

    points: np.ndarray
    reference: np.ndarray
    fewest: int


def save_eval_set(found: EvalSet, folder: Path) -> EvalSet:
    """Write eval-set.json and reference.safetensors; returns the set."""
    arrays = {"reference": found.reference}
    if found.log_mel is not None:
        arrays["log_mel"] = found.log_mel
    if found.classifier is not None:
        arrays |= {"weight": found.classifier.weight, "bias": found.classifier.bias}
    stored = {
        "space": found.space,
        "classes": list(found.classifier.classes) if found.classifier else [],
        "prompts": found.prompts,
        "reference_kind": found.reference_kind,
        "ceilings": found.ceilings,
        "key": found.key,
    }
    # The arrays first: a description without them would be taken for whole.
    write_bytes(folder / "reference.safetensors", save_arrays(arrays))
    write_text(folder / FILE, json.dumps(stored, indent=1))
    return found


def read_description(folder: Path) -> dict:
    """The JSON that `save_eval_set`, or an earlier version, left in a folder; empty where there is none."""
    path = next((folder / name for name in (FILE, FIRST_FILE) if (folder / name).exists()), None)
    if path is None:
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    # Earlier versions had no name for the space.
    return {"space": LOG_MEL if stored.get("ear") else NOTES, "classes": []} | stored


def load_eval_set(folder: Path, key: str | None = None) -> EvalSet | None:
    """What `save_eval_set` left in a folder; None where nothing is, or where it has another key than `key`."""
    stored = read_description(folder)
    # Another key is another question, whose answer must not be taken for this one's.
    if not stored or key not in (None, stored["key"]):
        return None
    arrays = load_file(folder / "reference.safetensors")
    classes = tuple(stored["classes"])
    classifier = LinearClassifier(classes, arrays["weight"], arrays["bias"]) if classes else None
    parts = ("space", "prompts", "reference_kind", "ceilings", "key")
    given = {name: stored[name] for name in parts}
    return EvalSet(reference=arrays["reference"], classifier=classifier, log_mel=arrays.get("log_mel"), **given)


def evaluator_of(
    asked: EvalSet,
    settings: EvaluationSettings,
    device: str,
    measure: Callable[[Tensor, int, np.ndarray], tuple[Measures, dict[str, np.ndarray]]],
) -> Evaluator:
    """For `at_each_interval`: generate every prompt with a checkpoint and measure the clips.

    Args:
        measure: (finite waveforms [N, T], rate in Hz, usable [N] bool) -> measures and arrays. A clip with a sample
            that is not finite is not usable; its bad samples are zeros.
    """
    pipeline_of = checkpoint_loader(device)
    captions = [p["caption"] for p in asked.prompts]
    sampling = Sampling(settings.steps, "multistep", settings.guidance, settings.rescale)

    def evaluate(checkpoint: Path) -> tuple[Measures, dict[str, np.ndarray]]:
        pipeline = pipeline_of(checkpoint)
        # The same seed everywhere: every variant generates from the same noise.
        waves = pipeline.generate(captions, seed=settings.seed, sampling=sampling, batch_size=32).mean(dim=1)
        # A broken checkpoint gives broken clips: they count as wrong, and the study goes on.
        finite = torch.isfinite(waves).all(dim=1)
        values, arrays = measure(waves.nan_to_num(0.0, 0.0, 0.0), pipeline.codec.sample_rate_hz, finite.numpy())
        return {"clips": len(captions), **values, "clips_not_finite": int((~finite).sum())}, arrays

    return evaluate


def measure_clips(
    spaces: Mapping[str, Space],
    hits: Mapping[str, np.ndarray],
    prompts: Sequence[Mapping],
    usable: np.ndarray | None = None,
    *,
    by_kind: bool,
) -> tuple[Measures, dict[str, np.ndarray]]:
    """Prompt accuracies and the Frechet distances of N clips, and the arrays to keep beside them.

    Args:
        spaces: name of a Frechet distance -> the clips in its space.
        hits: what was asked for ("family", ...) -> [N] bool, whether the clip is so.
        prompts: N of them; "held_out" is read here.
        usable: [N] bool; a clip that is not usable counts as wrong and is left out of the distances.
        by_kind: give the accuracies over prompts of trained and of held-out pairs, too.

    Returns:
        values: `NAME_accuracy` over all clips and, by kind, `NAME_accuracy_trained` and `NAME_accuracy_held_out`; the
        distances. Arrays: `embedding` [N, D] float32 in the first space and `embedding.NAME` in the others,
        `NAME_right` [N] uint8, and `replicates.NAME` [200] float32: the same measures on resampled clips. Replicate b
        takes the same clips in every run of a study, so differences between variants keep their pairing.
    """
    usable = np.ones(len(prompts), bool) if usable is None else usable
    # A clip that is not usable is wrong, whatever was made of its zeros.
    right = {name: np.asarray(values, bool) & usable for name, values in hits.items()}
    held_out = np.array([p["held_out"] for p in prompts])
    points = {name: space.points.astype(np.float64) for name, space in spaces.items()}
    # The reference's Gaussian is the same in every replicate.
    targets = {name: gaussian_of(space.reference) for name, space in spaces.items()}

    def values(rows: np.ndarray) -> Measures:
        kinds = {"": np.ones(len(rows), bool)}
        if by_kind:
            kinds |= {"_trained": ~held_out[rows], "_held_out": held_out[rows]}
        numbers: Measures = {}
        for name, found in right.items():
            numbers |= {f"{name}_accuracy{k}": float(found[rows][m].mean()) for k, m in kinds.items() if m.any()}
        # Clips that are not usable would move the mean and covariance by their zeros.
        kept = rows[usable[rows]]
        for name, space in spaces.items():
            if min(len(kept), len(space.reference)) >= space.fewest:
                numbers[name] = frechet_between_gaussians(*targets[name], *gaussian_of(points[name][kept]))
        return numbers

    found = values(np.arange(len(prompts)))
    # The same resampled clips in every run: see evaluation.resamples.
    drawn = [values(rows) for rows in resamples(held_out)]
    first = next(iter(spaces))
    arrays = {f"embedding{'' if name == first else '.' + name}": p.astype(np.float32) for name, p in points.items()}
    arrays |= {f"{name}_right": rows.astype(np.uint8) for name, rows in right.items()}
    # A replicate without clips of a kind falls back on the value itself.
    arrays |= {f"replicates.{name}": np.array([d.get(name, found[name]) for d in drawn], np.float32) for name in found}
    return found, arrays
