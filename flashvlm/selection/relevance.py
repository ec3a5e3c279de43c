"""How much of the question each token shows, as published (arXiv 2512.20561)."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.fusion import min_max

WORD_TEMPERATURE = 0.05
TOKEN_TEMPERATURE = 0.01
POWER = 2.5
DIMMED_SHARE = 1 - 0.005
DIMMING = 0.1


def relevance(cosines: Tensor) -> Tensor:
    """How similar each token is to the question's words, with the most similar words weighing most.

    The published word gate (weights by the words' norms) is left out: it is computed after normalising, where it is 1.

    Args:
        cosines: (N, L) of each token with each word, L at least 1.

    Returns:
        (N,) float32, from -1 to 1.
    """
    return ((cosines / WORD_TEMPERATURE).softmax(-1) * cosines).sum(-1)


def sharpen(relevance: Tensor) -> Tensor:
    """Stretch (N,) relevance to [0, 1] so that only the top 0.5 % of the tokens stand out."""
    sharp = min_max((relevance / TOKEN_TEMPERATURE).softmax(0) ** POWER)
    bright = sharp >= torch.quantile(sharp, DIMMED_SHARE)
    return min_max(torch.where(bright, sharp, sharp * DIMMING))
