"""Accuracy against budget: each video decoded and encoded once, each question answered from every selection.

With `look="twice"`, the second look is taken once per question, always for the true one. A `Run` collects one record
per question, in a file that it can continue from; `summarise` makes the table.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvlm import models
from flashvlm.bench import own, scoring
from flashvlm.bench.ablation import ABLATIONS, ablated
from flashvlm.bench.data import Asked, DataSet
from flashvlm.errors import UsageError, VideoError, known, sentence_of
from flashvlm.journal import Journal, Record, difference, other_settings
from flashvlm.options import NO_MATTER, AskOptions, Keep
from flashvlm.report import code_digest, versions
from flashvlm.selection import BY_CONTENT, SELECTORS, Selector

if TYPE_CHECKING:
    from torch import Tensor

    from flashvlm.encode import Encoded
    from flashvlm.pipeline import VideoQA
    from flashvlm.selection.result import Selection

UNPRUNED = "100%"
# A batch of answers holds at most this many tokens, or a single answer.
BATCH_TOKENS = 2**15
# What the record of a question has, at least.
RECORD = {"clip", "question", "text", "answer", "family", "choices", "tokens", "unpruned", "pruned"}


@dataclass(frozen=True)
class Settings:
    """What an accuracy run measures, apart from which videos.

    `keep` holds budgets as `Keep.parse` reads them; the unpruned model is measured whether it is among them or not.
    `options` are those of `ask`; but answers are greedy, and `keep` and `selector` stand for nothing. `words`:
    selectors get the words of the `question`, or of an `unrelated` one. `noise`: selectors get tokens with Gaussian
    noise of this share of each token's norm. The model still gets the true question and the clean tokens.

    Raises:
        UsageError: a value that makes no sense.
    """

    model: str
    selectors: tuple[str, ...]
    keep: tuple[str, ...]
    options: AskOptions = field(default_factory=AskOptions)
    words: str = "question"
    noise: float = 0.0
    revision: str | None = None
    device: str = "cpu"
    dtype: str = "float32"

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
    def hampered(self) -> bool:
        """Whether selectors get other words, noisy tokens or another metric than `flashvlm ask` uses by default."""
        return (self.words, self.noise, self.options.metric) != (Settings.words, Settings.noise, AskOptions.metric)

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets that prune, without duplicates, in the order given."""
        texts: dict[Keep, str] = {}
        for text in self.keep:
            texts.setdefault(Keep.parse(text), text)
        return tuple(text for keep, text in texts.items() if keep.share != 1)

    def identity(self, data: DataSet) -> dict[str, Any]:
        """Everything that results depend on, as JSON; results with the same identity may share a file."""
        settings = self.options.flat() | vars(self)
        return {
            **data.identity,
            **{name: value for name, value in settings.items() if name not in ("options", "selector", *NO_MATTER)},
            "selectors": list(self.selectors),
            "keep": [UNPRUNED, *self.budgets],
            "weights": models.fingerprint(models.fetch(self.model, self.revision)),
            **versions(),
            "code": code_digest(),
            **{name: own.digest(name) for name in self.selectors if own.is_own(name)},
        }


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
    """An accuracy run over the videos `numbers` of a data set.

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
            _function(name)
        self.identity = settings.identity(data)
        self._results: Journal | None = None
        there: list[Record] = []
        if results:
            self._results, there = _opened(results, self.identity)
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
        """`summarise` of all records, with the settings that they depend on and what was left out."""
        table = summarise(self.settings, self.data, self.records)
        answered = Counter(record["clip"] for record in self.records)
        left_out = [
            {"clip": number, "questions": len(self.data.questions(number)) - answered[number], "message": message}
            for number, message in sorted(self.unreadable.items())
        ]
        numbers = {"begin": self.numbers[0], "end": self.numbers[-1]}
        return {**table, "settings": self.identity, **numbers, "unreadable": left_out}


def _opened(path: Path, identity: dict[str, Any]) -> tuple[Journal, list[Record]]:
    """The file of results and the records in it. Its first line holds the settings, which are those of the run."""
    lines: list[Record] = []

    def take(line: Record) -> bool:
        if not lines and "settings" in line and (what := difference(line["settings"], identity)):
            raise other_settings(path, what)
        lines.append(line)
        return line.keys() >= (RECORD if lines[1:] else {"settings"})

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
        return number, measure(qa, settings, data, number, places)
    except VideoError as error:
        return number, sentence_of(error)


def load(settings: Settings) -> VideoQA:
    """The model of these settings."""
    from flashvlm import VideoQA

    return VideoQA.from_pretrained(
        settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision
    )


def measure(
    qa: VideoQA, settings: Settings, data: DataSet, number: int, places: Sequence[int] | None = None
) -> list[Record]:
    """Answer the questions `places` (None: all) about video `number`, unpruned and from every selection.

    Raises:
        VideoError: the video cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        watched = qa.watch(data.video(number, Path(folder)), settings.options)
    questions = data.questions(number)
    records = []
    for place in range(len(questions)) if places is None else places:
        asked = questions[place]
        seen = qa.look_again(watched, scoring.prompt(asked), settings.options)
        begin = time.perf_counter()
        unpruned, pruned = _answers(qa, settings, data, seen.encoded, number, place)
        records.append(
            {
                "clip": number,
                "question": place,
                **asdict(asked),
                "tokens": len(seen.encoded.tokens),
                "unpruned": unpruned,
                "pruned": pruned,
                "seconds": {
                    "decode": round(seen.decode_seconds, 4),
                    "encode": round(seen.encode_seconds, 4),
                    "answers": round(time.perf_counter() - begin, 4),
                },
            }
        )
    return records


