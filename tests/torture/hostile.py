"""Sound files that lie, and what the commands make of them: `python tests/torture/hostile.py --files 1000`.

Every command runs under a time limit, over a clean corpus and over one in which most files are broken: empty, cut, not
sound at all, claiming gigabytes, or with bytes of their head and body changed by a seeded generator. Nothing may end by
a signal or a traceback, or hang; every file that must be bad has to be named, and nothing may be left half-written. A
process that reaches for the network, even for a name's address, ends at once with code 77, which counts as a crash.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8000
CASES = Path(__file__).parents[1] / "cases"
# Those that need a decoder are taken from files that were made once.
MADE = {
    "m4a": CASES / "mixed_m4a" / "m0.m4a",
    "aac": CASES / "mixed_m4a" / "m1.aac",
    "webm": CASES / "kinds" / "a.webm",
}
FORMATS = ("wav", "flac", "ogg", "mp3", *(MADE if importlib.util.find_spec("av") else ()))
HUGE = 2 << 30
# The child tells its own peaks: what wait4 tells includes the parent's, which it was forked from. Between commands the
# system forgets the peak so far (clear_refs 5).
CHILD = """
import json, os, pathlib, socket, sys, traceback
place, standin = pathlib.Path(sys.argv[1]), sys.argv[2]
status, refs = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
def peak():
    text = status.read_text() if status.exists() else "VmHWM: 0"
    return int(text.split("VmHWM:")[1].split()[0])
def refuse(real):
    def guarded(self, address, *rest):
        if self.family == socket.AF_UNIX:
            return real(self, address, *rest)
        os.write(2, f"segue reached for the network: {address}\\n".encode())
        os._exit(77)
    return guarded
def resolve(host, *rest, **more):
    os.write(2, f"segue reached for the network: {host}\\n".encode())
    os._exit(77)
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(getattr(socket.socket, name)))
socket.getaddrinfo = socket.gethostbyname = resolve
from segue.cli import main, upsample
if standin:
    sys.path.insert(0, standin)
    from standin import StandIn
    upsample.load_resolver = lambda *_: StandIn()
for index, words in json.loads((place / "todo.json").read_text()):
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(place / f"{index}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    if refs.exists():
        refs.write_text("5")
    code = 0
    try:
        main.main(words)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    (place / f"{index}.json").write_text(json.dumps([code, peak()]))
"""
STANDIN = Path(__file__).parents[1] / "upsampling"  # band replication in place of a trained model


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is None where it had to be killed; `peak_kib` 0 where the system does not say."""

    code: int | None
    out: str
    err: str
    peak_kib: int

    @property
    def crashed(self) -> bool:
        """Whether it ended by a signal, at the network's door, or with a traceback."""
        return self.code is not None and (self.code < 0 or self.code == 77 or "Traceback" in self.err)


def commands(folder: Path, todo: dict[str, list], limit_sec: float = 600.0, standin: bool = False) -> dict[str, Ended]:
    """Run `segue` commands one after the other in one process; where one takes it down, the rest run in another.

    Args:
        folder: for their output.
        todo: name -> words of a command.
        limit_sec: for each; one that hangs is killed with all that it started.
        standin: upsample with a stand-in for the model, that costs next to nothing.
    """
    left = [(name, [str(word) for word in words]) for name, words in todo.items()]
    own = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")  # nothing may depend on them
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"OMP_NUM_THREADS": "1"}
    ended = {}
    while left:
        place = Path(tempfile.mkdtemp(dir=folder))
        (place / "todo.json").write_text(json.dumps(left))
        words = [sys.executable, "-c", CHILD, str(place), str(STANDIN) if standin else ""]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            _, start = process.communicate(timeout=limit_sec * len(left))
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            (_, start), code = process.communicate(), None
        done = 0
        for name, _ in left:
            written = [place / f"{name}.{kind}" for kind in ("out", "err")]
            out, err = (p.read_text(errors="replace") if p.exists() else "" for p in written)
            done += 1
            if not (place / f"{name}.json").exists():
                ended[name] = Ended(code, out, err + start.decode(errors="replace"), 0)
                break
            of_command, peak_kib = json.loads((place / f"{name}.json").read_text())
            ended[name] = Ended(of_command, out, err, peak_kib)
        left = left[done:]
    return ended


