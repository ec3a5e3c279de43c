"""Near-duplicates within each block dropped in bipartite rounds, each a constant fraction of what is left."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the even tokens of a round at most this share is dropped.
DROPPED_SHARE = 0.5


def thin(similarity: Tensor, scores: Tensor, weights: Tensor, keep: int) -> tuple[Tensor, Tensor, list[float]]:
    """Drop from every block the tokens that others of it stand for, until `keep` are left.

    A round splits the tokens of a block, in order of their scores, into even and odd places, and drops the half of the
    even ones that are most similar to any odd one; the weight of each goes to the odd one that stands for it. The rounds
    of the paper (arXiv 2512.20561) drop eight tokens of the whole each: here the sizes shrink geometrically.

    Args:
        similarity: (B, n, n) float32 between the tokens of each block.
        scores: (B, n) float32; -inf for what fills up a block, which is dropped first.
        weights: (B, n) float32, 0 for what fills up a block.
        keep: how many tokens to leave in each block.

    Returns:
        (B, min(keep, n)) int64, ascending places in each block; their weights; and the mean similarity, round by round,
        of what was dropped to what stands for it: how far the redundancy reaches.
    """
    weights = weights.clone()
    order = scores.argsort(descending=True, stable=True)
    filling = scores == -torch.inf
    decay = []
    while (excess := order.shape[1] - keep) > 0:
        even, odd = order[:, ::2], order[:, 1::2]
        width = similarity.shape[2]
        rows = similarity.gather(1, even[:, :, None].expand(-1, -1, width))
        between = rows.gather(2, odd[:, None, :].expand(-1, even.shape[1], -1))
        between.masked_fill_(filling.gather(1, odd)[:, None, :], -torch.inf)
        highest = between.amax(2)
        place = between.argmax(2)
        dropped_first = highest.masked_fill(filling.gather(1, even), torch.inf)
        count = min(excess, max(1, int(even.shape[1] * DROPPED_SHARE)))
        ranked = dropped_first.argsort(descending=True, stable=True)
        dropped = ranked[:, :count]
        real = ~filling.gather(1, even.gather(1, dropped))
        lost = highest.gather(1, dropped)[real]
        decay.append(lost.clamp(min=-1).mean().item() if len(lost) else 1.0)
        stand_ins = odd.gather(1, place.gather(1, dropped))
        weights.scatter_add_(1, stand_ins, weights.gather(1, even.gather(1, dropped)))
        left = torch.ones_like(order, dtype=torch.bool)
        left[:, ::2] = left[:, ::2].scatter(1, dropped, False)
        order = order[left].view(len(order), -1)
    kept = order.sort(1).values
    return kept, weights.gather(1, kept), decay
