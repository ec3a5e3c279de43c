"""Records as rows of a table, CSV or TSV: what a spreadsheet opens, and what a later run continues."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from flashvlm.batch.rows import LONGEST_CELL
from flashvlm.errors import UsageError
from flashvlm.journal import Record
from flashvlm.report import Answer

SEPARATORS = {".csv": ",", ".tsv": "\t"}
FIELDS = ("video", "question", "answer", "error")
# What identifies a row, so that a later run knows it; the last column of every table.
KEY = "key"


@dataclass(frozen=True)
class Table:
    """How records become rows: the columns of the record or of its row that are written, and what separates them.

    A name with points leads into a record: `seconds.total`, `tokens.after`. A newline in a cell stays, in quotes. There
    is always an error, by which a later run knows which rows failed.
    """

    columns: tuple[str, ...] = FIELDS
    separator: str = ","

    def __post_init__(self) -> None:
        if "error" not in self.columns:
            object.__setattr__(self, "columns", (*self.columns, "error"))

    @property
    def head(self) -> bytes:
        """The first line: the names of the columns."""
        return self._line([*self.columns, KEY])

    def check(self, rows: Iterable[Any]) -> None:
        """Refuse columns that no record of these rows can have.

        Raises:
            UsageError: there are some, or one is named twice.
        """
        of_rows = {name for row in rows if isinstance(row, dict) for name in row}
        known = {*FIELDS, *of_rows, *(one.name for one in fields(Answer)), "line"}
        for name in self.columns:
            if name not in of_rows and name.partition(".")[0] not in known:
                raise UsageError(f"No record has a field {name!r}; there are {', '.join(sorted(known))}.")
        if len({*self.columns, KEY}) <= len(self.columns):
            raise UsageError(f"Name each field once, and not {KEY!r}, which is always the last column.")

    def line(self, record: Record) -> bytes:
        """The row of a record."""
        return self._line([*(_cell(_field(record, name)) for name in self.columns), record[KEY]])

    def parsed(self, line: bytes) -> Record | None:
        """What identifies a whole row, and whether it holds an error; None if it is none of this table."""
        csv.field_size_limit(LONGEST_CELL)
        try:
            (cells,) = csv.reader(io.StringIO(line.decode(), newline=""), delimiter=self.separator, strict=True)
        except (ValueError, csv.Error):
            return None
        if len(cells) != len(self.columns) + 1 or not line.endswith(b"\n"):
            return None
        named = dict(zip((*self.columns, KEY), cells, strict=True))
        record: Record = {KEY: named[KEY], "row": None}
        return record | ({"error": named["error"]} if named.get("error") else {})

    def lines(self, content: Iterable[bytes]) -> Iterator[bytes]:
        """Whole rows of a file: a line within quotes goes on in the next."""
        row = b""
        for line in content:
            row += line
            if row.count(b'"') % 2 == 0:
                yield row
                row = b""
        if row:
            yield row

    def _line(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator, lineterminator="\n").writerow(cells)
        return text.getvalue().encode("utf-8", "backslashreplace")


def _field(record: Record, name: str) -> Any:
    row = record["row"] if isinstance(record["row"], dict) else {}
    if name == "error":
        return record.get("error", {}).get("message")
    if name in row and (name == "video" or name not in record):
        # The video as it was asked for, not what is known of it.
        return row[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return row.get(name) if value is None else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
