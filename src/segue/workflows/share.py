"""A run as a folder that others can load: model, config, codec and text encoder, some of its sounds, and a card.

The folder is what the hub holds of a model (`segue push`), and what `Pipeline.load` takes: weights in safetensors, the
rest in JSON. Paths of the machine that trained are left out of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from segue._version import __version__
from segue.audio.read import read_blocks, read_claim
from segue.audio.write import write_wav
from segue.codecs import CODECS
from segue.files import cannot_write
from segue.models.files import BESIDE, ModelCard, load_model, model_file, read_tensors
from segue.predictor.guess import SHIPPED_NAME, find_predictor
from segue.predictor.resolver import SHIPPED
from segue.recipes import load_recipe
from segue.training.config import RunConfig, from_json, to_json
from segue.types import UserError, first_line
from segue.workflows.share_card import Figure, Shared, SharedSound, card_page

FORMAT = 1  # of config.json
_CODEC, _TEXT, _PREDICTOR = "codec", "text-encoder", "predictor"
_SAFE = (".json", ".txt", ".model", ".safetensors")  # no pickled weights, no code


@dataclass(frozen=True)
class Statement:
    """What only the user knows of a model.

    Attributes:
        title: of the card; the name on the hub, or the folder's.
        data: what it was trained on, in words; "" is written as not stated.
        licence: of the weights, as the user states it, such as "cc-by-4.0"; "" is written as not stated.
        figures: JSON of `segue evaluate` or of `segue super-resolution measure --json`.
        sounds: number of sounds of the run's samples/ that go along.
    """

    title: str
    data: str = ""
    licence: str = ""
    figures: Path | None = None
    sounds: int = 4


def write_shared(run: Path, out: Path, statement: Statement) -> list[Path]:
    """Write the folder whole or not at all; returns its files, relative to it.

    Args:
        run: run folder, checkpoint folder or model.safetensors.
        out: folder, which must not exist.

    Raises:
        UserError: no model there, one that belongs to files of this machine alone, unreadable figures, or a folder that
            cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; hint: name a new folder")
    file = model_file(run)
    card = load_model(file).card
    _refuse_local_base(run, card)
    figures = [] if statement.figures is None else read_figures(statement.figures)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        card = _with_parts(card, temporary)
        size_bytes, parameters = _write_weights(file, temporary / "model.safetensors", card)
        stored = _stored(run)
        config = None if "run" not in stored else from_json(stored["run"])
        _write_config(temporary / "config.json", card, config)
        sounds = _copy_sounds(run / "samples", temporary / "samples", statement.sounds)
        shared = Shared(
            title=statement.title, card=card, segue=str(stored.get("segue", __version__)), bytes=size_bytes,
            parameters=parameters, splits=dict((stored.get("data") or {}).get("splits") or {}), data=statement.data,
            licence=statement.licence, command=None if config is None else training_command(config),
            losses=_last_losses(run / "log.jsonl"), figures=figures, sounds=sounds,
        )  # fmt: skip
        (temporary / "README.md").write_text(card_page(shared), encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())


def _refuse_local_base(run: Path, card: ModelCard) -> None:
    """Refuse a model that needs another one which lies on this machine alone.

    Raises:
        UserError: it does.
    """
    base = str(card.base.get("source") or card.model.get("source") or "")
    if base and Path(base).exists():
        how = "peft writes its adapters" if card.lora else "diffusers writes all of it"
        raise UserError(f"{run}: needs {base}, which lies here alone; hint: segue export --to {how}")


def _with_parts(card: ModelCard, folder: Path) -> ModelCard:
    """The card that names its codec, text encoder and predictor as others find them; this machine's go along."""
    if card.codec_source not in CODECS and Path(card.codec_source).exists():
        _copy_part(Path(card.codec_source), folder / _CODEC)
        card = replace(card, codec_source=BESIDE + _CODEC)
    name = str(card.text.get("name", ""))
    if name and name != "minilm" and Path(name).exists():
        _copy_part(Path(name), folder / _TEXT)
        card = replace(card, text=card.text | {"name": BESIDE + _TEXT})
    if card.predictor:
        file = find_predictor(card.predictor["source"], card.codec["sample_rate_hz"], card.predictor["sha256"])
        # The shipped one is there wherever segue is.
        source = SHIPPED_NAME
        if file.parent not in SHIPPED.values():
            source = BESIDE + _PREDICTOR
            (folder / _PREDICTOR).mkdir()
            shutil.copyfile(file, folder / _PREDICTOR / file.name)
        card = replace(card, predictor=card.predictor | {"source": source})
    return card


