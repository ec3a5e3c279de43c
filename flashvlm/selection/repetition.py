"""What merely repeats the temporal group before."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.metric import Space


def repeats(space: Space, blocks: Blocks, real: Tensor) -> Tensor:
    """How like each token is to the one most like it at the same place of the group before.

    Args:
        space: (B, m, E), some of the tokens of each block, which are compared with those of `blocks.before`.
        real: (B, m) bool, False for what only fills up.

    Returns:
        (B, m) float32 in 0..1; 0 in the first group.
    """
    similarity = torch.bmm(space.left, space.right.index_select(0, blocks.before).transpose(1, 2))
    similarity.masked_fill_(~real[blocks.before][:, None, :], 0)
    return similarity.amax(2).clamp_(0, 1).masked_fill_((blocks.group == 0)[:, None], 0)
