"""What went wrong, as a user reads it: one sentence and an exit code."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from flashvlm.errors import FlashVLMError, sentence, sentence_of

INTERRUPTED = 130
READER_GONE = 141  # 128 + SIGPIPE, as a shell reports for any other program that was writing to `head`


@dataclass(frozen=True)
class Failure:
    """`message` is one sentence; `hint`, if not empty, names the help to read."""

    message: str
    exit_code: int = 1
    hint: str = ""
    error: BaseException | None = None


def explain(error: BaseException) -> Failure:
    """Turn any error into what the user should read."""
    if _interrupted(error):
        return Failure("Interrupted.", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return Failure("The reader of the output closed it.", READER_GONE)
    if isinstance(error, FlashVLMError):
        return Failure(sentence_of(error), error.exit_code, error=error)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"Try '{context.command_path} --help'." if context else ""
        # "Value error, " is the prefix that pydantic, which Typer uses, adds to messages.
        described = " ".join(error.format_message().split()).replace(": Value error, ", ": ")
        # An unknown option that resembles no existing one may be meant as a question.
        takes_one = context is not None and any(one.name == "question" for one in context.command.params)
        if takes_one and not getattr(error, "possibilities", True):
            described += "; a video or a question that begins with - goes last, after --"
        return Failure(sentence(described), error.exit_code, hint, error)
    return Failure(sentence_of(error), error=error)


def _interrupted(error: BaseException | None) -> bool:
    """Whether the error is an interrupt, or was caused by one in a library."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
