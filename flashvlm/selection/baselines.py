"""Selectors of one plain idea, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection


def spread(count: int, length: int) -> Tensor:
    """`count` places evenly spread over `length` ones, (count,) int64: the middle one of each equal stretch."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)


def uniform(inputs: Inputs) -> Selection:
    """Every N/K-th token: the middle one of each of K equal stretches."""
    return Selection.of(inputs, spread(inputs.budget, len(inputs.tokens)))


def random(inputs: Inputs) -> Selection:
    """K tokens drawn without replacement with `seed`, on the CPU, so that every device draws the same."""
    generator = torch.Generator().manual_seed(inputs.seed)
    return Selection.of(inputs, torch.randperm(len(inputs.tokens), generator=generator)[: inputs.budget])


def frames(inputs: Inputs) -> Selection:
    """Whole groups, as few evenly spread ones as hold the budget; of the last one an even part where it does not fit.

    A budget smaller than a group is an even part of the group in the middle. Groups of one video are of one size; were
    they not, it would be the first ones of the spread that hold the budget.
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
    """The K most salient tokens; of equals the first."""
    ranked = inputs.saliency.argsort(descending=True, stable=True)
    return Selection.of(inputs, ranked[: inputs.budget], scores=inputs.saliency)
