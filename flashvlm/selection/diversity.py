"""Dissimilar tokens out of many: near-duplicates are dropped in bipartite rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.metric import Space

DROPPED_A_ROUND = 8
# A table of all similarities saves time where a look-up is cheaper than a product, and takes at most 1 GiB.
TABLE_WIDTH = 128
TABLE_BYTES = 2**30
# Rows per block: few enough that what a round works on stays in the processor's cache.
ROWS = 256


def bipartite_rounds(space: Space, order: Tensor, keep: int) -> Tensor:
    """Drop tokens that others represent, a few per round, as published by VisPruner and FlashVLM (arXiv 2512.20561).

    A round splits the tokens, in order, into even and odd positions, drops the even ones most similar to any odd one,
    and goes on with the remaining even ones, most similar first, followed by the odd ones.

    The cost is cubic: up to N^3 / 96 similarities over all rounds. The published code computes a product of D numbers
    for each; here it is a look-up, except for narrow tokens (D < 128) or more than 16384 of them.

    Args:
        space: the N tokens under a metric.
        order: (R,) int64, the tokens to choose from.
        keep: how many of them to keep, at least 1.

    Returns:
        (min(keep, R),) int64, a subset of `order`.
    """
    count, width = space.left.shape
    table = space.left @ space.right.T if width >= TABLE_WIDTH and 4 * count**2 <= TABLE_BYTES else None
    while (excess := len(order) - keep) > 0:
        even, odd = order[::2], order[1::2]
        similarity = _highest(space, table, even, odd)
        # Ties happen by chance. The published code leaves them as torch's unstable sort does, so this must too.
        ranked = similarity.argsort(descending=True)
        order = torch.cat([even[ranked[min(DROPPED_A_ROUND, excess) :]], odd])
    return order


def _highest(space: Space, table: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """The highest similarity of each token of `rows` to any of `columns`."""
    if table is None:
        others = space.right[columns].T
        blocks = [(space.left[block] @ others).amax(1) for block in rows.split(ROWS)]
    else:
        blocks = [table[block].index_select(1, columns).amax(1) for block in rows.split(ROWS)]
    return torch.cat(blocks)