def clean_sound(kind: str, generator: np.random.Generator) -> bytes:
    """The bytes of half a second of a decaying tone, or of a second of a steady one."""
    if kind in MADE:
        return MADE[kind].read_bytes()
    time_sec = np.arange(RATE_HZ // 2) / RATE_HZ
    wave = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 900) * time_sec) * np.exp(-3 * time_sec)
    file = io.BytesIO()
    rate_hz = 16000 if kind == "mp3" else RATE_HZ
    soundfile.write(file, wave.astype(np.float32), rate_hz, format=kind.upper())
    return file.getvalue()


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """Change bytes, mostly of the head; sometimes cut, repeat, insert, or blow a number up."""
    out = bytearray(data)
    for _ in range(generator.integers(1, 9)):
        span = min(len(out), 64 if generator.random() < 0.7 else len(out))
        at = int(generator.integers(0, max(1, span)))
        match generator.integers(0, 6):
            case 0:
                out[at : at + 1] = bytes([generator.integers(0, 256)])
            case 1:
                out[at : at + 4] = struct.pack("<I", generator.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, HUGE]))
            case 2:
                out[at : at + 4] = struct.pack(">I", generator.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, HUGE]))
            case 3:
                del out[at : at + int(generator.integers(1, 32))]
            case 4:
                out[at:at] = generator.bytes(int(generator.integers(1, 32)))
            case 5:
                out = out[: int(generator.integers(1, len(out) + 1))]
        if not out:
            break
    return bytes(out)


