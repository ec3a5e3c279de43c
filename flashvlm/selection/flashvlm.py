"""The selector for video: one budget, spent on what is new in the video and on what the question asks for."""

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
    """The settings of the selection, tuned on clips of the demo world; 0 leaves a part out, except for `reach`.

    `novelty`, `relevance` and `saliency` are the powers of the signals that make up a token's weight. `repetition` is
    the share of its weight that a token loses if the previous temporal group shows it too. `reach`, above 0, is the
    distance over which a kept token's cover of others falls to 1 / e (it does not affect how many tokens `auto` keeps).
    `candidates` is how many tokens the thinning leaves for each one kept, and `fewest` how many in each block at least.
    `together` is how many of these, from successive blocks, are chosen from at once; more if few tokens are kept.
    `floor` is how many tokens each group keeps. `corners` is the share of the budget for tokens far from all others
    kept, and `lonely` the most that these may take together with tokens that nothing kept stands for. `named` is the
    share that may go, after the floor, to the tokens that the question asks for most, one from every group before a
    second from any: at least one token, if there is one. With `ends`, the first and the last group are chosen from
    separately, and the last loses nothing to the one before: questions ask what there is at the beginning and at the
    end, and no other moment can show it.
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


# The share of tokens that the thinning aims at if the budget is not known.
AUTO_AIM = 0.1
# Corners are chosen from `POOL` times as many tokens, or from `LEAST_POOL` if that is more.
POOL, LEAST_POOL = 2, 320
# A token is kept for the question if it stands out at least this many times as far as noise reaches.
ASKED_FOR = 2.25
# Up to `MOST_TOGETHER` tokens are chosen from at once, as long as their number squared times the budget, which is what
# choosing costs, stays within `WORK`: a kept token may stand for similar ones in several groups.
MOST_TOGETHER, WORK = 512, 7_000_000
# `auto` keeps as many tokens as it takes to cover this share of the video's weight, each over this distance; here the
# weight leaves out the question and saliency.
COVERED, COVERED_OVER = 0.8, 0.2


@dataclass(frozen=True, eq=False)
class Compared:
    """The N tokens of a video, compared where that is cheap.

    `near` are the tokens of `where` as points; `similarity` (B, n, n) float32 is that of the tokens within each block,
    and `repeated` (B, n) float32 how well the previous temporal group shows each of them.
    """

    where: Directions
    near: Points
    blocks: Blocks
    similarity: Tensor
    repeated: Tensor

    @classmethod
    def of(cls, where: Directions, blocks: Blocks) -> Compared:
        near = Points.folded(where)
        rows = blocks.rows(near)
        return cls(where, near, blocks, rows.within(), repeats(rows, blocks))


def flashvlm(inputs: Inputs, recipe: Recipe = Recipe()) -> Selection:
    """Cover the video with a budget of tokens, each weighted by what it shows.

    A token's weight is its novelty, times what the question asks for, times the square root of its saliency. It loses
    up to half of its weight to the previous group, depending on how well that shows it too. In each block of a group,
    near-duplicates are thinned out in bipartite rounds. From the tokens left, joined over some blocks (those of the
    first and the last group separately), greedy facility location chooses. The budget goes to the highest gains
    overall, after one token of every group and then at most a fifth for what the question names. Up to 70 % of it goes
    instead to tokens far from all others kept: first up to 50 %, if there are enough, to tokens that nothing kept
    stands for, heaviest first; then 20 % to the corners, which are those of the least covered tokens that are farthest
    from all kept ones.

    Tokens are compared only within a block, with the blocks joined to it, and with the same place in the previous
    group; a bounded number of lonely tokens and corners is compared with all kept ones. So the cost is linear in the
    tokens and in the budget, and does not depend on what the tokens are. Tokens and words are read in bfloat16, in
    which most models hold them, so that their values in float32 and in bfloat16 give the same set.
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

    It is estimated from at most `LARGEST` tokens of each group, one from each equal stretch and not all in one column:
    what a video shows does not grow with its resolution. Nor does it depend on the question, which decides what is
    kept: weights that include relevance gave budgets that did no better than one budget for all videos.
    """
    sizes = [min(size, LARGEST) for size in group_sizes]
    begins = [end - size for end, size in zip(accumulate(group_sizes), group_sizes, strict=True)]
    # Multiples of the golden ratio, modulo 1, are spread evenly over a stretch.
    places = torch.arange(LARGEST, dtype=torch.float64)
    places += places.mul((math.sqrt(5) - 1) / 2).frac()
    shown = torch.cat(
        [
            begin + (places[:few] * (size / few)).long()
            for begin, size, few in zip(begins, group_sizes, sizes, strict=True)
        ]
    ).to(weights.device)
    blocks = Blocks.of(sizes, weights.device)
    # How many are kept does not depend on which are exchanged for named tokens, lonely ones or corners.
    plain = replace(recipe, reach=COVERED_OVER, named=0.0, lonely=0.0, corners=0.0)
    kept, _ = cover_best(where.at(shown), blocks, weights[shown], torch.ones_like(weights[shown]), None, plain)
    return len(kept)


def cover_best(
    where: Directions, blocks: Blocks, scores: Tensor, asked: Tensor, budget: int | None, recipe: Recipe
) -> tuple[Tensor, tuple[float, ...]]:
    """The (K,) tokens, ascending, that cover most of the weight, and how redundant the others were.

    Without a budget, as many tokens as cover `COVERED` of it.
    """
    compared = Compared.of(where, blocks)
    tokens, groups, gains, redundancy = ranked(compared, scores, budget, recipe)
    real = gains.isfinite()
    floors = recipe.floor * (int(blocks.group[-1]) + 1)
    count = budget or min(max(floors, enough(gains, COVERED)), int(real.sum()))
    wanted = asked[tokens].masked_fill(~real, 0)
    named = asked_most(wanted, groups, int(recipe.named * count)) if recipe.named else tokens[:0]
    gains[named] = torch.inf
    kept = tokens[spread(gains, groups, count, recipe.floor)]
    # The floor of every group and the named tokens come before lonely ones and corners.
    free = max(0, count - floors - len(named))
    corners, lonely = (min(int(count * share), free) for share in (recipe.corners, recipe.lonely))
    corners = min(corners, LARGEST_POOL)
    if lonely > corners:
        kept = with_lonely(compared, kept, count - lonely, lonely - corners, scores)
    kept = kept[: count - corners]
    if corners:
        kept = torch.cat([kept, far_corners(compared, kept, corners)])
    return kept.sort().values, redundancy


def ranked(
    compared: Compared, scores: Tensor, budget: int | None, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    """The tokens that the thinning leaves, their groups, and what each adds to the covered weight when it is chosen.

    Returns:
        tokens, groups (M,) int64; gains (M,) float32, see `greedy`; and how redundant the dropped tokens were.
    """
    blocks, repeated = compared.blocks, compared.repeated
    alike = repeated[blocks.real & (blocks.group > 0)[:, None]]
    last = (blocks.group == blocks.group[-1])[:, None]
    spared = repeated.masked_fill(last, 0) if recipe.ends else repeated
    own = torch.where(blocks.real, scores[blocks.tokens], 0) * (1 - recipe.repetition * spared)
    aim = budget or int(AUTO_AIM * len(scores))
    fewest = blocks.share(max(recipe.candidates * aim, recipe.fewest * len(own)))
    left, weights, real, redundancy = thin(compared.similarity, own, blocks.real, fewest)
    redundancy += (alike.mean().item(),) if len(alike) else ()
    tokens, groups = blocks.tokens.gather(1, left), blocks.group[:, None].expand_as(left)
    # The tokens left in successive blocks are chosen from together: the fewer are kept, the more each stands for.
    together = recipe.together
    if together and budget:
        together = max(together, min(MOST_TOGETHER, math.isqrt(WORK // budget)))
    joins = blocks.joins(max(1, together // tokens.shape[1]), recipe.ends)
    tokens, groups, weights, real = (join(part, joins) for part in (tokens, groups, weights, real))
    cover = compared.near.at(tokens).within().sub_(1).div_(recipe.reach).exp_()
    gains = greedy(cover, weights, real, groups, budget or len(scores), recipe.floor)
    return tokens.flatten(), groups.flatten(), gains.flatten(), redundancy


def with_lonely(compared: Compared, kept: Tensor, sure: int, most: int, scores: Tensor) -> Tensor:
    """(K,) kept tokens, best first, with up to `most` tokens before them that none of the first `sure` stands for.

    Tokens that the previous group shows too are looked for there, not here. The heaviest come first.
    """
    near, sure_ones = compared.near, kept[:sure]
    pool = least_covered(compared.similarity, compared.repeated, compared.blocks, sure_ones, ALIKE, 0)
    pool = pool[scores[pool].argsort(descending=True, stable=True)]
    pool = farther(near, sure_ones, pool, 1 - ALIKE)
    lonely = pool[apart(near.at(pool), near.at(sure_ones), most, [1 - ALIKE])]
    return torch.cat([lonely, kept[~torch.isin(kept, lonely)]])


def far_corners(compared: Compared, kept: Tensor, count: int) -> Tensor:
    """(count,) of the least covered tokens, those farthest from the (K,) kept ones and from one another."""
    pool = least_covered(compared.similarity, compared.repeated, compared.blocks, kept, ALIKE, LARGEST_POOL)
    pool = farthest(compared.near, kept, pool, max(LEAST_POOL, POOL * count))
    return pool[apart(Points.of(compared.where.at(pool)), Points.of(compared.where.at(kept)), count, LEVELS)]


def asked_most(asked: Tensor, groups: Tensor, count: int) -> Tensor:
    """Indices of the `count` tokens (at least one, if any) that the question asks for most, one per group first."""
    could = (asked >= ASKED_FOR).nonzero().flatten()
    return could[spread(asked[could], groups[could], min(max(1, count), len(could)), 1)]
