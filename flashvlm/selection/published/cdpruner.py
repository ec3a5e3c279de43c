"""Relevant and dissimilar tokens: the most likely set of a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space, unit_vectors
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

# Weight of relevance against diversity, from 0 (none) to below 1; 1 is the kernel as published.
THETA = 1.0
# The authors' LLaVA code negates the relevance, because CLIP's patches are least similar to what they show.
RELEVANCE_SIGN = 1.0
# A token is spanned by the kept ones, up to rounding, if less than this share of its own weight remains.
ROUNDING = 1e-5
# Cosines that span no more than this do not distinguish tokens.
FLAT = 1e-6


def cdpruner(inputs: Inputs) -> Selection:
    """Greedy search for the set with the highest determinant: CDPruner (arXiv 2506.10967).

    The kernel is q_i S_ij q_j, where S is the similarity of two tokens and q a token's mean cosine with the words,
    min-max scaled to [0, 1]; with `THETA` below 1, q is exp(THETA / (2 - 2 THETA) times that). Without words, or if
    they do not distinguish tokens, q is constant and diversity alone decides. Once no token adds anything (all are
    spanned by the kept ones or have no relevance), the budget is filled up by relevance, ties by index.
    """
    quality = _quality(inputs)
    kept = greedy_determinant(Space.of(inputs.tokens, inputs.metric), quality, inputs.budget)
    if (missing := inputs.budget - len(kept)) > 0:
        ranked = quality.index_fill(0, kept, -torch.inf).argsort(descending=True, stable=True)
        kept = torch.cat([kept, ranked[:missing]])
    return Selection.of(inputs, kept)


def greedy_determinant(space: Space, quality: Tensor, count: int) -> Tensor:
    """Greedy MAP inference of a determinantal point process, by an incremental Cholesky factor (arXiv 1709.05135).

    Args:
        space: N tokens; their similarities are the kernel.
        quality: (N,) >= 0, weights of the kernel's rows and columns.
        count: how many to choose.

    Returns:
        (count,) int64, or fewer if no remaining token adds to the determinant.
    """
    left, right = space.left * quality[:, None], space.right * quality[:, None]
    factor = left.new_empty(count, len(quality))
    own = quality.square()
    gain, least = own.clone(), own * ROUNDING
    chosen = torch.empty(count, dtype=torch.int64, device=quality.device)
    for step in range(count):
        place = gain.argmax()
        # To avoid waiting for the device at each step, the loop runs on with meaningless values, cut off at the end.
        chosen[step] = torch.where(gain[place] > 0, place, -1)
        row = (left @ right[place] - factor[:step, place] @ factor[:step]) * gain[place].clamp(min=1e-30).rsqrt()
        factor[step] = row
        gain = gain - row.square()
        gain = torch.where(gain > least, gain, 0).index_fill(0, place, 0)
    return chosen[chosen >= 0]


def _quality(inputs: Inputs) -> Tensor:
    """The q of the kernel: (N,) float32 >= 0, 0 for a token that does not count."""
    if not len(inputs.words):
        return torch.ones_like(inputs.saliency)
    cosines = unit_vectors(inputs.tokens) @ unit_vectors(inputs.words).mean(0) * RELEVANCE_SIGN
    low, high = torch.aminmax(cosines)
    relevance = torch.where(high - low > FLAT, (cosines - low) / (high - low), 1)
    return relevance if THETA == 1 else (THETA / (2 - 2 * THETA) * relevance).exp()
