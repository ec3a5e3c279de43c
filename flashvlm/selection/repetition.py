"""Tokens that merely repeat the previous temporal group."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.points import Points

# Blocks compared at once: few enough to stay in the processor's cache.
AT_ONCE = 16


def repeats(points: Points, blocks: Blocks) -> Tensor:
    """Each token's similarity to the most similar one at the same place in the previous group.

    Args:
        points: (B, n), the tokens of each block, which are compared with those of `blocks.before`.

    Returns:
        (B, n) float32 in 0..1; 0 in the first group.
    """

    def likest(begin: int, before: Tensor) -> Tensor:
        some = points.reshaped(lambda tokens: tokens[begin : begin + AT_ONCE])
        return some.to(points.reshaped(lambda tokens: tokens.index_select(0, before))).amax(2)

    parts = enumerate(blocks.before.split(AT_ONCE))
    highest = torch.cat([likest(place * AT_ONCE, before) for place, before in parts])
    return highest.clamp_(0, 1).masked_fill_((blocks.group == 0)[:, None], 0)
