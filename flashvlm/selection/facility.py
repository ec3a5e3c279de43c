"""Greedy facility location: the tokens by which most of the weight is best covered, in order."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy(cover: Tensor, weights: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Order the tokens of every block, each next the one that adds most to the weighted sum of best covers.

    The sum over all tokens i of weight_i * max over the chosen j of cover_ij is monotone and submodular: the first k
    are within 1 - 1/e of the best k (Nemhauser et al. 1978). Gains that differ by less than bfloat16 can tell are
    equal, and the first token wins: so that noise in the last digits does not choose.

    Args:
        cover: (B, m, m) float32 in 0..1, how well each token (row) is covered by each other one (column).
        weights: (B, m) float32 >= 0.
        real: (B, m) bool, False for what only fills up a block.

    Returns:
        (B, m) int64 places in each block and (B, m) float32 gains, which do not rise; -inf for what fills up.
    """
    blocks = torch.arange(len(cover), device=cover.device)
    covered = torch.zeros_like(weights)
    taken = torch.zeros_like(weights).masked_fill(~real, -torch.inf)
    gap = torch.empty_like(cover)
    places, gains = [], []
    for _ in range(cover.shape[1]):
        torch.sub(cover, covered[:, :, None], out=gap)
        gain = torch.bmm(weights[:, None, :], gap.clamp_(min=0))[:, 0]
        gain = gain.bfloat16().float().add_(taken)
        place = gain.argmax(1)
        places.append(place)
        gains.append(gain[blocks, place])
        # What fills up comes last, each once: lower than what is taken.
        taken[blocks, place] = -torch.inf
        covered = torch.maximum(covered, cover[blocks, :, place])
    return torch.stack(places, 1), torch.stack(gains, 1)
