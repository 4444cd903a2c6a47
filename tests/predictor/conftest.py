import pytest
import soundfile


@pytest.fixture
def write_stereo():
    """write_stereo(path, wave [T, channels]): a float file at 16 kHz."""

    def write(path, wave):
        soundfile.write(path, wave, 16_000, subtype="FLOAT")
        return path

    return write
