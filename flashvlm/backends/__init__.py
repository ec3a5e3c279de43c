"""The model families: one file each, one line each here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from flashvlm.backends.base import Backend
from flashvlm.errors import ModelError

# `model_type` of a checkpoint's config.json -> the class that serves it.
FAMILIES = {
    "qwen2_vl": "flashvlm.backends.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "flashvlm.backends.qwen2_5_vl:Qwen25VL",
}


def load(folder: Path, *, device: str, dtype: str) -> Backend:
    """Load the checkpoint in `folder` with the backend of its family.

    Raises:
        ModelError: a config.json that cannot be read, a family without a backend, or weights that do not fit.
    """
    try:
        family = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read, or names no model_type.") from error
    if family not in FAMILIES:
        raise ModelError(f"Models of type {family!r} are not supported; supported are: {', '.join(FAMILIES)}.")
    module, name = FAMILIES[family].split(":")
    return getattr(import_module(module), name).load(folder, device=device, dtype=dtype)
