"""Tokens that are new compared with the moment before."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space
from flashvlm.selection.result import Selection

# How new the tokens of the first group count as: all come first, as published. A distance that others can exceed would
# let the rest of the video compete with them, which a budget near the size of a group needs.
FIRST_GROUP = math.inf


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
    change = torch.cat([change.new_full((first,), FIRST_GROUP), change])
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
