"""Loading: device, dtype and attention that suit the machine; weights, tokenizer and settings from a folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from flashvlm.errors import ModelError, UsageError, sentence
from flashvlm.precision import quick_dtype

# What a tokenizer can be read from.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Where Linux says how much memory a container may use and how much it does use: cgroup version 2, then version 1.
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def choose_device(device: str) -> str:
    """`auto` is CUDA, then MPS, then the CPU.

    Raises:
        UsageError: a device that this machine does not have.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if here[name])
    kind, _, number = device.partition(":")
    if not here.get(kind, False) or (number and not number.isdecimal()):
        raise UsageError(f"There is no device {device!r} on this machine.")
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it at full speed, float32 on other CPUs, float16 elsewhere."""
    if dtype != "auto":
        return DTYPES[dtype]
    if device == "cpu":
        return quick_dtype(torch.device(device))
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16 if device.startswith("cuda") else torch.float16


def read_settings(folder: Path, *names: str) -> dict[str, Any]:
    """The first of these JSON files that `folder` has, as a dict; empty if it has none."""
    for name in names:
        path = folder / name
        if path.is_file():
            try:
                settings = json.loads(path.read_text())
            except ValueError as error:
                raise ModelError(f"{path} is not valid JSON.") from error
            if not isinstance(settings, dict):
                raise ModelError(f"{path} does not hold a JSON object.")
            return settings
    return {}


def video_settings(folder: Path) -> dict[str, Any]:
    """How the checkpoint wants its frames prepared, from the file that transformers reads it from."""
    nested = read_settings(folder, "processor_config.json")
    files = read_settings(folder, "video_preprocessor_config.json", "preprocessor_config.json")
    # A model of pictures has no others.
    return nested.get("video_processor") or files or nested.get("image_processor") or {}


def load_tokenizer(folder: Path, chat_template: str | None) -> Any:
    """The checkpoint's tokenizer with a chat template: the processor's, else the tokenizer's own, else `chat_template`.

    Raises:
        ModelError: no tokenizer that can be read, or no chat template at all.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"The tokenizer in {folder} is missing.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Tokenizer classes raise whatever exception their files lead to, config.json among them.
        raise ModelError(f"The tokenizer or config.json in {folder} cannot be read: {first_line(error)}") from error
    if not (folder / "chat_template.jinja").is_file():
        # Older checkpoints keep the processor's template here.
        tokenizer.chat_template = (
            read_settings(folder, "chat_template.json").get("chat_template") or tokenizer.chat_template or chat_template
        )
    if tokenizer.chat_template is None:
        raise ModelError(f"The checkpoint in {folder} has no chat template.")
    return tokenizer


def first_line(error: Exception) -> str:
    """What an error of a library says, as one sentence: its first line, with the second where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return sentence(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def load_weights(folder: Path, model_class: str, *, device: str, dtype: torch.dtype) -> Any:
    """The model of the transformers class `model_class`, ready for inference: safetensors only, no remote code.

    On a CPU, in the dtype of the files, the weights are mapped from disk, not copied.

    Raises:
        ModelError: weights that are missing, damaged, do not fit the class, or do not fit into memory.
    """
    import transformers

    check_memory(folder, device, dtype)
    try:
        with no_progress_bars():
            model, info = getattr(transformers, model_class).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                # Told below, by name.
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"The checkpoint in {folder} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        # safetensors has an exception class of its own for damaged files.
        if type(error).__module__.startswith("safetensors") or type(error).__name__ == "SafetensorError":
            raise ModelError(f"The weights in {folder} are damaged: {error}.") from error
        raise
    if other := sorted(info["mismatched_keys"]):
        name, there, expected = other[0]
        raise ModelError(
            f"The weights in {folder} do not fit its config.json: {name} has the shape {tuple(there)}, "
            f"not {tuple(expected)}."
        )
    if missing := sorted(info["missing_keys"]):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelError(f"The weights in {folder} are incomplete: {missing[0]} is missing{more}.")
    return model.to(device).eval()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars while it loads or saves: the library prints nothing."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_memory(folder: Path, device: str, dtype: torch.dtype) -> None:
    """Check that the weights fit before they are read.

    Raises:
        ModelError: the weights in `dtype` are larger than the device's free memory, or their files are damaged.
    """
    needed, free = weight_bytes(folder, dtype), free_memory(device)
    if free is not None and needed > free:
        where = "memory" if device == "cpu" else f"the memory of {device}"
        name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"The weights in {folder} do not fit into {where}: they take {needed / 1e9:.1f} GB in {name}, "
            f"and {free / 1e9:.1f} GB are free."
        )


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of the folder's weights once loaded in `dtype`, read from the headers of its safetensors files.

    Raises:
        ModelError: a file whose header cannot be read, or that is shorter than its header says.
    """
    index = read_settings(folder, "model.safetensors.index.json")
    total = 0
    for name in sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]:
        path = folder / name
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError
                head = json.loads(file.read(length))
            head.pop("__metadata__", None)
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
            numbers = sum(math.prod(tensor["shape"]) for tensor in head.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"The weights in {folder} are damaged: {name} is not a safetensors file.") from error
        if end > path.stat().st_size:
            raise ModelError(
                f"The weights in {folder} are incomplete: {name} has {path.stat().st_size} of {end} bytes."
            )
        total += numbers * dtype.itemsize
    return total


def free_memory(device: str) -> int | None:
    """Bytes that can still be allocated on this device; None if the system does not say."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device.startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    amounts = [_linux_memory(), *(_cgroup_memory(*paths) for paths in CGROUPS)]
    known = [amount for amount in amounts if amount is not None]
    if known:
        return min(known)
    try:
        # If nothing says how much is free, at least how much there is.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _linux_memory() -> int | None:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _cgroup_memory(limit: str, used: str, statistics: str) -> int | None:
    try:
        counts = dict(line.split() for line in Path(statistics).read_text().splitlines())
        # Pages of files count as used, but are given up when anything else needs the memory.
        reclaimable = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        return int(Path(limit).read_text()) - int(Path(used).read_text()) + reclaimable
    except (OSError, ValueError):
        return None