def _copy_part(source: Path, target: Path) -> None:
    """Weights and settings of a codec or a text encoder, without what a training beside them left."""
    target.mkdir()
    if source.is_file():
        shutil.copyfile(source, target / source.name)
        return
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _SAFE:
            shutil.copyfile(path, target / path.name)
    if (source / "vae").is_dir():  # of a diffusers pipeline, the codec
        _copy_part(source / "vae", target / "vae")


def _write_weights(file: Path, out: Path, card: ModelCard) -> tuple[int, int]:
    """The averaged weights and the latents' statistics; returns bytes and number of parameters."""
    tensors, metadata = read_tensors(file)
    # The trained weights beside them are of use to resume alone.
    kept = {name: value.contiguous() for name, value in tensors.items() if name.startswith(("ema.", "latents."))}
    save_file(kept, out, metadata | {"segue": json.dumps(asdict(card))})
    parameters = sum(value.numel() for name, value in kept.items() if name.startswith("ema."))
    return out.stat().st_size, parameters


def _write_config(out: Path, card: ModelCard, config: RunConfig | None) -> None:
    found = {"format": FORMAT, "segue": __version__, "card": asdict(card)}
    if config is not None:
        found["run"] = without_places(to_json(config))
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def without_places(value):
    """JSON without the folders of this machine: of an absolute path the last name stays."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def training_command(config: RunConfig) -> str:
    """The command that trains such a run: its recipe, length, seed, and each setting that is not the recipe's."""
    recipe = dict(_settings(to_json(load_recipe(config.recipe))))
    train = config.train
    words = [f"segue train {config.recipe} --data CACHE --out RUN --examples {train.total_examples}"]
    words.append(f"--seed {train.seed}")
    if config.model.pretrained:
        words.append(f"--model {without_places(config.model.pretrained)}")
    said = ("train.total_examples", "train.seed", "model.pretrained")
    for name, value in _settings(without_places(to_json(config))):
        if value != recipe.get(name) and name not in said:
            words.append(f"--set {name}={_shown(value)}")
    return " ".join(words)


def _settings(config: dict) -> Iterator[tuple[str, object]]:
    """Names as --set takes them, and values."""
    sections = {name: part for name, part in config.items() if isinstance(part, dict)}
    policy = sections.pop("policy", {})
    sections |= {name: part for name, part in policy.items() if name != "static_timesteps"}
    for section, part in sections.items():
        yield from ((f"{section}.{name}", value) for name, value in part.items())


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(str(part) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _stored(run: Path) -> dict:
    """config.json of a run folder; empty of a checkpoint or a file alone."""
    path = run / "config.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); hint: name the checkpoint folder itself") from error


def _last_losses(log: Path) -> dict[str, float]:
    """Held-out loss at fixed times, of the last validation."""
    found: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:  # a line that a kill cut short
            continue
        if event.get("event") == "validation":
            found = {str(t): float(loss) for t, loss in event["loss_by_t"].items() if loss is not None}
    return found


def _copy_sounds(samples: Path, out: Path, count: int) -> list[SharedSound]:
    """Some of what the run generated at its end from held-out captions."""
    listed = samples / "samples.json"
    if count < 1 or not listed.is_file():
        return []
    entries = [e for e in json.loads(listed.read_text(encoding="utf-8")) if (samples / str(e.get("file"))).is_file()]
    sounds = []
    out.mkdir()
    for entry in entries[:: max(1, len(entries) // count)][:count]:
        name = Path(str(entry["file"])).name
        prompt = str(entry.get("prompt", ""))
        # Written anew and not copied: the file's own comment names the folder of the run.
        wave = np.concatenate([*read_blocks(samples / name)]).T
        write_wav(out / name, wave, read_claim(samples / name).sample_rate_hz, prompt)
        sounds.append(SharedSound(f"samples/{name}", prompt))
    return sounds


def read_figures(path: Path) -> list[Figure]:
    """Figures with their intervals, as `segue evaluate` and `segue super-resolution measure --json` write them.

    Raises:
        UserError: no such file, or none of theirs.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "measures" in found:
            return [
                Figure(m["name"], float(m["value"]), (float(m["interval"][0]), float(m["interval"][1])), int(m["n"]))
                for m in found["measures"]
            ]
        return [
            Figure(f"{row}: {name}", cell["mean"], (cell["interval"][0], cell["interval"][1]), int(found["clips"]))
            for row, cells in found["rows"].items()
            for name, cell in cells.items()
        ]
    except OSError as error:
        raise UserError(f"--figures {path}: {error.strerror}; hint: name an evaluation.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--figures {path}: no figures of segue in it; hint: name the evaluation.json of segue evaluate, or what "
            "segue super-resolution measure --json wrote"
        ) from error
