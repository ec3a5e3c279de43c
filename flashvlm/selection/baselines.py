"""Selectors of one simple idea each, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection


def spread(count: int, length: int) -> Tensor:
    """`count` indices evenly spread over `length`, (count,) int64: the middle one of each equal stretch."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)


def uniform(inputs: Inputs) -> Selection:
    """Every N/K-th token: the middle one of each of K equal stretches."""
    return Selection.of(inputs, spread(inputs.budget, len(inputs.tokens)))


def random(inputs: Inputs) -> Selection:
    """K tokens drawn without replacement with `seed`, on the CPU, so that every device draws the same."""
    generator = torch.Generator().manual_seed(inputs.seed)
    return Selection.of(inputs, torch.randperm(len(inputs.tokens), generator=generator)[: inputs.budget])


def frames(inputs: Inputs) -> Selection:
    """Whole groups: the fewest evenly spread ones that hold the budget; the last is thinned evenly if too large.

    A budget smaller than a group is spread evenly over the middle group. All groups of a video have one size; if they
    did not, the first ones of the spread would be kept until the budget is spent.
    """
    sizes = torch.tensor(inputs.group_sizes)
    begins = sizes.cumsum(0) - sizes
    few = (spread(count, len(sizes)) for count in range(1, len(sizes) + 1))
    groups = next(groups for groups in few if sizes[groups].sum() >= inputs.budget)
    shares = sizes[groups].minimum((inputs.budget + sizes[groups] - sizes[groups].cumsum(0)).clamp(min=0))
    kept = [
        begin + spread(share, size)
        for begin, share, size in zip(begins[groups].tolist(), shares.tolist(), sizes[groups].tolist(), strict=True)
        if share
    ]
    return Selection.of(inputs, torch.cat(kept))


def saliency(inputs: Inputs) -> Selection:
    """The K most salient tokens; ties go to the first."""
    ranked = inputs.saliency.argsort(descending=True, stable=True)
    return Selection.of(inputs, ranked[: inputs.budget], scores=inputs.saliency)
