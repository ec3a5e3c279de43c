"""The file of records: whole lines, one per row; one run at a time writes it, and continues where another stopped."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from flashvlm.batch.plan import DIGITS, Plan, Record
from flashvlm.errors import FlashVLMError, OutputError, UsageError
from flashvlm.files import held
from flashvlm.options import OF_ROWS

# A kill loses nothing that was written; a power cut loses at most this many seconds of it.
SYNC_SECONDS = 1.0


def line_of(record: Record) -> bytes:
    """A record as a line of JSON in UTF-8; what is not Unicode (a file name's stray byte) is escaped as \\udcXX."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class Records:
    """The file at `path` during one run of `plan`, locked against others.

    `answered` and `failed` are the keys of the plan that the file already has, with an answer or an error; `others`
    counts records of rows that are not in the plan. They stay.
    """

    def __init__(self, path: Path, plan: Plan, *, retry_failed: bool = False) -> None:
        """Open or create the file; what a killed run left half-written at its end is dropped.

        Args:
            retry_failed: remove the records of rows that failed, so that they can be tried again.

        Raises:
            UsageError: another run writes to it, or it holds something else or records made with other settings; the
                message names the first setting that differs, if the records show it.
        """
        self.path = path
        # A file that replaces it is written beside the real file, whatever link names it.
        self._real = Path(os.path.realpath(path))
        self.answered: set[str] = set()
        self.failed: set[str] = set()
        self.others = 0
        self._synced = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._open(stack)
            end = self._read(plan)
            os.ftruncate(self._file, end)
            if retry_failed and self.failed:
                self._take_out_failed()
            self._stack = stack.pop_all()

    def write(self, record: Record) -> None:
        """Add a record, whole or not at all.

        Raises:
            FlashVLMError: it cannot be written: the disk is full, say.
        """
        line = line_of(record)
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
                raise FlashVLMError(f"{self.path} cannot be written: {error.strerror}.") from error
            raise

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        self._stack.close()

    def _open(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(held(self.path))
        try:
            self._file = os.open(self._real, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            stack.callback(lambda: os.close(self._file))
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}.") from error

    def _read(self, plan: Plan) -> int:
        """Sort the records that are there; returns the offset at which the last whole one ends."""
        keys = set(plan.keys)
        end = 0
        for number, line in enumerate(self._lines(), start=1):
            if not line.endswith(b"\n"):
                # A partial first line is dropped only if it could have become a record.
                if not end and not line.startswith(b'{"key": "'[: len(line)]):
                    raise self._foreign(number)
                break
            record = self._parsed(line, number)
            if record["key"][: DIGITS // 2] != plan.run:
                self._refuse(record, plan)
            if record["key"] not in keys:
                self.others += 1
            else:
                (self.failed if "error" in record else self.answered).add(record["key"])
            end += len(line)
        return end

    def _lines(self) -> Iterator[bytes]:
        with open(self._real, "rb") as file:
            yield from file

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            if not isinstance(record["key"], str) or "row" not in record:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None
        return record

    def _foreign(self, number: int) -> UsageError:
        return UsageError(f"{self.path}, line {number}: this is not a record of flashvlm batch; give another file.")

    def _refuse(self, record: Record, plan: Plan) -> None:
        there = _flat(
            {**record.get("settings", {}), **({"model": record["model"]["name"]} if "model" in record else {})}
        )
        columns = record["row"].keys() if isinstance(record["row"], dict) else set()
        for name, value in _flat(plan.settings).items():
            if name in there and str(there[name]) != str(value) and not (name in OF_ROWS and name in columns):
                what = f"{name} is {_shown(there[name])} there and {_shown(value)} here"
                break
        else:
            what = "the model, its weights, its dtype or an option is another"
        raise UsageError(f"{self.path} holds records made with other settings: {what}; give another file.")

    def _take_out_failed(self) -> None:
        """Rewrite the file without the plan's failed rows, and replace the old one."""
        handle, beside = tempfile.mkstemp(".tmp", f".{self._real.name}.", self._real.parent)
        try:
            with open(handle, "wb") as file:
                for line in self._lines():
                    if json.loads(line)["key"] not in self.failed:
                        file.write(line)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, os.stat(self._real).st_mode)
            os.replace(beside, self._real)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        os.close(self._file)
        self._file = os.open(self._real, os.O_RDWR | os.O_APPEND)
        self.failed = set()


def _flat(settings: Record) -> Record:
    """Settings with those of the sampling moved to the top level."""
    return {**settings, **settings.get("sampling", {}), "sampling": None}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
