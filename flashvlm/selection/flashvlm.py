"""The selector for video: one budget, spent on what is new in the video and on what the question asks for.

The file reads from top to bottom, as the method runs: the whole, then 1. weights, 2. repetition, 3. thinning, 4. cover,
5. budget, 6. tokens that are not covered, and last the choice of the budget itself and of a radius instead of one.
Tokens are compared only within small blocks (`blocks.py`), with the blocks joined to these, and with the same place in
the moment before. A moment is a temporal group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.blocks import LARGEST, Blocks, Directions, Points, join
from flashvlm.selection.geometry import Space, cover, in_range, unit_vectors, word_similarity
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import ALIKE, Selection


@dataclass(frozen=True)
class Recipe:
    """The settings of the method, tuned on clips of the demo world. With 0, a part is left out (except `reach`)."""

    # A token's weight is the product of three signals, each raised to its power.
    novelty: float = 1.0
    relevance: float = 1.0
    saliency: float = 0.5
    # The share of its weight that a token loses if the moment before shows it too.
    repetition: float = 0.5
    # Thinning leaves this many candidates for every token of the budget, ...
    candidates: int = 4
    # ... and at least this many in every block.
    fewest: int = 40
    # So many candidates, from successive blocks, are chosen from together. They are more if few tokens are kept.
    together: int = 128
    # The distance over which a kept token's cover of others falls to 1 / e, above 0. `auto` counts with another one.
    reach: float = 0.12
    # How many tokens every moment keeps, as far as the budget goes.
    floor: int = 1
    # The share of the budget, after the floor, for the tokens most relevant to the question: one of every moment before
    # a second of any, and at least one token if any is relevant.
    important: float = 0.2
    # The share of the budget for the tokens farthest from all others kept.
    farthest: float = 0.2
    # The largest share of the budget for these and for tokens that nothing kept stands for, taken together.
    uncovered: float = 0.7
    # Whether the first and the last moment are chosen from apart from the others, and the last loses nothing to the one
    # before. Questions ask what there is at the beginning and at the end, and no other moment can show it.
    ends: bool = True


def flashvlm(inputs: Inputs, recipe: Recipe = Recipe()) -> Selection:
    """Cover the video with a budget of tokens, each weighted by what it shows.

    The cost is linear in the tokens and in the budget, and does not depend on what the tokens are. Tokens and words are
    read in bfloat16, in which most models hold them, so that their values in float32 and in bfloat16 give the same set.
    """
    directions = Directions.of(inputs.tokens)
    tokens = directions.tokens
    wanted = relevance(directions, inputs.words).clamp(min=1)
    shown = novelty(directions) ** recipe.novelty
    weights = shown * wanted**recipe.relevance * relative(inputs.saliency) ** recipe.saliency
    blocks = Blocks.of(inputs.group_sizes, tokens.device)
    if inputs.delta is not None:
        # The radius is measured on the tokens as they are.
        kept = net(Space.of(inputs.tokens, inputs.metric), blocks, inputs.delta)
        return Selection.of(inputs, kept, scores=weights)
    redundancy: tuple[float, ...] = ()
    if inputs.budget == len(tokens) and not inputs.auto:
        kept = torch.arange(len(tokens), device=tokens.device)
    else:
        where = directions.under(inputs.metric)
        budget = fitting(where, shown, inputs.group_sizes, recipe) if inputs.auto else inputs.budget
        kept, redundancy = choose(where, blocks, weights, wanted, budget, recipe)
    important = wanted[kept] >= RELEVANT
    return Selection.of(inputs, kept[~important], kept[important], weights, redundancy)


def choose(
    where: Directions, blocks: Blocks, weights: Tensor, wanted: Tensor, budget: int | None, recipe: Recipe
) -> tuple[Tensor, tuple[float, ...]]:
    """Steps 2 to 6: the tokens that cover most of the weight.

    Args:
        where: the N tokens.
        weights: (N,) float32 >= 0.
        wanted: (N,) float32, their relevance to the question.
        budget: how many to keep; if None, as many as cover `COVERED` of the weight.

    Returns:
        (K,) int64, ascending; and `Selection.redundancy`.
    """
    video = Compared.of(where, blocks)
    candidates, groups, gains, redundancy = ranked(video, weights, budget, recipe)
    real = gains.isfinite()
    floors = recipe.floor * (int(blocks.group[-1]) + 1)
    count = budget or min(max(floors, enough(gains, COVERED)), int(real.sum()))
    important = candidates[:0]
    if recipe.important:
        relevant = wanted[candidates].masked_fill(~real, 0)
        important = most_relevant(relevant, groups, int(recipe.important * count))
    gains[important] = torch.inf
    kept = candidates[spread(gains, groups, count, recipe.floor)]
    # The floor of every moment and the important tokens come before those that are not covered.
    free = max(0, count - floors - len(important))
    far, uncovered = (min(int(count * share), free) for share in (recipe.farthest, recipe.uncovered))
    far = min(far, LARGEST_POOL)
    if uncovered > far:
        kept = with_uncovered(video, kept, count - uncovered, uncovered - far, weights)
    kept = kept[: count - far]
    if far:
        kept = torch.cat([kept, farthest(video, kept, far)])
    return kept.sort().values, redundancy


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


def ranked(
    video: Compared, weights: Tensor, budget: int | None, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    """Steps 2 to 4: the tokens that the thinning leaves, and what each adds to the covered weight when it is chosen.

    Returns:
        (M,) int64 tokens; (M,) int64, their temporal groups; (M,) float32 gains, see `greedy`; and
        `Selection.redundancy`.
    """
    blocks, repeated = video.blocks, video.repeated
    alike = repeated[blocks.real & (blocks.group > 0)[:, None]]
    if recipe.ends:
        repeated = repeated.masked_fill((blocks.group == blocks.group[-1])[:, None], 0)
    own = torch.where(blocks.real, weights[blocks.tokens], 0) * (1 - recipe.repetition * repeated)
    aim = budget or int(AUTO_AIM * len(weights))
    fewest = blocks.share(max(recipe.candidates * aim, recipe.fewest * len(own)))
    left, own, real, redundancy = thin(video.similarity, own, blocks.real, fewest)
    redundancy += (alike.mean().item(),) if len(alike) else ()
    tokens, groups = blocks.tokens.gather(1, left), blocks.group[:, None].expand_as(left)
    together = recipe.together
    if together and budget:
        together = max(together, min(MOST_TOGETHER, math.isqrt(WORK // budget)))
    joins = blocks.joins(max(1, together // tokens.shape[1]), recipe.ends)
    tokens, groups, own, real = (join(part, joins) for part in (tokens, groups, own, real))
    covers = video.near.at(tokens).within().sub_(1).div_(recipe.reach).exp_()
    gains = greedy(covers, own, real, groups, budget or len(weights), recipe.floor)
    return tokens.flatten(), groups.flatten(), gains.flatten(), redundancy


# 1. Weights: how new a token is, and how much it shows of what the question asks for.

LEAST_NOVELTY = 1e-6
LEAST_SALIENCY = 1e-2
# Relevance is beyond the reach of noise from this many robust standard deviations above the median token.
STANDS_OUT = 3.0
# Added to the spread of relevance, a cosine, so that tokens are not distinguished by a spread well below it.
LEAST_SPREAD = 1e-3
# The standard deviation of a normal distribution in median absolute deviations.
DEVIATIONS = 1.4826
# A token is kept for the question if its relevance is at least this many times as far out as noise reaches.
RELEVANT = 2.25


def novelty(directions: Directions) -> Tensor:
    """How far each token is from the mean direction, which is mostly background: 1 - cosine, (N,) float32 above 0."""
    centre = functional.normalize(directions.mean, dim=0)
    return (1 - directions.cosines(centre[None])[:, 0]).clamp(min=LEAST_NOVELTY)


def relevance(directions: Directions, words: Tensor) -> Tensor:
    """How far each token's similarity to the question stands out from the others': above 1 it is no noise.

    A cosine with a word means little by itself: on most checkpoints every token has some, and noise makes each
    different. So it is measured against its own spread (median and median absolute deviation). In a token's weight only
    what lies beyond the reach of noise counts; where relevance does not distinguish tokens, it changes nothing.

    Args:
        directions: those of the N tokens.
        words: (L, D) of any float dtype; L may be 0.

    Returns:
        (N,) float32, 0 for the median token; all 0 without words.
    """
    if not len(words):
        return torch.zeros_like(directions.lengths[:, 0])
    shown = word_similarity(directions.cosines(unit_vectors(in_range(words).bfloat16())))
    above = shown - shown.median()
    spread = DEVIATIONS * above.abs().median() + LEAST_SPREAD
    return above / (STANDS_OUT * spread)


def relative(saliency: Tensor) -> Tensor:
    """(N,) saliency >= 0 divided by its mean, at least `LEAST_SALIENCY`; all 1 if it is flat or all zero."""
    mean = saliency.mean()
    return (saliency / mean).clamp(min=LEAST_SALIENCY) if mean > 0 else torch.ones_like(saliency)


# 2. Repetition: a token that the moment before shows too weighs less.

# Blocks compared at once: few enough to stay in the processor's cache.
AT_ONCE = 16


def repeats(rows: Points, blocks: Blocks) -> Tensor:
    """Each token's similarity to the most similar one at the same place in the previous group.

    Args:
        rows: (B, n), the tokens of each block, which are compared with those of `blocks.before`.

    Returns:
        (B, n) float32 in 0..1; 0 in the first group.
    """
    parts = (part.split(AT_ONCE) for part in (rows.vectors, rows.offset, blocks.before))
    highest = [Points(*some).to(rows.at(before)).amax(2) for *some, before in zip(*parts, strict=True)]
    return torch.cat(highest).clamp_(0, 1).masked_fill_((blocks.group == 0)[:, None], 0)


# 3. Thinning: near-duplicates are dropped in bipartite rounds, each a constant fraction of what is left.

# A round drops at most this share, rounded up, of the tokens that it could drop.
DROPPED_SHARE = 0.5
# Added to every distance, so that much smaller ones, which are noise, hardly differ.
SAME = 0.02
# The share of the tokens that the thinning aims at if the budget is not known.
AUTO_AIM = 0.1


def thin(
    similarity: Tensor, weights: Tensor, real: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor, tuple[float, ...]]:
    """Drop from every block the tokens that others in it stand for, until at most `keep` are left.

    Round r splits the tokens of a block by bit r of their index and drops the half of one side with the least loss: a
    token's weight times its distance from the most similar one on the other side, which takes over the weight. Each
    round of the paper (arXiv 2512.20561) drops eight of all tokens; these shrink a block geometrically. There a token's
    side depends on the rank of its score, so that noise in one score changes all later rounds; here it is fixed.

    Args:
        similarity: (B, n, n) float32 between the tokens of each block.
        weights: (B, n) float32 >= 0.
        real: (B, n) bool, False for padding.
        keep: how many tokens to leave in each block.

    Returns:
        (B, m) int64 with m = min(keep, n), ascending indices in each block, those of shorter blocks padded with any;
        (B, m) their weights; (B, m) bool, False for padding; and round by round the mean similarity of dropped tokens
        to those that stand for them.
    """
    size = similarity.shape[1]
    place = torch.arange(size, device=similarity.device)
    left, weights, redundancy = real.clone(), weights.clone(), []
    bits = max(1, (size - 1).bit_length())
    step = 0
    while (excess := left.sum(1, keepdim=True) - keep).max() > 0:
        side = (place >> step % bits) & 1 == 1
        step += 1
        mine, others = left & side, left & ~side
        highest, nearest = similarity.masked_fill(~others[:, None, :], -torch.inf).max(2)
        mine &= others.any(1, keepdim=True)
        loss = (weights * (1 + SAME - highest)).masked_fill_(~mine, torch.inf)
        most = (mine.sum(1, keepdim=True) * DROPPED_SHARE).ceil().minimum(excess)
        dropped = mine & (loss.argsort(stable=True).argsort() < most)
        if dropped.any():
            redundancy.append(highest[dropped].mean().item())
        weights.scatter_add_(1, nearest, weights * dropped)
        left &= ~dropped
    kept = left.byte().argsort(dim=1, descending=True, stable=True)[:, :keep]
    there = left.gather(1, kept)
    return kept, weights.gather(1, kept) * there, there, tuple(redundancy)


# 4. Cover: greedy facility location finds the tokens that best cover the weight.

# Up to `MOST_TOGETHER` tokens are chosen from at once, as long as their number squared times the budget, which is what
# choosing costs, stays within `WORK`: the fewer tokens are kept, the more groups each of them stands for.
MOST_TOGETHER, WORK = 512, 7_000_000
# Steps between checks whether more of them can matter.
LOOK_EVERY = 8
# Of two nearly equal gains the earlier token's wins: gains are reduced along a block, by this share at its end.
LATENESS = 0.03


def greedy(cover: Tensor, weights: Tensor, real: Tensor, groups: Tensor, count: int, floor: int) -> Tensor:
    """In every block, choose one after the other the tokens that add most to the weighted sum of best covers.

    The sum over all tokens i of weight_i * max over the chosen j of cover_ij is monotone and submodular: the first k
    tokens chosen in a block are within 1 - 1/e of its best k (Nemhauser et al. 1978), and gains never rise from one to
    the next. So the `count` highest gains of all blocks are the greedy choice for their sum. Once no block can add to
    these, tokens are chosen only from temporal groups that have fewer than `floor` of them.

    Args:
        cover: (B, m, m) float32 in 0..1, how well each token (row) is covered by each other one (column).
        weights: (B, m) float32 >= 0.
        real: (B, m) bool, False for padding.
        groups: (B, m) int64, the temporal groups.
        count: how many tokens are wanted from all blocks together.
        floor: how many to choose from every group at least, if it has that many.

    Returns:
        (B, m) float32: for a chosen token, its gain when chosen; for any other, what it would still add, which is at
        most the lowest of the `count` highest; -inf for padding.
    """
    blocks = torch.arange(len(cover), device=cover.device)
    size = cover.shape[1]
    earliness = 1 - LATENESS * torch.arange(size, dtype=cover.dtype, device=cover.device) / size
    covered, gains = torch.zeros_like(weights), torch.full_like(weights, -torch.inf)
    barred = torch.zeros_like(weights).masked_fill(~real, -torch.inf)
    gap = torch.empty_like(cover)
    count = min(count, int(real.sum()))

    def left() -> Tensor:
        torch.sub(cover, covered[:, :, None], out=gap)
        return torch.bmm(weights[:, None, :], gap.clamp_(min=0))[:, 0] * earliness + barred

    def add(some: Tensor, could: Tensor) -> None:
        most, place = could[some].max(1)
        # A block with no tokens left chooses one again, which gains nothing.
        gains[some, place] = gains[some, place].maximum(most)
        barred[some, place] = -torch.inf
        covered[some] = torch.maximum(covered[some], cover[some, :, place])

    for step in range(size):
        could = left()
        looks = step % LOOK_EVERY == 0 and step * len(cover) >= count
        if looks and could.max() <= gains.flatten().topk(count).values[-1]:
            break
        add(blocks, could)
    wanted = torch.bincount(groups[real]).clamp(max=floor)
    while True:
        held = torch.bincount(groups[gains.isfinite()], minlength=len(wanted))
        few = (held < wanted)[groups] & (barred == 0)
        could = left()
        if not few.any():
            return torch.maximum(gains, could)
        add(few.any(1).nonzero().flatten(), could.masked_fill(~few, -torch.inf))


# 5. Budget: one for the whole video, so that moments compete for it.


def spread(gains: Tensor, groups: Tensor, budget: int, floor: int) -> Tensor:
    """Choose the `budget` tokens with the highest gains, `floor` of every group before all others.

    If the floors exceed the budget, the second token of a group comes after the first of every group, and groups with
    the highest gains come first. Ties go to the first.

    Args:
        gains: (M,) float32, -inf for padding.
        groups: (M,) int64, the temporal groups.
        budget: how many to choose, at most the number of gains above -inf.

    Returns:
        (budget,) int64 indices.
    """
    order = gains.argsort(descending=True, stable=True)
    groups = groups[order]
    # The rank of each token within its group, the highest gain first.
    by_group = groups.argsort(stable=True)
    sizes = torch.bincount(groups)
    begins = (sizes.cumsum(0) - sizes)[groups[by_group]]
    place = torch.empty_like(groups)
    place[by_group] = torch.arange(len(groups), device=groups.device) - begins
    ranked = place.clamp(max=floor).argsort(stable=True)
    return order[ranked[:budget]]


def most_relevant(relevance: Tensor, groups: Tensor, count: int) -> Tensor:
    """Indices of the `count` (at least one, if any) most relevant tokens, of those that are `RELEVANT`.

    One of every group comes before a second of any.
    """
    could = (relevance >= RELEVANT).nonzero().flatten()
    return could[spread(relevance[could], groups[could], min(max(1, count), len(could)), 1)]


# 6. Tokens that are not covered: a part of the budget is exchanged for those unlike all that are kept.

# At most this many tokens are compared with one another, and so at most this many are chosen for being far apart.
LARGEST_POOL = 1024
# At most this many distances to kept tokens are computed for that, or those of `LARGEST_POOL` tokens if more: it bounds
# the cost when tokens and budget grow together.
LOOKED_UP = 2**22
# The farthest are chosen from `POOL` times as many tokens, or from `LEAST_POOL` if that is more.
POOL, LEAST_POOL = 2, 320
# Tokens are chosen if they are farther than the first of these distances, then the next, and so on. No cosine distance
# exceeds 2; of larger ones, as euclidean distances can be, whichever comes first is chosen first.
LEVELS = (*(2 * 0.98**step for step in range(400)), -math.inf)


def with_uncovered(video: Compared, kept: Tensor, sure: int, most: int, weights: Tensor) -> Tensor:
    """(K,) kept tokens, best first, with up to `most` tokens before them that none of the first `sure` stands for.

    Tokens that the previous group shows too are looked for there, not here. The heaviest come first.
    """
    near, sure_ones = video.near, video.near.at(kept[:sure])
    pool = least_covered(video, kept[:sure], 0)
    pool = pool[weights[pool].argsort(descending=True, stable=True)]
    pool = pool[1 - near.at(pool).to(sure_ones).amax(1) > 1 - ALIKE][:LARGEST_POOL]
    uncovered = pool[farthest_first(near.at(pool), sure_ones, most, [1 - ALIKE])]
    return torch.cat([uncovered, kept[~torch.isin(kept, uncovered)]])


def farthest(video: Compared, kept: Tensor, count: int) -> Tensor:
    """(count,) of the least covered tokens, those farthest from the (K,) kept ones and from one another."""
    near, where = video.near, video.where
    pool = least_covered(video, kept, LARGEST_POOL)
    if (few := max(LEAST_POOL, POOL * count)) < len(pool):
        pool = pool[near.at(pool).to(near.at(kept)).amax(1).topk(few, largest=False).indices.sort().values]
    return pool[farthest_first(Points.of(where.at(pool)), Points.of(where.at(kept)), count, LEVELS)]


def least_covered(video: Compared, kept: Tensor, fewest: int) -> Tensor:
    """The tokens least similar to the kept ones of their own block: the most likely to be far from all others, too.

    What the same place in the moment before shows counts as kept.

    Args:
        kept: (K,) int64 tokens.
        fewest: how many to return at least, if there are that many; else only those less similar than `ALIKE`.

    Returns:
        (P,) int64 tokens, none of them kept, at most as many as can be compared, in a fixed random order, so that the
        first ones come from all over the video.
    """
    blocks, count = video.blocks, int(video.blocks.tokens.max()) + 1
    chosen = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill_(0, kept, True)[blocks.tokens]
    covered = video.similarity.masked_fill(~chosen[:, None, :], -1).amax(2).maximum(video.repeated)
    covered, tokens = covered.masked_fill_(chosen | ~blocks.real, torch.inf).flatten(), blocks.tokens.flatten()
    below = (covered < ALIKE).nonzero().flatten()
    if len(below) < fewest:
        below = covered.topk(min(fewest, int(covered.isfinite().sum())), largest=False).indices
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(kept.device)
    pool = tokens[below]
    return pool[drawn[pool].argsort()][: max(LARGEST_POOL, LOOKED_UP // len(kept))]


def farthest_first(left: Points, kept: Points, count: int, levels: Iterable[float]) -> list[int]:
    """Choose tokens that are far from all kept ones and from one another (Gonzalez 1985).

    First those farther than the first level, then the remaining ones farther than the next, and so on: at each step
    nearly the farthest token. Which of two nearly equally far tokens comes first depends on their order, not on the
    last digits of a distance.

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


# `auto`: the budget follows from what the video shows.

# As many tokens are kept as it takes to cover this share of the video's weight, each over this distance; here the
# weight leaves out the question and saliency.
COVERED, COVERED_OVER = 0.8, 0.2


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
    stretches = zip(begins, group_sizes, sizes, strict=True)
    some = torch.cat([begin + (places[:few] * (size / few)).long() for begin, size, few in stretches])
    some = some.to(weights.device)
    blocks = Blocks.of(sizes, weights.device)
    # How many are kept does not depend on which of them are exchanged afterwards.
    plain = replace(recipe, reach=COVERED_OVER, important=0.0, farthest=0.0, uncovered=0.0)
    kept, _ = choose(where.at(some), blocks, weights[some], torch.ones_like(weights[some]), None, plain)
    return len(kept)


def enough(gains: Tensor, share: float) -> int:
    """How many of the highest of (M,) gains make up this share of their sum: at least 1."""
    highest = gains.clamp(min=0).sort(descending=True).values
    return int((highest.cumsum(0) < share * highest.sum()).sum()) + 1


# A radius instead of a budget.


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
