"""The model families: one file each, one line each here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from flashvlm.backends.base import Backend
from flashvlm.backends.loading import read_settings
from flashvlm.errors import ModelError

# `model_type` of a checkpoint's config.json -> the class that serves it.
FAMILIES = {
    "qwen2_vl": "flashvlm.backends.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "flashvlm.backends.qwen2_5_vl:Qwen25VL",
    "video_llava": "flashvlm.backends.video_llava:VideoLlava",
    "smolvlm": "flashvlm.backends.smolvlm:SmolVLM",
    "llava_onevision": "flashvlm.backends.llava_onevision:LlavaOnevision",
    "internvl": "flashvlm.backends.internvl:InternVL",
    "llava": "flashvlm.backends.llava:Llava",
}


def load(folder: Path, *, device: str, dtype: str) -> Backend:
    """Load the checkpoint in `folder` with the backend of its family.

    Raises:
        ModelError: a config.json that cannot be read, a family without a backend, or weights that do not fit.
    """
    config = read_settings(folder, "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{folder / 'config.json'} is missing, or names no model_type.")
    if family not in FAMILIES:
        raise ModelError(f"Models of type {family!r} are not supported; supported are: {', '.join(FAMILIES)}.")
    module, name = FAMILIES[family].split(":")
    backend: type[Backend] = getattr(import_module(module), name)
    architectures = config.get("architectures") or [backend.model_class]
    if backend.model_class not in architectures:
        # For example a reward or embedding model, which has no words to answer with.
        raise ModelError(
            f"Models of architecture {architectures[0]} are not supported; of type {family} only {backend.model_class}."
        )
    return backend.load(folder, device=device, dtype=dtype)
