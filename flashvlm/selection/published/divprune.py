"""Tokens as far apart as possible."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

# Size of the pool that is searched for the next tokens before all tokens are searched again.
POOL = 256
# Number of tokens whose nearest other token is searched for at once.
ROWS = 64
# Similarities that differ by less than this count as equal.
ROUNDING = 1e-6


def divprune(inputs: Inputs) -> Selection:
    """Greedy max-min diversity: DivPrune (CVPR 2025, arXiv 2503.02175).

    It begins with the token whose nearest other token is farthest, and goes on with the token farthest from all kept
    ones; ties go to the first. At most N x K similarities, plus those needed to find the first token: few in a video,
    where most tokens have a similar one beside them or in the next group, N x N at worst.
    """
    space = Space.of(inputs.tokens, inputs.metric)
    return Selection.of(inputs, farthest_points(space, loneliest(space, inputs.group_sizes[0]), inputs.budget))


def farthest_points(space: Space, first: Tensor, count: int) -> Tensor:
    """Choose tokens one by one, each the farthest from all before it.

    Because tokens only get nearer to the chosen ones, the next ones are searched for in a pool of the farthest, as long
    as one of them stays farther than all tokens outside it were. Only then are all tokens compared with those chosen.

    Args:
        space: N tokens.
        first: () int64, the one to begin with.
        count: how many, at most N.

    Returns:
        (count,) int64 in the order of choice.
    """
    chosen = [first[None]]
    similarity = space.left @ space.right[first]
    similarity[first] = torch.inf
    while (missing := count - sum(map(len, chosen))) > 0:
        ranked, order = similarity.sort(stable=True)
        pool = order[:POOL].sort().values
        limit = ranked[POOL].item() if len(ranked) > POOL else torch.inf
        picks = _farthest_in((space.left[pool] @ space.right[pool].T).cpu(), similarity[pool].cpu(), limit, missing)
        kept = pool[picks.to(pool.device)]
        torch.maximum(similarity, (space.left @ space.right[kept].T).amax(1), out=similarity)
        similarity[kept] = torch.inf
        chosen.append(kept)
    return torch.cat(chosen)


def _farthest_in(between: Tensor, before: Tensor, limit: float, count: int) -> Tensor:
    """Choose up to `count` next tokens from the pool, at least one, until one outside it could come first.

    Runs on the CPU, which is faster at small steps.

    Args:
        between: (P, P) similarities in the pool.
        before: (P,) similarity to the nearest chosen token. All tokens outside the pool have `limit` or more, and those
            at `limit` come after those in the pool at `limit`.
    """
    similarity, places = before.clone(), list[Tensor]()
    while len(places) < count:
        place = similarity.argmin()
        if places and (similarity[place] > limit or before[place] < similarity[place] == limit):
            break
        places.append(place)
        similarity = torch.maximum(similarity, between[place])
        similarity[place] = torch.inf
    return torch.stack(places)


def loneliest(space: Space, stride: int) -> Tensor:
    """Find the token whose nearest other token is farthest, () int64; among those equal up to rounding, any one.

    Neighbours rule out most tokens at once: a token's nearest one is at least as near as the token beside it, or the
    one in the same cell of the next group. The rest are compared with all, those far from their neighbours first.

    Args:
        space: N tokens.
        stride: tokens per group. A wrong number only costs time.
    """
    count = len(space.left)
    bound = space.left.new_full((count,), -torch.inf)
    for offset in {1, stride}:
        between = torch.linalg.vecdot(space.left[offset:], space.right[: count - offset])
        bound[offset:] = torch.maximum(bound[offset:], between)
        bound[: count - offset] = torch.maximum(bound[: count - offset], between)
    ranked, order = bound.sort(stable=True)
    highest, lowest = torch.full_like(bound, torch.inf), torch.inf
    for rows, bounds in zip(order.split(ROWS), ranked.split(ROWS), strict=True):
        if bounds[0] > lowest - ROUNDING * max(1, abs(lowest)):
            break
        similarity = space.left[rows] @ space.right.T
        similarity.scatter_(1, rows[:, None], -torch.inf)
        highest[rows] = similarity.amax(1)
        lowest = min(lowest, highest[rows].min().item())
    return highest.argmin()
