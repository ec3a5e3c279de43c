"""How far the dropped tokens are from the kept ones: the kept set as a delta-net of the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.metric import Space

# Floats in one block of similarities: 16 MB, whatever the number of tokens.
BLOCK = 2**22


def cover(space: Space, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest kept token of every token: N x K products, in blocks of near-constant memory.

    Ties go to the first kept token, but a kept token always stands for itself.

    Args:
        space: the N tokens under a metric.
        indices: (K,) int64, the kept ones.

    Returns:
        nearest: (N,) int64, positions in `indices`.
        distance: (N,) float32, at least 0; for cosines at most 2.
    """
    kept = space.right[indices].T
    rows = max(1, BLOCK // max(kept.shape))
    blocks = [(block @ kept).max(1) for block in space.left.split(rows)]
    nearest = torch.cat([block.indices for block in blocks])
    distance = (1 - torch.cat([block.values for block in blocks])).clamp(min=0)
    nearest[indices] = torch.arange(len(indices), device=indices.device)
    distance[indices] = 0
    return nearest, distance
