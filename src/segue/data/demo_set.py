"""The embedded demo set: an NSynth-like captioned set, rendered from a sampled General-MIDI SoundFont.

Long MIDI pieces are rendered and cut into clips, since starting the synthesiser costs more than a clip. Written as
ordinary FLAC files beside a JSONL manifest: the same format that a user brings.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np

from segue.data.vocabulary import (
    CHORDS,
    DRUMS,
    INSTRUMENTS,
    LENGTHS,
    LOUDNESS,
    Instrument,
    caption_of,
    demo_vocabulary,
    held_out_pairs,
    phrasings,
    pitch_name,
)
from segue.files import make_folder, write_bytes
from segue.progress import track
from segue.types import UserError, import_extra

__all__ = ["caption_of", "demo_vocabulary", "held_out_pairs", "render_demo_set"]

FORMAT_VERSION = 1
KINDS = {"note": 0.60, "drum": 0.10, "chord": 0.12, "sequence": 0.18}
VALID_SHARE = 0.05
CLIPS_PER_PIECE = 100
# One gain for the whole set: loudness differences are data. The loudest chord then peaks just below full scale.
GAIN = 1.8
LEAD_SEC = 0.1  # silence of a slot before its clip: room for all-sound-off and for the resampler's ringing
ONSET_SEC = 0.005  # first note-on after the clip's start
_TICKS_PER_SEC = 960


@dataclass(frozen=True)
class DemoSettings:
    """What decides the bytes of a demo set."""

    clips: int
    seed: int
    sample_rate_hz: int
    seconds: float
    format_version: int = FORMAT_VERSION


def render_demo_set(
    out: Path,
    *,
    clips: int = 6000,
    seed: int = 0,
    sample_rate_hz: int = 16000,
    seconds: float = 2.048,
    processes: int = 2,
) -> Path:
    """Render the demo set into `out` and return the path of its manifest.

    Bytes depend on the settings alone, never on `processes`. A finished set with the same settings returns at once;
    an interrupted one is continued.

    Raises:
        UserError: bad settings, `out` holds something else, or the renderer is not installed.
    """
    settings = DemoSettings(clips, seed, sample_rate_hz, seconds)
    _check_settings(settings)
    out = Path(out)
    manifest = out / "manifest.jsonl"
    # A finished set returns before anything is imported or touched.
    if _is_complete(out, settings):
        return manifest
    # The mark comes before the first file: an interrupted set is known by it.
    _begin(out, settings)
    # The plan is drawn without sound, so that pieces can be rendered in any order by any process.
    rows = plan_demo_set(settings)
    pieces = [(out, settings, rows[start : start + CLIPS_PER_PIECE]) for start in range(0, clips, CLIPS_PER_PIECE)]
    with _pool(processes) as mapper:
        for _ in track(mapper(_render_piece, pieces), clips, "rendering the demo set", "clips", size=lambda n: n):
            pass
    # The manifest only after all sounds, and the mark with its hash after that.
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_bytes(manifest, text.encode())
    mark = asdict(settings) | {"manifest_sha256": sha256(text.encode()).hexdigest()}
    write_bytes(out / "demo.json", (json.dumps(mark, indent=1) + "\n").encode())
    for left in (out / "demo.rendering.json", *out.rglob("*.tmp")):
        left.unlink(missing_ok=True)
    return manifest


def plan_demo_set(settings: DemoSettings) -> list[dict]:
    """The manifest rows, without any sound. Clip i depends on seed and i alone: a larger set extends a smaller one."""
    return [_plan_clip(settings, i) for i in range(settings.clips)]


def _plan_clip(settings: DemoSettings, index: int) -> dict:
    # A generator for each clip: clip i is the same in a set of any size.
    rng = np.random.default_rng([settings.seed, index])
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "sequence":
        second = settings.seconds / 2
        events = [_draw_event(rng, settings, start_sec=start, in_sequence=True) for start in (0.0, second)]
    else:
        events = [_draw_event(rng, settings, kind=kind)]
    # Drawn before the split, since both come from one generator and the order of draws is part of the format.
    phrasing = int(rng.integers(phrasings(events)))
    row = {
        "id": f"{index:06d}",
        "path": f"audio/{index:06d}.flac",
        "caption": caption_of(events, phrasing),
        "split": _split(events, rng),
        "kind": kind,
    }
    # Only one event describes the whole clip; of two, each keeps its own fields.
    described = events[0] if len(events) == 1 else {}
    names = ("instrument", "family", "pitch", "pitch_name", "loudness", "length", "chord")
    return row | {name: described.get(name) for name in names} | {"phrasing": phrasing, "events": events}


def _draw_event(
    rng: np.random.Generator, settings: DemoSettings, *, kind: str = "", start_sec: float = 0.0, in_sequence=False
) -> dict:
    if in_sequence:
        kind = "drum" if rng.random() < 0.3 else "note"
    # Everything is drawn for every kind; what a kind does not use is left out below.
    instruments = [i for i in INSTRUMENTS if i.chords or kind != "chord"]
    instrument = instruments[rng.integers(len(instruments))]
    drum = list(DRUMS)[rng.integers(len(DRUMS))]
    lowest, highest = _pitch_range(instrument, kind)
    pitch = int(rng.integers(lowest, highest + 1))
    chord = list(CHORDS)[rng.integers(len(CHORDS))]
    loudness = list(LOUDNESS)[rng.integers(len(LOUDNESS))]
    velocity = int(rng.integers(LOUDNESS[loudness][0], LOUDNESS[loudness][1] + 1))
    length = list(LENGTHS)[rng.integers(len(LENGTHS))]
    share = float(rng.uniform(*LENGTHS["short" if in_sequence else length]))
    event = {"kind": kind, "start_sec": start_sec, "duration_sec": round(share * settings.seconds, 4)}
    if kind == "drum":
        return event | {"instrument": drum, "family": "drum", "loudness": loudness, "velocity": velocity}
    event |= {"instrument": instrument.name, "family": instrument.family, "pitch": pitch}
    event |= {"pitch_name": pitch_name(pitch), "loudness": loudness, "velocity": velocity}
    if kind == "chord":
        event["chord"] = chord
    if instrument.sustains:
        # What dies away by itself has no length: a caption must not claim one.
        event["length"] = "short" if in_sequence else length
    return event


def _pitch_range(instrument: Instrument, kind: str) -> tuple[int, int]:
    if kind != "chord":
        return instrument.lowest, instrument.highest
    # Close chords turn to mud below C 3, and the seventh must stay inside the instrument.
    return max(instrument.lowest, 48), instrument.highest - 11


def _split(events: list[dict], rng: np.random.Generator) -> str:
    is_valid = rng.random() < VALID_SHARE
    # A pair of instrument and pitch that is held out is never trained on, in no kind of clip.
    if any((event["instrument"], event.get("pitch")) in held_out_pairs() for event in events):
        return "test"
    return "valid" if is_valid else "train"


def _check_settings(settings: DemoSettings) -> None:
    if settings.clips < 1:
        raise UserError(f"--clips must be at least 1, not {settings.clips}")
    if not 0.5 <= settings.seconds <= 30:
        raise UserError(f"--seconds must lie between 0.5 and 30, not {settings.seconds}")
    if not 4000 <= settings.sample_rate_hz <= 48000:
        raise UserError(f"--sample-rate-hz must lie between 4000 and 48000, not {settings.sample_rate_hz}")


def _is_complete(out: Path, settings: DemoSettings) -> bool:
    mark = out / "demo.json"
    manifest = out / "manifest.jsonl"
    if not mark.exists():
        return False
    found = _settings_in(mark)
    if found != asdict(settings):
        raise UserError(
            f"{out}: holds a demo set with other settings ({_difference(found, settings)}); hint: another folder"
        )
    # The manifest's hash shows changes, the number of files what was deleted.
    expected = json.loads(mark.read_text(encoding="utf-8"))["manifest_sha256"]
    intact = manifest.exists() and sha256(manifest.read_bytes()).hexdigest() == expected
    if not intact or sum(1 for _ in (out / "audio").glob("*.flac")) < settings.clips:
        raise UserError(f"{out}: this demo set was changed after rendering; hint: delete the folder and render again")
    return True


def _begin(out: Path, settings: DemoSettings) -> None:
    """Mark the folder as being rendered; refuse a folder that holds anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; hint: name a new or empty folder")
    mark = out / "demo.rendering.json"
    if mark.exists():
        found = _settings_in(mark)
        if found != asdict(settings):
            raise UserError(
                f"{out}: holds an unfinished demo set with other settings ({_difference(found, settings)}); "
                "hint: another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds files that are not a demo set; hint: name a new or empty folder")
    make_folder(out / "audio")
    write_bytes(mark, json.dumps(asdict(settings)).encode())


