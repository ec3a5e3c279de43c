"""The weight of each token of a video: how new it is, and how much it shows of what the question asks for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.directions import Directions
from flashvlm.selection.metric import in_range, unit_vectors
from flashvlm.selection.relevance import relevance

LEAST_NOVELTY = 1e-6
LEAST_SALIENCY = 1e-2
# Relevance stands out from this many robust standard deviations above the median token.
STANDS_OUT = 3.0
# Added to the spread of relevance, a cosine, so that tokens are not distinguished by a spread well below it.
LEAST_SPREAD = 1e-3
# The standard deviation of a normal distribution in median absolute deviations.
DEVIATIONS = 1.4826


def novelty(directions: Directions) -> Tensor:
    """How far each token is from the mean direction, which is mostly background: 1 - cosine.

    Returns:
        (N,) float32, above 0.
    """
    centre = functional.normalize(directions.mean, dim=0)
    return (1 - directions.cosines(centre[None])[:, 0]).clamp(min=LEAST_NOVELTY)


def asked_for(directions: Directions, words: Tensor) -> Tensor:
    """The factor by which the question raises each token: 1 for most, more if its relevance stands out.

    Only what lies beyond the reach of noise counts. If relevance does not distinguish tokens, all are 1.

    Args:
        directions: those of the N tokens.
        words: (L, D) of any float dtype; L may be 0.

    Returns:
        (N,) float32, at least 1.
    """
    return standing_out(directions, words).clamp(min=1)


def standing_out(directions: Directions, words: Tensor) -> Tensor:
    """How far each token's relevance stands out from the others': above 1 it is beyond the reach of noise.

    A cosine with a word means little by itself: on most checkpoints every token has some, and noise makes each
    different. So it is measured against its own spread (median and median absolute deviation).

    Args:
        directions: those of the N tokens.
        words: (L, D) of any float dtype; L may be 0.

    Returns:
        (N,) float32, 0 for the median token; all 0 without words.
    """
    if not len(words):
        return torch.zeros_like(directions.lengths[:, 0])
    shown = relevance(directions.cosines(unit_vectors(in_range(words).bfloat16())))
    above = shown - shown.median()
    spread = DEVIATIONS * above.abs().median() + LEAST_SPREAD
    return above / (STANDS_OUT * spread)


def salient(saliency: Tensor) -> Tensor:
    """(N,) saliency >= 0 divided by its mean, at least `LEAST_SALIENCY`; all 1 if it is flat or all zero."""
    mean = saliency.mean()
    return (saliency / mean).clamp(min=LEAST_SALIENCY) if mean > 0 else torch.ones_like(saliency)
