"""How many blocks of trained models can be left out, and how evenly the blocks share the work.

    python benchmarks/dropped_blocks.py STUDY_OUT CACHE [--clips 64]

For every finished run in STUDY_OUT/runs: the mean loss over fixed times on held-out clips, by the averaged weights; the
effective depth, (sum of s)^2 / sum of s^2, of what leaving out each block alone changes (`causal_scores`); and how many
blocks can be left out together, each time the one that costs least, before that loss has risen by 2, 5 and 10 %.
Prints a Markdown table by variant: means over seeds, and the range.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from segue.models.backbone import Backbone
from segue.stage.tap import skipped
from segue.training.step import Example, losses
from segue.training.validation import VALIDATION_TIMES
from segue_lab.block_ablation import block_scores, model_and_clips
from segue_lab.study.runs import DONE, read_run_file

RISES = (0.02, 0.05, 0.1)
SCORED_AT = 0.7  # the noise level at which single blocks are left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clips", type=int, default=64)
    asked = parser.parse_args()
    found = defaultdict(list)
    for done in sorted((asked.out / "runs").glob(f"*/{DONE}")):
        measured = blocks_of(done.parent, asked.cache, asked.clips)
        variant = read_run_file(done.parent)["variant"]
        found[variant].append(measured)
        print(f"{done.parent.name}: {', '.join(f'{value:.4g}' for value in measured)}", flush=True)
    rises = " / ".join(f"{rise:.0%}" for rise in RISES)
    print(f"\n| variant | runs | loss | effective depth | blocks that can be left out for {rises} of loss |")
    print("|---|---|---|---|---|")
    for variant, rows in found.items():
        cells = [f"{fmean(column):.3g} ({min(column):.3g} to {max(column):.3g})" for column in zip(*rows)]
        print(f"| `{variant}` | {len(rows)} | {cells[0]} | {cells[1]} | {' / '.join(cells[2:])} |")


@torch.no_grad()
def blocks_of(run: Path, data: Path, clips: int) -> list[float]:
    """Mean loss, effective depth, and the blocks that can be left out for each of RISES."""
    model, held_out = model_and_clips(run, data, clips)
    scores = torch.tensor(block_scores(model, held_out, SCORED_AT))
    depth = float(scores.sum().square() / scores.square().sum())
    examples = [replace(held_out, t=torch.full_like(held_out.t, t)) for t in VALIDATION_TIMES]
    return [mean_loss(model, examples), depth, *left_out(model, examples)]


def mean_loss(model: Backbone, examples: list[Example]) -> float:
    """Mean over times and clips, in what the model predicts."""
    return float(torch.stack([losses(model, example, model.predicts) for example in examples]).mean())


def left_out(model: Backbone, examples: list[Example]) -> list[float]:
    """For each of RISES: the most blocks that can be left out, the cheapest first, below that rise of the loss."""
    whole = mean_loss(model, examples)
    gone: list[int] = []
    rises: list[float] = []
    while len(gone) < len(model.blocks):
        tried = {}
        for index in set(range(len(model.blocks))) - set(gone):
            with skipped([model.blocks[i] for i in (*gone, index)]):
                tried[index] = mean_loss(model, examples)
        gone.append(min(tried, key=lambda index: tried[index]))
        rises.append(min(tried.values()) / whole - 1)
        if rises[-1] > max(RISES):
            break
    return [float(sum(rise <= limit for rise in rises)) for limit in RISES]


if __name__ == "__main__":
    main()