def _settings_in(mark: Path) -> dict:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{mark}: cannot be read; hint: delete its folder and render again") from error
    found.pop("manifest_sha256", None)
    return found


def _difference(found: dict, settings: DemoSettings) -> str:
    asked = asdict(settings)
    return ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in asked.items() if found.get(k) != v)


@contextmanager
def _pool(processes: int) -> Iterator:
    if processes <= 1:
        yield map
        return
    # fork spares the children the import of torch; elsewhere it is unsafe or missing.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield executor.map
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _ignore_interrupt() -> None:
    """Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render_piece(piece: tuple[Path, DemoSettings, list[dict]]) -> int:
    out, settings, rows = piece
    paths = [out / row["path"] for row in rows]
    # A piece is rendered as a whole: its clips share one run of the synthesiser.
    if not all(path.exists() for path in paths):
        for path, wave in zip(paths, _render_clips(settings, [row["events"] for row in rows])):
            write_bytes(path, _flac(wave, settings.sample_rate_hz))
    return len(rows)


def _render_clips(settings: DemoSettings, clips: list[list[dict]]) -> list[np.ndarray]:
    """Event lists -> float64 mono waveforms of settings.seconds each."""
    soundfile = import_extra("soundfile", "demo")
    soxr = import_extra("soxr", "demo")
    # Room behind the clip as well, for the resampler.
    slot_sec = LEAD_SEC + settings.seconds + 0.02
    slot_sec = np.ceil(slot_sec * 20) / 20  # a whole number of samples at every common rate
    midi = _midi(clips, slot_sec)
    data = import_extra("midirenderer", "demo").render_wave_from(_dry_sound_font(), midi)
    stereo, rate_hz = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    # One resampling for the whole piece, then cuts: cheaper, and without edges in the clips.
    mono = soxr.resample(stereo.mean(axis=1), rate_hz, settings.sample_rate_hz) * GAIN
    samples = round(settings.seconds * settings.sample_rate_hz)
    starts = [round((i * slot_sec + LEAD_SEC - ONSET_SEC) * settings.sample_rate_hz) for i in range(len(clips))]
    # The rendering may end before the last clip does.
    mono = np.pad(mono, (0, max(0, starts[-1] + samples - len(mono))))
    return [mono[start : start + samples] for start in starts]


def _midi(clips: list[list[dict]], slot_sec: float) -> bytes:
    mido = import_extra("mido", "demo")
    timed = []

    def put(time_sec: float, message_type: str, **values) -> None:
        timed.append((round(time_sec * _TICKS_PER_SEC), mido.Message(message_type, **values)))

    # Each clip has a slot of its own, which begins with silence and dry channels.
    for i, events in enumerate(clips):
        slot_start_sec = i * slot_sec
        for channel in (0, 1, 9):
            put(slot_start_sec, "control_change", channel=channel, control=120, value=0)  # all sound off
            put(slot_start_sec, "control_change", channel=channel, control=91, value=0)  # no reverb
            put(slot_start_sec, "control_change", channel=channel, control=93, value=0)  # no chorus
        # Events of a sequence play on channels of their own, so that one's program does not change the other's sound.
        for channel, event in enumerate(events):
            start_sec = slot_start_sec + LEAD_SEC + event["start_sec"]
            keys, program = _keys(event)
            if program is None:
                # General MIDI keeps channel 10, counted from 1, for drums.
                channel = 9
            else:
                put(slot_start_sec, "program_change", channel=channel, program=program)
            for key in keys:
                put(start_sec, "note_on", channel=channel, note=key, velocity=event["velocity"])
                put(start_sec + event["duration_sec"], "note_off", channel=channel, note=key)
    put(len(clips) * slot_sec, "control_change", channel=0, control=120, value=0)
    # MIDI wants the time since the message before.
    track_ = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)])
    now = 0
    for tick, message in sorted(timed, key=lambda x: x[0]):  # stable: order of a slot's start is kept
        track_.append(message.copy(time=tick - now))
        now = tick
    file = mido.MidiFile(ticks_per_beat=_TICKS_PER_SEC // 2, tracks=[track_])
    buffer = BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def _keys(event: dict) -> tuple[list[int], int | None]:
    """MIDI keys and program of an event; program None is the drum kit."""
    if event["kind"] == "drum":
        return [DRUMS[event["instrument"]]], None
    instrument = next(i for i in INSTRUMENTS if i.name == event["instrument"])
    intervals = CHORDS[event["chord"]] if event["kind"] == "chord" else (0,)
    return [event["pitch"] + instrument.transpose + interval for interval in intervals], instrument.program


def _sound_font() -> Path:
    # Located without importing pretty_midi, which pulls in scipy and takes seconds.
    spec = importlib.util.find_spec("pretty_midi")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo set needs the SoundFont of pretty_midi; hint: pip install 'segue-audio[demo]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "TimGM6mb.sf2"
    if not path.exists():
        raise UserError(f"{path}: missing from pretty_midi; hint: pip install 'pretty_midi>=0.2.10'")
    return path


@lru_cache(maxsize=1)
def _dry_sound_font() -> bytes:
    """The SoundFont with its presets' own reverb and chorus sends at zero: no controller turns those off, and their
    tails would sound into the next clip."""
    data = bytearray(_sound_font().read_bytes())
    # The list of generators stands in pdta, behind all samples, among which the same letters may occur.
    generators = data.index(b"igen", data.rindex(b"pdta"))
    size = int.from_bytes(data[generators + 4 : generators + 8], "little")
    records = np.frombuffer(data, dtype="<i2", count=size // 2, offset=generators + 8).reshape(-1, 2).copy()
    records[np.isin(records[:, 0], (15, 16)), 1] = 0  # SoundFont 2.04, 8.1.2: chorusEffectsSend, reverbEffectsSend
    data[generators + 8 : generators + 8 + size] = records.tobytes()
    return bytes(data)


def _flac(wave: np.ndarray, sample_rate_hz: int) -> bytes:
    buffer = BytesIO()
    soundfile = import_extra("soundfile", "demo")
    soundfile.write(buffer, np.clip(wave, -1, 1), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
