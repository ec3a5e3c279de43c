"""The two streams without Rich: the answer and JSON on standard output, sentences on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TextIO

from flashvlm.errors import to_json
from flashvlm_cli.failures import READER_GONE, Failure

# What a terminal takes for more than text: controls (C0, DEL, C1), marks that turn the direction of writing, separators
# of lines, and the stray bytes of a file name.
COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def debugging() -> bool:
    """Whether the user asked for tracebacks and the messages of the underlying libraries."""
    return os.environ.get("FLASHVLM_DEBUG", "0") not in ("", "0")


def json_wanted(arguments: Sequence[str]) -> bool:
    """Whether `--json` is among the options, even if the command line could not be parsed completely."""
    options = list(arguments)
    return "--json" in (options[: options.index("--")] if "--" in options else options)


def shown(text: str, stream: TextIO, but: str = "") -> str:
    """What to write for `text`: a terminal gets COMMANDS escaped as in JSON, all `but` these; a pipe gets it as it is.

    File names, answers and what libraries say are not ours, and may hold anything.
    """
    if not stream.isatty():
        return text
    return COMMANDS.sub(lambda found: found[0] if found[0] in but else f"\\u{ord(found[0]):04x}", text)


def print_text(text: str) -> None:
    """Print a line on standard output."""
    print(shown(text, sys.stdout), flush=True)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print `value` as JSON in UTF-8, whatever the locale."""
    # backslashreplace writes what is not Unicode (a stray byte in a file name) as the JSON escape \udcXX.
    reconfigure(sys.stdout, encoding="utf-8", errors="backslashreplace")
    print(shown(json.dumps(value, ensure_ascii=False, indent=indent), sys.stdout, "\n"), flush=True)


def print_line(value: Any) -> None:
    """Print `value` as one line of JSON in UTF-8, whatever the locale."""
    print_json(value, indent=None)


def warn(message: str) -> None:
    say(f"warning: {message}")


def fail(failure: Failure, as_json: bool, about: Mapping[str, str] = MappingProxyType({})) -> None:
    """Tell a failure: a sentence on standard error, or with `--json` an object on a line of standard output.

    `about` holds further entries of that object.
    """
    if failure.exit_code == READER_GONE:
        _abandon(sys.stdout)
        _abandon(sys.stderr)
        return
    try:
        if debugging() and failure.error is not None and sys.stderr is not None:
            trace = "".join(traceback.format_exception(failure.error))
            print(shown(trace, sys.stderr, "\n"), end="", file=sys.stderr)
        if as_json and sys.stdout is not None:
            print_line({**about, "error": to_json(failure.message, failure.exit_code)})
        else:
            say(f"{failure.message} {failure.hint}".rstrip())
        flush()
    except OSError:
        # One of the two streams may still work.
        _abandon(sys.stdout)
        with contextlib.suppress(OSError):
            if as_json:
                say(failure.message)
        _abandon(sys.stderr)


def say(sentence: str) -> None:
    if sys.stderr is not None:
        print(shown(f"flashvlm: {sentence}", sys.stderr), file=sys.stderr, flush=True)


def agreed(question: str, lines: TextIO) -> bool:
    """Ask on standard error, which is a terminal, and read a line: whether it is yes, in one letter or three."""
    print(shown(f"flashvlm: {question}", sys.stderr), end="", file=sys.stderr, flush=True)
    line = lines.readline()
    if not line.endswith("\n"):
        print(file=sys.stderr)
    return line.strip().lower() in ("y", "yes")


def flush() -> None:
    """Flush both streams now, while an error can still be reported."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _abandon(stream: TextIO | None) -> None:
    """Discard what is left in `stream`, so that Python does not complain about it at exit."""
    if stream is None:
        return
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def reconfigure(stream: TextIO | None, **settings: str) -> None:
    """Change a stream's encoding, or how it handles encoding errors."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(**settings)  # type: ignore[arg-type]


class AnswerStream:
    """Prints an answer on standard output as its pieces arrive, and ends it with exactly one newline.

    White space at either end of the answer is dropped: it is held back until more text follows.
    `before_first` is called once, before the first text. With `one_line`, line breaks become spaces.
    """

    def __init__(self, before_first: Callable[[], None], one_line: bool = False) -> None:
        reconfigure(sys.stdout, errors="replace")
        self._before_first, self._one_line = before_first, one_line
        self._held = ""
        self.started = False

    def write(self, piece: str) -> None:
        text = self._held + piece
        if not self.started:
            text = text.lstrip()
        said = text.rstrip()
        self._held = text[len(said) :]
        if not said:
            return
        if not self.started:
            self.started = True
            self._before_first()
        if self._one_line:
            said = re.sub(r"\s*[\r\n]\s*", " ", said)
        print(shown(said, sys.stdout, "\n\t"), end="", flush=True)

    def finish(self) -> None:
        """End the answer's last line."""
        print(flush=True)
