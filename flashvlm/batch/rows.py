"""What is asked, row by row: lines of JSON, a CSV table, or videos with questions. Imports no torch."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashvlm.errors import UsageError
from flashvlm.units import plural

JSON_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv",)
# A user's columns may be long: a whole transcript, say.
LONGEST_CELL = 2**27
# How many characters of a first line without the column names an error shows.
SHOWN = 60


@dataclass(frozen=True)
class Row:
    """One row as it was given: the number of its line (or of its question), and its columns by name.

    If the line cannot be read, `columns` is what was there, and `error` says in a sentence what is wrong with it.
    """

    line: int
    columns: Any
    error: str | None = None


def of_file(path: Path) -> list[Row]:
    """The rows of a JSONL or CSV file; its suffix says which it is.

    Raises:
        UsageError: it cannot be read, or holds no rows.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    return _rows(content, str(path), table=path.suffix.lower() in CSV_SUFFIXES)


def of_stream(content: bytes) -> list[Row]:
    """The rows of standard input: lines of JSON if it begins with `{`, else a CSV table.

    Raises:
        UsageError: it cannot be read, or holds no rows.
    """
    begin = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not begin:
        raise UsageError("Standard input is empty.")
    return _rows(content, "Standard input", table=not begin.startswith(b"{"))


def of_videos(patterns: Sequence[str], questions: Sequence[str]) -> list[Row]:
    """Every question on every video that a path or pattern names (`clips/*.mp4`, `**` for nested folders).

    Raises:
        UsageError: no file matches a pattern, or one names a folder.
    """
    videos: dict[str, None] = {}
    for pattern in patterns:
        # A file may have exactly this name, brackets and all.
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        if found == [pattern] and os.path.isdir(pattern):
            raise UsageError(
                f"{pattern!r} is a folder; name the videos in it, such as {os.path.join(pattern, '*.mp4')!r}."
            )
        found = [name for name in found if not os.path.isdir(name)]
        if not found:
            raise UsageError(f"No file matches {pattern!r}.")
        videos.update(dict.fromkeys(found))
    asked = [{"video": video, "question": question} for video in videos for question in questions]
    return [Row(number, columns) for number, columns in enumerate(asked, start=1)]


def _rows(content: bytes, name: str, *, table: bool) -> list[Row]:
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        try:
            json.loads(content)
        except (ValueError, RecursionError):
            pass
        else:
            raise UsageError(f"{name} is one JSON array; give a JSON object on each line (jq -c '.[]' makes them).")
    rows = list(_table(content, name) if table else _lines(content))
    if not rows:
        raise UsageError(f"{name} holds no row.")
    return rows


def _lines(content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                value = json.loads(line, parse_constant=_refuse, parse_float=_finite)
            except (ValueError, RecursionError):
                text = line.decode(errors="replace").strip()
                yield Row(number, text, "This line is not JSON.")
                continue
            error = None if isinstance(value, dict) else "This line is not a JSON object."
            yield Row(number, value, error)


def _table(content: bytes, name: str) -> Iterator[Row]:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text.") from None
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        heads = [head.strip() for head in next(reader, [])]
    except csv.Error:
        heads = []
    if "video" not in heads or "question" not in heads:
        found = f"; here it is {','.join(heads)[:SHOWN]!r}" if any(heads) else ""
        raise UsageError(
            f"{name}: the first line of a CSV table names its columns, video and question among them{found}."
        )
    if len(set(heads)) < len(heads):
        raise UsageError(f"{name}: two columns have the same name.")
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(number, None, f"This line is not valid CSV: {error}.")
            continue
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(heads):
            yield Row(number, cells, f"This line has {plural(len(cells), 'cell')}, the first line {len(heads)}.")
        else:
            yield Row(number, dict(zip(heads, cells, strict=True)))


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
