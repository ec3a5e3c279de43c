"""What a checkpoint says of itself, checked before time and memory are taken for it: its files come from anywhere."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flashvlm.errors import FlashVLMError, ModelError, is_out_of_memory, sentence
from flashvlm.models import INDEX, weight_files

# How large JSON files may be, in bytes, and how many tokens may be added to a tokenizer: published ones stay far below,
# and for each added token a tokenizer takes a tenth of a millisecond, for special ones much longer if they are many.
LARGEST_JSON, LARGEST_VOCABULARY, MOST_ADDED, MOST_SPECIAL = 2 * 2**20, 100 * 2**20, 50_000, 2_000
VOCABULARIES = ("tokenizer.json", "vocab.json")
# The longest header of a file of weights, as in safetensors.
LONGEST_HEADER = 100_000_000
# Entries of config.json, as many of which are made one by one.
COUNTS = ("depth", "num_hidden_layers", "num_labels")
# Pixels of a frame or picture as it is looked at; published models take less than one in three of this.
LARGEST_FRAME = 2**24
# What the machine lacks, not the checkpoint.
SCARCE = {getattr(errno, name) for name in ("EMFILE", "ENFILE", "ENOMEM", "ENOSPC") if hasattr(errno, name)}

NO_THREADS = ("can't start new thread", os.strerror(errno.EAGAIN))


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn errors into one of the model: libraries raise whatever exception the files of a checkpoint lead to.

    What the machine lacks is not the checkpoint's fault: errors of memory and open files stay as they are.

    Raises:
        ModelError: `what`, and the error's first line.
        FlashVLMError: the error is that no threads can be started.
    """
    try:
        yield
    except (FlashVLMError, MemoryError):
        raise
    except BaseException as error:
        # The exception of a panic in Rust is no `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if any(words in str(error) for words in NO_THREADS):
            raise FlashVLMError("No more threads can be started: see ulimit -u.") from error
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in SCARCE):
            raise
        raise ModelError(f"{what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, as one sentence: its first line, with the second where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return sentence(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def read_settings(folder: Path, *names: str) -> dict[str, Any]:
    """The first of these JSON files that `folder` has, as a dict; empty if it has none.

    Raises:
        ModelError: it cannot be read, is too large, or is no JSON object.
    """
    for name in names:
        path = folder / name
        if path.is_file():
            check_size(path)
            try:
                settings = json.loads(path.read_bytes())
            except OSError as error:
                raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
            except (ValueError, RecursionError) as error:
                raise ModelError(f"{path} is not valid JSON.") from error
            if not isinstance(settings, dict):
                raise ModelError(f"{path} does not hold a JSON object.")
            return settings
    return {}


def check_size(path: Path) -> None:
    """Refuse a JSON file that is too large.

    Raises:
        ModelError: it is.
    """
    most = LARGEST_VOCABULARY if path.name in VOCABULARIES else LARGEST_JSON
    if path.is_file() and path.stat().st_size > most:
        raise ModelError(f"{path} has more than {most} bytes.")


def check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what would take too long to read.

    Raises:
        ModelError: a JSON file is too large, the tokenizer has too many added tokens, or config.json asks for no
            layers, or more than the weights have tensors.
    """
    for path in folder.glob("*.json"):
        check_size(path)
    tokenizer = folder / "tokenizer.json"
    # Each added token says whether it is a single word.
    if tokenizer.is_file() and tokenizer.read_bytes().count(b'"single_word"') > MOST_ADDED:
        raise ModelError(f"{tokenizer} adds more than {MOST_ADDED} tokens.")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        said = read_settings(folder, name)
        special = (said.get("extra_special_tokens"), said.get("additional_special_tokens"))
        if any(isinstance(tokens, list | dict) and len(tokens) > MOST_SPECIAL for tokens in special):
            raise ModelError(f"{folder / name} has more than {MOST_SPECIAL} special tokens.")
    tensors = len(weight_shapes(folder))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in COUNTS:
            if isinstance(part.get(name), int) and not 0 < part[name] <= tensors:
                asked = f"{name} is {part[name]}, and there are {tensors} tensors"
                raise ModelError(f"The weights in {folder} do not fit its config.json: {asked}.")


def check_model(folder: Path, model_class: Any) -> None:
    """Refuse a config.json of a far larger model than the weights are: for what they lack, memory would be taken.

    Raises:
        ModelError: it is one.
    """
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = model_class(model_class.config_class.from_pretrained(folder, local_files_only=True))
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    there = sum(map(math.prod, weight_shapes(folder).values()))
    # Tied weights are in the files once.
    if asked > 2 * there + 2**20:
        sizes = f"it is of a model of {asked} numbers, and they are {there}"
        raise ModelError(f"The weights in {folder} do not fit its config.json: {sizes}.")


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of the folder's weights by name, read from the headers of its safetensors files.

    Raises:
        ModelError: a file that cannot be read, or that is shorter than its header says.
    """
    names = weight_files(folder)
    if names is None:
        raise ModelError(f"{folder / INDEX} is not the index of weights.")
    shapes: dict[str, list[int]] = {}
    for name in names:
        path = folder / name
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > min(path.stat().st_size, LONGEST_HEADER):
                    raise ValueError
                head = json.loads(file.read(length))
            head.pop("__metadata__", None)
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
            shapes |= {name: tensor["shape"] for name, tensor in head.items()}
            sum(map(math.prod, shapes.values()))
        except OSError as error:
            raise ModelError(f"The weights in {folder} cannot be read: {name}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(f"The weights in {folder} are damaged: {name} is not a safetensors file.") from error
        if end > path.stat().st_size:
            raise ModelError(
                f"The weights in {folder} are incomplete: {name} has {path.stat().st_size} of {end} bytes."
            )
    return shapes
