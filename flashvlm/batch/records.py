"""The file of records: one per row, which a run continues where another stopped."""

from __future__ import annotations

from pathlib import Path

from flashvlm.batch.plan import DIGITS, Plan
from flashvlm.batch.table import Table
from flashvlm.journal import Journal, Record, difference, other_settings
from flashvlm.options import OF_ROWS


class Records(Journal):
    """The file at `path` during one run of `plan`.

    `answered` and `failed` are the keys of the plan that the file already has, with an answer or an error; `others`
    counts records of rows that are not in the plan. They stay.
    """

    def __init__(self, path: Path, plan: Plan, *, retry_failed: bool = False, table: Table | None = None) -> None:
        """Open or create the file (see `Journal`).

        Args:
            retry_failed: without the records of rows that failed.
            table: how records become rows of a table, if they are no lines of JSON.
        """
        self.answered: set[str] = set()
        self.failed: set[str] = set()
        self.others = 0
        self._plan, self._keys = plan, set(plan.keys)
        first = table.head if table else b'{"key": "'
        super().__init__(path, "record of flashvlm batch", first, self._take, table)
        if retry_failed and self.failed:
            self.drop(lambda record: record["key"] in self.failed)
            self.failed = set()

    def _take(self, record: Record) -> bool:
        key = record.get("key")
        if not isinstance(key, str) or "row" not in record:
            return False
        if key[: DIGITS // 2] != self._plan.run:
            raise other_settings(self.path, self._difference(record))
        if key not in self._keys:
            self.others += 1
        else:
            (self.failed if "error" in record else self.answered).add(key)
        return True

    def _difference(self, record: Record) -> str:
        columns = record["row"].keys() if isinstance(record["row"], dict) else set()
        model = {"model": record["model"]["name"]} if "model" in record else {}
        there, here = _flat({**record.get("settings", {}), **model}), _flat(self._plan.settings)
        # A row may have options of its own; a record of an error shows none.
        shown = [name for name in here if name in there and not (name in OF_ROWS and name in columns)]
        what = difference({name: there[name] for name in shown}, {name: here[name] for name in shown})
        return what or "the model, its weights, its dtype, an option or the server is another"


def _flat(settings: Record) -> Record:
    """Settings with those of the sampling moved to the top level."""
    return {**settings, **settings.get("sampling", {}), "sampling": None}
