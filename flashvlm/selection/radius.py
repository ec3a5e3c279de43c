"""A small set of tokens that covers all others to a radius."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.coverage import cover
from flashvlm.selection.metric import Space


def net(space: Space, blocks: Blocks, radius: float) -> Tensor:
    """Choose tokens so that each token is within `radius` of one of them: a delta-net, as `cover` measures it.

    Block by block, what earlier blocks leave uncovered is covered greedily, each time by the token of the block that
    covers most of it. The exact cover costs a product of every token with every chosen one.

    Args:
        radius: largest distance, at least 0.

    Returns:
        (K,) int64, ascending.
    """
    chosen = blocks.tokens.new_empty(0)
    for tokens, real in zip(blocks.tokens, blocks.real, strict=True):
        tokens = tokens[real]
        left = tokens
        if len(chosen):
            nearest = (space.left[tokens] @ space.right[chosen].T).amax(1)
            left = tokens[1 - nearest > radius]
        covers = 1 - space.left[left] @ space.right[tokens].T <= radius
        # A token covers itself, whatever rounding says.
        covers |= left[:, None] == tokens
        picked = []
        while len(covers):
            place = covers.sum(0).argmax()
            picked.append(tokens[place])
            covers = covers[~covers[:, place]]
        if picked:
            chosen = torch.cat([chosen, torch.stack(picked)])
    # Products of other shapes round otherwise: the measure has the last word.
    while (distance := cover(space, chosen)[1]).max() > radius:
        chosen = torch.cat([chosen, distance.argmax()[None]])
    return chosen.sort().values


def farthest(space: Space, kept: Tensor, pool: Tensor, count: int) -> Tensor:
    """Choose from a pool the tokens farthest from all kept ones, one after the other (Gonzalez 1985).

    Args:
        kept: (K,) int64 tokens of the space.
        pool: (P,) int64, others of it.
        count: how many to choose, at most P.

    Returns:
        (count,) int64, a part of `pool`.
    """
    left = space.left[pool]
    nearest = (left @ space.right[kept].T).amax(1)
    among = left @ space.right[pool].T
    chosen = torch.empty(count, dtype=torch.int64, device=pool.device)
    for step in range(count):
        place = nearest.argmin()
        chosen[step] = place
        nearest = torch.maximum(nearest, among[:, place])
        nearest[place] = torch.inf
    return pool[chosen]