def _answers(
    qa: VideoQA, settings: Settings, data: DataSet, encoded: Encoded, number: int, place: int
) -> tuple[Record, dict[str, dict[str, Record]]]:
    """The model's answers with all tokens, and from each selection (by budget, then selector)."""
    import torch

    from flashvlm.generate import answers

    asked = data.questions(number)[place]
    text = scoring.prompt(asked)
    own_words = qa.backend.words(text)
    words = own_words if settings.words == "question" else qa.backend.words(data.unrelated(number, asked))
    seen = _noisy(encoded.tokens, settings.noise, seed=number)
    pruned: dict[str, dict[str, Record]] = {}
    # Answers from the same number of tokens are generated as one batch.
    batches: dict[int, list[tuple[Record, Tensor, Tensor, Tensor | None]]] = {}
    for budget in settings.budgets:
        pruned[budget] = {}
        for selector in settings.selectors:
            begin = time.perf_counter()
            selection = _select(settings, encoded, seen, words, selector, Keep.parse(budget))
            record: Record = {"kept": len(selection.indices), "seconds": round(time.perf_counter() - begin, 6)}
            record["delta"] = round(selection.delta, 6)
            if settings.hampered:
                usual = replace(settings, options=settings.options.changed(metric=AskOptions.metric, merge=False))
                unhampered = _select(usual, encoded, encoded.tokens, own_words, selector, Keep.parse(budget))
                record["same"] = round(torch.isin(selection.indices, unhampered.indices).float().mean().item(), 6)
            pruned[budget][selector] = record
            kept = batches.setdefault(len(selection.indices), [])
            planes = None if encoded.planes is None else selection.pooled(encoded.planes)
            kept.append((record, selection.indices, selection.vectors, planes))
    unpruned: Record = {}
    everything = torch.arange(len(encoded.tokens), device=encoded.tokens.device)
    batches.setdefault(len(everything), []).append((unpruned, everything, encoded.tokens, encoded.planes))
    prompt = qa.backend.prompt(text, settings.options.system, [encoded])
    for count, batch in batches.items():
        size = max(1, BATCH_TOKENS // count)
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            further = [planes for _, _, _, planes in part if planes is not None]
            said = answers(
                qa.backend,
                prompt,
                torch.stack([indices for _, indices, _, _ in part]),
                torch.stack([vectors for _, _, vectors, _ in part]),
                torch.stack(further, dim=1) if further else None,
                max_new_tokens=settings.options.max_new_tokens,
            )
            for (record, *_), answer in zip(part, said, strict=True):
                record |= {"said": answer, "right": scoring.right(asked, answer)}
    return unpruned, pruned


def _select(settings: Settings, encoded: Encoded, seen: Tensor, words: Tensor, selector: str, keep: Keep) -> Selection:
    from flashvlm.selection import select

    count = len(seen)
    selection = select(
        seen,
        encoded.saliency,
        words,
        group_sizes=encoded.group_sizes,
        budget=keep.budget(count),
        delta=keep.delta,
        selector=_function(selector),
        metric=settings.options.metric,
        seed=settings.options.seed,
    )
    if seen is not encoded.tokens:
        selection = selection.remade(encoded.tokens)
    return selection.merged() if settings.options.merge else selection


def _function(selector: str) -> str | Selector:
    """What `select` takes for a selector of this name."""
    if own.is_own(selector):
        return own.of_file(selector)
    return ablated(selector) if selector in ABLATIONS else selector


def _noisy(tokens: Tensor, share: float, seed: int) -> Tensor:
    """(N, D) tokens with Gaussian noise of about `share` of each token's own length; unchanged at 0."""
    import torch

    if not share:
        return tokens
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    scale = share * tokens.float().norm(dim=1, keepdim=True) / tokens.shape[1] ** 0.5
    return (tokens.float() + scale * noise).to(tokens.dtype)


def summarise(settings: Settings, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
    """The table: overall and by family, the unpruned model and every selector at every budget.

    Every row has `accuracy` with its 95 % interval. Rows of selectors also have `retention` (the share of the unpruned
    accuracy on the same questions) and, except for the first selector, `difference` in accuracy to the first selector
    at the same budget, both with paired bootstrap intervals (None if all clips are alike); `tie` says that the interval
    of the difference includes 0. Overall rows have `kept` (mean share of tokens), `seconds` (median time of the
    selection) and `delta` (mean coverage radius) and, if selectors are `hampered`, `same`: the mean share of the kept
    tokens that they would also keep otherwise. `known_to` is half of the widest interval; if it is too wide,
    `needed` is how many questions tell the accuracy to `within`, else None. `chance_takes` is how many of each family
    tell what chance is.
    """
    records = sorted(records, key=lambda record: (record["clip"], record["question"]))
    columns = [(budget, selector) for budget in settings.budgets for selector in settings.selectors]
    correct = np.array(
        [[r["unpruned"]["right"], *(r["pruned"][b][s]["right"] for b, s in columns)] for r in records], dtype=bool
    ).reshape(len(records), 1 + len(columns))
    asked = [Asked(r["text"], r["answer"], r["family"], tuple(r["choices"])) for r in records]
    clips = np.array([record["clip"] for record in records])
    families = list(dict.fromkeys(sorted(one.family for one in asked)))
    sections: list[Record] = []
    for family in ["all", *(families if len(families) > 1 else [])]:
        chosen = np.array([family in ("all", one.family) for one in asked])
        rows = _rows(columns, correct[chosen], clips[chosen], len(settings.selectors))
        if family == "all":
            for row, (budget, selector) in zip(rows[1:], columns, strict=True):
                ours = [(record["pruned"][budget][selector], record["tokens"]) for record in records]
                row["kept"] = float(np.mean([one["kept"] / tokens for one, tokens in ours]))
                row["seconds"] = float(np.median([one["seconds"] for one, _ in ours]))
                row["delta"] = float(np.mean([one["delta"] for one, _ in ours]))
                if settings.hampered:
                    row["same"] = float(np.mean([one["same"] for one, _ in ours]))
        some = [one for one, ours in zip(asked, chosen, strict=True) if ours]
        chance = {"chance": scoring.chance(some, data.guesses), "chance_at_most": scoring.too_few(some)}
        sections.append({"family": family, "count": len(some), **chance, "rows": rows})
    return {
        "questions": len(records),
        "clips": len(set(clips.tolist())),
        **_known(sections[0]["rows"], len(records)),
        "chance_takes": scoring.FEW,
        "sections": sections,
    }


def _known(rows: Sequence[Record], count: int) -> Record:
    """How well the accuracies are known, as in `summarise`."""

    def half(row: Record) -> float:
        low, high = row["accuracy_interval"]
        return (high - low) / 2

    widest = max(rows, key=half)
    needed = scoring.needed(widest["accuracy"], count) if half(widest) > scoring.TOO_WIDE else None
    return {"known_to": half(widest), "needed": needed, "within": scoring.WITHIN}


def _rows(columns: Sequence[tuple[str, str]], correct: np.ndarray, clips: np.ndarray, selectors: int) -> list[Record]:
    samples = scoring.resample(correct, clips)
    means, count = correct.mean(axis=0), len(np.unique(clips))
    with np.errstate(divide="ignore", invalid="ignore"):
        retained = samples / samples[:, :1]
    rows: list[Record] = [
        {
            "keep": UNPRUNED,
            "selector": None,
            "accuracy": float(means[0]),
            "accuracy_interval": scoring.share_interval(samples[:, 0], count),
        }
    ]
    for place, (budget, selector) in enumerate(columns, start=1):
        first = 1 + (place - 1) // selectors * selectors
        row: Record = {
            "keep": budget,
            "selector": selector,
            "accuracy": float(means[place]),
            "accuracy_interval": scoring.share_interval(samples[:, place], count),
            "retention": float(means[place] / means[0]) if means[0] else None,
            "retention_interval": scoring.interval(retained[:, place]),
        }
        if place != first:
            row["difference"] = float(means[place] - means[first])
            row["difference_interval"] = scoring.interval(samples[:, place] - samples[:, first])
            between = row["difference_interval"]
            row["tie"] = None if between is None else between[0] <= 0 <= between[1]
        rows.append(row)
    return rows
