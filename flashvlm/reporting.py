"""Report: from what the other stages made, on tensors, to the facts that an answer or an inspection holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from flashvlm.backends.base import Encoded
from flashvlm.options import AskOptions, watching
from flashvlm.report import Moment, SelectionFacts, Signal
from flashvlm.selection.result import Selection


def settings_of(looked: AskOptions, chosen: AskOptions) -> dict[str, Any]:
    """The options that the video was looked at with, and those that tokens were chosen with, as JSON."""
    return asdict(chosen) | watching(looked) | {"keep": chosen.keep.count or str(chosen.keep)}


def selection_facts(options: AskOptions, selection: Selection) -> SelectionFacts:
    """How many tokens were kept and why, and how well they cover the others; measures the radius."""
    count, important = len(selection.indices), int(selection.important.sum())
    return SelectionFacts(
        options.selector,
        count,
        important,
        # A selector that does not distinguish them has neither.
        count - important if selection.distinguishes else 0,
        selection.delta,
        options.metric,
        options.merge or selection.merges,
        selection.redundancy,
        selection.little_to_drop,
    )


def signal(values: Tensor, encoded: Encoded) -> Signal:
    """(N,) values of the tokens, by moment and cell."""
    cells = values.float().view(encoded.groups, -1)[:, encoded.class_tokens :]
    return Signal(tuple(map(tuple, cells.tolist())))


def moments(
    timestamps: tuple[float, ...], encoded: Encoded, selection: Selection, frames_per_group: int
) -> tuple[Moment, ...]:
    """What was kept of each temporal group, by the row and column of its cells."""
    size = encoded.class_tokens + encoded.height * encoded.width
    kept: list[list[tuple[int, int]]] = [[] for _ in range(encoded.groups)]
    important: list[list[bool]] = [[] for _ in range(encoded.groups)]
    class_token: list[bool | None] = [None] * encoded.groups
    like = list(range(encoded.groups)) if encoded.sources is None else encoded.sources.tolist()
    for index, for_question in zip(selection.indices.tolist(), selection.important.tolist(), strict=True):
        group, place = divmod(index, size)
        if place < encoded.class_tokens:
            class_token[group] = for_question
            continue
        kept[group].append(divmod(place - encoded.class_tokens, encoded.width))
        important[group].append(for_question)
    return tuple(
        Moment(
            timestamps[group * frames_per_group : (group + 1) * frames_per_group],
            size,
            encoded.height,
            encoded.width,
            tuple(kept[group]),
            tuple(important[group]),
            class_token[group],
            None if like[group] == group else like[group],
            encoded.small is not None and bool(encoded.small[group]),
        )
        for group in range(encoded.groups)
    )
