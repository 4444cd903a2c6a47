"""The claims of docs/results.md from finished studies: python docs/make_results.py [RUNS], after `make tables`.

Writes the table between the marks of docs/results.md, and its picture. A figure is read from RUNS/STUDY/results.json
(or RUNS/STUDY/against-BASELINE/results.json) and its verdict from its interval alone, so that no word of it is
anybody's choice: "holds" where the interval lies on the claimed side of no difference, "contradicted" where it lies on
the other side, "not shown" where it holds both. A study that is not finished leaves its rows as "not run".
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

PAGE = Path(__file__).with_name("results.md")
PICTURE = Path(__file__).parent / "pictures" / "claims.png"
BEGIN, END = "<!-- claims -->", "<!-- end of claims -->"
# measure -> (name, factor, unit, whether more is better)
MEASURES = {
    "family_accuracy": ("family accuracy", 100, " points", True),
    "family_accuracy_held_out": ("family accuracy, held-out pairs", 100, " points", True),
    "class_accuracy": ("class accuracy", 100, " points", True),
    "frechet_distance": ("Fréchet distance, note classifier", 1, "", False),
    "log_mel_distance": ("Fréchet distance, log-mel", 1, "", False),
    "lsd": ("LSD", 1, "", False),
    "lsd_high": ("LSD of the new band", 1, "", False),
    "validation_loss": ("mean loss", 1, "", False),
}


@dataclass(frozen=True)
class Claim:
    """One claim: `variant` ends ahead of `against` in each of `measures`.

    Attributes:
        words: the claim.
        study: name of its file in studies/ and of its folder.
        variant, against: variants of the study.
        measures: keys of MEASURES.
    """

    words: str
    study: str
    variant: str
    against: str
    measures: tuple[str, ...]


NOTES = ("family_accuracy", "frechet_distance", "log_mel_distance", "validation_loss")
SUPER_RESOLUTION = ("lsd", "lsd_high", "validation_loss")
SOUNDS = ("class_accuracy", "log_mel_distance", "validation_loss")
CLAIMS = (
    Claim("The default recipe, planned for **half** of 36,000 examples, ends ahead of plain flow matching after all",
          "notes", "stage-muon-half", "static-uniform", NOTES),
    Claim("How much of that is the optimiser: the same half by `static-muon`",
          "notes", "static-muon-half", "static-uniform", NOTES),
    Claim("... and how much is the method, all else equal", "notes", "stage-muon-half", "static-muon-half", NOTES),
    Claim("... and how much of the method is the alignment", "notes", "stage-muon-half", "stage-muon-half-no-alignment",
          NOTES),
    Claim("The default recipe, planned for 85 %, ends ahead of the best static recipe under AdamW after all",
          "notes", "stage-muon-85", "static-shifted", NOTES),
    Claim("The method, all else equal, under AdamW", "notes", "stage", "static-uniform", NOTES),
    Claim("The method, all else equal, under Muon", "notes", "stage-muon", "static-muon", NOTES),
    Claim("The method against the best static recipe, all else equal", "notes", "stage", "static-shifted", NOTES),
    Claim("The default recipe against the best static recipe by the same optimiser", "notes", "stage-muon",
          "static-shifted-muon", NOTES),
    Claim("Measuring the regime against the time ramp", "notes", "stage", "time-ramp", NOTES),
    Claim("Half of 144,000 examples", "notes-long", "stage-muon-half", "static-uniform", NOTES),
    Claim("85 % of 144,000 examples against the best static recipe", "notes-long", "stage-muon-85", "static-shifted",
          NOTES),
    Claim("The method over 144,000 examples, all else equal", "notes-long", "stage", "static-uniform", NOTES),
    Claim("... against the best static recipe", "notes-long", "stage", "static-shifted", NOTES),
    Claim("... measuring the regime against the time ramp", "notes-long", "stage", "time-ramp", NOTES),
    Claim("The block term, active in every run", "blocks", "groups", "none", NOTES),
    Claim("... groups as found against random ones of their sizes", "blocks", "groups", "random", NOTES),
    Claim("The method on speech", "speech", "stage", "static-uniform", SOUNDS),
    Claim("The method on drums", "drums", "stage", "static-uniform", SOUNDS),
    Claim("The method on recorded effects", "effects", "stage", "static-uniform", SOUNDS),
    Claim("The method on recorded effects, under Muon", "effects", "stage-muon", "static-muon", SOUNDS),
    Claim("Super-resolution: the method, all else equal", "super-resolution-regime", "sr-demo", "sr-demo-static",
          SUPER_RESOLUTION),
    Claim("... by the condition gain and not by the slope of the discrepancy", "super-resolution-regime", "sr-demo",
          "sr-demo-by-slope", SUPER_RESOLUTION),
)  # fmt: skip


def main(runs: Path) -> None:
    rows = ["| claim | figure | difference (95 % interval) | verdict | table |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        rows += rows_of(claim, runs)
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    draw(runs)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{tail}", encoding="utf-8")


def draw(runs: Path) -> None:
    """Accuracy and Frechet distance of each claim that has both: differences with their intervals."""
    found = [(claim, results) for claim in CLAIMS if (results := results_of(claim, runs)) is not None]
    found = [(claim, results) for claim, results in found if "log_mel_distance" in results["measures"]]
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(11, 0.5 + 0.42 * len(found)), layout="constrained")
    titles = ("accuracy: points more", "log-mel Fréchet distance: % of the baseline's, less")
    for panel, title in zip(panels, titles):
        panel.axvline(0, color="0.6", linewidth=1)
        panel.set_title(title, fontsize=10)
    for row, (claim, results) in enumerate(reversed(found)):
        for panel, measure, sign in ((panels[0], claim.measures[0], 1), (panels[1], "log_mel_distance", -1)):
            of = results["measures"][measure]
            scale = sign * 100 * (1 if sign > 0 else 1 / of[claim.against]["final"]["value"])
            difference = of[claim.variant]["final_difference"]
            low, high = sorted(scale * x for x in difference["interval"])
            colour = "0.45" if low <= 0 <= high else "tab:blue" if low > 0 else "tab:red"
            panel.plot([low, high], [row, row], color=colour, linewidth=2)
            panel.plot(scale * difference["value"], row, "o", color=colour, markersize=5)
    names = [f"{claim.study}: {claim.variant} − {claim.against}" for claim, _ in reversed(found)]
    panels[0].set_yticks(range(len(found)), names, fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def rows_of(claim: Claim, runs: Path) -> list[str]:
    """A row of the table for each measure; the claim's words stand in the first."""
    found = results_of(claim, runs)
    pair = f"`{claim.variant}` against `{claim.against}`"
    link = f"[{claim.study}](tables/{claim.study}.md)"
    if found is None:
        return [f"| {claim.words}: {pair} | | | not run | studies/{claim.study}.json |"]
    words = [f"{claim.words}: {pair}, {seeds_of(found, claim)}"] + [""] * (len(claim.measures) - 1)
    return [f"| {head} | {' | '.join(cells(found, claim, measure))} | {link} |"
            for head, measure in zip(words, claim.measures)]  # fmt: skip


