"""The file that an accuracy run writes as it goes: the settings first, then one JSON line per question."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashvlm.errors import OutputError, UsageError
from flashvlm.files import held

# What a record of a question has, at least.
RECORD = {"clip", "question", "text", "answer", "family", "choices", "tokens", "unpruned", "pruned"}


class Results:
    """Records on disk, locked against other runs; a line that an interrupted run left half-written is dropped.

    `records` are those that were in the file when it was opened.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open `path` to continue it, or create it.

        Raises:
            UsageError: it is in use by another run, or holds something else or results with other settings; the message
                names the first setting that differs.
            OutputError: it cannot be written.
        """
        self.records: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(path))
            try:
                self._file = stack.enter_context(path.open("a+b", buffering=0))
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
            self._read(path, settings)
            self._stack = stack.pop_all()

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Append records, unbuffered."""
        for record in records:
            self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """Close the file and release its lock."""
        self._stack.close()

    def _read(self, path: Path, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = _parsed(path, whole)
        if lines:
            _refuse_others(path, lines[0].get("settings", {}), settings)
            self.records = lines[1:]
        elif content and not content.startswith(b'{"settings"'):
            raise UsageError(f"{path} is not a file of results; give another one with -o.")
        self._file.truncate(len(whole))
        if not lines:
            self.write([{"settings": settings}])


def _parsed(path: Path, content: bytes) -> list[dict[str, Any]]:
    lines = []
    for place, line in enumerate(content.splitlines(), start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not value.keys() >= ({"settings"} if place == 1 else RECORD):
                raise ValueError
        except ValueError:
            raise UsageError(f"{path}, line {place}: this is not a result; give another file with -o.") from None
        lines.append(value)
    return lines


def _refuse_others(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            raise UsageError(
                f"{path} holds results with other settings: {name} is {_shown(there.get(name))} there and "
                f"{_shown(here.get(name))} here; give another file with -o."
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value, ensure_ascii=False)
