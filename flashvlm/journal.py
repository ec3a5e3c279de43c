"""A file of JSON lines that a run adds to: one run at a time, whole lines only, and the next run goes on with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from flashvlm.errors import OutputError, UsageError
from flashvlm.files import held, whole

# A kill loses nothing that was written; a power cut loses at most this many seconds of it.
SYNC_SECONDS = 1.0

Record = dict[str, Any]


def line_of(record: Record) -> bytes:
    """A record as a line of JSON in UTF-8; what is not Unicode (a file name's stray byte) is escaped as \\udcXX."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class Form(Protocol):
    """How records are written."""

    @property
    def head(self) -> bytes:
        """What a file begins with."""
        ...

    def line(self, record: Record) -> bytes:
        """A record as it is written, with the newline that ends it."""
        ...

    def parsed(self, line: bytes) -> Record | None:
        """The record of a whole line; None if it holds none."""
        ...

    def lines(self, content: Iterable[bytes]) -> Iterable[bytes]:
        """What was written for each record, of a file that is read line by line."""
        ...


class JsonLines:
    """A JSON object on each line."""

    head = b""

    def line(self, record: Record) -> bytes:
        return line_of(record)

    def parsed(self, line: bytes) -> Record | None:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    def lines(self, content: Iterable[bytes]) -> Iterable[bytes]:
        return content


class Journal:
    """The file at `path`, locked against other runs until it is closed."""

    def __init__(
        self, path: Path, kind: str, first: bytes, take: Callable[[Record], bool], form: Form | None = None
    ) -> None:
        """Open or create the file, take what is there, and drop what a killed run left half-written at its end.

        Args:
            kind: what a line is, in messages: `record of flashvlm batch`.
            first: how the first line begins, unless the file is something else.
            take: gets every record that is there, and returns whether it is one of this kind.
            form: how records are written; None is lines of JSON.

        Raises:
            UsageError: another run writes to it, it holds something else, or `take` refuses it.
            OutputError: it cannot be written.
        """
        self.path = path
        self._form: Form = form or JsonLines()
        self._synced = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(path))
            self._open()
            stack.callback(lambda: os.close(self._file))
            os.ftruncate(self._file, self._read(kind, first, take))
            if os.lseek(self._file, 0, os.SEEK_END) == 0:
                self._append(self._form.head)
            self._stack = stack.pop_all()

    def write(self, record: Record) -> None:
        """Add a record, whole or not at all.

        Raises:
            OutputError: it cannot be written: the disk is full, say.
        """
        self._append(self._form.line(record))

    def _append(self, line: bytes) -> None:
        begin = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, begin)
            if isinstance(error, OSError):
                raise OutputError(f"{self.path} cannot be written: {error.strerror}.") from error
            raise

    def drop(self, unwanted: Callable[[Record], bool]) -> None:
        """Replace the file by one without the `unwanted` records."""
        with whole(self.path) as beside, open(beside, "wb") as file:
            os.chmod(beside, os.fstat(self._file).st_mode)
            file.write(self._form.head)
            kept = itertools.islice(self._lines(), 1 if self._form.head else 0, None)
            file.writelines(line for line in kept if not unwanted(self._form.parsed(line) or {}))
            file.flush()
            os.fsync(file.fileno())
        os.close(self._file)
        self._open()

    def close(self) -> None:
        """Close the file and release its lock."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}.") from error

    def _lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from self._form.lines(file)

    def _read(self, kind: str, first: bytes, take: Callable[[Record], bool]) -> int:
        """Take every whole record; returns the offset at which the last one ends."""
        end = 0
        for number, line in enumerate(self._lines(), start=1):
            # A partial first line is dropped only if it could have become a record.
            if not line.endswith(b"\n") and (end or line.startswith(first[: len(line)])):
                break
            if number == 1 and self._form.head:
                if line != self._form.head:
                    raise UsageError(f"{self.path} is another table, or has other fields; give another file with -o.")
                end = len(line)
                continue
            record = self._form.parsed(line)
            if record is None or not take(record):
                raise UsageError(f"{self.path}, line {number}: this is not a {kind}; give another file with -o.")
            end += len(line)
        return end


def other_settings(path: Path, difference: str) -> UsageError:
    """The error of a file that was made with other settings."""
    return UsageError(f"{path} holds records made with other settings: {difference}; give another file with -o.")


def difference(there: Record, here: Record) -> str | None:
    """The first setting that differs, and how, in words; None if none does."""
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            return f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
