"""The file that an accuracy run writes as it goes: the settings first, then one JSON line per question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashvlm.journal import Journal, difference

# What a record of a question has, at least.
RECORD = {"clip", "question", "text", "answer", "family", "choices", "tokens", "unpruned", "pruned"}


class Results(Journal):
    """The file at `path` during a run with `settings`; `records` are those that were in it when it was opened."""

    kind, first = "result of flashvlm bench", b'{"settings"'

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Open or create the file (see `Journal`).

        Raises:
            UsageError: it is in use by another run, or holds something else or results with other settings; the message
                names the first setting that differs.
            OutputError: it cannot be written.
        """
        self.records: list[dict[str, Any]] = []
        self._settings, self._headed = settings, False
        super().__init__(path)

    def take(self, record: dict[str, Any]) -> bool:
        if self._headed:
            self.records.append(record)
            return record.keys() >= RECORD
        self._headed = isinstance(record.get("settings"), dict)
        if self._headed and (what := difference(record["settings"], self._settings)):
            self.refuse(what)
        return self._headed

    def opened(self) -> None:
        if not self._headed:
            self.write({"settings": self._settings})
