"""One budget for the whole video: what every temporal group gets of it."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(gains: Tensor, tokens: Tensor, group: Tensor, budget: int) -> Tensor:
    """Choose from the greedy orders of all blocks the `budget` tokens of the highest gains, with one of every group.

    Gains do not rise along an order, so what is chosen of a block are its first ones, and the whole is the greedy
    choice for the sum over all blocks. Where there are fewer tokens to keep than groups, the groups of the highest
    gains keep one each. Ties go to the earlier token.

    Args:
        gains: (B, m) float32 in the greedy order of each block, -inf where it has no more tokens.
        tokens: (B, m) int64, the tokens themselves.
        group: (B,) int64, the temporal group of each block, all of 0 to its largest.
        budget: how many, at most as many as there are finite gains.

    Returns:
        (budget,) int64 tokens, ascending.
    """
    flat_gains, flat_tokens = gains.flatten(), tokens.flatten()
    order = flat_tokens.argsort(stable=True)
    order = order[flat_gains[order].argsort(descending=True, stable=True)]
    groups = group[:, None].expand_as(gains).flatten()[order]
    # The first entry of each group in the order of gains is the group's best.
    place = torch.arange(len(order), device=order.device)
    count = int(group.max()) + 1
    best = place.new_full((count,), len(order)).scatter_reduce(0, groups, place, "amin")
    rank = place.clone()
    rank[best] -= len(order)
    return flat_tokens[order[rank.argsort()[:budget]]].sort().values
