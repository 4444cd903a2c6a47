"""The model card of a shared folder: README.md as people and the hub read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segue.models.files import BESIDE, ModelCard

NOT_STATED = "Not stated by whoever shared this model."


@dataclass(frozen=True)
class Figure:
    """A figure: value, 95 % interval, and number of clips that the interval is over."""

    name: str
    value: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class SharedSound:
    """A sound in the folder, and the caption that it was made from."""

    file: str
    prompt: str


@dataclass(frozen=True)
class Shared:
    """What a card is made of.

    Attributes:
        title: name of the model.
        card: what the model file says of itself.
        segue: version that trained it.
        bytes, parameters: of the weights.
        splits: split -> number of clips.
        data, licence: as the user states them.
        command: that trains such a run; None where the run's settings are not known.
        losses: time -> held-out loss at the end.
        figures: measured by the user.
        sounds: that go along.
    """

    title: str
    card: ModelCard
    segue: str
    bytes: int
    parameters: int
    splits: Mapping[str, int]
    data: str
    licence: str
    command: str | None
    losses: Mapping[str, float]
    figures: Sequence[Figure]
    sounds: Sequence[SharedSound]


def card_page(shared: Shared) -> str:
    """README.md with the hub's front matter."""
    parts = [
        _front_matter(shared),
        f"# {shared.title}",
        _what(shared.card),
        _use(shared),
        _table(shared),
        _data(shared),
        _figures(shared),
        _sounds(shared),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(shared: Shared) -> str:
    upscales = shared.card.task == "super-resolution"
    lines = ["---", "library_name: segue", f"pipeline_tag: {'audio-to-audio' if upscales else 'text-to-audio'}"]
    # The hub knows short names alone; other words are a licence of their own name.
    if shared.licence and _is_short(shared.licence):
        lines.append(f"license: {shared.licence.lower()}")
    elif shared.licence:
        lines += ["license: other", f"license_name: {_quoted(shared.licence)}"]
    return "\n".join([*lines, "tags:", "- audio", "- diffusion", f"- {shared.card.task}", "---"])


def _is_short(licence: str) -> bool:
    return licence.isascii() and all(c.isalnum() or c in ".-+" for c in licence)


def _quoted(text: str) -> str:
    plain = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'


def _what(card: ModelCard) -> str:
    what = "An audio super-resolution model" if card.task == "super-resolution" else "A text-to-audio model"
    return f"{what}, trained with segue (recipe `{card.recipe}`, {card.examples_seen:,} examples seen)."


def _use(shared: Shared) -> str:
    if shared.card.task == "super-resolution":
        lines = ["pip install segue-audio", f"segue upsample {shared.title} narrow.wav wide.wav"]
        python = [f'model = segue.SuperResolver.load("{shared.title}")']
    else:
        prompt = shared.sounds[0].prompt if shared.sounds else "a prompt in the words of the training captions"
        lines = ["pip install 'segue-audio[text]'", f"segue generate {shared.title} {_quoted(prompt)}"]
        python = [f'pipeline = segue.Pipeline.load("{shared.title}")']
        python.append(f"waves = pipeline.generate([{_quoted(prompt)}], seed=0)")
    shell, code = "\n".join(lines), "\n".join(["import segue", "", *python])
    return f"## Use\n```sh\n{shell}\n```\n```python\n{code}\n```"


def _table(shared: Shared) -> str:
    card = shared.card
    rows = {
        "parameters": f"{shared.parameters:,} ({shared.bytes / 1e6:.1f} MB)",
        "sample rate": f"{card.codec.get('sample_rate_hz', 0):,} Hz",
        "channels": str(card.codec.get("audio_channels", 1)),
        "training clips": f"{card.seconds:g} s",
        "codec": _part(card.codec_source),
    }
    if card.text:
        rows["text encoder"] = _part(str(card.text.get("name", "")))
    if card.base:
        rows["trained on"] = str(card.base.get("source"))
    rows["segue"] = shared.segue
    return "\n".join(["## What it is", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _part(source: str) -> str:
    if source.startswith(BESIDE):
        return f"in the folder `{source.removeprefix(BESIDE)}/`"
    return f"`{source}`"


def _data(shared: Shared) -> str:
    clips = ", ".join(f"{count:,} {split}" for split, count in shared.splits.items() if count)
    lines = ["## Training data", shared.data or NOT_STATED]
    if clips:
        lines.append(f"\nClips by split: {clips}.")
    if shared.command is not None:
        lines.append(f"\n```sh\n{shared.command}\n```")
    return "\n".join([*lines, "", "## Licence", shared.licence or NOT_STATED])


def _figures(shared: Shared) -> str:
    lines = ["## Figures"]
    if shared.figures:
        lines += ["| measure | value | 95 % interval | clips |", "|---|---|---|---|"]
        lines += [f"| {f.name} | {f.value:.4g} | {f.interval[0]:.4g} to {f.interval[1]:.4g} | {f.n:,} |"
                  for f in shared.figures]  # fmt: skip
    else:
        lines.append("Nothing was measured of its sounds.")
    if shared.losses:
        at = ", ".join(f"{loss:.3f} at t = {t}" for t, loss in shared.losses.items())
        lines.append(f"\nHeld-out loss at the end of training (one run, mean over clips, no interval): {at}.")
    return "\n".join(lines)


def _sounds(shared: Shared) -> str:
    if not shared.sounds:
        return ""
    rows = [f"| {s.prompt.replace('|', '/')} | [{s.file}]({s.file}) |" for s in shared.sounds]
    about = "Made from held-out captions at the end of training, not chosen."
    return "\n".join(["## Sounds", about, "", "| caption | sound |", "|---|---|", *rows])
