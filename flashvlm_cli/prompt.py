"""The input lines of a chat: from a terminal, with editing, history and completion, or from a pipe."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from flashvlm.errors import UsageError
from flashvlm.files import user_folder
from flashvlm_cli import output
from flashvlm_cli.running import standard_input

PROMPT = "> "
HISTORY_LINES = 1000


def piped() -> Iterator[str]:
    """The lines of standard input, as they come; bytes that are not text become surrogates."""
    lines = standard_input()
    output.reconfigure(lines, errors="surrogateescape")
    yield from lines


def typed(suggest: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """The lines typed at the terminal until Ctrl-D, or until Ctrl-C on a line that another Ctrl-C has cleared.

    Args:
        suggest: returns the completions of a line up to the cursor.
    """
    readline = _readline(suggest)
    history = _History(readline) if readline else None
    cleared = False
    while True:
        try:
            with _output_to_terminal() as prompt:
                line = input(prompt)
        except EOFError:
            _newline()
            return
        except KeyboardInterrupt:
            _newline()
            if cleared and not (readline and readline.get_line_buffer()):
                return
            cleared = True
            continue
        cleared = False
        if history:
            history.add(line)
        yield line


class _History:
    """The lines typed in this chat and earlier ones, each saved at once, so that parallel chats share one history."""

    def __init__(self, readline: ModuleType) -> None:
        self._readline, self._kept = readline, True
        readline.set_auto_history(False)
        readline.set_history_length(HISTORY_LINES)
        readline.clear_history()
        try:
            self._file = user_folder("state") / "history"
        except UsageError as error:
            self._kept = False
            output.warn(f"The history cannot be kept: {error}")
            return
        with self._telling():
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                # To read a pipe would wait for its writer.
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise OSError("it is not an ordinary file")
                # Questions are private, also in a file that others could read so far.
                os.fchmod(handle, 0o600)
            finally:
                os.close(handle)
            readline.read_history_file(self._file)

    def add(self, line: str) -> None:
        count = self._readline.get_current_history_length()
        if not line.strip() or (count and self._readline.get_history_item(count) == line):
            return
        self._readline.add_history(line)
        if self._kept:
            with self._telling():
                self._readline.append_history_file(1, self._file)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._kept = False
            output.warn(f"The history cannot be kept in {self._file}: {error.strerror or error}.")


def _readline(suggest: Callable[[str], Sequence[str]]) -> ModuleType | None:
    """Python's readline, completing with `suggest`; None if missing (Windows) or unable to append to a history file."""
    try:
        import readline
    except ImportError:
        return None
    if not hasattr(readline, "append_history_file"):
        return None
    found: Sequence[str] = ()

    def complete(word: str, number: int) -> str | None:
        nonlocal found
        if number == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found = [whole[len(line) - len(word) :] for whole in suggest(line)]
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    editline = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")
    if not editline:
        readline.parse_and_bind("set show-all-if-ambiguous on")
    return readline


@contextlib.contextmanager
def _output_to_terminal() -> Iterator[str]:
    """If standard output is piped, let the line be edited on standard error; yields the prompt that can be shown."""
    if sys.stdout is not None and sys.stdout.isatty():
        yield PROMPT
    elif sys.stdout is None or sys.stderr is None or not sys.stderr.isatty():
        yield ""
    else:
        # Python's input() and readline only use the terminal of descriptor 1.
        sys.stdout.flush()
        away, terminal = sys.stdout.fileno(), sys.stderr.fileno()
        kept = os.dup(away)
        os.dup2(terminal, away)
        try:
            yield PROMPT
        finally:
            os.dup2(kept, away)
            os.close(kept)


def _newline() -> None:
    """End the line of the prompt on the terminal that shows it, if any."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            print(file=stream, flush=True)
            return
