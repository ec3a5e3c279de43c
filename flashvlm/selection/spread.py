"""One budget for the whole video: what every temporal group gets of it."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(gains: Tensor, groups: Tensor, budget: int, floor: int) -> Tensor:
    """Choose the `budget` tokens of the highest gains, `floor` of every group before all others.

    Where that is more than there are tokens to keep, the second of a group comes after the first of all, and the groups
    of the highest gains come first. Ties go to the first.

    Args:
        gains: (M,) float32, -inf for what is no token.
        groups: (M,) int64, the temporal groups.
        budget: how many, at most as many as there are finite gains.

    Returns:
        (budget,) int64 places.
    """
    order = gains.argsort(descending=True, stable=True)
    groups = groups[order]
    # The place of each token among those of its group, the highest gain first.
    by_group = groups.argsort(stable=True)
    sizes = torch.bincount(groups)
    begins = (sizes.cumsum(0) - sizes)[groups[by_group]]
    place = torch.empty_like(groups)
    place[by_group] = torch.arange(len(groups), device=groups.device) - begins
    ranked = place.clamp(max=floor).argsort(stable=True)
    return order[ranked[:budget]]


def enough(gains: Tensor, share: float) -> int:
    """How many of the highest of (M,) gains make this share of their sum: at least 1."""
    highest = gains.clamp(min=0).sort(descending=True).values
    return int((highest.cumsum(0) < share * highest.sum()).sum()) + 1
