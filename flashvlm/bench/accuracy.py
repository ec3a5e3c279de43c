"""Accuracy against budget: each video decoded and encoded once, each question answered from every selection.

With `look="twice"`, the second look is taken once per question, always for the true one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvlm.bench import scoring
from flashvlm.bench.data import Asked, DataSet
from flashvlm.bench.run import UNPRUNED
from flashvlm.bench.run import Settings as Common
from flashvlm.journal import Record
from flashvlm.options import AskOptions

if TYPE_CHECKING:
    from torch import Tensor

    from flashvlm.backends.base import Backend, Prompt
    from flashvlm.bench.selected import Selected
    from flashvlm.encode import Encoded
    from flashvlm.pipeline import VideoQA


@dataclass(frozen=True)
class Settings(Common):
    """What an accuracy run measures, apart from which videos.

    `words`: selectors get the words of the `question`, or of an `unrelated` one. `noise`: selectors get tokens with
    Gaussian noise of this share of each token's norm. The model still gets the true question and the clean tokens.
    """

    words: str = "question"
    noise: float = 0.0

    record = frozenset({"clip", "question", "text", "answer", "family", "choices", "tokens", "unpruned", "pruned"})

    @property
    def hampered(self) -> bool:
        """Whether selectors get other words, noisy tokens or another metric than `flashvlm ask` uses by default."""
        return (self.words, self.noise, self.options.metric) != (Settings.words, Settings.noise, AskOptions.metric)

    def measure(self, qa: VideoQA, data: DataSet, number: int, places: Sequence[int] | None = None) -> list[Record]:
        return measure(qa, self, data, number, places)

    def summarise(self, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
        return summarise(self, data, records)


def measure(
    qa: VideoQA, settings: Settings, data: DataSet, number: int, places: Sequence[int] | None = None
) -> list[Record]:
    """Answer the questions `places` (None: all) about video `number`, unpruned and from every selection.

    Raises:
        VideoError: the video cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        return measured(qa, settings, data, data.video(number, Path(folder)), number, places)


def measured(
    qa: VideoQA, settings: Settings, data: DataSet, video: Path, number: int, places: Sequence[int] | None
) -> list[Record]:
    """The same, for a video that lies there."""
    watched = qa.watch(video, settings.options)
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
                "frames": len(seen.timestamps),
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

    from flashvlm.bench.selected import Selected, chosen
    from flashvlm.forcing import everything

    asked = data.questions(number)[place]
    text = scoring.prompt(asked)
    own_words = qa.backend.words(text)
    words = own_words if settings.words == "question" else qa.backend.words(data.unrelated(number, asked))
    seen = _noisy(encoded.tokens, settings.noise, seed=number) if settings.noise else None
    pruned: dict[str, dict[str, Record]] = {budget: {} for budget in settings.budgets}
    selected = []
    for budget, selector in settings.columns:
        selection, record = chosen(encoded, words, selector, budget, settings.options, seen)
        if settings.hampered:
            usual = settings.options.changed(metric=AskOptions.metric, merge=False)
            unhampered, _ = chosen(encoded, own_words, selector, budget, usual)
            record["same"] = round(torch.isin(selection.indices, unhampered.indices).float().mean().item(), 6)
        pruned[budget][selector] = record
        selected.append(Selected.of(selection, encoded, record))
    unpruned: Record = {}
    selected.append(Selected(unpruned, *everything([encoded])))
    prompt = qa.backend.prompt(text, settings.options.system, [encoded])
    _answer(qa.backend, prompt, asked, selected, settings.options.max_new_tokens)
    return unpruned, pruned


def _answer(backend: Backend, prompt: Prompt, asked: Asked, selected: Sequence[Selected], max_new_tokens: int) -> None:
    """Note what the model says from each selection, whether it is right, and how likely it finds the right answer."""
    import torch

    from flashvlm.bench.selected import batches
    from flashvlm.forcing import answer_ids, force
    from flashvlm.generate import answers

    right = answer_ids(backend, scoring.expected(asked))
    for part, kept, vectors, planes in batches(selected):
        forced = force(backend, prompt, right, kept, vectors, planes)
        for one, likely in zip(part, forced, strict=True):
            one.record["nats"] = round(likely.log_probabilities.sum().item(), 6)
        # Where each token of the right answer is the one to be taken, generating would give the same.
        known = [len(right) <= max_new_tokens and torch.equal(one.choices, one.ids) for one in forced]
        left = [place for place, given in enumerate(known) if not given]
        rest = (kept[left], vectors[left], None if planes is None else planes[:, left])
        said = iter(answers(backend, prompt, *rest, max_new_tokens=max_new_tokens) if left else ())
        for one, given in zip(part, known, strict=True):
            answer = backend.tokenizer.decode(right, skip_special_tokens=True).strip() if given else next(said)
            one.record.update(said=answer, right=scoring.right(asked, answer))