def results_of(claim: Claim, runs: Path) -> dict | None:
    """The study's results against the claim's baseline; None where the variants are not finished."""
    for path in (runs / claim.study / "results.json", runs / claim.study / f"against-{claim.against}" / "results.json"):
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["baseline"] == claim.against and claim.variant in found["measures"].get(claim.measures[0], {}):
                return found
    return None


def seeds_of(found: dict, claim: Claim) -> str:
    count = len(found["measures"][claim.measures[0]][claim.variant]["seeds"])
    return f"{count} seed{'s' * (count != 1)}"


def cells(found: dict, claim: Claim, measure: str) -> tuple[str, str, str]:
    """The figure's name with both final values, the difference with its interval, and the verdict."""
    name, factor, unit, more = MEASURES[measure]
    of = found["measures"][measure]
    difference = of[claim.variant]["final_difference"]
    ours = factor * of[claim.variant]["final"]["value"]
    theirs = ours - factor * difference["value"]  # of the seeds that both have
    # One seed gives no interval of a loss.
    interval = difference.get("interval")
    show = plain(measure)
    figure = f"{name} {show.format(ours)}, {show.format(theirs)}"
    if interval is None:
        return figure, f"{signed(measure, factor * difference['value'])}{unit}", "not shown (one seed)"
    low, high = (factor * x for x in interval)
    spread = f"{signed(measure, low)} to {signed(measure, high)}"
    verdict = "not shown" if low <= 0 <= high else "holds" if (low > 0) == more else "**contradicted**"
    return figure, f"{signed(measure, factor * difference['value'])}{unit} ({spread})", verdict


def plain(measure: str) -> str:
    decimals = {"validation_loss": "{:.4f}", "lsd": "{:.3f}", "lsd_high": "{:.3f}"}
    return decimals.get(measure, "{:.1f}" if "accuracy" in measure else "{:.0f}")


def signed(measure: str, value: float) -> str:
    return plain(measure).replace("{:", "{:+").format(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs"))