def claims_an_hour(data: bytes) -> bytes:
    """An MP3 whose header promises an hour of frames."""
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    return data[:at] + (3600 * 16000 // 576).to_bytes(4, "big") + data[at + 4 :]


def floats(peak: float, one: float | None = None) -> bytes:
    """A wav of floating-point samples, one of them perhaps another."""
    wave = peak * np.sin(np.arange(4000) / 9)
    if one is not None:
        wave[2000] = one
    file = io.BytesIO()
    soundfile.write(file, wave.astype(np.float32), RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue()


def certainly_bad() -> dict[str, bytes]:
    """Files that must be refused, by name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../climbs.wav", b"RIFF")
        file.writestr("bomb.wav", bytes(8 << 20))

    def wav(
        channels=1,
        rate_hz=RATE_HZ,
        bits=16,
        size=0x7FFF0000,  # a larger number means a stream of unknown length
        data=b"\1\2" * 2000,
    ) -> bytes:
        align = channels * bits // 8
        head = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * align % (1 << 32), align % (1 << 16), bits)
        body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size) + data
        return b"RIFF" + struct.pack("<I", min(size + 36, 0xFFFFFFFF)) + body

    generator = np.random.default_rng(0)
    flac = bytearray(clean_sound("flac", generator))
    flac[21:26] = bytes([flac[21] & 0xF0 | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # claims 2^36 - 1 samples
    return {
        "empty.wav": b"",
        "one_byte.flac": b"f",
        "text.mp3": b"this is a letter, not a sound\n" * 20,
        "markup.ogg": b"<!DOCTYPE html><html>not found</html>",
        "archive.wav": archive.getvalue(),
        "noise.flac": generator.bytes(5000),
        "claims_two_gigabytes.wav": wav(),
        "claims_samples.flac": bytes(flac),
        "claims_rate.wav": wav(rate_hz=0x7FFFFFFF, size=4000),
        "claims_one_hertz.wav": wav(rate_hz=1, size=4000),
        "claims_channels.wav": wav(channels=1000, size=4000),
        "head_only.ogg": clean_sound("ogg", generator)[:60],
        "silent.wav": wav(size=4000, data=bytes(4000)),
        "cut_wav.wav": clean_sound("wav", generator)[:2000],
        "cut_ogg.ogg": clean_sound("ogg", generator)[:2500],
        "cut_flac.flac": clean_sound("flac", generator)[:1500],
        "zeros.aiff": bytes(4096),
        "claims_an_hour.mp3": claims_an_hour(clean_sound("mp3", generator)),
        "cut_mp3.mp3": clean_sound("mp3", generator)[:1000],
        "cut_m4a.m4a": MADE["m4a"].read_bytes()[:6000],
        "cut_webm.webm": MADE["webm"].read_bytes()[:3000],
        "playlist.m4a": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\nhttp://localhost/x.mp3\n",
        "integers.wav": floats(9800.0),
        "one_sample.wav": floats(0.1, 1e29),
        "not_a_number.wav": floats(0.1, float("nan")),
        "endless_chunks.wav": b"RIFF" + struct.pack("<I", HUGE) + b"WAVE" + bytes(200_000),
    }


def write_corpus(folder: Path, files: int, seed: int = 0) -> set[str]:
    """`files` sounds that may or must be bad, 12 that are good; returns the paths of those that must be bad."""
    generator = np.random.default_rng(seed)
    must = certainly_bad()
    folder.mkdir(parents=True)
    names = set()
    for name, data in must.items():
        (folder / name).write_bytes(data)
        names.add(str(folder / name))
    with (folder / "hole_of_two_gigabytes.wav").open("wb") as sparse:  # takes no room on most disks
        sparse.write(b"RIFF" + struct.pack("<I", HUGE) + b"WAVE")
        sparse.truncate(HUGE)
    names.add(str(folder / "hole_of_two_gigabytes.wav"))
    for index in range(max(0, files - len(names))):
        kind = FORMATS[index % len(FORMATS)]
        data = mutated(clean_sound(kind, generator), generator)
        (folder / f"mutated_{index:04d}.{kind}").write_bytes(data)
    write_clean(folder, 12)
    for path in list(folder.iterdir()):
        path.with_name(f"{path.stem}.txt").write_text("a tone", encoding="utf-8")
    return names


def write_clean(folder: Path, files: int) -> None:
    """Sounds as they should be, with captions."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        kind = FORMATS[index % len(FORMATS)]
        (folder / f"good_{index:04d}.{kind}").write_bytes(clean_sound(kind, generator))
        (folder / f"good_{index:04d}.txt").write_text("a tone", encoding="utf-8")


ENCODE = ("--codec", "spectral", "--sample-rate-hz", RATE_HZ, "--seconds", 0.5, "--teacher", "none", "--skip-bad")
SETTINGS = ("model.preset=dit-tiny", "train.total_examples=16", "train.batch_size=4", "train.validation_clips=2")
TRAIN = ["--samples", 0, *(word for setting in SETTINGS for word in ("--set", setting))]
MOST_FAILURES = 125  # that an exit code counts
NO_FAULT_IN_UPSAMPLING = "silent.wav"


def run(folder: Path, files: int = 1000, standin: bool = False, then: dict[str, list] | None = None) -> dict:
    """Check, encode, train and upsample on a corpus of `files` hostile files beside 12 good ones, and on a clean one.

    Args:
        standin: upsample without a trained model.
        then: more commands to run after those on the clean corpus.

    Returns:
        files, bad_files (named by check), left_out (by encode), failed (named by upsample), good_files, unnamed (that
        must be bad and were not named), crashes, hangs, complaints (what crashed, hung or was left half-written, in
        words), peak_memory_ratio (the worst command's, hostile over clean), peak_mib by command (hostile and clean),
        seconds, then (how those commands ended).
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    must = write_corpus(folder / "hostile", files)
    write_clean(folder / "clean", files)
    ended: dict[str, dict[str, Ended]] = {}
    for name in ("clean", "hostile"):
        cache, wide = folder / f"{name}-cache", folder / f"{name}-wide"
        todo = {
            "check": ["data", "check", folder / name, "--json"],
            "encode": ["encode", folder / name, "--out", cache, *ENCODE],
            "train": ["train", "static-uniform", "--data", cache, "--out", folder / f"{name}-run", *TRAIN],
            "upsample": ["upsample", folder / name, wide, "--steps", 1],
        }
        ended[name] = commands(folder, {**todo, **(then or {} if name == "clean" else {})}, standin=standin)
    after = {verb: ended["clean"].pop(verb) for verb in then or {}}
    hostile = ended["hostile"]
    report = json.loads(hostile["check"].out) if hostile["check"].out.startswith("{") else {"bad": [], "clips": 0}
    named = {entry["path"] for entry in report["bad"] if entry["reason"].strip()}
    left_out = len(re.findall(r"^left out ", hostile["encode"].err, re.MULTILINE))
    lines = [json.loads(line) for line in hostile["upsample"].out.splitlines() if line.startswith("{")]
    failed = {line["input"] for line in lines if line["status"] == "failed" and line["reason"].strip()}
    silently = {path for path in must - failed if not path.endswith(NO_FAULT_IN_UPSAMPLING)}
    everything = [(f"{which} {verb}", e) for which, verbs in ended.items() for verb, e in verbs.items()]
    broken = [f"{what}: code {e.code}: {e.err.strip()[-300:]}" for what, e in everything if e.crashed or e.code is None]
    for verb in ("encode", "train"):
        if hostile[verb].code not in (0, None):
            broken.append(f"{verb} refused the good ones: {hostile[verb].err.strip()[-300:]}")
    broken += half_written(folder / "hostile-wide", lines)
    if hostile["upsample"].code != min(len(failed), MOST_FAILURES):
        broken.append(f"upsample: code {hostile['upsample'].code} for {len(failed)} failures")
    pairs = {v: (hostile[v].peak_kib // 1024, ended["clean"][v].peak_kib // 1024) for v in hostile}
    return {
        "files": files,
        "bad_files": len(named),
        "left_out": left_out,
        "failed": len(failed),
        "good_files": report["clips"],
        "unnamed": sorted(must - named)
        + ([] if left_out >= len(must) else [f"encode: {left_out} left out"])
        + [f"upsample: {path}" for path in sorted(silently)],
        "crashes": sum(e.crashed for _, e in everything),
        "hangs": sum(e.code is None for _, e in everything),
        "complaints": broken,
        "peak_memory_ratio": round(max(h / max(1, c) for h, c in pairs.values()), 3),
        "peak_mib": pairs,
        "seconds": round(time.monotonic() - begun, 1),
        "then": after,
    }


def half_written(folder: Path, lines: list[dict]) -> list[str]:
    """What is wrong with a folder of upsampled sounds that these lines of JSON tell of."""
    told = {Path(line["output"]): line for line in lines if line["status"] in ("upsampled", "copied")}
    there = {path for path in folder.rglob("*") if path.is_file()}
    wrong = [f"{path}: in no line of upsample's" for path in sorted(there - told.keys())]
    for path, line in told.items():
        if path not in there:
            wrong.append(f"{path}: not there")
        elif abs(soundfile.info(path).duration - line["seconds"]) > 0.01:
            wrong.append(f"{path}: {soundfile.info(path).duration} of {line['seconds']} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--figures", type=Path, help="Write them as JSON here, too.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = run(Path(place) / "hostile", options.files)
    words = json.dumps({name: value for name, value in found.items() if name != "then"}, indent=1)
    print(words)
    if options.figures:
        options.figures.write_text(words)
    print(
        f"hostile: {found['files']} bad files tried, {found['bad_files']} of them named by check, {found['left_out']} "
        f"by encode, {found['failed']} by upsample, {len(found['unnamed'])} that had to be and were not; "
        f"{found['crashes']} crashes, {found['hangs']} hangs; {found['peak_memory_ratio']} of a clean set's peak memory"
    )
    return int(bool(found["complaints"] or found["unnamed"] or found["peak_memory_ratio"] > 2))


if __name__ == "__main__":
    sys.exit(main())
