"""Greedy facility location: the tokens that best cover the weight."""

from __future__ import annotations

import torch
from torch import Tensor

# Steps between checks whether more of them can matter.
LOOK_EVERY = 8
# Of two nearly equal gains the earlier token's wins: gains are reduced along a block, by this share at its end.
LATENESS = 0.03


def greedy(cover: Tensor, weights: Tensor, real: Tensor, groups: Tensor, count: int, floor: int) -> Tensor:
    """In every block, choose one after the other the tokens that add most to the weighted sum of best covers.

    The sum over all tokens i of weight_i * max over the chosen j of cover_ij is monotone and submodular: the first k
    tokens chosen in a block are within 1 - 1/e of its best k (Nemhauser et al. 1978), and gains never rise from one to
    the next. So the `count` highest gains of all blocks are the greedy choice for their sum. Once no block can add to
    these, tokens are chosen only from temporal groups that have fewer than `floor` of them.

    Args:
        cover: (B, m, m) float32 in 0..1, how well each token (row) is covered by each other one (column).
        weights: (B, m) float32 >= 0.
        real: (B, m) bool, False for padding.
        groups: (B, m) int64, the temporal groups.
        count: how many tokens are wanted from all blocks together.
        floor: how many to choose from every group at least, if it has that many.

    Returns:
        (B, m) float32: for a chosen token, its gain when chosen; for any other, what it would still add, which is at
        most the lowest of the `count` highest; -inf for padding.
    """
    blocks = torch.arange(len(cover), device=cover.device)
    size = cover.shape[1]
    earliness = 1 - LATENESS * torch.arange(size, dtype=cover.dtype, device=cover.device) / size
    covered, gains = torch.zeros_like(weights), torch.full_like(weights, -torch.inf)
    barred = torch.zeros_like(weights).masked_fill(~real, -torch.inf)
    gap = torch.empty_like(cover)
    count = min(count, int(real.sum()))

    def left() -> Tensor:
        torch.sub(cover, covered[:, :, None], out=gap)
        return torch.bmm(weights[:, None, :], gap.clamp_(min=0))[:, 0] * earliness + barred

    def choose(some: Tensor, could: Tensor) -> None:
        most, place = could[some].max(1)
        # A block with no tokens left chooses one again, which gains nothing.
        gains[some, place] = gains[some, place].maximum(most)
        barred[some, place] = -torch.inf
        covered[some] = torch.maximum(covered[some], cover[some, :, place])

    for step in range(size):
        could = left()
        looks = step % LOOK_EVERY == 0 and step * len(cover) >= count
        if looks and could.max() <= gains.flatten().topk(count).values[-1]:
            break
        choose(blocks, could)
    enough = torch.bincount(groups[real]).clamp(max=floor)
    while True:
        held = torch.bincount(groups[gains.isfinite()], minlength=len(enough))
        few = (held < enough)[groups] & (barred == 0)
        could = left()
        if not few.any():
            return torch.maximum(gains, could)
        choose(few.any(1).nonzero().flatten(), could.masked_fill(~few, -torch.inf))
