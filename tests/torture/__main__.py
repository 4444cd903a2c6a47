"""`make torture`: what the project promises under faults, tried at full size.

python tests/torture [--kills 100] [--leak-steps 10000] [--files 1000] [--only crash|memory|hostile]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--leak-steps", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--only", choices=("crash", "memory", "hostile"))
    options = parser.parse_args()
    parts = {
        "crash": ["--kills", options.kills],
        "memory": ["--steps", options.leak_steps],
        "hostile": ["--files", options.files],
    }
    failed, figures, started = [], {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in parts.items():
            if options.only and name != options.only:
                continue
            # A process each: what one part leaves behind (memory above all) is not measured in the next.
            told = Path(folder) / name
            words = [sys.executable, HERE / f"{name}.py", *arguments, "--figures", told]
            if subprocess.call([str(word) for word in words], env={**os.environ, "OMP_NUM_THREADS": "1"}):
                failed.append(name)
            figures[name] = json.loads(told.read_text()) if told.exists() else {}
    print(f"\nmake torture, {(time.monotonic() - started) / 60:.0f} minutes\n" + "\n".join(closing_lines(figures)))
    print(f"FAILED: {', '.join(failed)}" if failed else "all promises held")
    return 1 if failed else 0


def closing_lines(figures: dict[str, dict]) -> list[str]:
    """The figures in words; a part that did not run, or ended without any, is told as such."""
    crash, memory, hostile = (figures.get(name) for name in ("crash", "memory", "hostile"))
    lines = []
    if crash:
        lines += [
            f"kills survived: {crash['kills']} (and {crash['full_disks']} full disks), in {crash['runs']} runs, "
            f"{crash['differing']} of them unequal to the uninterrupted one",
            f"states lost: {crash['states_lost']} (checkpoints unreadable: {crash['unreadable']})",
        ]
    if hostile:
        lines += [
            f"bad files tried: {hostile['files']:,} (named by check {hostile['bad_files']:,}, by encode "
            f"{hostile['left_out']:,}, by upsample {hostile['failed']:,}; not named {len(hostile['unnamed'])}), "
            f"hangs {hostile['hangs']}, at most {hostile['peak_memory_ratio']} of a clean set's memory"
        ]
    if crash or hostile:
        lines.append(f"crashes: {sum(part['crashes'] for part in (crash, hostile) if part)}")
    if memory:
        peaks = ", ".join(f"{name} {stated} / {peak}" for name, (stated, peak) in memory["mib"].items())
        lines += [
            f"peak memory, MiB stated / reached: {peaks}; at most {memory['worst']:.1%} off",
            f"{memory['steps']:,} steps grew {memory['grown']:+.2%} of {memory['resident_mib']} MiB",
        ]
    return lines + [f"{name}: no figures" for name, part in figures.items() if not part]


if __name__ == "__main__":
    sys.exit(main())
