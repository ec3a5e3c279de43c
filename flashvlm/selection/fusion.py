"""Saliency and relevance fused into one score, as published (arXiv 2512.20561)."""

from __future__ import annotations

from torch import Tensor

RELEVANCE_WEIGHT = 0.5
FLOOR = 1e-6


def min_max(values: Tensor) -> Tensor:
    """Shift and scale (N,) floats to [0, 1]; constant ones become 0."""
    return (values - values.min()) / (values.max() - values.min() + FLOOR)


def fuse(saliency: Tensor, relevance: Tensor) -> Tensor:
    """Weighted geometric mean of two signals (N,) in [0, 1], both clamped to at least `FLOOR`."""
    saliency, relevance = saliency.clamp(min=FLOOR), relevance.clamp(min=FLOOR)
    return ((1 - RELEVANCE_WEIGHT) * saliency.log() + RELEVANCE_WEIGHT * relevance.log()).exp()
