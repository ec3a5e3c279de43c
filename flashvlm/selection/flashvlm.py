"""The selector for video: one budget, spent where the question and what is new in the video ask for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from flashvlm.selection.blocks import LARGEST, Blocks, join
from flashvlm.selection.directions import Directions
from flashvlm.selection.facility import greedy
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space
from flashvlm.selection.points import Points
from flashvlm.selection.radius import LARGEST_POOL, LEVELS, apart, farther, farthest, least_covered, net
from flashvlm.selection.repetition import repeats
from flashvlm.selection.result import ALIKE, Selection
from flashvlm.selection.spread import enough, spread
from flashvlm.selection.thinning import thin
from flashvlm.selection.weights import asked_for, novelty, salient


@dataclass(frozen=True)
class Recipe:
    """What goes into the selection, as tuned on clips of the demo world; 0 leaves a part out, `reach` apart.

    `novelty`, `relevance` and `saliency` are powers of the signals that make a token's weight. `repetition` is the part
    of its weight that a token loses which the temporal group before shows too. `reach`, above 0, is the distance over
    which a kept token's cover of others falls to 1 / e (how many `auto` keeps does not hang on it). `candidates` is how
    many tokens the thinning leaves for each that is kept, and `fewest` in each block at least. `together` is how many
    of these, of successive blocks, are chosen from at once; of more, where few tokens are kept. `floor` is how many
    tokens each group keeps. `corners` is the share of the budget that goes to tokens far from all others kept, and
    `lonely` the share up to which it goes to these and to such that nothing kept stands for. `named` is the share up to
    which it goes, after the floor, to the tokens that the question asks for most, one of every group before the second
    of any: one token at least, where there is one. With `ends`, the first and the last group are chosen from apart, and
    the last loses nothing to the one before: what there is at the beginning and at the end is asked about, and no other
    moment can tell.
    """

    novelty: float = 1.0
    relevance: float = 1.0
    saliency: float = 0.5
    repetition: float = 0.5
    reach: float = 0.12
    candidates: int = 4
    fewest: int = 40
    together: int = 128
    floor: int = 1
    corners: float = 0.2
    lonely: float = 0.7
    named: float = 0.2
    ends: bool = True


# How many tokens the thinning aims at where the budget is not known, as a share.
AUTO_AIM = 0.1
# Corners are looked for among so many times as many tokens, or among so many if that is more.
POOL, LEAST_POOL = 2, 320
# A token that stands out so many times as far as the reach of noise is kept for the question.
ASKED_FOR = 2.25
# Up to so many tokens are chosen from at once, as far as their square times the budget, which is what the choice
# costs, stays within `WORK`: a kept token may stand for its like in several groups.
MOST_TOGETHER, WORK = 512, 7_000_000
# `auto` keeps as many tokens as it takes to cover this share of the video's weight, each over this distance, the
# question and saliency unseen.
COVERED, COVERED_OVER = 0.8, 0.2


def flashvlm(inputs: Inputs, recipe: Recipe = Recipe()) -> Selection:
    """Cover the video with a budget of tokens, each weighted by what it shows.

    That is its novelty, what the question asks for, and the square root of its saliency. A token loses up to half of
    its weight to the group before, as far as that shows it too. Per block of a group, near-duplicates are thinned out
    in bipartite rounds; from what is left, joined over some blocks (those of the first and the last group by
    themselves), greedy facility location chooses; the budget goes to the highest gains of all, one token of every group
    before all others, and then a fifth of it at most to what the question names. Up to 70 % of it goes to tokens far
    from all others kept, instead: 20 % to the corners, of the least covered tokens those farthest from all kept ones,
    and before them as much as there is, up to 50 %, to tokens that nothing kept stands for, the heaviest first.

    What is compared lies within a block, those joined to it and its like in the group before; of lonely tokens and
    corners, bounded numbers of them with all kept ones. So the cost is linear in the tokens and in the budget. It is
    the same whatever the tokens are. Tokens and words are read in bfloat16, in which most models hold them, so that
    their values in float32 and in bfloat16 give the same set.
    """
    directions = Directions.of(inputs.tokens)
    tokens = directions.tokens
    asked = asked_for(directions, inputs.words)
    shown = novelty(directions) ** recipe.novelty
    scores = shown * asked**recipe.relevance * salient(inputs.saliency) ** recipe.saliency
    blocks = Blocks.of(inputs.group_sizes, tokens.device)
    redundancy: tuple[float, ...] = ()
    if inputs.delta is not None:
        # The radius is measured on the tokens as they are.
        kept = net(Space.of(inputs.tokens, inputs.metric), blocks, inputs.delta)
    elif inputs.budget == len(tokens) and not inputs.auto:
        kept = torch.arange(len(tokens), device=tokens.device)
    else:
        where = directions.under(inputs.metric)
        budget = fitting(where, shown, inputs.group_sizes, recipe) if inputs.auto else inputs.budget
        kept, redundancy = cover_best(where, blocks, scores, asked, budget, recipe)
    if inputs.delta is not None:
        return Selection.of(inputs, kept, scores=scores)
    important = asked[kept] >= ASKED_FOR
    return Selection.of(inputs, kept[~important], kept[important], scores, redundancy)


def fitting(where: Directions, weights: Tensor, group_sizes: tuple[int, ...], recipe: Recipe) -> int:
    """The budget that covers `COVERED` of the video's weight, at least `floor` of every group.

    It is told from at most `LARGEST` tokens of each group, one of each stretch of them, in no one column: what a video
    shows does not grow with its resolution. Nor does it hang on the question, which says what is kept: weights that
    have relevance in them gave budgets that did no better than the same for every video.
    """
    sizes = [min(size, LARGEST) for size in group_sizes]
    begins = [end - size for end, size in zip(accumulate(group_sizes), group_sizes, strict=True)]
    # Multiples of the golden ratio fall evenly all over a stretch.
    places = torch.arange(LARGEST, dtype=torch.float64)
    places += places.mul((math.sqrt(5) - 1) / 2).frac()
    shown = torch.cat(
        [
            begin + (places[:few] * (size / few)).long()
            for begin, size, few in zip(begins, group_sizes, sizes, strict=True)
        ]
    ).to(weights.device)
    blocks = Blocks.of(sizes, weights.device)
    # How many they are does not hang on which of them are exchanged for named, lonely ones or corners.
    plain = replace(recipe, reach=COVERED_OVER, named=0.0, lonely=0.0, corners=0.0)
    kept, _ = cover_best(where.at(shown), blocks, weights[shown], torch.ones_like(weights[shown]), None, plain)
    return len(kept)


def cover_best(
    where: Directions, blocks: Blocks, scores: Tensor, asked: Tensor, budget: int | None, recipe: Recipe
) -> tuple[Tensor, tuple[float, ...]]:
    """The (K,) tokens, ascending, by which most of the weight is covered, and how redundant the others were.

    Without a budget, as many as cover `COVERED` of it.
    """
    aim = budget or int(AUTO_AIM * len(scores))
    floors = recipe.floor * (int(blocks.group[-1]) + 1)
    near = Points.folded(where)
    rows = blocks.rows(near)
    similarity, repeated = rows.within(), repeats(rows, blocks)
    alike = repeated[blocks.real & (blocks.group > 0)[:, None]]
    last = (blocks.group == blocks.group[-1])[:, None]
    spared = repeated.masked_fill(last, 0) if recipe.ends else repeated
    own = torch.where(blocks.real, scores[blocks.tokens], 0) * (1 - recipe.repetition * spared)
    fewest = blocks.share(max(recipe.candidates * aim, recipe.fewest * len(own)))
    left, weights, real, redundancy = thin(similarity, own, blocks.real, fewest)
    redundancy += (alike.mean().item(),) if len(alike) else ()
    tokens, groups = blocks.tokens.gather(1, left), blocks.group[:, None].expand_as(left)
    # What is left of successive blocks is chosen from together: the fewer tokens are kept, the more each stands for.
    together = recipe.together
    if together and budget:
        together = max(together, min(MOST_TOGETHER, math.isqrt(WORK // budget)))
    joins = blocks.joins(max(1, together // tokens.shape[1]), recipe.ends)
    tokens, groups, weights, real = (join(part, joins) for part in (tokens, groups, weights, real))
    cover = near.at(tokens).within().sub_(1).div_(recipe.reach).exp_()
    gains = greedy(cover, weights, real, groups, budget or len(scores), recipe.floor).flatten()
    count = budget or min(max(floors, enough(gains, COVERED)), int(real.sum()))
    tokens, groups, wanted = tokens.flatten(), groups.flatten(), asked[tokens].masked_fill(~real, 0).flatten()
    first = asked_most(wanted, groups, int(recipe.named * count)) if recipe.named else tokens[:0]
    gains[first] = torch.inf
    kept = tokens[spread(gains, groups, count, recipe.floor)]
    # Every group, and what is named, comes before the corners.
    free = max(0, count - floors - len(first))
    corners, lonely = (min(int(count * share), free) for share in (recipe.corners, recipe.lonely))
    corners = min(corners, LARGEST_POOL)
    # What the group before shows too is looked for there, not here.
    if lonely > corners:
        pool = least_covered(similarity, repeated, blocks, kept[: count - lonely], ALIKE, 0)
        pool = pool[scores[pool].argsort(descending=True, stable=True)]
        pool = farther(near, kept[: count - lonely], pool, 1 - ALIKE)
        far = pool[apart(near.at(pool), near.at(kept[: count - lonely]), lonely - corners, [1 - ALIKE])]
        kept = torch.cat([far, kept[~torch.isin(kept, far)]])
    kept = kept[: count - corners]
    if corners:
        pool = least_covered(similarity, repeated, blocks, kept, ALIKE, LARGEST_POOL)
        pool = farthest(near, kept, pool, max(LEAST_POOL, POOL * corners))
        far = pool[apart(Points.of(where.at(pool)), Points.of(where.at(kept)), corners, LEVELS)]
        kept = torch.cat([kept, far])
    return kept.sort().values, redundancy


def asked_most(asked: Tensor, groups: Tensor, count: int) -> Tensor:
    """The `count` places, or one, that the question asks for most, of those it does: one of every group first."""
    could = (asked >= ASKED_FOR).nonzero().flatten()
    return could[spread(asked[could], groups[could], min(max(1, count), len(could)), 1)]
