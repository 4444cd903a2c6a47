import subprocess
import sys

import pytest

from segue.memory import format_bytes, malloc_trim, peak_bytes, resident_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux hands the figure down")
def test_a_process_tells_its_own_peak_and_not_its_parents():
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    # The file alone: importing segue would bring torch, and more memory than the ballast.
    code = (
        "import importlib.util as u, resource, sys; spec = u.spec_from_file_location('memory', sys.argv[1]); "
        "memory = u.module_from_spec(spec); spec.loader.exec_module(memory); "
        "print(memory.peak_bytes(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    words = [sys.executable, "-c", code, sys.modules["segue.memory"].__file__]
    own, inherited = map(int, subprocess.check_output(words).split())
    assert peak_bytes() > len(ballast)
    assert own < 100 << 20 < inherited  # the reason for not asking getrusage


def test_the_peak_is_at_least_what_is_held():
    assert 0 < resident_bytes() <= peak_bytes()
    malloc_trim()


def test_sizes_in_words():
    assert format_bytes(612 << 20) == "612 MiB" and format_bytes(round(1.31 * 2**30)) == "1.31 GiB"
