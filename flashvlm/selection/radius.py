"""A small set of tokens that covers all others to a radius."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.coverage import cover
from flashvlm.selection.directions import Directions
from flashvlm.selection.metric import Space
from flashvlm.selection.points import Points

# Of how many tokens at most it is looked up how far they are from all kept ones.
LARGEST_POOL = 1024
# Distances down to which tokens far apart are chosen, one after the other: up to 2, as cosines have them.
LEVELS = tuple(2 * 0.9**step for step in range(64))


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


def least_covered(similarity: Tensor, blocks: Blocks, kept: Tensor, level: float, fewest: int) -> Tensor:
    """The tokens that are least like the kept ones of their own block: the likeliest to be far from all others, too.

    Args:
        similarity: (B, n, n) float32 between the tokens of each block.
        kept: (K,) int64 tokens.
        level: all that are less similar than this, or `LARGEST_POOL` of them, evenly spread.
        fewest: how many at least, as far as there are so many.

    Returns:
        (P,) int64 tokens, none of them kept, ascending.
    """
    count = int(blocks.tokens.max()) + 1
    chosen = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill_(0, kept, True)[blocks.tokens]
    covered = similarity.masked_fill(~chosen[:, None, :], -1).amax(2).masked_fill_(chosen | ~blocks.real, torch.inf)
    covered, tokens = covered.flatten(), blocks.tokens.flatten()
    below = (covered < level).nonzero().flatten()
    if len(below) < fewest:
        below = covered.topk(min(fewest, int(covered.isfinite().sum())), largest=False).indices.sort().values
    elif len(below) > LARGEST_POOL:
        below = below[torch.arange(LARGEST_POOL, device=below.device) * len(below) // LARGEST_POOL]
    return tokens[below]


def apart(near: Points, where: Directions, kept: Tensor, pool: Tensor, among: int, count: int, radius: float) -> Tensor:
    """Choose from a pool tokens that are far from all kept ones and from one another.

    First those farther than the highest of `LEVELS`, then what is left of those farther than the next, and so on: at
    each step nearly the farthest token (Gonzalez 1985). Which of two that are about as far comes first hangs on their
    places, not on the last digits of a distance.

    Args:
        near: the N tokens, folded, by which the farthest of the pool are told.
        where: the same as they are.
        kept: (K,) int64 tokens.
        pool: (P,) int64, others of them.
        among: how many of the pool, those farthest from the kept ones, are compared with one another.
        count: how many to choose at most; fewer once none is farther than `radius` from all kept and chosen ones.

    Returns:
        (count,) int64 or fewer, a part of `pool`.
    """
    if among < len(pool) and len(kept):
        pool = pool[near.at(pool).to(near.at(kept)).amax(1).topk(among, largest=False).indices.sort().values]
    left = Points.of(where.at(pool))
    nearest = left.to(Points.of(where.at(kept))).amax(1) if len(kept) else left.offset.new_full((len(pool),), -1.0)
    # Steps this small take numpy a tenth of the time that they take torch, and none has to wait for another device.
    similarity, distance = left.within().cpu().numpy(), 1 - nearest.cpu().numpy()
    chosen: list[int] = []
    for level in [*(level for level in LEVELS if level > radius), radius]:
        while len(chosen) < count and (far := distance > level).any():
            chosen.append(int(far.argmax()))
            np.minimum(distance, 1 - similarity[chosen[-1]], out=distance)
            distance[chosen[-1]] = -np.inf
    return pool[chosen]
