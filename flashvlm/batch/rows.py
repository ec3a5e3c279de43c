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

from flashvlm import web
from flashvlm.errors import UsageError
from flashvlm.files import VIDEOS
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
    """Every question on every video that a path or pattern names (`clips/*.mp4`, `**` for nested folders), or that is
    in a folder.

    Raises:
        UsageError: no file matches a pattern, or a folder has no videos.
    """
    videos: dict[str, None] = {}
    for pattern in patterns:
        # A file may have exactly this name, brackets and all.
        alone = os.path.isfile(pattern) or web.is_address(pattern)
        found = [pattern] if alone else sorted(glob.glob(pattern, recursive=True))
        if os.path.isdir(pattern):
            names = sorted(name for name in os.listdir(pattern) if Path(name).suffix.lower() in VIDEOS)
            found = [os.path.join(pattern, name) for name in names]
            if not found:
                raise UsageError(f"There is no video in the folder {pattern!r}; its folders are not looked into.")
        found = [name for name in found if not os.path.isdir(name)]
        if not found:
            raise UsageError(f"No file matches {pattern!r}.")
        videos.update(dict.fromkeys(found))
    return of_paths(list(videos), questions)


def of_paths(videos: Sequence[str], questions: Sequence[str]) -> list[Row]:
    """Every question on every one of these videos."""
    asked = [{"video": video, "question": question} for video in videos for question in questions]
    return [Row(number, columns) for number, columns in enumerate(asked, start=1)]


def paths_of(content: bytes) -> list[str]:
    """The paths of standard input: one a line, or as `find -print0` ends them.

    Raises:
        UsageError: there are none, or these are rows.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\0" if b"\0" in content else b"\n")
    paths = [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
    if not paths:
        raise UsageError("Standard input is empty.")
    if paths[0].startswith("{") or {"video", "question"} <= {cell.strip() for cell in paths[0].split(",")}:
        raise UsageError("--question is for a list of videos; rows have their own.")
    return list(dict.fromkeys(paths))


def questions_of(path: Path) -> list[str]:
    """The questions of a file, one a line; empty lines do not count.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.") from None
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise UsageError(f"{path} holds no question.")
    return list(dict.fromkeys(questions))


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
