"""What is to be done: rows turned into questions with options, and grouped by video."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashvlm import models, web
from flashvlm.batch.rows import Row
from flashvlm.errors import FlashVLMError, UsageError, described
from flashvlm.files import refuse_address
from flashvlm.journal import Record
from flashvlm.options import NO_MATTER, OF_ROWS, OPTIONS, AskOptions, watching

DIGITS = 16


@dataclass(frozen=True)
class Item:
    """One row to be answered: the beginning of its record, its video and question, and its own options."""

    head: Record
    video: str
    question: str
    options: AskOptions

    @property
    def key(self) -> str:
        return self.head["key"]

    @property
    def view(self) -> str:
        """The video and how it is looked at."""
        return json.dumps([self.video, watching(self.options)], sort_keys=True)

    def failed(self, error: BaseException) -> Record:
        """Its record, if this error came up."""
        return {**self.head, "error": described(error)}


# Items of one `view`: they look at the same frames of one video, which is decoded and encoded once.
Group = tuple[Item, ...]


@dataclass(frozen=True)
class Plan:
    """All rows of a run. `settings` are those that every answer depends on; their digest begins every key.

    `refused` are the records of rows that make no sense; the others are in `items`, in order.
    """

    settings: Record
    items: tuple[Item, ...]
    refused: tuple[Record, ...]

    @property
    def run(self) -> str:
        """What every key begins with."""
        return _digest(self.settings)[: DIGITS // 2]

    @property
    def keys(self) -> list[str]:
        return [item.key for item in self.items] + [record["key"] for record in self.refused]

    def groups(self, skipped: set[str]) -> list[Group]:
        """The items whose keys are not `skipped`, grouped by video and frames, ordered by each group's first item."""
        gathered: dict[str, list[Item]] = {}
        for item in self.items:
            if item.key not in skipped:
                gathered.setdefault(item.view, []).append(item)
        return [tuple(items) for items in gathered.values()]


def make_plan(rows: Sequence[Row], options: AskOptions, model: dict[str, Any], folder: Path | None) -> Plan:
    """Turn every row into an item, or refuse it.

    A row is identified by a digest of its columns and, among identical rows, by which of them it is: adding, removing
    or moving other rows changes nothing for it.

    Args:
        options: what applies unless a row says otherwise.
        model: the name, the revision and the dtype asked for.
        folder: what paths in the rows are relative to; None is the current folder.
    """
    weights = models.fingerprint_here(model["model"])
    settings = {**model, "weights": weights, **asdict(options), "keep": str(options.keep)}
    for name in NO_MATTER:
        del settings[name]
    plan = Plan(settings, (), ())
    run = plan.run
    alike: dict[str, int] = {}
    items, refused = [], []
    for row in rows:
        digest = _digest(row.columns)[:DIGITS]
        alike[digest] = number = alike.get(digest, 0) + 1
        key = f"{run}-{digest}" + (f"-{number}" if number > 1 else "")
        head = {"key": key, "line": row.line, "row": row.columns}
        try:
            if row.error:
                raise UsageError(row.error)
            video, question, own = _asked(row.columns, options)
        except FlashVLMError as error:
            refused.append({**head, "error": described(error)})
            continue
        items.append(Item(head, str(folder / video) if folder and not web.is_address(video) else video, question, own))
    return replace(plan, items=tuple(items), refused=tuple(refused))


def _asked(columns: dict[str, Any], options: AskOptions) -> tuple[str, str, AskOptions]:
    """The video, the question and the options of a row; an empty option counts as not given."""
    for name in ("video", "question"):
        value = columns.get(name)
        if value is None:
            raise UsageError(f"The column {name!r} is missing.")
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"The column {name!r} must be a non-empty text.")
    if not (web.is_address(columns["video"]) and web.available()):
        refuse_address(columns["video"])
    own: dict[str, Any] = {}
    for name in OF_ROWS:
        if (given := columns.get(name)) not in (None, ""):
            column, parse = f"The column {name!r}", OPTIONS[name].parse
            if not isinstance(given, str | int | float):
                raise UsageError(f"{column} must be a text or a number.")
            own[name] = parse(given, column) if parse else given
    return columns["video"], columns["question"].strip(), options.changed(**own)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
