"""Loading: device, dtype and attention that suit the machine; weights, tokenizer and settings from a folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, generation

from flashvlm.backends.checks import blaming, check_model, read_settings, weight_shapes
from flashvlm.errors import ModelError, UsageError
from flashvlm.models import TOKENIZERS
from flashvlm.precision import quick_dtype

# What generation_config.json may say: which words there are, and how likely each. How they are searched for is not the
# checkpoint's to say: it could take any memory and time.
OF_WORDS = (
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("top_k", "top_p", "min_p", "typical_p"),
)
# What switches such a rule off.
NEUTRAL = (0, 1.0)
GENERATION = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The weights of linear layers (`backends/int8.py`); all else is in what is quick.
INT8 = "int8"
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
    """`auto` is bfloat16 where the device computes in it at full speed, float32 on other CPUs, float16 elsewhere.

    It is also what surrounds int8.
    """
    if dtype not in ("auto", INT8):
        return DTYPES[dtype]
    if device == "cpu":
        return quick_dtype(torch.device(device))
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16 if device.startswith("cuda") else torch.float16


def video_settings(folder: Path) -> dict[str, Any]:
    """How the checkpoint wants its frames prepared, from the file that transformers reads it from."""
    nested = read_settings(folder, "processor_config.json")
    files = read_settings(folder, "video_preprocessor_config.json", "preprocessor_config.json")
    # A model of pictures has no others.
    return nested.get("video_processor") or files or nested.get("image_processor") or {}


def image_settings(folder: Path) -> dict[str, Any]:
    """How the checkpoint wants a picture prepared, from the file that transformers reads it from."""
    nested = read_settings(folder, "processor_config.json").get("image_processor")
    return nested or read_settings(folder, "preprocessor_config.json")


def load_tokenizer(folder: Path, chat_template: str | None) -> Any:
    """The checkpoint's tokenizer with a chat template: the processor's, else the tokenizer's own, else `chat_template`.

    Raises:
        ModelError: no tokenizer that can be read, or no chat template at all.
    """
    alone = not any((folder / name).is_file() for name in TOKENIZERS if name != "tokenizer.model")
    if alone and find_spec("sentencepiece") is None:
        raise ModelError(
            f"The tokenizer in {folder} is tokenizer.model alone, which only sentencepiece reads: "
            "pip install sentencepiece, or add the tokenizer.json."
        )
    # config.json is read here, too.
    with blaming(f"The tokenizer or config.json in {folder} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not (folder / "chat_template.jinja").is_file():
        # Older checkpoints keep the processor's template here.
        tokenizer.chat_template = (
            read_settings(folder, "chat_template.json").get("chat_template") or tokenizer.chat_template or chat_template
        )
    if tokenizer.chat_template is None:
        raise ModelError(f"The checkpoint in {folder} has no chat template.")
    return tokenizer


def load_weights(
    folder: Path, model_class: str, *, device: str, dtype: torch.dtype, int8: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """The model of the transformers class `model_class`, ready for inference: safetensors only, no remote code.

    On a CPU, in the dtype of the files, the weights are mapped from disk, not copied. With `int8`, they are read one by
    one, and those of linear layers are quantised.

    Returns:
        The model, and warnings: what the files hold beside it.

    Raises:
        ModelError: weights that are missing, damaged, do not fit the class, or do not fit into memory.
    """
    import transformers

    check_memory(folder, device, dtype, int8)
    check_model(folder, getattr(transformers, model_class))
    with no_progress_bars():
        model, info = getattr(transformers, model_class).from_pretrained(
            **(_in_int8(folder, model_class) if int8 else {"pretrained_model_name_or_path": folder}),
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            # Told below, by name.
            ignore_mismatched_sizes=True,
        )
    if int8 and (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if other := sorted(info["mismatched_keys"]):
        name, there, expected = other[0]
        raise ModelError(
            f"The weights in {folder} do not fit its config.json: {name} has the shape {tuple(there)}, "
            f"not {tuple(expected)}."
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"The weights in {folder} are incomplete: {missing[0]} is missing{_more(missing)}.")
    model.generation_config = of_words(model.generation_config)
    spare = sorted(info["unexpected_keys"])
    told = (f"The weights in {folder} hold {spare[0]}{_more(spare)}, which this model does not use.",) if spare else ()
    return model.to(device).eval(), told


def _in_int8(folder: Path, model_class: str) -> dict[str, Any]:
    """What `from_pretrained` gets for int8: transformers takes weights from elsewhere only beside a configuration."""
    import transformers

    from flashvlm.backends.int8 import Int8Config, weights_of

    return {
        "pretrained_model_name_or_path": None,
        "config": getattr(transformers, model_class).config_class.from_pretrained(folder, local_files_only=True),
        "state_dict": weights_of(folder),
        "quantization_config": Int8Config(),
    }


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def of_words(said: GenerationConfig) -> GenerationConfig:
    """What it says of generation, as far as it concerns words (OF_WORDS); raises whatever is wrong with it."""
    config = GenerationConfig(**{name: getattr(said, name, None) for name in OF_WORDS})
    single = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    for ids in (*single, config.suppress_tokens, config.begin_suppress_tokens):
        torch.tensor(-1 if ids is None else ids, dtype=torch.long)
    checks = {
        generation.RepetitionPenaltyLogitsProcessor: config.repetition_penalty,
        generation.NoRepeatNGramLogitsProcessor: config.no_repeat_ngram_size,
        generation.NoBadWordsLogitsProcessor: config.bad_words_ids,
        generation.TopKLogitsWarper: config.top_k,
        generation.TopPLogitsWarper: config.top_p,
        generation.MinPLogitsWarper: config.min_p,
        generation.TypicalLogitsWarper: config.typical_p,
    }
    for check, value in checks.items():
        if value is not None and value not in NEUTRAL:
            check(value)
    return config


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


def check_memory(folder: Path, device: str, dtype: torch.dtype, int8: bool = False) -> None:
    """Check that the weights fit before they are read.

    Raises:
        ModelError: the weights in `dtype` are larger than the device's free memory, or their files are damaged.
    """
    needed, free = weight_bytes(folder, dtype, int8), free_memory(device)
    if free is not None and needed > free:
        where = "memory" if device == "cpu" else f"the memory of {device}"
        name = INT8 if int8 else str(dtype).removeprefix("torch.")
        raise ModelError(
            f"The weights in {folder} do not fit into {where}: they take {needed / 1e9:.1f} GB in {name}, "
            f"and {free / 1e9:.1f} GB are free."
        )


def weight_bytes(folder: Path, dtype: torch.dtype, int8: bool = False) -> int:
    """Bytes of the folder's weights once loaded in `dtype`, those of linear layers in int8 if so wanted.

    Raises:
        ModelError: a file that cannot be read, or that is shorter than its header says.
    """
    from flashvlm.backends.int8 import is_stacked

    shapes = weight_shapes(folder).items()
    quantised = sum(math.prod(shape) for name, shape in shapes if int8 and len(shape) == 2 and is_stacked(name))
    return (sum(math.prod(shape) for _, shape in shapes) - quantised) * dtype.itemsize + quantised


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
