"""One budget for the whole video: the share that every temporal group gets."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(gains: Tensor, groups: Tensor, budget: int, floor: int) -> Tensor:
    """Choose the `budget` tokens with the highest gains, `floor` of every group before all others.

    If the floors exceed the budget, the second token of a group comes after the first of every group, and groups with
    the highest gains come first. Ties go to the first.

    Args:
        gains: (M,) float32, -inf for padding.
        groups: (M,) int64, the temporal groups.
        budget: how many to choose, at most the number of gains above -inf.

    Returns:
        (budget,) int64 indices.
    """
    order = gains.argsort(descending=True, stable=True)
    groups = groups[order]
    # The rank of each token within its group, the highest gain first.
    by_group = groups.argsort(stable=True)
    sizes = torch.bincount(groups)
    begins = (sizes.cumsum(0) - sizes)[groups[by_group]]
    place = torch.empty_like(groups)
    place[by_group] = torch.arange(len(groups), device=groups.device) - begins
    ranked = place.clamp(max=floor).argsort(stable=True)
    return order[ranked[:budget]]


def enough(gains: Tensor, share: float) -> int:
    """How many of the highest of (M,) gains make up this share of their sum: at least 1."""
    highest = gains.clamp(min=0).sort(descending=True).values
    return int((highest.cumsum(0) < share * highest.sum()).sum()) + 1
