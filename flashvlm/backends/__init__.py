"""The model families: one file each, one line each here."""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

from flashvlm.backends.base import Backend
from flashvlm.backends.checks import LARGEST_FRAME, blaming, check_settings, read_settings
from flashvlm.backends.loading import load_tokenizer, of_words
from flashvlm.errors import FlashVLMError, ModelError, UsageError
from flashvlm.options import AskOptions

# `model_type` of a checkpoint's config.json -> the class that serves it.
FAMILIES = {
    "qwen2_vl": "flashvlm.backends.qwen2_vl:Qwen2VL",
    "qwen2_5_vl": "flashvlm.backends.qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "flashvlm.backends.qwen3_vl:Qwen3VL",
    "qwen3_vl_moe": "flashvlm.backends.qwen3_vl:Qwen3VLMoe",
    "video_llava": "flashvlm.backends.video_llava:VideoLlava",
    "smolvlm": "flashvlm.backends.smolvlm:SmolVLM",
    "llava_onevision": "flashvlm.backends.llava_onevision:LlavaOnevision",
    "internvl": "flashvlm.backends.internvl:InternVL",
    "llava": "flashvlm.backends.llava:Llava",
}


def served() -> list[dict[str, str]]:
    """The families that are served, each with its `model_type`, transformers class and `way`: of its own, or general.

    All of them are checked. Other classes that take `mm_encoder_outputs` are served in the general way, unchecked.
    """
    from flashvlm.backends.general import CHECKED

    own = {family: _own(family).model_class for family in FAMILIES}
    ways = (("own", own), ("general", {family: name for family, name in CHECKED.items() if family not in own}))
    return [
        {"family": family, "model_class": name, "way": way} for way, names in ways for family, name in names.items()
    ]


def load(folder: Path, *, device: str, dtype: str) -> Backend:
    """Load the checkpoint in `folder` with the backend of its family.

    Raises:
        ModelError: a config.json that cannot be read, a family without a backend, or weights that do not fit.
        FlashVLMError: Python was told to forget its docstrings.
    """
    if sys.flags.optimize > 1:
        raise FlashVLMError("transformers reads docstrings, and python -OO (or PYTHONOPTIMIZE=2) leaves them out.")
    config = read_settings(folder, "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{folder / 'config.json'} is missing, or names no model_type.")
    backend = _backend(family, config)
    # Not inside: what cannot be imported is no fault of the checkpoint.
    getattr(transformers, backend.model_class)
    with blaming(f"The checkpoint in {folder} cannot be loaded"):
        check_settings(folder, config)
        _refuse_others(backend, folder, config)
        loaded = backend.load(folder, device=device, dtype=dtype)
        rehearse(loaded)
        return loaded


def wrap(model: Any, processor: Any) -> Backend:
    """The backend of a model that is loaded already, which is put into evaluation mode and otherwise left as it is.

    Args:
        model: one of transformers' own classes.
        processor: its processor, with the tokenizer and how frames are prepared.

    Raises:
        UsageError: these are no model and processor.
        ModelError: a family without a backend, quantised weights, or a processor that does not fit.
    """
    if not isinstance(model, transformers.PreTrainedModel) or not hasattr(processor, "tokenizer"):
        raise UsageError("VideoQA takes a model of transformers and its processor; from_pretrained takes a name.")
    name = type(model).__name__
    config = {**model.config.to_dict(), "architectures": [name]}
    backend = _backend(config["model_type"], config)
    # What a family reads of its checkpoint, it reads from files.
    folder = Path(tempfile.mkdtemp(prefix="flashvlm-"))
    with blaming(f"The {name} and its processor cannot be used"):
        _refuse_others(backend, folder, config)
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        # Shares everything with the model but how it generates.
        twin = copy.copy(model.eval())
        twin.generation_config = of_words(model.generation_config)
        wrapped = backend(twin, load_tokenizer(folder, backend.chat_template), folder)
        weakref.finalize(wrapped, shutil.rmtree, folder, ignore_errors=True)
        rehearse(wrapped)
    return wrapped


def rehearse(backend: Backend) -> None:
    """Use, for nothing, the settings that are read but not used while loading; whatever is wrong with them raises."""
    if not backend.markers:
        raise ValueError(f"{type(backend).__name__} has no marker for a video")
    if backend.too_long("What happens?"):
        raise ValueError("it reads fewer tokens than a question has")
    options, count = AskOptions(), backend.frames_per_group
    height, width = backend.frame_size(48, 64, options, count)
    # A frame is never larger than asked for; what is cut off its sides may be.
    if height * width > LARGEST_FRAME:
        raise ModelError(f"Frames of {width} x {height} pixels are too large.")
    rows, columns = backend.cells((height, width))
    picture = torch.zeros(3, 48, 64, dtype=torch.uint8)
    for frame in (backend.fit(picture, options, count), *backend.tiles(picture, options)[0][:1]):
        pixels = backend.pixels(frame.expand(count, -1, -1, -1))
        if not rows * columns or not all(values.isfinite().all() for values in pixels.values()):
            raise ValueError("its frames become no pixels")


def _own(family: str) -> type[Backend]:
    module, name = FAMILIES[family].split(":")
    own = getattr(import_module(module), name)
    if not hasattr(transformers, getattr(own, "model_class", "")):
        raise ValueError(f"{name} must set model_class to the name of a class of transformers.")
    return own


def _backend(family: str, config: dict[str, Any]) -> type[Backend]:
    """The class that serves a family: of a file of its own, or the general one.

    Raises:
        ModelError: neither does.
    """
    if family in FAMILIES:
        return _own(family)
    from flashvlm.backends.general import backend_of

    architecture = (config.get("architectures") or [""])[0]
    if (general := backend_of(family, architecture)) is None:
        raise ModelError(
            f"Models of type {family!r} are not supported; supported are: {', '.join(FAMILIES)}, and others whose "
            "class in transformers takes mm_encoder_outputs."
        )
    return general


def _refuse_others(backend: type[Backend], folder: Path, config: dict[str, Any]) -> None:
    """Refuse what transformers would load, but what cannot answer, or not with what is installed here.

    Raises:
        ModelError: another architecture of the family, quantised weights, or an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder} holds an adapter, and adapters are not applied: merge it into the weights first.")
    architectures = config.get("architectures") or [backend.model_class]
    if backend.model_class not in architectures:
        # For example a reward or embedding model, which has no words to answer with.
        raise ModelError(
            f"Models of architecture {architectures[0]} are not supported; of type {config['model_type']} only "
            f"{backend.model_class}."
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "bitsandbytes")
        raise ModelError(
            f"Quantised weights ({method}) are not supported: use the checkpoint that they were made from, whose name "
            "lacks the GPTQ, AWQ, FP8 or 4bit; a smaller model takes less memory, too."
        )
