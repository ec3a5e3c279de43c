"""Accuracy against frames: more moments for the same number of tokens, compared with few moments unpruned."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvlm.bench import accuracy, scoring
from flashvlm.bench.data import DataSet
from flashvlm.bench.run import UNPRUNED
from flashvlm.errors import UsageError
from flashvlm.journal import Record

if TYPE_CHECKING:
    from flashvlm.pipeline import VideoQA

# What a record of an accuracy run says of one number of frames, and what of the question.
OF_FRAMES = ("frames", "tokens", "unpruned", "pruned", "seconds")
OF_QUESTION = ("clip", "question", "text", "answer", "family", "choices")


@dataclass(frozen=True)
class Settings(accuracy.Settings):
    """What an accuracy run measures at each of several numbers of `frames`.

    Raises:
        UsageError: a value that makes no sense, or `fps` is set, too.
    """

    frames: tuple[int, ...] = ()

    record = frozenset({*OF_QUESTION, "looks"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.frames)) < max(2, len(self.frames)):
            raise UsageError("--frames takes several numbers of frames, each once, such as 8,16,32.")
        if not self.budgets:
            raise UsageError("--keep takes budgets that prune, such as 64: 100% is what they are compared with.")
        if self.options.sampling.fps is not None:
            raise UsageError("Give `fps` or `frames`, not both.")

    def at(self, frames: int) -> Settings:
        """The same for one number of frames."""
        sampling = replace(self.options.sampling, frames=frames)
        return replace(self, options=replace(self.options, sampling=sampling))

    def identity(self, data: DataSet) -> dict[str, Any]:
        """As for every run; files of results of another benchmark are not continued."""
        return {"bench": "frames", **super().identity(data), "frames": list(self.frames)}

    def measure(self, qa: VideoQA, data: DataSet, number: int, places: Sequence[int] | None = None) -> list[Record]:
        with tempfile.TemporaryDirectory() as folder:
            video = data.video(number, Path(folder))
            looks = [accuracy.measured(qa, self.at(count), data, video, number, places) for count in self.frames]
        return [
            {name: of_one[0][name] for name in OF_QUESTION}
            | {"looks": [{name: look[name] for name in OF_FRAMES} for look in of_one]}
            for of_one in zip(*looks, strict=True)
        ]

    def summarise(self, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
        return summarise(self, records)


def summarise(settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
    """The table: at every number of frames, the unpruned model and every selector at every budget.

    A row has `frames` as asked for, `looked_at` and `tokens` (means over questions of how many frames there were, and
    how many tokens the model got) and `accuracy`. One that is pruned is compared with the unpruned row of the nearest
    number of tokens, which has `reference` frames: `times` as many answers are right, `difference` is how much larger
    the share of right answers is. All have 95 % intervals of a paired bootstrap over clips.
    """
    records = sorted(records, key=lambda record: (record["clip"], record["question"]))
    clips = np.array([record["clip"] for record in records])
    rows: list[Record] = []
    scores = []
    for place, count in enumerate(settings.frames):
        looks = [record["looks"][place] for record in records]
        looked = float(np.mean([look["frames"] for look in looks]))
        for keep, selector in [(UNPRUNED, None), *settings.columns]:
            said = [look["unpruned"] if selector is None else look["pruned"][keep][selector] for look in looks]
            kept = [look["tokens"] if selector is None else one["kept"] for look, one in zip(looks, said, strict=True)]
            rows.append({"frames": count, "looked_at": looked, "keep": keep, "selector": selector})
            rows[-1]["tokens"] = float(np.mean(kept))
            scores.append([one["right"] for one in said])
    correct = np.array(scores, dtype=float).T
    right, number = scoring.Columns(correct, clips), len(np.unique(clips))
    unpruned = [place for place, row in enumerate(rows) if row["selector"] is None]
    for place, row in enumerate(rows):
        row["accuracy"] = right.mean(place)
        row["accuracy_interval"] = scoring.share_interval(right.samples[:, place], number)
        if row["selector"] is not None:
            near = min(unpruned, key=lambda other: abs(np.log(rows[other]["tokens"] / row["tokens"])))
            row["reference"] = rows[near]["frames"]
            row |= right.ratio("times", place, scoring.Columns(correct[:, [near]], clips))
            row |= right.difference("", place, near)
    return {"questions": len(records), "clips": number, "rows": rows}
