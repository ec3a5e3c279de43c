"""What must be so before torch or transformers is imported."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from flashvlm.errors import UsageError

# One of these is there on Linux if there is a GPU for `cuda`: of NVIDIA, AMD, within Windows, or on a Jetson.
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-ctrl", "/dev/nvgpu")


def check_device(device: str) -> None:
    """Refuse, without torch, a device that this machine or torch as it is installed cannot have.

    Raises:
        UsageError: it cannot be there.
    """
    kind = device.partition(":")[0]
    lacking = kind == "mps" and sys.platform != "darwin"
    if kind == "cuda":
        driven = sys.platform != "linux" or any(map(os.path.exists, GPUS))
        lacking = sys.platform == "darwin" or not driven or version("torch").endswith("+cpu")
    if lacking:
        raise UsageError(f"There is no device {device!r} on this machine.")


def hide_unfit_torchvision() -> None:
    """Hide a torchvision that was built for another torch: one of PyPI beside a CPU build of torch, for example.

    transformers imports torchvision where it is installed, and fails as a whole if that fails. Only the general way
    of `backends` needs it.
    """
    if "torchvision" in sys.modules or (spec := find_spec("torchvision")) is None or spec.origin is None:
        return
    import torch

    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        # Python takes a module of this value for one that is not installed.
        sys.modules["torchvision"] = None  # type: ignore[assignment]
