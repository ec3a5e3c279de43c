"""How far the dropped tokens are from the kept ones: the kept set as a delta-net of the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.metric import unit_vectors

# Floats of one block of similarities: 16 MB, whatever the number of tokens.
BLOCK = 2**22


def cover(tokens: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest kept token of every token: N x K products, in blocks of near-constant memory.

    The distance is 1 - cosine. Zero vectors have no direction: they are alike (distance 0), and at distance 1 from
    all others. Of several equally near the first counts, but a kept token always stands for itself.

    Args:
        tokens: (N, D) floats.
        indices: (K,) int64, the kept ones.

    Returns:
        nearest: (N,) int64, places in `indices`.
        distance: (N,) float32, from 0 to 2.
    """
    kept = _directions(tokens[indices]).T
    rows = max(1, BLOCK // max(kept.shape))
    blocks = [(_directions(block) @ kept).max(1) for block in tokens.split(rows)]
    nearest = torch.cat([block.indices for block in blocks])
    distance = (1 - torch.cat([block.values for block in blocks])).clamp(0, 2)
    nearest[indices] = torch.arange(len(indices), device=indices.device)
    distance[indices] = 0
    return nearest, distance


def _directions(vectors: Tensor) -> Tensor:
    """(M, D) -> (M, D + 1) unit vectors; the further axis is the direction of the zero vectors."""
    units = unit_vectors(vectors)
    return torch.cat([units, (units == 0).all(1, keepdim=True).float()], 1)
