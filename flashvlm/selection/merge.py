"""Merging of dropped tokens into the kept ones that stand for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flashvlm.selection.result import Selection


def merge(selection: Selection) -> Tensor:
    """Average each kept token with all dropped tokens that are nearest to it.

    Returns:
        (K, D) in the dtype of the tokens, summed in float32.
    """
    return _means(selection.tokens, selection.nearest, len(selection.indices))


def remade(selection: Selection, tokens: Tensor) -> Selection:
    """The same choice, made of other (N, D) tokens."""
    vectors = tokens[selection.indices]
    if selection.merged_into is not None:
        vectors = _means(tokens, selection.merged_into, len(selection.indices))
    return replace(selection, tokens=tokens, vectors=vectors)


def pooled(selection: Selection, values: Tensor, merging: bool) -> Tensor:
    """What stands for the kept tokens in other values of all tokens, (N, D): (K, D), merged as the tokens are.

    Args:
        merging: every dropped token is averaged into the nearest kept one (see `merge`).
    """
    places = selection.nearest if merging else selection.merged_into
    return values[selection.indices] if places is None else _means(values, places, len(selection.indices))


def _means(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    order, sizes = gathered(places, count)
    return torch.segment_reduce(tokens[order].float(), "mean", lengths=sizes).to(tokens.dtype)


def gathered(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort members by the place they belong to, so that sums per place are the same on every run and device.

    Args:
        places: (N,) int64 below `count`, the place of each member.

    Returns:
        order: (N,) int64, the members of the first place, then those of the second, ...
        sizes: (count,) int64, how many members each place has.
    """
    return places.argsort(stable=True), torch.bincount(places, minlength=count)
