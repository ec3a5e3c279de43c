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

# Name -> the recipe fields that differ from the full selector; names without any have a function below. Names of older
# tables stay: "corners" are the `farthest` tokens, "lonely" the `uncovered`, "named" the `important`.
_RECIPES: dict[str, dict[str, Any]] = {
    "no-relevance": {"relevance": 0.0, "important": 0.0},
    "relevance-0.5": {"relevance": 0.5},
    "sharpened": {},
    "no-novelty": {"novelty": 0.0},
    "no-saliency": {"saliency": 0.0},
    "no-thinning": {"fewest": 2**30},
    "no-repetition": {"repetition": 0.0},
    "groups-apart": {"together": 0},
    "no-named": {"important": 0.0},
    "no-ends": {"ends": False},
    "no-floor": {"floor": 0},
    "no-corners": {"farthest": 0.0, "uncovered": 0.5},
    "no-lonely": {"uncovered": 0.2},
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

    from flashvlm.selection.blocks import Blocks, Directions
    from flashvlm.selection.flashvlm import Recipe, choose, novelty, relative, relevance
    from flashvlm.selection.geometry import unit_vectors, word_similarity
    from flashvlm.selection.published.paper import fuse, sharpen
    from flashvlm.selection.result import Selection

    if inputs.budget == len(inputs.tokens):
        return Selection.of(inputs, torch.arange(inputs.budget))
    directions = Directions.of(inputs.tokens)
    shown = torch.ones_like(directions.lengths[:, 0])
    if len(inputs.words):
        shown = sharpen(word_similarity(directions.cosines(unit_vectors(inputs.words))))
    recipe = Recipe()
    scores = fuse(novelty(directions) * relative(inputs.saliency) ** recipe.saliency, shown)
    blocks = Blocks.of(inputs.group_sizes, shown.device)
    wanted = relevance(directions, inputs.words).clamp(min=1)
    kept, _ = choose(directions.under(inputs.metric), blocks, scores, wanted, inputs.budget, recipe)
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
    from flashvlm.selection.flashvlm import flashvlm

    return flashvlm(inputs).merged()
