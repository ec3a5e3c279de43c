"""A run over a plan: what is left to do, each record stored as it comes, and the progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from flashvlm.batch.plan import Group, Plan
from flashvlm.batch.records import Records
from flashvlm.journal import Record

# Loads what it needs when it is called, and answers while the iterator is read.
Engine = Callable[[Sequence[Group]], Iterator[Record]]


class Run:
    """The rows of a plan that have no record yet. The counts show the progress; times are in seconds."""

    def __init__(self, plan: Plan, records: Records | None = None, compact: bool = False) -> None:
        """
        Args:
            records: where records are stored and those of earlier runs are found; None stores nothing.
            compact: records have no `moments`, which are most of their length.
        """
        self.plan, self.records, self.compact = plan, records, compact
        before = records.answered | records.failed if records else set()
        self.groups = plan.groups(before)
        self.refused = [record for record in plan.refused if record["key"] not in before]
        self.total = len(plan.items) + len(plan.refused)
        self.answered_before = len(records.answered) if records else 0
        self.failed_before = len(records.failed) if records else 0
        self.answered = 0
        self.failed: Counter[str] = Counter()
        # Those of which something was answered.
        self.videos: set[str] = set()
        self._given = 0
        self._left = {item.key: item for group in self.groups for item in group}
        self._begin = time.monotonic()

    @property
    def to_do(self) -> int:
        """How many rows have no record yet."""
        return len(self.refused) + len(self._left)

    @property
    def done(self) -> int:
        """How many rows have a record, including those of earlier runs."""
        return self.total - self.to_do

    @property
    def unanswered(self) -> int:
        """How many rows have an error instead of an answer, including those of earlier runs."""
        return self.failed.total() + self.failed_before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    @property
    def videos_a_minute(self) -> float:
        return 60 * len(self.videos) / max(self.seconds, 1e-9)

    @property
    def seconds_to_go(self) -> float | None:
        """The time left at the pace so far; None before there is one."""
        return self.seconds / self._given * len(self._left) if self._given else None

    def answer(self, engine: Engine) -> Iterator[Record]:
        """Every record that is missing, as soon as it is there and stored.

        Raises:
            FlashVLMError: a record cannot be stored.
        """
        # Before any record: a model that cannot be loaded is not a row's error.
        records = engine(self.groups) if self.groups else iter(())
        self._begin = time.monotonic()
        while self.refused:
            self._keep(self.refused[0])
            yield self.refused.pop(0)
        for record in records:
            # An engine whose workers can be lost may send a record twice.
            if record["key"] in self._left:
                self._keep(record)
                self._given += 1
                item = self._left.pop(record["key"])
                if "error" not in record:
                    self.videos.add(item.video)
                yield record

    def _keep(self, record: Record) -> None:
        if self.compact:
            record.pop("moments", None)
        if self.records is not None:
            self.records.write(record)
        if "error" in record:
            self.failed[record["error"]["kind"]] += 1
        else:
            self.answered += 1
