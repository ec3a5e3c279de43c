"""Tokens as far apart as can be."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.coverage import BLOCK
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space
from flashvlm.selection.result import Selection


def divprune(inputs: Inputs) -> Selection:
    """Greedy max-min diversity: DivPrune (CVPR 2025, arXiv 2503.02175).

    It begins with the token whose nearest other token is farthest, and goes on with the token farthest from all kept
    ones. Of equals the first.
    """
    space = Space.of(inputs.tokens, inputs.metric)
    return Selection.of(inputs, farthest_points(space, loneliest(space), inputs.budget))


def farthest_points(space: Space, first: Tensor, count: int) -> Tensor:
    """Places (count,) int64 of tokens, each the farthest from all before it, from `first` on."""
    kept = first.new_empty(count)
    similarity = space.left.new_full((len(space.left),), -torch.inf)
    place = first
    for step in range(count):
        kept[step] = place
        torch.maximum(similarity, space.left @ space.right[place], out=similarity)
        similarity[place] = torch.inf
        place = similarity.argmin()
    return kept


def loneliest(space: Space) -> Tensor:
    """The place () int64 of the token whose nearest other token is farthest."""
    count = len(space.left)
    highest = []
    for rows in torch.arange(count, device=space.left.device).split(max(1, BLOCK // count)):
        block = space.left[rows] @ space.right.T
        block[torch.arange(len(rows)), rows] = -torch.inf
        highest.append(block.amax(1))
    return torch.cat(highest).argmin()
