"""The selectors alone, on synthetic tokens: seconds, growth with the number of tokens, memory, coverage radius."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from flashvlm.bench import memory
from flashvlm.errors import UsageError, known
from flashvlm.options import Keep
from flashvlm.report import versions
from flashvlm.selection import SELECTORS

if TYPE_CHECKING:
    from torch import Tensor

    from flashvlm.selection.result import Selection

REFERENCE = "paper"
# A selector that is expected to take longer than this, in seconds, is left out at that size.
LONGEST = 60.0
# How long a call will take is estimated from a size that is at most this factor smaller. Up to this many tokens,
# selectors are called without an estimate.
STEP = 4
PROBED_FROM = 4096
# The exponent of growth that is assumed until two sizes have been measured: between linear and cubic.
GROWTH = 2.0
WARM_UP_TOKENS = 256

# The synthetic video: how many cells of a group look alike, the share of cells that change from one group to the next,
# the spread of tokens with the same look, and the number of words in the question.
CELLS_ALIKE = 4
CHANGED_SHARE = 0.02
SPREAD = 0.3
WORDS = 8

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured: `selectors` at each number of `tokens` of `width`, in groups of `group` tokens.

    Raises:
        UsageError: a value that makes no sense.
    """

    selectors: tuple[str, ...] = SELECTORS
    tokens: tuple[int, ...] = (1024, 4096, 16384)
    width: int = 1536
    keep: str = "10%"
    group: int = 256
    repeats: int = 5

    def __post_init__(self) -> None:
        if not self.tokens or min(self.tokens) < 2:
            raise UsageError("--tokens takes numbers of tokens, each at least 2.")
        for name, value in (("--width", self.width), ("--groups-of", self.group), ("--repeat", self.repeats)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")
        if list(self.tokens) != sorted(set(self.tokens)):
            raise UsageError("--tokens must rise from one number to the next.")
        for selector in self.selectors:
            known("selector", selector, SELECTORS)
        if len(set(self.selectors)) < len(self.selectors):
            raise UsageError("Name each selector once.")
        Keep.parse(self.keep)


def clustered(count: int, width: int, group: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of `select` for a synthetic video, deterministic for given arguments.

    Each cell of a group has one of `group / CELLS_ALIKE` looks, which are Gaussian vectors; from one group to the next,
    `CHANGED_SHARE` of the cells get a new random look. A token is the look of its cell plus Gaussian noise of `SPREAD`
    of its length. Saliency is uniformly random. Half of the words are near tokens, as tokens are near their look; the
    other half are independent Gaussian vectors.

    Returns:
        `tokens` (count, width) float32, `saliency` (count,), `words` (WORDS, width) and `group_sizes`, the last of
        which may be smaller.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator)

    looks = draw(max(1, group // CELLS_ALIKE))
    cells = looks[torch.randint(len(looks), (group,), generator=generator)]
    tokens = draw(count).mul_(SPREAD)
    for part in tokens.split(group):
        part += cells[: len(part)]
        changed = torch.rand(group, generator=generator) < CHANGED_SHARE
        cells[changed] = draw(int(changed.sum()))
    words = draw(WORDS)
    near = torch.randint(count, (WORDS // 2,), generator=generator)
    words[: len(near)] = words[: len(near)] * SPREAD + tokens[near]
    sizes = [len(part) for part in tokens.split(group)]
    saliency = torch.rand(count, generator=generator)
    return {"tokens": tokens, "saliency": saliency, "words": words, "group_sizes": sizes}


class SelectionRun:
    """Times every selector at every size: `measure` does so step by step, `table` returns the results."""

    def __init__(self, settings: Settings, peaks: bool = True) -> None:
        self.settings = settings
        self._peaks = peaks and memory.measurable()
        self._rows: dict[tuple[int, str], Row] = {}
        self._history: dict[str, list[tuple[int, float]]] = {name: [] for name in settings.selectors}

    @property
    def steps(self) -> int:
        """How many steps `measure` takes."""
        return len(self.settings.tokens) * len(self.settings.selectors) * (self.settings.repeats + 1)

    def measure(self) -> Iterator[None]:
        """Measure: repeats go round the selectors, so that a slow moment of the machine affects all of them."""
        settings = self.settings
        _warm_up(settings)
        for count in settings.tokens:
            inputs = clustered(count, settings.width, settings.group)
            keep = Keep.parse(settings.keep)
            expected = {name: self._expected(name, count) for name in settings.selectors}
            seconds: dict[str, list[float]] = {name: [] for name in settings.selectors}
            last: dict[str, Selection] = {}
            for _ in range(settings.repeats):
                for name in settings.selectors:
                    if expected[name] <= LONGEST:
                        took, last[name] = _timed(inputs, keep, name)
                        seconds[name].append(took)
                    yield
            for name in settings.selectors:
                self._rows[count, name] = self._row(count, name, seconds[name], last.get(name), expected[name])
                yield

    def table(self) -> dict[str, Any]:
        """Rows by size and selector.

        Each has the median `seconds` (with the `fastest` and `slowest`), `against_paper` (how many times as long the
        published selector takes), `growth` (seconds at this size over those at the size before), `peak_bytes` on top of
        the input (None if not measured), the measured `delta`, and the `delta_seconds` that measuring it took. A row
        that is left out has `skipped`, the expected seconds; None if even a smaller size was expected to take too long.
        """
        import torch

        rows = []
        for (count, name), row in self._rows.items():
            reference = self._rows.get((count, REFERENCE), {}).get("seconds")
            place = self.settings.tokens.index(count)
            before = self._rows[self.settings.tokens[place - 1], name].get("seconds") if place else None
            took = row.get("seconds")
            ratios = {
                "against_paper": reference / took if reference and took else None,
                "growth": took / before if took and before else None,
            }
            rows.append({**row, **ratios})
        made_with = {**versions(), "threads": torch.get_num_threads()}
        return {"settings": asdict(self.settings), "versions": made_with, "rows": rows}

    def _expected(self, name: str, count: int) -> float:
        """The seconds that one call will take, estimated from smaller sizes."""
        known = self._history[name]
        nearest = known[-1][0] if known else PROBED_FROM // STEP
        if (probe := count // STEP) > nearest:
            if self._expected(name, probe) > LONGEST:
                return math.inf
            inputs = clustered(probe, self.settings.width, self.settings.group)
            known.append((probe, _timed(inputs, Keep.parse(self.settings.keep), name)[0]))
        if not known:
            return 0.0
        size, took = known[-1]
        growth = GROWTH
        if len(known) > 1:
            growth = math.log(took / known[-2][1]) / math.log(size / known[-2][0])
        return took * (count / size) ** growth

    def _row(self, count: int, name: str, seconds: Sequence[float], last: Selection | None, expected: float) -> Row:
        row: Row = {"tokens": count, "selector": name}
        if last is None:
            return {**row, "skipped": expected if math.isfinite(expected) else None}
        median = statistics.median(seconds)
        self._history[name].append((count, median))
        begin = time.perf_counter()
        delta = last.delta
        took = time.perf_counter() - begin
        row |= {"kept": len(last.indices), "seconds": median, "fastest": min(seconds), "slowest": max(seconds)}
        row |= {"delta": delta, "delta_seconds": took}
        return row | {"peak_bytes": _peak_apart(self.settings, count, name) if self._peaks else None}


def _timed(inputs: dict[str, Any], keep: Keep, name: str) -> tuple[float, Selection]:
    from flashvlm.selection import select

    budget = keep.budget(len(inputs["tokens"]))
    begin = time.perf_counter()
    selection = select(**inputs, budget=budget, delta=keep.delta, selector=name)
    return time.perf_counter() - begin, selection


def _warm_up(settings: Settings) -> None:
    """Call each selector once on a small input, so that torch's setup on first use is not measured."""
    for name in settings.selectors:
        _timed(clustered(WARM_UP_TOKENS, settings.width, WARM_UP_TOKENS // 4), Keep.parse(settings.keep), name)


def _peak_apart(settings: Settings, count: int, name: str) -> int | None:
    """`_peak` in a process of its own, whose memory nothing else has enlarged."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak, settings, count, name).result()


def _peak(settings: Settings, count: int, name: str) -> int | None:
    """The peak memory of a selection on top of its input, in bytes; None if the system does not report it."""
    _timed(clustered(WARM_UP_TOKENS, settings.width, WARM_UP_TOKENS // 4), Keep.parse(settings.keep), name)
    inputs = clustered(count, settings.width, settings.group)
    return memory.peak(lambda: _timed(inputs, Keep.parse(settings.keep), name))
