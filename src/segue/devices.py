"""Where a command computes: the device that --device names, one line that says which it is, and its processes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from segue.types import UserError


def cores() -> int:
    """CPU cores that this process may use."""
    import psutil  # here, since a help text must not wait for it

    process = psutil.Process()
    # macOS has no affinities.
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1


def when_parent_ends(call: Callable[[], None], every_sec: float) -> None:
    """Call a function, in a thread of its own, once the process that started this one is gone."""
    import psutil

    try:
        parent = psutil.Process(os.getppid())
    except psutil.NoSuchProcess:  # gone before this one had begun
        call()
        return

    def watch() -> None:
        # POSIX gives a process whose parent has ended another one; on Windows the number stays, and stands for nobody.
        while os.getppid() == parent.pid and parent.is_running():
            time.sleep(every_sec)
        call()

    threading.Thread(target=watch, daemon=True).start()


def device_of(name: str) -> str:
    """The device that a command's --device names; "auto" is a GPU where there is one: cuda, then mps, then cpu.

    Raises:
        UserError: no such device here.
    """
    import torch

    kind, _, number = name.partition(":")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cpu" and not number:
        return name
    if kind == "mps" and not number:
        if not torch.backends.mps.is_available():
            raise UserError(f"--device {name}: there is none here; hint: --device cpu")
        return name
    if kind != "cuda" or (":" in name and not number.isdecimal()):
        raise UserError(f"--device {name}: no such device; hint: cpu, cuda, cuda:1, mps or auto")
    # Counted only where CUDA can be used at all.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        there = f"{count} of them are here" if count else "there is none here"
        raise UserError(f"--device {name}: {there}; hint: --device {'cuda:0' if count else 'cpu'}")
    return name


def describe_device(device: str) -> str:
    """A device in words: "cuda (NVIDIA H100)", "cpu (2 threads)"."""
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads > 1 else ''})"
    return device


def announced_device(name: str) -> str:
    """`device_of`, printed once on standard error.

    Raises:
        UserError: no such device here.
    """
    device = device_of(name)
    print(f"device: {describe_device(device)}", file=sys.stderr)
    return device
