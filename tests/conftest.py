"""Commands run in this process, as a shell would see them: exit code, standard output, standard error."""

from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
from tiny_models import tiny_caches, tiny_folders  # noqa: F401

NAMES = ("drum_snare_hard", "drum_kick_soft", "ambi_choir", "bass_hit_low", "bell_long", "perc_snap")


@dataclass
class Ran:
    code: int
    out: str
    err: str
    name: str = "segue"

    @property
    def line(self) -> str:
        """What was complained, which must be one line that begins with the command's name."""
        complaint = [line for line in self.err.splitlines() if line.startswith(f"{self.name}: ")]
        assert len(complaint) == 1, self.err
        assert "Traceback" not in self.err
        return complaint[0]


def runner(capsys, main, name):
    def run(*arguments) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(stopped.value.code or 0, captured.out, captured.err, name)

    return run


@pytest.fixture
def segue(capsys):
    from segue.cli.main import main

    return runner(capsys, main, "segue")


@pytest.fixture
def lab(capsys):
    """`segue-lab`."""
    from segue_lab.cli.main import main

    return runner(capsys, main, "segue-lab")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Named recordings at several rates, channel counts and formats, in a folder as a user has it."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for index in range(36):
        rate_hz, channels = (8000, 16000, 44100)[index % 3], 1 + index % 2
        time_sec = np.arange(round(rate_hz * (0.4 + 0.1 * (index % 4)))) / rate_hz
        tone = np.sin(2 * np.pi * (150 + 20 * index) * time_sec) * np.exp(-4 * time_sec)
        wave = 0.3 * tone[:, None] + 0.01 * generator.standard_normal((len(time_sec), channels))
        # No ogg: each has a random serial number, and the split of a file depends on its bytes.
        suffix = ("wav", "flac", "aiff", "mp3")[index % 4] if rate_hz != 8000 else "wav"
        soundfile.write(folder / f"{NAMES[index % 6]}_{index:02d}.{suffix}", wave, rate_hz)
    return folder


@pytest.fixture(scope="session")
def cache(recordings, tmp_path_factory):
    """The recordings, encoded."""
    from segue.codecs import load_codec
    from segue.conditioners import load_conditioner
    from segue.data.encoding import build_cache
    from segue.data.manifest import load_manifest

    out = tmp_path_factory.mktemp("encoded") / "cache"
    clips = load_manifest(recordings, "filename")
    return build_cache(clips, load_codec("spectral", 8000), load_conditioner("minilm"), out=out, seconds=0.5).path


@pytest.fixture(scope="session")
def write_tone():
    """write_tone(path, hz): half a second of a tone at 8 kHz."""

    def write(path, hz):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(4000) / 8000), 8000)
        return path

    return write
