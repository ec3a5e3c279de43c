"""The published selector (arXiv 2512.20561), equal to the authors' LLaVA code, and VisPruner, which it grew out of."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space, unit_vectors, word_similarity
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

# The share of the budget for the tokens with the highest scores, in both selectors.
IMPORTANT_SHARE = 0.5
# Sharpening of the relevance: only the top 0.5 % of the tokens stand out.
TOKEN_TEMPERATURE = 0.01
POWER = 2.5
DIMMED_SHARE = 1 - 0.005
DIMMING = 0.1
# Fusion of saliency and relevance, both at least `LEAST`.
RELEVANCE_WEIGHT = 0.5
LEAST = 1e-6
# The rounds. A table of all similarities saves time where a look-up is cheaper than a product, and takes at most 1 GiB.
DROPPED_A_ROUND = 8
TABLE_WIDTH = 128
TABLE_BYTES = 2**30
# Rows per block: few enough that what a round works on stays in the processor's cache.
ROWS = 256


def paper(inputs: Inputs) -> Selection:
    """Half the budget to the highest fused scores, half to diversity among the rest. Groups play no part.

    If the budget keeps everything, the two are not distinguished. Without words the relevance is neutral and the score
    rests on saliency. It runs on the CPU in float32 wherever the tokens are: a similarity that differs in its last bit
    changes which tokens are even and which odd in all later rounds, and with it most of the diverse tokens, so that no
    two devices would keep the same ones.

    The cost is cubic. At D = 1536 on one core it takes 0.02 s for N = 576, 0.4 s for 2048 and 2.8 s for 4096; the
    published code 0.09, 3.5 and 30 s.
    """
    units = unit_vectors(inputs.tokens.cpu())
    saliency = min_max(inputs.saliency.cpu())
    if len(inputs.words):
        shown = sharpen(word_similarity(units @ unit_vectors(inputs.words.cpu()).T))
    else:
        shown = torch.ones_like(saliency)
    scores = fuse(saliency, shown)
    if inputs.budget == len(scores):
        return Selection.of(inputs, torch.arange(inputs.budget), scores=scores)
    # Scores at the floor are equal, and the published code orders them as torch's unstable sort on the CPU does.
    ranked = scores.argsort(descending=True)
    important = ranked[: int(inputs.budget * IMPORTANT_SHARE)]
    diverse = bipartite_rounds(Space(units, units), ranked[len(important) :], inputs.budget - len(important))
    return Selection.of(inputs, diverse, important, scores)


def vispruner(inputs: Inputs) -> Selection:
    """Half the budget to the most salient tokens, half to diversity among the rest: VisPruner (arXiv 2412.01818).

    The same rounds as in `paper`, on the residual tokens in order of saliency and without a question. The cost is cubic
    too, and it runs on the CPU for the same reason.
    """
    saliency = inputs.saliency.cpu()
    ranked = saliency.argsort(descending=True, stable=True)
    salient = int(inputs.budget * IMPORTANT_SHARE)
    space = Space.of(inputs.tokens.cpu(), inputs.metric)
    diverse = bipartite_rounds(space, ranked[salient:], inputs.budget - salient)
    return Selection.of(inputs, torch.cat([ranked[:salient], diverse]), scores=saliency)


def min_max(values: Tensor) -> Tensor:
    """Shift and scale (N,) floats to [0, 1]; constant ones become 0."""
    return (values - values.min()) / (values.max() - values.min() + LEAST)


def sharpen(relevance: Tensor) -> Tensor:
    """Stretch (N,) relevance to [0, 1] so that only the top 0.5 % of the tokens stand out."""
    sharp = min_max((relevance / TOKEN_TEMPERATURE).softmax(0) ** POWER)
    bright = sharp >= torch.quantile(sharp, DIMMED_SHARE)
    return min_max(torch.where(bright, sharp, sharp * DIMMING))


def fuse(saliency: Tensor, relevance: Tensor) -> Tensor:
    """Weighted geometric mean of two signals (N,) in [0, 1], both clamped to at least `LEAST`."""
    saliency, relevance = saliency.clamp(min=LEAST), relevance.clamp(min=LEAST)
    return ((1 - RELEVANCE_WEIGHT) * saliency.log() + RELEVANCE_WEIGHT * relevance.log()).exp()


def bipartite_rounds(space: Space, order: Tensor, keep: int) -> Tensor:
    """Drop tokens that others represent, a few per round, as published by VisPruner and FlashVLM.

    A round splits the tokens, in order, into even and odd positions, drops the even ones most similar to any odd one,
    and goes on with the remaining even ones, most similar first, followed by the odd ones.

    The cost is cubic: up to N^3 / 96 similarities over all rounds. The published code computes a product of D numbers
    for each; here it is a look-up, except for narrow tokens (D < 128) or more than 16384 of them.

    Args:
        space: the N tokens under a metric.
        order: (R,) int64, the tokens to choose from.
        keep: how many of them to keep, at least 1.

    Returns:
        (min(keep, R),) int64, a subset of `order`.
    """
    count, width = space.left.shape
    table = space.left @ space.right.T if width >= TABLE_WIDTH and 4 * count**2 <= TABLE_BYTES else None
    while (excess := len(order) - keep) > 0:
        even, odd = order[::2], order[1::2]
        similarity = _highest(space, table, even, odd)
        # Ties happen by chance. The published code leaves them as torch's unstable sort does, so this must too.
        ranked = similarity.argsort(descending=True)
        order = torch.cat([even[ranked[min(DROPPED_A_ROUND, excess) :]], odd])
    return order


def _highest(space: Space, table: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """The highest similarity of each token of `rows` to any of `columns`."""
    if table is None:
        others = space.right[columns].T
        blocks = [(space.left[block] @ others).amax(1) for block in rows.split(ROWS)]
    else:
        blocks = [table[block].index_select(1, columns).amax(1) for block in rows.split(ROWS)]
    return torch.cat(blocks)
