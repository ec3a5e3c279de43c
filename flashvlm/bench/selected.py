"""What selectors keep of a video, as the language model gets it: several selections of as many tokens at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvlm.bench import own
from flashvlm.encode import Encoded
from flashvlm.journal import Record
from flashvlm.options import AskOptions, Keep
from flashvlm.selection import select
from flashvlm.selection.result import Selection

# What goes through the model at once holds at most this many visual tokens, or a single selection.
BATCH_TOKENS = 2**15


@dataclass(frozen=True, eq=False)
class Selected:
    """The tokens that a selector keeps at a budget, as the language model gets them, and the record of it."""

    record: Record
    # (K,) int64, (K, D), and (P, K, D) or None.
    kept: Tensor
    vectors: Tensor
    planes: Tensor | None

    @classmethod
    def of(cls, selection: Selection, encoded: Encoded, record: Record) -> Selected:
        planes = None if encoded.planes is None else selection.pooled(encoded.planes)
        return cls(record, selection.indices, selection.vectors, planes)


# B selections of the same number of tokens, and together: (B, K) int64, (B, K, D), and (P, B, K, D) or None.
Batch = tuple[list[Selected], Tensor, Tensor, Tensor | None]


def batches(selected: Sequence[Selected]) -> Iterator[Batch]:
    """Selections of the same number of tokens together, as many as go through the model at once."""
    by_count: dict[int, list[Selected]] = {}
    for one in selected:
        by_count.setdefault(len(one.kept), []).append(one)
    for count, alike in by_count.items():
        size = max(1, BATCH_TOKENS // count)
        for start in range(0, len(alike), size):
            part = alike[start : start + size]
            planes = [one.planes for one in part if one.planes is not None]
            yield (
                part,
                torch.stack([one.kept for one in part]),
                torch.stack([one.vectors for one in part]),
                torch.stack(planes, dim=1) if planes else None,
            )


def chosen(
    encoded: Encoded, words: Tensor, selector: str, budget: str, options: AskOptions, seen: Tensor | None = None
) -> tuple[Selection, Record]:
    """What a selector or an ablation keeps at a budget, for a question of these words (L, D), and the record of it.

    Args:
        options: of which the metric, the seed and whether to merge matter.
        seen: (N, D), what the selector sees in place of the tokens, if that is something else.
    """
    begin = time.perf_counter()
    keep, tokens = Keep.parse(budget), encoded.tokens if seen is None else seen
    selection = select(
        tokens,
        encoded.saliency,
        words,
        group_sizes=encoded.group_sizes,
        budget=keep.budget(len(tokens)),
        delta=keep.delta,
        selector=own.function(selector),
        metric=options.metric,
        seed=options.seed,
    )
    if seen is not None:
        selection = selection.remade(encoded.tokens)
    if options.merge:
        selection = selection.merged()
    seconds = time.perf_counter() - begin
    record = {"kept": len(selection.indices), "seconds": round(seconds, 6), "delta": round(selection.delta, 6)}
    return selection, record
