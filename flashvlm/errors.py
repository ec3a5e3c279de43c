"""Errors that a user can fix: the class gives the exit code, the message is one sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Any

KINDS = {2: "usage", 3: "video", 4: "model"}


class FlashVLMError(Exception):
    """Any failure that the user should read as one sentence.

    `exit_code` is the exit code of the command line: 2 wrong usage, 3 the video cannot be read, 4 the model is not
    available, 1 anything else.
    """

    exit_code = 1


class UsageError(FlashVLMError, ValueError):
    """An argument that makes no sense, alone or with the others."""

    exit_code = 2


class VideoError(FlashVLMError):
    """The video is missing, empty, corrupt, or holds no picture."""

    exit_code = 3


class OutputError(FlashVLMError):
    """A requested file cannot be written."""


class ModelError(FlashVLMError):
    """The model is not on this machine and cannot be fetched, is incomplete, or is of an unsupported family."""

    exit_code = 4


def known(kind: str, name: str, names: Sequence[str]) -> str:
    """The name itself, if it is one of `names`.

    Raises:
        UsageError: it is not; the message lists `names` and suggests the closest.
    """
    if name in names:
        return name
    meant = closest(str(name), names)
    suggestion = f" Did you mean {meant}?" if meant else ""
    raise UsageError(f"There is no {kind} {name!r}; choose from {', '.join(names)}.{suggestion}")


def closest(name: str, names: Iterable[str]) -> str | None:
    """Which of `names` is nearly `name`, if any."""
    # Imported here, because most command lines have no such mistake in them.
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, list(names), n=1)), None)


def described(error: BaseException) -> dict[str, Any]:
    """Any error as it appears in JSON (see `to_json`)."""
    return to_json(sentence_of(error), error.exit_code if isinstance(error, FlashVLMError) else 1)


def to_json(message: str, exit_code: int) -> dict[str, Any]:
    """An error as it appears in JSON: `message` (one sentence), `exit_code` and `kind`."""
    return {"message": message, "exit_code": exit_code, "kind": KINDS.get(exit_code, "other")}


def sentence_of(error: BaseException) -> str:
    """What the user of the command line should read for any error."""
    # Imported here, because it imports this module.
    from flashvlm.options import on_command_line

    message = on_command_line(" ".join(str(error).split()))
    if isinstance(error, FlashVLMError):
        return message
    if is_out_of_memory(error):
        return "Out of memory: try a smaller --max-pixels, --max-frames or --keep, or a smaller model."
    if isinstance(error, OSError) and error.strerror:
        # A file or a stream: the user can fix that, wherever it came up.
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"unexpected error: {sentence(text)} Set FLASHVLM_DEBUG=1 for the traceback."


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on whatever device."""
    # torch's errors are recognised by name and text, so that this module need not import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    said = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to map segment")
    # A library on a file system from which nothing may be run is not mapped either.
    told = any(words in text for words in said) and "not permitted" not in text
    return isinstance(error, RuntimeError | ImportError) and told
