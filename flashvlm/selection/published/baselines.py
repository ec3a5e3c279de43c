"""Selectors of one simple idea each, for comparison."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space
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


def temporal(inputs: Inputs) -> Selection:
    """Keep what changed most since the group before, cell by cell: Efficient Video Sampling (arXiv 2510.14624).

    A token's change is its distance from the token of the same cell one group earlier, as in the code published for
    inference servers (the paper compares pixels). The first group has nothing before it and is kept whole; a smaller
    budget keeps its most salient tokens, a case in which the published code exceeds the budget. Of equally changed
    tokens the more salient is kept, then the first.
    """
    space = Space.of(inputs.tokens, inputs.metric)
    before = _cells_before(inputs.group_sizes).to(space.left.device)
    first = inputs.group_sizes[0]
    change = 1 - (space.left[first:] * space.right[before]).sum(1)
    # A distance that others can exceed would let the rest of the video compete with the first group.
    change = torch.cat([change.new_full((first,), torch.inf), change])
    salient = inputs.saliency.argsort(descending=True, stable=True)
    ranked = salient[change[salient].argsort(descending=True, stable=True)]
    return Selection.of(inputs, ranked[: inputs.budget])


def _cells_before(sizes: tuple[int, ...]) -> Tensor:
    """For each token after the first group, the index of the token at the same place one group earlier.

    If the two groups differ in size, the relative place counts.
    """
    places, begin = [torch.empty(0, dtype=torch.int64)], 0
    for earlier, size in pairwise(sizes):
        places.append(begin + (2 * torch.arange(size) + 1) * earlier // (2 * size))
        begin += earlier
    return torch.cat(places)
