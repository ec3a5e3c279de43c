"""What the benchmarks of selectors share: their settings, and a run over videos that continues where it stopped.

A `Run` collects one record per question, in a file that it can continue from; the settings say how a video is measured
and what the table is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flashvlm import models
from flashvlm.bench import own
from flashvlm.bench.ablation import ABLATIONS
from flashvlm.bench.data import DataSet
from flashvlm.errors import UsageError, VideoError, known, sentence_of
from flashvlm.journal import Journal, Record, difference, other_settings
from flashvlm.options import NO_MATTER, AskOptions, Keep
from flashvlm.report import code_digest, versions
from flashvlm.selection import BY_CONTENT, SELECTORS

if TYPE_CHECKING:
    from flashvlm.pipeline import VideoQA

UNPRUNED = "100%"


@dataclass(frozen=True)
class Settings(ABC):
    """What a run measures, apart from which videos: a benchmark adds how, and its own settings.

    `keep` holds budgets as `Keep.parse` reads them; the unpruned model is measured whether it is among them or not.
    `options` are those of `ask`; but answers are greedy, and `keep` and `selector` stand for nothing.

    Raises:
        UsageError: a value that makes no sense.
    """

    model: str
    selectors: tuple[str, ...]
    keep: tuple[str, ...]
    options: AskOptions = field(default_factory=AskOptions)
    revision: str | None = None
    device: str = "cpu"
    dtype: str = "float32"

    # What a record has, at least, and the settings that no record depends on.
    record: ClassVar[frozenset[str]]
    shown_only: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for selector in self.selectors:
            if own.is_own(selector):
                own.digest(selector)
            elif selector not in ABLATIONS:
                known("selector", selector, SELECTORS)
        if len(set(self.selectors)) < max(1, len(self.selectors)):
            raise UsageError("Name at least one selector, and each once.")
        if not self.keep:
            raise UsageError("--keep takes budgets, such as 100%,10%.")
        others = [selector for selector in self.selectors if selector != BY_CONTENT]
        for text in self.keep:
            if others and Keep.parse(text).by_content:
                raise UsageError(f"--keep {text} is for --selectors {BY_CONTENT}; {others[0]} takes shares and counts.")

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets that prune, without duplicates, in the order given."""
        texts: dict[Keep, str] = {}
        for text in self.keep:
            texts.setdefault(Keep.parse(text), text)
        return tuple(text for keep, text in texts.items() if keep.share != 1)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Every budget with every selector, budget by budget."""
        return [(budget, selector) for budget in self.budgets for selector in self.selectors]

    def identity(self, data: DataSet) -> dict[str, Any]:
        """Everything that results depend on, as JSON; results with the same identity may share a file."""
        settings = self.options.flat() | vars(self)
        left_out = {"options", "selector", *NO_MATTER, *self.shown_only}
        return {
            **data.identity,
            **{name: value for name, value in settings.items() if name not in left_out},
            "selectors": list(self.selectors),
            "keep": [UNPRUNED, *self.budgets],
            "weights": models.fingerprint(models.fetch(self.model, self.revision)),
            **versions(),
            "code": code_digest(),
            **{name: own.digest(name) for name in self.selectors if own.is_own(name)},
        }

    @abstractmethod
    def measure(self, qa: VideoQA, data: DataSet, number: int, places: Sequence[int] | None = None) -> list[Record]:
        """One record for each of the questions `places` (None: all) about video `number`.

        Raises:
            VideoError: the video cannot be read.
        """

    @abstractmethod
    def summarise(self, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
        """The table of these records."""


def resolved(device: str, dtype: str) -> tuple[str, str]:
    """The device and dtype to use, with `auto` resolved.

    On the CPU, the dtype `auto` is float32: it is as fast as bfloat16 on the demo model, and answers do not depend on
    the machine.

    Raises:
        UsageError: the device is not available.
    """
    from flashvlm.backends.loading import choose_device, choose_dtype

    device = choose_device(device)
    if dtype != "auto":
        return device, dtype
    return device, "float32" if device == "cpu" else str(choose_dtype(dtype, device)).removeprefix("torch.")


class Run:
    """A run over the videos `numbers` of a data set.

    `records` holds one record per question: those already in the results file, and those that `answer` adds;
    `unreadable` what is wrong with each video that `answer` could not read, by number. The file stays locked until the
    context ends.
    """

    def __init__(self, settings: Settings, data: DataSet, numbers: Sequence[int], results: Path | None = None) -> None:
        """Begin, or continue from the file `results`.

        Raises:
            UsageError: `results` holds something else, was made with other settings, or is in use by another run.
            ModelError: the model is not available.
        """
        self.settings, self.data, self.numbers = settings, data, numbers
        for name in settings.selectors:
            # What is wrong with one is told before the model is loaded.
            own.function(name)
        self.identity = settings.identity(data)
        self._results: Journal | None = None
        there: list[Record] = []
        if results:
            self._results, there = _opened(results, self.identity, settings.record)
        wanted = set(numbers)
        done: dict[tuple[int, int], Record] = {}
        for record in there:
            if record["clip"] in wanted:
                done.setdefault((record["clip"], record["question"]), record)
        self.records: list[Record] = list(done.values())
        self.unreadable: dict[int, str] = {}
        begun = {number for number, _ in done}
        self._jobs: list[Job] = []
        for number in numbers:
            # Some clips take long to generate, so those without a record yet are left to `answer`.
            if number not in begun:
                self._jobs.append((number, None))
            elif left := tuple(p for p in range(len(data.questions(number))) if (number, p) not in done):
                self._jobs.append((number, left))
        self._left = len(self._jobs)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self._results:
            self._results.close()

    @property
    def done(self) -> int:
        """How many of the videos are finished."""
        return len(self.numbers) - self._left

    def answer(self, workers: int = 1) -> Iterator[None]:
        """Answer what is left in `workers` processes: one step per video, written as soon as it is finished.

        Raises:
            VideoError: not one of the videos can be read.
        """
        with contextlib.closing(_finished(self.settings, self.data, self._jobs, workers)) as finished:
            for number, records in finished:
                if isinstance(records, str):
                    self.unreadable[number] = records
                else:
                    if self._results:
                        for record in records:
                            self._results.write(record)
                    self.records += records
                    self._left -= 1
                yield
        if self.unreadable and not self.records:
            raise VideoError(next(iter(self.unreadable.values())))

    def table(self) -> dict[str, Any]:
        """The table of all records, with the settings that they depend on and what was left out."""
        table = self.settings.summarise(self.data, self.records)
        answered = Counter(record["clip"] for record in self.records)
        left_out = [
            {"clip": number, "questions": len(self.data.questions(number)) - answered[number], "message": message}
            for number, message in sorted(self.unreadable.items())
        ]
        numbers = {"begin": self.numbers[0], "end": self.numbers[-1]}
        return {**table, "settings": self.identity, **numbers, "unreadable": left_out}


def _opened(path: Path, identity: dict[str, Any], record: frozenset[str]) -> tuple[Journal, list[Record]]:
    """The file of results and the records in it. Its first line holds the settings, which are those of the run."""
    lines: list[Record] = []

    def take(line: Record) -> bool:
        if not lines and "settings" in line and (what := difference(line["settings"], identity)):
            raise other_settings(path, what)
        lines.append(line)
        return line.keys() >= (record if lines[1:] else {"settings"})

    journal = Journal(path, "result of flashvlm bench", b'{"settings"', take)
    if not lines:
        journal.write({"settings": identity})
    return journal, lines[1:]


# A video, and which of its questions to answer (None: all of them).
Job = tuple[int, tuple[int, ...] | None]
# A video with the records of its questions, or what is wrong with it.
Outcome = tuple[int, list[Record] | str]


def _finished(settings: Settings, data: DataSet, jobs: Sequence[Job], workers: int) -> Generator[Outcome]:
    workers = min(workers, len(jobs))
    if workers < 2:
        if jobs:
            qa = load(settings)
            yield from (_attempt(qa, settings, data, *job) for job in jobs)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Spawned, not forked: a process that has used torch or CUDA must not fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (settings, data, threads))
    try:
        with _interrupts_held():
            answers = [pool.submit(_work, *job) for job in jobs]
        for done in as_completed(answers):
            yield done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Make processes that start in this context ignore Ctrl-C, which is for their parent to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_worker: tuple[VideoQA, Settings, DataSet]


def _start_worker(settings: Settings, data: DataSet, threads: int) -> None:
    import torch

    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker = load(settings), settings, data


def _end_with_parent() -> None:
    """Exit when the parent does: workers are not notified if it is killed, and would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int, places: tuple[int, ...] | None) -> Outcome:
    return _attempt(*_worker, number, places)


def _attempt(qa: VideoQA, settings: Settings, data: DataSet, number: int, places: tuple[int, ...] | None) -> Outcome:
    try:
        return number, settings.measure(qa, data, number, places)
    except VideoError as error:
        return number, sentence_of(error)


def load(settings: Settings) -> VideoQA:
    """The model of these settings."""
    from flashvlm import VideoQA

    return VideoQA.from_pretrained(
        settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision
    )
