"""Selectors of one plain idea, to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection


def spread(count: int, length: int) -> Tensor:
    """`count` places evenly spread over `length` ones, (count,) int64: the middle one of each equal stretch."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)


def uniform(inputs: Inputs) -> Selection:
    """Every N/K-th token: the middle one of each of K equal stretches."""
    return Selection.of(inputs, spread(inputs.budget, len(inputs.tokens)))


def random(inputs: Inputs) -> Selection:
    """K tokens drawn without replacement with `seed`, on the CPU, so that every device draws the same."""
    generator = torch.Generator().manual_seed(inputs.seed)
    return Selection.of(inputs, torch.randperm(len(inputs.tokens), generator=generator)[: inputs.budget])


def frames(inputs: Inputs) -> Selection:
    """Whole groups, evenly spread, as few as hold the budget; of the last of them an even part where they hold more."""
    sizes = torch.tensor(inputs.group_sizes)
    count = next(count for count in range(1, len(sizes) + 1) if sizes[spread(count, len(sizes))].sum() >= inputs.budget)
    begins = sizes.cumsum(0) - sizes
    kept, left = [], inputs.budget
    for group in spread(count, len(sizes)).tolist():
        size = int(sizes[group])
        kept.append(begins[group] + spread(min(size, left), size))
        left -= len(kept[-1])
    return Selection.of(inputs, torch.cat(kept))


def saliency(inputs: Inputs) -> Selection:
    """The K most salient tokens; of equals the first."""
    ranked = inputs.saliency.argsort(descending=True, stable=True)
    return Selection.of(inputs, ranked[: inputs.budget], scores=inputs.saliency)
