"""Salient tokens, and dissimilar ones among the rest."""

from __future__ import annotations

import torch

from flashvlm.selection.diversity import bipartite_rounds
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space
from flashvlm.selection.result import Selection

SALIENT_SHARE = 0.5


def vispruner(inputs: Inputs) -> Selection:
    """Half the budget to the most salient tokens, half to diversity among the rest: VisPruner (arXiv 2412.01818).

    The selector `paper` grew out of it: the same rounds of duplicate removal on the residual tokens, here in order of
    saliency and without a question. Its cost is cubic too, and it runs on the CPU for the same reason.
    """
    saliency = inputs.saliency.cpu()
    ranked = saliency.argsort(descending=True, stable=True)
    salient = int(inputs.budget * SALIENT_SHARE)
    rest = inputs.budget - salient
    space = Space.of(inputs.tokens.cpu(), inputs.metric)
    diverse = bipartite_rounds(space, ranked[salient:], rest)
    return Selection.of(inputs, torch.cat([ranked[:salient], diverse]), scores=saliency)
