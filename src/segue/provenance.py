"""Where a figure comes from: commit, machine, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from segue._version import __version__


def commit() -> str:
    """The commit of the checkout that segue runs from ("+" where it has changes), or its version outside one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    except FileNotFoundError:  # no git here
        return f"version {__version__}"
    if head.returncode != 0:
        return f"version {__version__}"
    # git diff --quiet exits with 1 where there are changes; any other code but 0 is an error.
    return head.stdout.strip() + ("+" if changed.returncode == 1 else "")


def machine() -> str:
    """Processor, cores and system."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"


def command() -> str:
    """What was typed."""
    return " ".join(["segue", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "segue" else " ".join(sys.argv)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
