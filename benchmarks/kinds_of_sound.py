"""Makes captioned sets of notes, of speech, of drums and noise, and of recorded effects, for studies/*.json.

    python benchmarks/kinds_of_sound.py OUT [--notes DEMO_SET] [--speech PROMPTS] [--drums KITS] [--effects SOUNDS]

DEMO_SET: `segue data render-demo DEMO_SET`. PROMPTS: a folder for each language (es, fr, ...), for example those of the
Debian packages asterisk-core-sounds-{es,fr,it,ru}-g722 (decoded by ffmpeg). KITS: drum samples whose names say what
they are, for example those of the Debian package hydrogen-drumkits. Noise is made here. SOUNDS: recorded effects whose
names say what they are, for example of the Debian packages wesnoth-1.16-data, freedroidrpg-data, supertux-data,
lugaru-data, hedgewars-data and pinball-data, unpacked side by side; all that can be named are taken. Then, for each
KIND,

    segue encode OUT/KIND --out OUT/KIND-cache --seconds 2.048
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE_HZ = 16_000
SECONDS = 2.048
SAMPLES = round(RATE_HZ * SECONDS)
SHORTEST_SEC = 0.1  # what is shorter is left out: empty prompts, clicks
VALID_EVERY = 8  # every eighth clip of a class is held out
LANGUAGES = {"es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian", "en": "English", "de": "German"}
# What a file's name must hold, tried in this order.
DRUMS = {
    "hand clap": r"clap",
    "rim shot": r"stick|rim|clave",
    "hi-hat": r"hat|hh",
    "ride cymbal": r"ride",
    "crash cymbal": r"crash|splash|china|cym",
    "bass drum": r"kick|bass|bd",
    "snare drum": r"snare|sn\b|sd",
    "tom": r"tom",
    "cowbell": r"cowbell|bell",
    "shaker": r"shak|tamb|marac|cabasa",
}
EFFECTS = {
    "a death": r"\b(die|dies|death|dead)\b",
    "a miss": r"miss|nohit|swing|swish|whoosh",
    "an explosion": r"explo|blast|bomb|boom|grenade",
    "a shot": r"laser|gun|shot|rifle|pistol|pulse|phaser|plasma|cannon|arrow|\bbow\b|crossbow|\bfire\b|shoot|sling",
    "a hit": r"hit|impact|slap|punch|bite|claw|fist|smash|break|crack|thud|clank",
    "a spell": r"magic|heal|teleport|potion|summon|spell|holy|lightning|warp",
    "a weapon": r"sword|knife|axe|spear|staff|mace|club|dagger|hatchet|whip|flail",
    "a voice": r"growl|scream|wail|roar|grunt|laugh|snarl|shriek|hiss|howl|groan|attack|pain|voice",
    "a step": r"step|jump|land|hop|skid|kick|stomp|splash|splat",
    "a signal": r"bell|horn|chime|gong|jingle|start|fanfare|welldone|tada|alarm|click|menu|button|select|chat|turn",
}
NO_EFFECTS = r"voices|music|comments|/cs/|/nl/|contact"  # in paths: speech and music
Clip = tuple[np.ndarray, str, str]  # wave [T], caption, class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--notes", type=Path, help="a rendered demo set")
    parser.add_argument("--speech", type=Path, help="a folder of folders es, fr, ...")
    parser.add_argument("--drums", type=Path, help="a folder of named drum samples")
    parser.add_argument("--effects", type=Path, help="a folder of named recordings; all are taken, whatever --clips")
    parser.add_argument("--clips", type=int, default=560, help="of each kind; a quarter of the drums' set is noise")
    asked = parser.parse_args()
    if asked.notes:
        write(asked.out / "notes", even(note_files(asked.notes), asked.clips))
    if asked.speech:
        write(asked.out / "speech", even(speech_files(asked.speech), asked.clips))
    if asked.drums:
        noise = asked.clips // 4
        drums = [*even(drum_files(asked.drums), asked.clips - noise), *noises(noise)]
        write(asked.out / "drums", drums)
    if asked.effects:
        found = effect_files(asked.effects)
        write(asked.out / "effects", even(found, 0))


def note_files(folder: Path) -> list[tuple[Path, str, str]]:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [(folder / r["path"], r["caption"], r["family"]) for r in rows if r["kind"] == "note"]


def speech_files(folder: Path) -> list[tuple[Path, str, str]]:
    found = []
    for code in sorted(p.name for p in folder.iterdir() if p.name in LANGUAGES):
        for path in sorted((folder / code).rglob("*.*")):
            words = " ".join(re.split(r"[-_\W]+", path.stem))
            found.append((path, f"a voice says in {LANGUAGES[code]}: {words}", LANGUAGES[code]))
    return found


def drum_files(folder: Path) -> list[tuple[Path, str, str]]:
    found = []
    for path in sorted(p for p in folder.rglob("*.*") if p.suffix.lower() in (".wav", ".flac", ".ogg")):
        name = next((n for n, pattern in DRUMS.items() if re.search(pattern, path.stem.lower())), None)
        if name:
            kit = " ".join(re.findall(r"[A-Za-z]+", path.parent.name))
            found.append((path, f"a {name} of the kit {kit}", name))
    return found


def effect_files(folder: Path) -> list[tuple[Path, str, str]]:
    found = []
    for path in sorted(p for p in folder.rglob("*.*") if p.suffix.lower() in (".wav", ".flac", ".ogg")):
        words = " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+", path.stem)).lower()
        name = next((n for n, pattern in EFFECTS.items() if re.search(pattern, words)), None)
        if name and not re.search(NO_EFFECTS, str(path).lower()):
            found.append((path, f"{words}, {name}", name))
    return found


def even(files: list[tuple[Path, str, str]], count: int) -> Iterator[Clip]:
    """`count` of the files (0 = all), classes as evenly as they come, in an order of its own."""
    by_class: dict[str, list] = {}
    for entry in np.random.default_rng(0).permutation(np.array(files, object)):
        if soundfile.info(entry[0]).duration < SHORTEST_SEC:
            continue
        by_class.setdefault(entry[2], []).append(entry)
    count = count or sum(map(len, by_class.values()))
    chosen: list = []
    while len(chosen) < count and any(by_class.values()):
        chosen += [entries.pop() for entries in by_class.values() if entries][: count - len(chosen)]
    if len(chosen) < count:
        raise SystemExit(f"only {len(chosen)} usable files where {count} are asked for; give a smaller --clips")
    for path, caption, name in chosen:
        yield read(path), caption, name


def read(path: Path) -> np.ndarray:
    wave, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(wave.mean(axis=1), rate_hz, RATE_HZ)[:SAMPLES]


def noises(count: int) -> Iterator[Clip]:
    """Noise of three colours and three shapes, at any level."""
    draw = np.random.default_rng(1)
    frequency = np.fft.rfftfreq(SAMPLES, 1 / RATE_HZ)
    rising = np.linspace(0, 1, SAMPLES)
    shapes = {"steady": np.ones(SAMPLES), "swelling": rising**2, "fading": (1 - rising) ** 2}
    for k in range(count):
        colour, slope = (("white", 0.0), ("pink", 0.5), ("brown", 1.0))[k % 3]
        shape = list(shapes)[k // 3 % 3]
        spectrum = np.fft.rfft(draw.standard_normal(SAMPLES)) / np.maximum(frequency, 40.0) ** slope
        wave = np.fft.irfft(spectrum, SAMPLES) * shapes[shape]
        loud = draw.random() < 0.5
        peak = draw.uniform(0.5, 0.9) if loud else draw.uniform(0.05, 0.15)
        words = f"{'loud' if loud else 'soft'} {shape} {colour} noise"
        yield (wave * peak / np.abs(wave).max()).astype(np.float32), words, f"{colour} noise"


def write(folder: Path, clips) -> None:
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    seen = {}
    for k, (wave, caption, name) in enumerate(clips):
        path = f"audio/{k:05d}.flac"
        soundfile.write(folder / path, np.clip(wave, -1, 1), RATE_HZ)
        seen[name] = seen.get(name, 0) + 1
        split = "valid" if seen[name] % VALID_EVERY == 0 else "train"
        rows.append({"path": path, "caption": caption, "split": split, "class": name})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{folder}: {len(rows)} clips; " + ", ".join(f"{n} {c}" for n, c in sorted(seen.items())))


if __name__ == "__main__":
    main()
