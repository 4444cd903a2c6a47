"""`make torture`: what the project promises under faults, tried at full size.

python tests/torture [--kills 100] [--leak-steps 10000] [--only crash|memory|hostile]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--leak-steps", type=int, default=10_000)
    parser.add_argument("--only", choices=("crash", "memory", "hostile"))
    options = parser.parse_args()
    parts = {
        "crash": ["--kills", str(options.kills)],
        "memory": ["--steps", str(options.leak_steps)],
        "hostile": [],
    }
    failed, summaries = [], []
    for name, arguments in parts.items():
        script = HERE / f"{name}.py"
        if (options.only and name != options.only) or not script.exists():
            continue
        started = time.monotonic()
        # A process each: what one part leaves behind (memory above all) is not measured in the next.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        last = ""
        for line in ran.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        if ran.wait():
            failed.append(name)
        summaries.append(f"{last} ({time.monotonic() - started:.0f} s)")
    print("\n" + "\n".join(summaries))
    print(f"FAILED: {', '.join(failed)}" if failed else "all promises held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
