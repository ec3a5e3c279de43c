"""Choice of the visual tokens that the language model gets: pure functions on tensors, independent of any model.

Importing this package does not import torch, so that a command line can list the selectors without delay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal, TypeAlias

from flashvlm.errors import UsageError, known

if TYPE_CHECKING:
    from torch import Tensor

    from flashvlm.selection.inputs import Inputs
    from flashvlm.selection.result import Selection

# Name -> module and function in this package; a selector is a function of `Inputs` that returns a `Selection`.
_REGISTRY = {
    "flashvlm": ("flashvlm", "flashvlm"),
    "paper": ("published.paper", "paper"),
    "uniform": ("published.baselines", "uniform"),
    "random": ("published.baselines", "random"),
    "frames": ("published.baselines", "frames"),
    "saliency": ("published.baselines", "saliency"),
    "temporal": ("published.baselines", "temporal"),
    "vispruner": ("published.paper", "vispruner"),
    "divprune": ("published.divprune", "divprune"),
    "cdpruner": ("published.cdpruner", "cdpruner"),
    "mmtok": ("published.mmtok", "mmtok"),
    "tome": ("published.tome", "tome"),
    "visionzip": ("published.visionzip", "visionzip"),
    "vidcom2": ("published.vidcom2", "vidcom2"),
    "holitom": ("published.holitom", "holitom"),
    "fastvid": ("published.fastvid", "fastvid"),
    "flashvid": ("published.flashvid", "flashvid"),
}
SELECTORS = tuple(_REGISTRY)
# The selector that can be asked for a radius, or to choose the budget itself.
BY_CONTENT = "flashvlm"
METRICS = ("cosine", "centered", "euclidean")
Selector: TypeAlias = "Callable[[Inputs], Selection]"


def name_of(selector: str | Selector) -> str:
    """What a selector is called: a function by its name."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", type(selector).__name__)


def select(
    tokens: Tensor,
    saliency: Tensor,
    words: Tensor,
    *,
    group_sizes: Sequence[int],
    budget: int | Literal["auto"] | None = None,
    delta: float | None = None,
    selector: str | Selector = "flashvlm",
    metric: str = "cosine",
    seed: int = 0,
) -> Selection:
    """Keep `budget` of the N visual tokens of a video.

    Args:
        tokens: (N, D) floats, the visual tokens in the language model's input space, group after group.
        saliency: (N,) >= 0, how much attention each token received in the vision encoder.
        words: (L, D) floats, the language model's input embeddings of the question's words; L may be 0.
        group_sizes: number of tokens in each temporal group, in order; they sum to N.
        budget: how many tokens to keep, at least 1; more than N keeps all. `auto` keeps as many as it takes to cover
            most of what the video shows.
        delta: instead of a budget, the largest distance from any token to its nearest kept one.
        selector: one of `SELECTORS`, or a function of `Inputs` that returns a `Selection`. A function has to handle a
            delta and `auto` itself.
        metric: one of `METRICS`, how distance between tokens is measured.
        seed: random seed of the selector `random`; the others ignore it.

    Returns:
        The kept tokens: `indices`, `important`, `scores`, `nearest` and `delta`, on the device of `tokens`. The same
        arguments give the same result.

    Raises:
        UsageError: NaN or infinity, shapes that disagree, negative saliency, a budget below 1, a negative delta, both a
            budget and a delta or neither, groups that do not sum to N, a seed beyond 64 bits, an unknown selector or
            metric, a delta or `auto` with a selector other than `BY_CONTENT`, or a function that does not keep the
            number of tokens it should, each once.
    """
    known("metric", metric, METRICS)
    if not callable(selector):
        known("selector", selector, SELECTORS)
        if selector != BY_CONTENT and (budget == "auto" or delta is not None):
            raise UsageError(f"{selector} takes a budget in tokens: a delta or auto is for {BY_CONTENT}.")

    from flashvlm.selection.inputs import Inputs

    inputs = Inputs.checked(tokens, saliency, words, group_sizes, budget, delta, metric, seed)
    choose: Selector
    if callable(selector):
        choose = selector
    else:
        module, function = _REGISTRY[selector]
        choose = getattr(import_module(f"{__name__}.{module}"), function)
    selection = choose(inputs)
    _check(selection, name_of(choose), inputs)
    return selection


def _check(selection: Selection, name: str, inputs: Inputs) -> None:
    """Raise UsageError unless a selector kept the number of tokens that it should, each once."""
    from flashvlm.selection.result import Selection

    if not isinstance(selection, Selection):
        raise UsageError(f"The selector {name!r} must return a Selection, not {type(selection).__name__}.")
    kept = selection.indices
    free = inputs.auto or inputs.delta is not None
    fits = 0 < len(kept) <= inputs.budget if free else len(kept) == inputs.budget
    if not fits or int(kept[0]) < 0 or bool((kept[1:] <= kept[:-1]).any()):
        given = f"{len(kept)}, from {int(kept[0])} to {int(kept[-1])}" if len(kept) else "none"
        wanted = f"{'some of ' if free else ''}{inputs.budget} tokens, each once"
        raise UsageError(f"The selector {name!r} must keep {wanted}; it gave {given}.")