def _noisy(tokens: Tensor, share: float, seed: int) -> Tensor:
    """(N, D) tokens with Gaussian noise of about `share` of each token's own length."""
    import torch

    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    scale = share * tokens.float().norm(dim=1, keepdim=True) / tokens.shape[1] ** 0.5
    return (tokens.float() + scale * noise).to(tokens.dtype)


def summarise(settings: Settings, data: DataSet, records: Sequence[Record]) -> dict[str, Any]:
    """The table: overall and by family, the unpruned model and every selector at every budget.

    Every row has `accuracy` and `nats`, the mean log-likelihood of the right answer, with 95 % intervals. Rows of
    selectors also have `retention` (the share of the unpruned accuracy on the same questions), `kept_right` (the share
    right of the questions that are right unpruned) and, except for the first selector, `difference` and
    `nats_difference`, in accuracy and in nats to the first selector at the same budget: all with paired bootstrap
    intervals (None if all clips are alike). `tie` and `nats_tie` say that the interval of the difference includes 0.
    Overall rows have `kept` (mean share of tokens), `seconds` (median time of the selection) and `delta` (mean coverage
    radius) and, if selectors are `hampered`, `same`: the mean share of the kept tokens that they would also keep
    otherwise. `known_to` is half of the widest interval of an accuracy; if it is too wide, `needed` is how many
    questions tell the accuracy to `within`, else None. `chance_takes` is how many of each family tell what chance is.
    """
    records = sorted(records, key=lambda record: (record["clip"], record["question"]))
    columns = settings.columns
    correct, nats = (
        np.array(
            [[r["unpruned"][name], *(r["pruned"][b][s][name] for b, s in columns)] for r in records], dtype=float
        ).reshape(len(records), 1 + len(columns))
        for name in ("right", "nats")
    )
    asked = [Asked(r["text"], r["answer"], r["family"], tuple(r["choices"])) for r in records]
    clips = np.array([record["clip"] for record in records])
    families = list(dict.fromkeys(sorted(one.family for one in asked)))
    sections: list[Record] = []
    for family in ["all", *(families if len(families) > 1 else [])]:
        chosen = np.array([family in ("all", one.family) for one in asked])
        rows = _rows(settings, correct[chosen], nats[chosen], clips[chosen])
        if family == "all":
            for row, (budget, selector) in zip(rows[1:], columns, strict=True):
                row |= scoring.kept_of(records, budget, selector)
                if settings.hampered:
                    row["same"] = float(np.mean([record["pruned"][budget][selector]["same"] for record in records]))
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


def _rows(settings: Settings, correct: np.ndarray, nats: np.ndarray, clips: np.ndarray) -> list[Record]:
    """The rows of (Q, C) figures: of the unpruned model in the first column, and then of every selector."""
    right, likely = scoring.Columns(correct, clips), scoring.Columns(nats, clips)
    still = scoring.Columns(correct * correct[:, :1], clips)
    count = len(np.unique(clips))

    def shared(place: int) -> Record:
        return {
            "accuracy": right.mean(place),
            "accuracy_interval": scoring.share_interval(right.samples[:, place], count),
            "nats": likely.mean(place),
            "nats_interval": likely.interval(place),
        }

    rows: list[Record] = [{"keep": UNPRUNED, "selector": None, **shared(0)}]
    for place, (budget, selector) in enumerate(settings.columns, start=1):
        first = 1 + (place - 1) // len(settings.selectors) * len(settings.selectors)
        row: Record = {
            "keep": budget,
            "selector": selector,
            **shared(place),
            **right.ratio("retention", place, right),
            **still.ratio("kept_right", place, right),
        }
        if place != first:
            row |= right.difference("", place, first) | likely.difference("nats_", place, first)
        rows.append(row)
    return rows
