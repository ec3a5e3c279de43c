"""The selector for video: one budget, spent where the question and what is new in the video ask for it."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.blocks import Blocks
from flashvlm.selection.facility import greedy
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space, unit_vectors
from flashvlm.selection.repetition import repeats
from flashvlm.selection.result import Selection
from flashvlm.selection.spread import spread
from flashvlm.selection.thinning import thin
from flashvlm.selection.weights import asked_for, novelty

# Tokens left by the thinning for each that is kept, and the fewest left in a block.
CANDIDATES = 4
FEWEST = 8
# By how much a token weighs less that merely repeats the temporal group before.
REPETITION = 0.9
# How fast a kept token's cover of another falls with their distance.
REACH = 0.2
# A token whose relevance raised its weight by this factor is kept for the question.
ASKED_FOR = 1.5


def flashvlm(inputs: Inputs) -> Selection:
    """Cover the video with a budget of tokens, each weighted by its novelty and by what the question asks for.

    Per block of a temporal group, near-duplicates are thinned out in bipartite rounds; what of the rest repeats the
    group before loses most of its weight; what is left is ordered by greedy facility location, and the budget goes to
    the highest gains of all blocks, one token of every group before all others.

    Nothing is compared beyond a block and its like in the group before, so that the cost is near linear in the tokens.
    Tokens and words are read in bfloat16, in which most models hold them: their values in float32 and in bfloat16 give
    the same set.
    """
    tokens, words = inputs.tokens.bfloat16(), inputs.words.bfloat16()
    units = unit_vectors(tokens)
    raised = asked_for(units, unit_vectors(words))
    scores = novelty(units) * raised
    if inputs.budget == len(tokens):
        return Selection.of(inputs, torch.arange(len(tokens), device=tokens.device), scores=scores)
    space = Space.of_units(units) if inputs.metric == "cosine" else Space.of(tokens, inputs.metric)
    blocks = Blocks.of(inputs.group_sizes, tokens.device)
    similarity = blocks.similarity(space)
    own = scores[blocks.tokens].masked_fill(~blocks.real, -torch.inf)
    fewest = blocks.share(max(CANDIDATES * inputs.budget, FEWEST * len(own)))
    places, weights, decay = thin(similarity, own, own.clamp(min=0), fewest)
    candidates, real = blocks.tokens.gather(1, places), blocks.real.gather(1, places)
    weights = weights * (1 - REPETITION * repeats(space, blocks, candidates))
    cover = _pick(similarity, places).sub_(1).div_(REACH).exp_()
    order, gains = greedy(cover, weights, real)
    kept = spread(gains, candidates.gather(1, order), blocks.group, inputs.budget)
    asked = raised[kept] >= ASKED_FOR
    return Selection.of(inputs, kept[~asked], kept[asked], scores)


def _pick(similarity: Tensor, places: Tensor) -> Tensor:
    """(B, n, n) at (B, m) places: (B, m, m)."""
    rows = similarity.gather(1, places[:, :, None].expand(-1, -1, similarity.shape[2]))
    return rows.gather(2, places[:, None, :].expand(-1, places.shape[1], -1))
