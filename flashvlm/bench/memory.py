"""How much memory something takes at its peak: on Linux for the process, on CUDA for the device."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable(device: str = "cpu") -> bool:
    """Whether this system tells what a call takes."""
    return device.startswith("cuda") or CLEAR.exists()


def peak(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """The most memory that `call` takes on top of what is in use before it, in bytes; None where nothing tells.

    On the CPU that is the process's resident memory, pages of mapped files among it, its high-water mark set back
    before the call; on CUDA what torch has allocated on the device.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    # Memory that is free but not given back would be used again unseen.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # 5 sets the high-water mark back to what is in use now (proc(5), Linux).
        CLEAR.write_text("5")
        before = _status("VmRSS")
    except OSError:
        call()
        return None
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{STATUS} has no {name}")
    return int(found[1]) * 1024
