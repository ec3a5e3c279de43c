"""Greedy facility location: the tokens by which most of the weight is best covered."""

from __future__ import annotations

import torch
from torch import Tensor

# Steps between looks at whether more of them can matter.
LOOK_EVERY = 8
# Of two gains as good as equal the earlier token's wins: the last one of a block counts for this much less.
LATENESS = 0.03


def greedy(cover: Tensor, weights: Tensor, real: Tensor, count: int) -> Tensor:
    """Choose in every block, one after the other, the tokens that add most to the weighted sum of best covers.

    The sum over all tokens i of weight_i * max over the chosen j of cover_ij is monotone and submodular: the first k
    of a block are within 1 - 1/e of its best k (Nemhauser et al. 1978), and gains do not rise from one to the next. So
    the `count` highest gains of all blocks are the greedy choice for their sum, and once no block can add one to these,
    nothing more is chosen.

    Args:
        cover: (B, m, m) float32 in 0..1, how well each token (row) is covered by each other one (column).
        weights: (B, m) float32 >= 0.
        real: (B, m) bool, False for what only fills up a block.
        count: how many tokens of all blocks are wanted.

    Returns:
        (B, m) float32: of a chosen token its gain when it was, of any other what it would still add, less than the
        `count` highest; -inf for what fills up.
    """
    blocks = torch.arange(len(cover), device=cover.device)
    size = cover.shape[1]
    earliness = 1 - LATENESS * torch.arange(size, device=cover.device) / size
    covered, gains = torch.zeros_like(weights), torch.full_like(weights, -torch.inf)
    barred = torch.zeros_like(weights).masked_fill(~real, -torch.inf)
    gap = torch.empty_like(cover)
    count = min(count, int(real.sum()))
    for step in range(size):
        torch.sub(cover, covered[:, :, None], out=gap)
        left = torch.bmm(weights[:, None, :], gap.clamp_(min=0))[:, 0] * earliness + barred
        if step % LOOK_EVERY == 0 and step * len(cover) >= count:
            least = gains.flatten().topk(count).values[-1]
            if left.max() <= least:
                break
        most, place = left.max(1, keepdim=True)
        # A block that has no more tokens chooses one again, which gains nothing.
        gains.scatter_reduce_(1, place, most, "amax")
        barred.scatter_(1, place, -torch.inf)
        covered = torch.maximum(covered, cover[blocks, :, place[:, 0]])
    return torch.maximum(gains, left)
