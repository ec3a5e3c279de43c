"""Shares of a budget for the parts of a video, in whole tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def apportion(shares: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """Round shares so that they sum to the budget, where published code rounds each for itself and misses it.

    The largest remainders are rounded up. If rounding each to the nearest number meets the budget, the result is that.

    Args:
        shares: (T,) floats, how many tokens each part should keep.
        sizes: (T,) int64, how many it has.
        budget: at most the sum of `sizes`.

    Returns:
        (T,) int64 that sum to `budget`, none above its size; all at least 1 if the budget allows it.
    """
    least = int(budget >= len(sizes))
    counts = shares.floor().long().clamp(min=least).minimum(sizes)
    while missing := budget - int(counts.sum()):
        step = 1 if missing > 0 else -1
        open_ = counts < sizes if missing > 0 else counts > least
        wish = ((shares - counts) * step).masked_fill(~open_, -torch.inf)
        counts[wish.argsort(descending=True, stable=True)[: min(abs(missing), int(open_.sum()))]] += step
    return counts
