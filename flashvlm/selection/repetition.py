"""What merely repeats the temporal group before."""

from __future__ import annotations

from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.points import Points


def repeats(points: Points, blocks: Blocks) -> Tensor:
    """How like each token is to the one most like it at the same place of the group before.

    Args:
        points: (B, n), the tokens of each block, which are compared with those of `blocks.before`.

    Returns:
        (B, n) float32 in 0..1; 0 in the first group.
    """
    similarity = points.to(points.reshaped(lambda rows: rows.index_select(0, blocks.before)))
    return similarity.amax(2).clamp_(0, 1).masked_fill_((blocks.group == 0)[:, None], 0)
