"""What went wrong, as a user reads it: one sentence, an exit code, a kind."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import typer

from flashvlm.errors import FlashVLMError

INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, as a shell reports any other program that was writing to `head`

KINDS = {2: "usage", 3: "video", 4: "model"}


@dataclass(frozen=True)
class Failure:
    """`message` is one sentence; `hint`, where there is one, names the help to read."""

    message: str
    exit_code: int = 1
    hint: str = ""
    error: BaseException | None = None

    @property
    def kind(self) -> str:
        return KINDS.get(self.exit_code, "other")


def explain(error: BaseException) -> Failure:
    """Say of any error what the user should read."""
    message = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted.", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return Failure("The reader of the output went away.", READER_GONE)
    if isinstance(error, FlashVLMError):
        return Failure(message, error.exit_code, error=error)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"Try '{context.command_path} --help'." if context else ""
        # "Value error, " is what pydantic, underneath Typer, puts before a message of its own.
        described = " ".join(error.format_message().split()).replace(": Value error, ", ": ")
        return Failure(_sentence(described), error.exit_code, hint, error)
    if _is_out_of_memory(error):
        return Failure(
            "Out of memory: try a smaller --max-pixels, --max-frames or --keep, or a smaller model.", error=error
        )
    described = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return Failure(
        f"unexpected error: {_sentence(described)} Set FLASHVLM_DEBUG=1 for the traceback.",
        error=error,
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's errors are known by name and text, so that this module need not import it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
