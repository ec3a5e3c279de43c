"""Selectors that look at nothing, to compare with."""

from __future__ import annotations

import torch

from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection


def uniform(inputs: Inputs) -> Selection:
    """Every N/K-th token: the middle one of each of K equal stretches."""
    count = len(inputs.tokens)
    return Selection.of(inputs, (2 * torch.arange(inputs.budget) + 1) * count // (2 * inputs.budget))


def random(inputs: Inputs) -> Selection:
    """K tokens drawn without replacement with `seed`, on the CPU, so that every device draws the same."""
    generator = torch.Generator().manual_seed(inputs.seed)
    return Selection.of(inputs, torch.randperm(len(inputs.tokens), generator=generator)[: inputs.budget])
