"""The selector `flashvlm` with one part left out, weighted differently or in its published form, to see what it earns.

`flashvlm bench accuracy --selectors flashvlm,ablations` compares them with the full selector.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashvlm.selection.inputs import Inputs
    from flashvlm.selection.result import Selection

# Name -> the recipe fields that differ from the full selector; names without any have a function below.
_RECIPES: dict[str, dict[str, Any]] = {
    "no-relevance": {"relevance": 0.0, "named": 0.0},
    "relevance-0.5": {"relevance": 0.5},
    "sharpened": {},
    "no-novelty": {"novelty": 0.0},
    "no-saliency": {"saliency": 0.0},
    "no-thinning": {"fewest": 2**30},
    "no-repetition": {"repetition": 0.0},
    "groups-apart": {"together": 0},
    "no-named": {"named": 0.0},
    "no-ends": {"ends": False},
    "no-floor": {"floor": 0},
    "no-corners": {"corners": 0.0, "lonely": 0.5},
    "no-lonely": {"lonely": 0.2},
    "split": {},
    "merged": {},
}
PREFIX = "flashvlm/"
ABLATIONS = tuple(PREFIX + name for name in _RECIPES)


def ablated(name: str) -> Callable[[Inputs], Selection]:
    """The selector that one of `ABLATIONS` names."""
    from flashvlm.selection.flashvlm import Recipe, flashvlm

    part = name.removeprefix(PREFIX)
    other = {"sharpened": _sharpened, "split": _split, "merged": _merged}.get(part)
    return other or partial(flashvlm, recipe=Recipe(**_RECIPES[part]))


def _sharpened(inputs: Inputs) -> Selection:
    """Relevance sharpened as published, fused with novelty and saliency (the paper fuses it with saliency alone)."""
    import torch

    from flashvlm.selection import flashvlm as whole
    from flashvlm.selection.blocks import Blocks
    from flashvlm.selection.directions import Directions
    from flashvlm.selection.fusion import fuse
    from flashvlm.selection.metric import unit_vectors
    from flashvlm.selection.relevance import relevance, sharpen
    from flashvlm.selection.result import Selection
    from flashvlm.selection.weights import asked_for, novelty, salient

    if inputs.budget == len(inputs.tokens):
        return Selection.of(inputs, torch.arange(inputs.budget))
    directions = Directions.of(inputs.tokens)
    shown = torch.ones_like(directions.lengths[:, 0])
    if len(inputs.words):
        shown = sharpen(relevance(directions.cosines(unit_vectors(inputs.words))))
    recipe = whole.Recipe()
    scores = fuse(novelty(directions) * salient(inputs.saliency) ** recipe.saliency, shown)
    blocks = Blocks.of(inputs.group_sizes, shown.device)
    where = directions.under(inputs.metric)
    asked = asked_for(directions, inputs.words)
    kept, _ = whole.cover_best(where, blocks, scores, asked, inputs.budget, recipe)
    return Selection.of(inputs, kept, scores=scores)


def _split(inputs: Inputs) -> Selection:
    """Half of the budget for the highest weights, as in the paper; the other half as the full selector would choose."""
    from dataclasses import replace

    import torch

    from flashvlm.selection.flashvlm import flashvlm
    from flashvlm.selection.result import Selection

    whole = flashvlm(inputs)
    half = inputs.budget // 2
    highest = whole.scores.argsort(descending=True, stable=True)[:half]
    other = flashvlm(replace(inputs, budget=inputs.budget - half)).indices
    # Tokens that both halves choose leave room for the full selector's next ones.
    ranked = torch.cat([highest, other, whole.indices])
    seen: dict[int, None] = dict.fromkeys(ranked.tolist())
    return Selection.of(inputs, torch.tensor(list(seen)[: inputs.budget], device=ranked.device), scores=whole.scores)


def _merged(inputs: Inputs) -> Selection:
    from dataclasses import replace

    from flashvlm.selection.flashvlm import flashvlm
    from flashvlm.selection.merge import merge

    whole = flashvlm(inputs)
    return replace(whole, vectors=merge(whole), merged_into=whole.nearest)
