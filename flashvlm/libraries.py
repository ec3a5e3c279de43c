"""What must be so before transformers is imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


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
