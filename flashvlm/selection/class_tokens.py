"""Class tokens, which stand for a whole temporal group, kept before all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from flashvlm.errors import UsageError
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

# All of them are kept where they take at most this share of the budget; else they are chosen from like any other.
LARGEST_SHARE = 0.3


def beside(inputs: Inputs, each: int, selector: Callable[[Inputs], Selection]) -> Selection:
    """Keep the first `each` tokens of every group, and let the selector choose among the others for the rest.

    Where they would take more than `LARGEST_SHARE` of the budget, or the budget is not known, it chooses among all.

    Raises:
        UsageError: a group has no other tokens.
    """
    if not each:
        return selector(inputs)
    if not isinstance(each, int) or not 0 < each < min(inputs.group_sizes):
        raise UsageError(f"class_tokens must be a whole number, fewer than the tokens of each group, not {each!r}.")
    sizes = torch.tensor(inputs.group_sizes)
    first = ((sizes.cumsum(0) - sizes)[:, None] + torch.arange(each)).flatten().to(inputs.tokens.device)
    count, budget = len(inputs.tokens), inputs.budget
    if inputs.auto or inputs.delta is not None or budget == count or len(first) > LARGEST_SHARE * budget:
        return selector(inputs)
    rest = torch.ones(count, dtype=torch.bool, device=first.device).index_fill(0, first, False).nonzero().flatten()
    others = selector(
        replace(
            inputs,
            tokens=inputs.tokens[rest],
            saliency=inputs.saliency[rest],
            group_sizes=tuple(size - each for size in inputs.group_sizes),
            budget=budget - len(first),
        )
    )
    indices, order = torch.cat([first, rest[others.indices]]).sort()
    scores = others.scores.new_full((count,), others.scores.max().item())
    return Selection(
        indices,
        torch.cat([torch.zeros_like(first, dtype=torch.bool), others.important])[order],
        scores.index_copy(0, rest, others.scores),
        torch.cat([inputs.tokens[first], others.vectors])[order],
        inputs.tokens,
        inputs.metric,
        others.redundancy,
        others.told_apart,
    )
