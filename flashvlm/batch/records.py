"""The file of records: one per row, which a run continues where another stopped."""

from __future__ import annotations

from pathlib import Path

from flashvlm.batch.plan import DIGITS, Plan, Record
from flashvlm.journal import Journal, difference
from flashvlm.options import OF_ROWS


class Records(Journal):
    """The file at `path` during one run of `plan`.

    `answered` and `failed` are the keys of the plan that the file already has, with an answer or an error; `others`
    counts records of rows that are not in the plan. They stay.
    """

    kind, first = "record of flashvlm batch", b'{"key": "'

    def __init__(self, path: Path, plan: Plan, *, retry_failed: bool = False) -> None:
        """Open or create the file (see `Journal`).

        Args:
            retry_failed: remove the records of rows that failed, so that they can be tried again.

        Raises:
            UsageError: another run writes to it, or it holds something else or records made with other settings; the
                message names the first setting that differs, if the records show it.
        """
        self.answered: set[str] = set()
        self.failed: set[str] = set()
        self.others = 0
        self._plan, self._keys, self._retry_failed = plan, set(plan.keys), retry_failed
        super().__init__(path)

    def take(self, record: Record) -> bool:
        key = record.get("key")
        if not isinstance(key, str) or "row" not in record:
            return False
        if key[: DIGITS // 2] != self._plan.run:
            self._refuse(record)
        if key not in self._keys:
            self.others += 1
        else:
            (self.failed if "error" in record else self.answered).add(key)
        return True

    def opened(self) -> None:
        if self._retry_failed and self.failed:
            self.drop(lambda record: record["key"] in self.failed)
            self.failed = set()

    def _refuse(self, record: Record) -> None:
        columns = record["row"].keys() if isinstance(record["row"], dict) else set()
        model = {"model": record["model"]["name"]} if "model" in record else {}
        there, here = _flat({**record.get("settings", {}), **model}), _flat(self._plan.settings)
        # A row may have options of its own; a record of an error shows none.
        shown = [name for name in here if name in there and not (name in OF_ROWS and name in columns)]
        what = difference({name: there[name] for name in shown}, {name: here[name] for name in shown})
        self.refuse(what or "the model, its weights, its dtype or an option is another")


def _flat(settings: Record) -> Record:
    """Settings with those of the sampling moved to the top level."""
    return {**settings, **settings.get("sampling", {}), "sampling": None}
