"""Fidelity against budget: what pruning changes in what the model says, with no right answers needed.

The unpruned model answers, and is the reference: it and each selection are given that answer token by token, and what
they expect at each place is compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvlm.bench import scoring
from flashvlm.bench.data import DataSet
from flashvlm.bench.run import Settings as Common
from flashvlm.errors import UsageError
from flashvlm.journal import Record

if TYPE_CHECKING:
    from flashvlm.encode import Encoded
    from flashvlm.forcing import Forced
    from flashvlm.pipeline import VideoQA

# What is asked about videos that come without questions; the demo models know these, too.
QUESTIONS = (
    "Describe the video.",
    "What is there at the end?",
    "What appears first?",
    "How many objects do you see?",
)
# The figures of a pruned answer: by `Forced.divergence`, by the tokens to be taken, by the likelihood of the answer.
FIGURES = ("kl", "agreement", "same", "surprise")


@dataclass(frozen=True)
class Settings(Common):
    """What a fidelity run measures, apart from which videos; `within` is the KL divergence a budget is looked for at.

    Raises:
        UsageError: a value that makes no sense.
    """

    within: float = 0.05

    record = frozenset({"clip", "question", "text", "answer", "length", "tokens", "pruned"})
    shown_only = ("within",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets:
            raise UsageError("--keep takes budgets that prune, such as 10%: 100% is what they are compared with.")

    def identity(self, data: DataSet) -> dict[str, Any]:
        """As for every run; files of results of another benchmark are not continued."""
        return {"bench": "fidelity", **super().identity(data)}

    def measure(self, qa: VideoQA, data: DataSet, number: int, places: Sequence[int] | None = None) -> list[Record]:
        """Compare the answers to the questions `places` (None: all) about video `number`.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the unpruned prompt is longer than the model reads.
        """
        with tempfile.TemporaryDirectory() as folder:
            watched = qa.watch(data.video(number, Path(folder)), self.options)
        questions = data.questions(number)
        records = []
        for place in range(len(questions)) if places is None else places:
            text = scoring.prompt(questions[place])
            seen = qa.look_again(watched, text, self.options)
            begin = time.perf_counter()
            compared = _compared(qa, self, seen.encoded, text)
            seconds = {
                "decode": round(seen.decode_seconds, 4),
                "encode": round(seen.encode_seconds, 4),
                "compare": round(time.perf_counter() - begin, 4),
            }
            asked = {"clip": number, "question": place, "text": questions[place].text}
            records.append({**asked, "tokens": len(seen.encoded.tokens), **compared, "seconds": seconds})
        return records

    def summarise(self, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
        return summarise(self, records)


def _compared(qa: VideoQA, settings: Settings, encoded: Encoded, text: str) -> Record:
    """The unpruned answer, and the figures of each selection (by budget, then selector)."""
    from flashvlm.bench.selected import Selected, batches, chosen
    from flashvlm.forcing import everything, force
    from flashvlm.generate import generate

    backend, options = qa.backend, settings.options
    prompt, words = backend.prompt(text, options.system, [encoded]), backend.words(text)
    whole = Selected({}, *everything([encoded]))
    said = generate(backend, prompt, whole.kept, whole.vectors, whole.planes, max_new_tokens=options.max_new_tokens)
    _, kept, vectors, planes = next(batches([whole]))
    (unpruned,) = force(backend, prompt, said.ids, kept, vectors, planes)
    pruned: dict[str, dict[str, Record]] = {budget: {} for budget in settings.budgets}
    selected = []
    for budget, selector in settings.columns:
        selection, record = chosen(encoded, words, selector, budget, options)
        pruned[budget][selector] = record
        selected.append(Selected.of(selection, encoded, record))
    for part, kept, vectors, planes in batches(selected):
        for one, forced in zip(part, force(backend, prompt, said.ids, kept, vectors, planes), strict=True):
            one.record.update(_figures(unpruned, forced))
    return {"answer": said.text, "length": said.tokens, "pruned": pruned}


def _figures(unpruned: Forced, pruned: Forced) -> Record:
    agree = unpruned.choices == pruned.choices
    # How much more surprised by the unpruned answer: the logarithm of a ratio of perplexities.
    surprise = (unpruned.log_probabilities - pruned.log_probabilities).mean()
    return {
        "kl": round(unpruned.divergence(pruned).mean().item(), 6),
        "agreement": round(agree.float().mean().item(), 6),
        # Greedy decoding takes the same first token, so the same second one, and so on.
        "same": bool(agree.all()),
        "surprise": round(surprise.item(), 6),
    }


def summarise(settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
    """The table: every selector at every budget, and what share each has to keep for `settings.within`.

    All figures are means over questions, with 95 % intervals of a paired bootstrap over videos (None if all are alike).
    A row has `kl` (nats a token), `agreement` and `same` (shares), `perplexity` (a ratio), and, except for the first
    selector, `difference` in KL divergence to the first selector at the same budget, `tie` if its interval includes 0;
    `kept`, `seconds` and `delta` are as in an accuracy table. `shares` has, for each selector, the smallest `share` of
    tokens whose KL divergence is `within` (see `_share`).
    """
    records = sorted(records, key=lambda record: (record["clip"], record["question"]))
    clips = np.array([record["clip"] for record in records])
    figures = {
        name: scoring.Columns(
            np.array([[r["pruned"][b][s][name] for b, s in settings.columns] for r in records], dtype=float), clips
        )
        for name in FIGURES
    }
    count, kl, rows = len(set(clips.tolist())), figures["kl"], []
    for place, (budget, selector) in enumerate(settings.columns):
        surprise = figures["surprise"].interval(place)
        row: Record = {
            "keep": budget,
            "selector": selector,
            "kl": kl.mean(place),
            "kl_interval": kl.interval(place),
            "perplexity": float(np.exp(figures["surprise"].mean(place))),
            "perplexity_interval": None if surprise is None else tuple(np.exp(surprise).tolist()),
        }
        for name in ("agreement", "same"):
            row[name] = figures[name].mean(place)
            row[f"{name}_interval"] = scoring.share_interval(figures[name].samples[:, place], count)
        first = place // len(settings.selectors) * len(settings.selectors)
        if place != first:
            row |= kl.difference("", place, first)
        rows.append(row | scoring.kept_of(records, budget, selector))
    shares = []
    for number, selector in enumerate(settings.selectors):
        places = list(range(number, len(rows), len(settings.selectors)))
        kept = np.array([rows[place]["kept"] for place in places])
        shares.append({"selector": selector, **_share(kept, kl.means[places], kl.samples[:, places], settings.within)})
    return {
        "questions": len(records),
        "clips": count,
        "answer_tokens": float(np.mean([record["length"] for record in records])),
        "rows": rows,
        "within": settings.within,
        "shares": shares,
    }


def _share(kept: np.ndarray, means: np.ndarray, samples: np.ndarray, within: float) -> Record:
    """The share of tokens to keep for a mean KL divergence of at most `within`, and its interval.

    From 100 %, where the divergence is 0, it is read off the line through the measured budgets, over the logarithm of
    the share, where that first rises above `within`. `at_most`: it does not, so the share is the smallest measured one.

    Args:
        kept: (C,) the mean share that each budget keeps.
        means, samples: (C,) and (RESAMPLES, C), its mean KL divergence.
    """
    order = np.argsort(-kept)
    logs = np.log(np.concatenate([[1.0], kept[order]]))

    def read(values: np.ndarray) -> np.ndarray:
        line = np.concatenate([np.zeros((len(values), 1)), values[:, order]], axis=1)
        above = line > within
        after = np.where(above.any(axis=1), above.argmax(axis=1), line.shape[1] - 1)
        before, rows = after - 1, np.arange(len(line))
        rise = line[rows, after] - line[rows, before]
        part = np.where(above.any(axis=1), (within - line[rows, before]) / np.where(rise > 0, rise, 1.0), 1.0)
        return np.exp(logs[before] + part * (logs[after] - logs[before]))

    return {
        "share": float(read(means[None])[0]),
        "share_interval": scoring.interval(read(samples)),
        "at_most": bool((means <= within).all()),
    }
