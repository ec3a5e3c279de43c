"""Dropped tokens merged into the kept ones that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.result import Selection


def merge(selection: Selection) -> Tensor:
    """Average each kept token with all dropped ones that it is nearest to.

    Returns:
        (K, D) in the dtype of the tokens, summed in float32.
    """
    order, sizes = gathered(selection.nearest, len(selection.indices))
    return torch.segment_reduce(selection.tokens[order].float(), "mean", lengths=sizes).to(selection.tokens.dtype)


def gathered(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort members by the place that they belong to: sums over a run of them are the same on every run and device.

    Args:
        places: (N,) int64 below `count`.

    Returns:
        order: (N,) int64, the members of the first place, then of the second, ...
        sizes: (count,) int64, how many each place has.
    """
    return places.argsort(stable=True), torch.bincount(places, minlength=count)
