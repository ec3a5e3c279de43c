"""Peak memory of a call: of the process on Linux, of the device on CUDA."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable(device: str = "cpu") -> bool:
    """Whether this system can report the peak memory of a call."""
    return device.startswith("cuda") or CLEAR.exists()


def peak(call: Callable[[], Any], device: str = "cpu") -> int | None:
    """The peak memory of `call` beyond what was in use before it, in bytes; None if it cannot be measured.

    On the CPU this is the process's resident memory, pages of mapped files included, with its high-water mark reset
    before the call; on CUDA it is what torch has allocated on the device.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    # Reuse of memory that was freed but not returned to the system would go unnoticed.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # 5 resets the high-water mark to what is in use now (proc(5), Linux).
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
