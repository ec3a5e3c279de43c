"""A small set of tokens that covers all others within a radius."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.coverage import cover
from flashvlm.selection.metric import Space
from flashvlm.selection.points import Points

# At most this many tokens are compared with one another, and so at most this many are chosen for being far apart.
LARGEST_POOL = 1024
# At most this many distances to kept tokens are computed for that, or those of `LARGEST_POOL` tokens if more: it bounds
# the cost when tokens and budget grow together.
LOOKED_UP = 2**22
# Tokens far apart are chosen if they are farther than the first of these distances, then the next, and so on. No cosine
# distance exceeds 2; of larger ones, as euclidean distances can be, whichever comes first is chosen first.
LEVELS = (*(2 * 0.98**step for step in range(400)), -math.inf)


def net(space: Space, blocks: Blocks, radius: float) -> Tensor:
    """Choose tokens so that each token is within `radius` of one of them: a delta-net, as `cover` measures it.

    Block by block, the tokens that earlier blocks leave uncovered are covered greedily, each time by the token of the
    block that covers most of them. The exact cover costs a product of every token with every chosen one.

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
    # Products of other shapes round differently, so the final measurement decides.
    while (distance := cover(space, chosen)[1]).max() > radius:
        chosen = torch.cat([chosen, distance.argmax()[None]])
    return chosen.sort().values


def least_covered(
    similarity: Tensor, elsewhere: Tensor, blocks: Blocks, kept: Tensor, level: float, fewest: int
) -> Tensor:
    """The tokens least similar to the kept ones of their own block: the most likely to be far from all others, too.

    Args:
        similarity: (B, n, n) float32 between the tokens of each block.
        elsewhere: (B, n) float32, the similarity of each to a token of another block that counts as kept.
        kept: (K,) int64 tokens.
        level: return all tokens less similar than this, or as many of them as can be compared.
        fewest: how many to return at least, if there are that many.

    Returns:
        (P,) int64 tokens, none of them kept, in a fixed random order, so that the first ones come from all over the
        video.
    """
    count = int(blocks.tokens.max()) + 1
    chosen = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill_(0, kept, True)[blocks.tokens]
    covered = similarity.masked_fill(~chosen[:, None, :], -1).amax(2).maximum(elsewhere)
    covered, tokens = covered.masked_fill_(chosen | ~blocks.real, torch.inf).flatten(), blocks.tokens.flatten()
    below = (covered < level).nonzero().flatten()
    if len(below) < fewest:
        below = covered.topk(min(fewest, int(covered.isfinite().sum())), largest=False).indices
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(kept.device)
    pool = tokens[below]
    return pool[drawn[pool].argsort()][: max(LARGEST_POOL, LOOKED_UP // len(kept))]


def farther(near: Points, kept: Tensor, pool: Tensor, level: float) -> Tensor:
    """Those of `pool` (P,) int64 that are farther than `level` from all kept tokens (K,), in their order.

    Only the first `LARGEST_POOL`, because these tokens are then compared with one another.
    """
    return pool[1 - near.at(pool).to(near.at(kept)).amax(1) > level][:LARGEST_POOL]


def farthest(near: Points, kept: Tensor, pool: Tensor, count: int) -> Tensor:
    """The `count` tokens of `pool` (P,) int64 that are farthest from the kept ones (K,), in their order."""
    if count >= len(pool):
        return pool
    return pool[near.at(pool).to(near.at(kept)).amax(1).topk(count, largest=False).indices.sort().values]


def apart(left: Points, kept: Points, count: int, levels: Iterable[float]) -> list[int]:
    """Choose tokens that are far from all kept ones and from one another.

    First those farther than the first level, then the remaining ones farther than the next, and so on: at each step
    nearly the farthest token (Gonzalez 1985). Which of two nearly equally far tokens comes first depends on their
    order, not on the last digits of a distance.

    Args:
        left: (P,) the tokens that are not kept, in order of precedence.
        kept: (K,) the kept ones.
        count: how many to choose at most; fewer once none is farther than the last level from all kept and chosen ones.
        levels: distances, descending.

    Returns:
        The indices of the chosen tokens in `left`.
    """
    nearest = left.to(kept).amax(1)
    # For steps this small numpy takes a tenth of torch's time, and none has to wait for another device.
    similarity, distance = left.within().cpu().numpy(), 1 - nearest.cpu().numpy()
    chosen: list[int] = []
    for level in levels:
        while len(chosen) < count and (far := distance > level).any():
            chosen.append(int(far.argmax()))
            np.minimum(distance, 1 - similarity[chosen[-1]], out=distance)
            distance[chosen[-1]] = -np.inf
    return chosen
