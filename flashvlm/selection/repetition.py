"""What merely repeats the frame before."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.metric import Space


def repeats(space: Space, blocks: Blocks, tokens: Tensor) -> Tensor:
    """How like each token is to the one most like it at the same place of the temporal group before.

    Args:
        blocks: of which each block is compared with `blocks.before`.
        tokens: (B, m) int64, those tokens of each block that are compared.

    Returns:
        (B, m) float32 in 0..1; 0 in the first group.
    """
    last = tokens[blocks.before]
    highest = torch.stack(
        [(space.left[here] @ space.right[there].T).amax(1) for here, there in zip(tokens, last, strict=True)]
    )
    first = blocks.group == 0
    return highest.clamp(0, 1).masked_fill(first[:, None], 0)
