"""What meta.json and index.jsonl of a latent cache must say, before anything follows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from segue.data.conditions import check_conditions, check_values
from segue.types import UserError, first_line

_SHARD_NAME = re.compile(r"(latents|text)-[0-9a-f]{32}\.safetensors")


def check_form(path: Path, meta: dict, index: list[dict]) -> None:
    """Refuse meta.json and index.jsonl that no segue encode writes, before anything follows what they say.

    Raises:
        UserError: parts missing, of another kind, or out of range; a shard outside the cache's own folder.
    """
    try:
        check_meta(meta)
        shards = {s["file"]: s["rows"] for s in meta["shards"]}
        text_rows = sum(s["rows"] for s in meta["text_shards"])
        files = [s["file"] for s in (*meta["shards"], *meta["text_shards"])]
        sane = (
            # Names are followed to files: a name with a slash could lead out of the folder.
            all(_SHARD_NAME.fullmatch(name) for name in files)
            # No more rows than bytes: what is kept of each caption must not outgrow the files.
            and all(type(s["rows"]) is int and 0 < s["rows"] <= s["bytes"] for s in meta["text_shards"])
            and len(index) > 0
        )
        for row in index:
            check_row(row, meta)
            # `type(...) is int`, not isinstance: JSON's true and false are ints to Python.
            sane = (
                sane
                and all(type(n) is int for n in (row["row"], *row["caption_rows"]))
                and 0 <= row["row"] < shards[row["shard"]]
                and len(row["caption_rows"]) == len(row["captions"])
                and all(0 <= c < text_rows for c in row["caption_rows"])
            )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        # Every lookup above may fail in its own way on a made-up file; the reader gets one line.
        raise UserError(malformed(path, f"{type(error).__name__}: {first_line(error)}")) from error
    if not sane:
        raise UserError(malformed(path, "entries out of range"))


def refuse_other_parts(path: Path | str, meta: dict, codec: dict | None, text: dict | None) -> None:
    """
    Raises:
        UserError: the cache was not made with this codec or text encoder, where one is given.
    """
    for part, wanted in (("codec", codec), ("text", text)):
        # Through JSON and back: tuples of a fingerprint come back from a file as lists.
        if wanted is not None and json.loads(json.dumps(wanted)) != meta[part]:
            found = difference({part: meta[part]}, {part: json.loads(json.dumps(wanted))})
            raise UserError(f"{path}: made with another {part} ({found}); hint: encode again into another folder")


def check_meta(meta: dict) -> None:
    """What meta.json says of rows, whatever form they are in.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, RuntimeError: parts missing, of another kind, or out of range.
    """
    # Looked up alone: a missing part raises here instead of hours later.
    for part in ("codec", "text", "teacher", "teacher_source", "teacher_frame_rate_hz", "counts", "dtype"):
        meta[part]
    counts = [meta[n] for n in ("channels", "frames", "text_dim", "text_tokens", "sample_rate_hz", "hop_samples")]
    mean = torch.tensor(meta["statistics"]["mean"])
    std = torch.tensor(meta["statistics"]["std"])
    sane = (
        # Bounded counts: buffers are sized by them.
        all(type(n) is int and 0 < n < 1 << 31 for n in counts)
        and mean.shape == std.shape == (meta["channels"],)
        and bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
        and type(meta["seconds"]) in (int, float)
        and 0 < meta["seconds"] < float("inf")
        and isinstance(meta["codec_source"], str)
        and meta.get("audio_channels", 1) in (1, 2)
        and meta["dtype"] in ("float16", "float32")
        and (meta["teacher"] is None or (meta["teacher_dim"] > 0 and 0 < meta["teacher_frame_rate_hz"] < 1e6))
    )
    if not sane:
        raise ValueError("entries out of range")
    check_conditions(meta.get("conditions", {}))


def check_row(row: dict, meta: dict) -> None:
    """What a row says of itself.

    Raises:
        KeyError, TypeError, ValueError: parts missing, of another kind, or out of range.
    """
    sane = (
        type(row["frames"]) is int
        and 0 < row["frames"] <= meta["frames"]
        and isinstance(row["split"], str)
        and isinstance(row["fields"], dict)
        # Starts and lengths have been through rounding to samples.
        and 0 < row["length_sec"] <= meta["seconds"] + 1e-6
        and len(row["captions"]) > 0
        and check_values(row.get("conditions", {}))
    )
    if not sane:
        raise ValueError("entries out of range")


def malformed(path: Path, why: str) -> str:
    """The line that refuses such a cache."""
    return f"{path}: meta.json or index.jsonl is not as segue encode writes it ({why}); hint: encode again"


def difference(found: dict, wanted: dict) -> str:
    """Names and values of what differs, one level into fingerprints."""
    differing = []
    for name, value in wanted.items():
        old = found.get(name)
        if old == value:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            keys = [k for k in {**old, **value} if old.get(k) != value.get(k)]
            differing += [f"{name}.{k} {old.get(k)} there, {value.get(k)} here" for k in keys]
        else:
            differing.append(f"{name} {_short(old)} there, {_short(value)} here")
    return "; ".join(differing)


def _short(value) -> str:
    return value.get("name", "another") if isinstance(value, dict) else str(value).replace("None", "none")


def read_json(path: Path) -> dict:
    """A JSON file of a cache.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); hint: delete the cache and run segue encode again"
        ) from error


def read_index(path: Path) -> list[dict]:
    """The rows of a cache's index.jsonl.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with (path / "index.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path / 'index.jsonl'}: cannot be read; hint: delete {path / 'meta.json'} and run segue encode again"
        ) from error
