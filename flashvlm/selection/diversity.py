"""Unlike tokens out of many: near-duplicates dropped in bipartite rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.metric import Space

DROPPED_A_ROUND = 8
# A table of all similarities saves time where a look-up is cheaper than a product, and takes at most 1 GiB.
TABLE_WIDTH = 128
TABLE_BYTES = 2**30
# Rows of one block, so that what a round works on stays in the processor's cache.
ROWS = 256


def bipartite_rounds(space: Space, order: Tensor, keep: int) -> Tensor:
    """Drop the tokens that others stand for, a few a round, as VisPruner and FlashVLM publish it (arXiv 2512.20561).

    A round splits the tokens, in order, into even and odd places, drops the even ones most similar to any odd one,
    and goes on with the even ones left, the most similar first, then the odd ones.

    The cost is cubic: up to N^3 / 96 similarities over all rounds. The published code takes a product of D numbers for
    each; here it is a look-up, except for narrow tokens (D < 128) and for more than 16384 of them.

    Args:
        space: the N tokens under a metric.
        order: (R,) int64, the tokens to choose from.
        keep: how many of them to keep, at least 1.

    Returns:
        (min(keep, R),) int64, a part of `order`.
    """
    count, width = space.left.shape
    table = space.left @ space.right.T if width >= TABLE_WIDTH and 4 * count**2 <= TABLE_BYTES else None
    while (excess := len(order) - keep) > 0:
        even, odd = order[::2], order[1::2]
        similarity = _highest(space, table, even, odd)
        # Ties happen by chance, and the published code leaves them as torch's unstable sort does: so must its equal.
        ranked = similarity.argsort(descending=True)
        order = torch.cat([even[ranked[min(DROPPED_A_ROUND, excess) :]], odd])
    return order


def _highest(space: Space, table: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """For each token of `rows` its highest similarity to any of `columns`."""
    if table is None:
        others = space.right[columns].T
        blocks = [(space.left[block] @ others).amax(1) for block in rows.split(ROWS)]
    else:
        blocks = [table[block].index_select(1, columns).amax(1) for block in rows.split(ROWS)]
    return torch.cat(blocks)
