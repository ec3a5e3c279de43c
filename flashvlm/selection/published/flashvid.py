"""Salient and diverse tokens of each frame; the others merged over time into trees, and then among one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from flashvlm.selection.geometry import gathered, unit_vectors
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published.density import clusters
from flashvlm.selection.published.shares import apportion
from flashvlm.selection.result import Selection

# Published settings: the cosine of successive frames below which a segment ends, and at least how many segments; the
# share of the tokens that are kept as they are, and whether those are weighed by how well they show the segment; the
# cosine above which a token is merged into one of the frame before; and the neighbours that a density is taken from.
CUT, SEGMENTS = 0.9, 8
KEPT_SHARE = 0.7
EVENTS = True
ALIKE = 0.8
NEIGHBOURS = 7


def flashvid(inputs: Inputs) -> Selection:
    """Keep salient and diverse tokens, merge the others as trees over time: FlashVID (arXiv 2602.08024), first stage.

    The video is cut where successive frames differ. In each frame, tokens are chosen one after the other, each the
    farthest from those before, where a distance counts in proportion to the token's saliency and to how well it shows
    its segment. Each other token is merged into the most similar one of the frame before, if similar enough, and what
    is left of a frame into density peaks. The question plays no part, nor does the metric. The second stage prunes
    inside the language model.

    As in the published code, the sum of a tree is divided by one more than the number of its root's children, not by
    its size. That code rounds up the tokens of each frame and its clusters, so that it keeps 86 tokens when asked for
    77 of 768, and in a segment of one frame it also merges the tokens that it keeps, so that some are kept twice. Here
    the largest remainders are rounded up, which meets any budget, and no token is kept twice.
    """
    sizes = torch.tensor(inputs.group_sizes)
    budgets = apportion(sizes * (inputs.budget / len(inputs.tokens)), sizes, inputs.budget)
    whole, merged = compress(inputs, budgets.tolist())
    ones = torch.ones_like(whole, dtype=torch.float32)
    return Selection.mixed(inputs, *map(torch.cat, zip((whole, whole, ones), merged, strict=True)))


def compress(
    inputs: Inputs,
    budgets: list[int],
    rounded: Callable[[Tensor, Tensor, int], Tensor] = apportion,
    twice: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Reduce each frame to about as many tokens as its budget: exactly as many on average, if `rounded` is `apportion`.

    Args:
        twice: whether tokens that are kept in a segment of one frame are merged, too, as in the published code.

    Returns:
        The tokens that are kept as they are; and kept tokens, what is added to each and its weight: `Selection.mixed`.
    """
    frames = torch.arange(len(inputs.tokens), device=inputs.tokens.device).split(inputs.group_sizes)
    vectors, units = inputs.tokens.float(), unit_vectors(inputs.tokens)
    whole, merged = [], [(frames[0][:0], frames[0][:0], inputs.saliency[:0])]
    for segment in _segments(inputs):
        event = torch.stack([vectors[frames[place]].mean(0) for place in segment]).mean(0)
        free = torch.ones_like(inputs.saliency, dtype=torch.bool)
        rest = 0
        for place in segment:
            frame, count = frames[place], math.ceil(budgets[place] * KEPT_SHARE)
            weights = inputs.saliency[frame] * (vectors[frame] @ event if EVENTS else 1)
            whole.append(frame[_diverse(units[frame], weights, count)])
            free[whole[-1]] = twice and len(segment) == 1
            rest += budgets[place] - count
        if rest:
            left = [frames[place][free[frames[place]]] for place in segment]
            merged.append(_merged(vectors, units, left, rest, rounded))
    kept, tokens, shares = map(torch.cat, zip(*merged, strict=True))
    return torch.cat(whole), (kept, tokens, shares)


def _segments(inputs: Inputs) -> list[range]:
    """The frames of each segment."""
    means = unit_vectors(torch.stack([part.mean(0) for part in inputs.tokens.float().split(inputs.group_sizes)]))
    alike = (means[:-1] * means[1:]).sum(1)
    ends = alike < CUT
    # If they are too few, the least alike of the others end a segment, too.
    more = alike.masked_fill(ends, torch.inf).argsort(stable=True)[: max(0, SEGMENTS - 1 - int(ends.sum()))]
    last = [*ends.index_fill(0, more, True).nonzero().flatten().tolist(), len(means) - 1]
    return [range(begin, end + 1) for begin, end in zip([0, *(end + 1 for end in last)], last, strict=False)]


def _diverse(units: Tensor, weights: Tensor, count: int) -> Tensor:
    """Choose `count` of a frame's tokens, each the farthest from those before, by distances times its weight."""
    distance = (1 - units @ units.T) * weights
    # To begin with, the one whose nearest other is farthest: a token is at distance 0 from itself.
    nearest = distance.topk(min(2, len(units)), dim=0, largest=False).values[-1]
    chosen = [nearest.argmax()]
    nearest = distance[chosen[0]]
    while len(chosen) < count:
        chosen.append(nearest.index_fill(0, torch.stack(chosen), -torch.inf).argmax())
        nearest = nearest.minimum(distance[chosen[-1]])
    return torch.stack(chosen[:count]) if count else nearest.new_empty(0, dtype=torch.int64)


def _merged(
    vectors: Tensor, units: Tensor, frames: list[Tensor], budget: int, rounded: Callable[[Tensor, Tensor, int], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the tokens of a segment's frames over time and then within each frame, until `budget` are left."""
    tokens = torch.cat(frames)
    own = torch.arange(len(tokens), device=tokens.device)
    parent, places = own.clone(), own.split([len(frame) for frame in frames])
    similarity = torch.full_like(vectors[tokens, 0], -1)
    for before, after in pairwise(places):
        if len(before) and len(after):
            similarity[after], nearest = (units[tokens[after]] @ units[tokens[before]].T).max(1)
            parent[after] = before[nearest]
    joined = similarity > ALIKE
    if int(joined.sum()) > (most := len(tokens) - budget):
        joined = similarity > (similarity.topk(most).values[-1] if most else torch.inf)
    parent = torch.where(joined, parent, own)
    root = parent.clone()
    for place in places:
        root[place] = root[parent[place]]
    roots = (~joined).nonzero().flatten()
    order, sizes = gathered(torch.searchsorted(roots, root), len(roots))
    # One more than the number of children.
    divisor = torch.bincount(parent[joined], minlength=len(tokens)) + 1
    points = torch.segment_reduce(vectors[tokens[order]], "sum", lengths=sizes) / divisor[roots, None]
    mine = torch.tensor([int((~joined[place]).sum()) for place in places])
    counts = rounded(mine * (budget / len(roots)), mine, budget)
    into, shares = torch.full_like(tokens, -1), 1 / divisor
    for some, part, count in zip(roots.split(mine.tolist()), points.split(mine.tolist()), counts.tolist(), strict=True):
        if count:
            centres, nearest = clusters(part, count, NEIGHBOURS)
            into[some] = tokens[some[centres[nearest]]]
            shares[some] /= torch.bincount(nearest, minlength=count)[nearest]
    there = into[root] >= 0
    return into[root][there], tokens[there], shares[root][there]
