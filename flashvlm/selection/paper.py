"""The published selector (arXiv 2512.20561), equal to the authors' LLaVA code."""

from __future__ import annotations

import torch

from flashvlm.selection.diversity import bipartite_rounds
from flashvlm.selection.fusion import fuse, min_max
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space, unit_vectors
from flashvlm.selection.relevance import relevance, sharpen
from flashvlm.selection.result import Selection

IMPORTANT_SHARE = 0.5


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
        shown = sharpen(relevance(units @ unit_vectors(inputs.words.cpu()).T))
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
