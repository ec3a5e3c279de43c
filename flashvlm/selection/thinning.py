"""Dropping near-duplicates within each block in bipartite rounds, each a constant fraction of what is left."""

from __future__ import annotations

import torch
from torch import Tensor

# A round drops at most this share, rounded up, of the tokens that it could drop.
DROPPED_SHARE = 0.5
# Added to every distance, so that much smaller ones, which are noise, hardly differ.
SAME = 0.02


def thin(
    similarity: Tensor, weights: Tensor, real: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    """Drop from every block the tokens that others in it stand for, until at most `keep` are left.

    Round r splits the tokens of a block by bit r of their index and drops the half of one side with the least loss: a
    token's weight times its distance from the most similar one on the other side, which takes over the weight. Each
    round of the paper (arXiv 2512.20561) drops eight of all tokens; these shrink a block geometrically. There a token's
    side depends on the rank of its score, so that noise in one score changes all later rounds; here it is fixed.

    Args:
        similarity: (B, n, n) float32 between the tokens of each block.
        weights: (B, n) float32 >= 0.
        real: (B, n) bool, False for padding.
        keep: how many tokens to leave in each block.

    Returns:
        (B, m) int64 with m = min(keep, n), ascending indices in each block, those of shorter blocks padded with any;
        (B, m) their weights; (B, m) bool, False for padding; and the mean similarity, round by round, of dropped tokens
        to those that stand for them: how far the redundancy reaches.
    """
    size = similarity.shape[1]
    place = torch.arange(size, device=similarity.device)
    left, weights, redundancy = real.clone(), weights.clone(), []
    bits = max(1, (size - 1).bit_length())
    step = 0
    while (excess := left.sum(1, keepdim=True) - keep).max() > 0:
        side = (place >> step % bits) & 1 == 1
        step += 1
        mine, others = left & side, left & ~side
        highest, nearest = similarity.masked_fill(~others[:, None, :], -torch.inf).max(2)
        mine &= others.any(1, keepdim=True)
        loss = (weights * (1 + SAME - highest)).masked_fill_(~mine, torch.inf)
        most = (mine.sum(1, keepdim=True) * DROPPED_SHARE).ceil().minimum(excess)
        dropped = mine & (loss.argsort(stable=True).argsort() < most)
        if dropped.any():
            redundancy.append(highest[dropped].mean().item())
        weights.scatter_add_(1, nearest, weights * dropped)
        left &= ~dropped
    kept = left.byte().argsort(dim=1, descending=True, stable=True)[:, :keep]
    there = left.gather(1, kept)
    return kept, weights.gather(1, kept) * there, there, tuple(redundancy)
