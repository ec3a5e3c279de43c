"""What distance between two visual tokens means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A centred token shorter than this share of its original norm is rounding: the token equals the mean.
ROUNDING = 1e-4
# Between 1 / `FAR_OUT` and `FAR_OUT`, values can be squared and summed over a vector in float32; a vector shorter than
# `SHORTEST` has no direction.
FAR_OUT = 1e12
SHORTEST = 1e-12


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale (M, D) vectors of any float dtype to length 1, in float32; zero vectors stay zero."""
    values = in_range(vectors).float()
    lengths = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_(min=SHORTEST)
    return values / lengths if values is vectors else values.div_(lengths)


def in_range(vectors: Tensor) -> Tensor:
    """Vectors, all rescaled alike if their squares would not fit in float32: no distance here depends on scale."""
    if not vectors.numel():
        return vectors
    largest = torch.stack(torch.aminmax(vectors)).abs().max()
    return vectors if largest == 0 or 1 / FAR_OUT < largest < FAR_OUT else vectors / largest


@dataclass(frozen=True, eq=False)
class Space:
    """Tokens as points whose similarity is an inner product: 1 - distance, so 1 for a token with itself.

    `left` and `right` are (N, E) float32, the same tensor where the metric treats both alike: `left[i] @ right[j].T`
    are the similarities of the tokens i with the tokens j.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, tokens: Tensor, metric: str) -> Space:
        """(N, D) tokens of any float dtype under a metric: see `places`."""
        points = places(tokens, metric)
        if metric != "euclidean":
            return cls(points, points)
        half, one = points.square().sum(1, keepdim=True) / 2, points.new_ones(len(points), 1)
        return cls(torch.cat([points, 1 - half, one], 1), torch.cat([points, one, -half], 1))


def places(tokens: Tensor, metric: str) -> Tensor:
    """Map tokens to points such that the similarity of two is 1 minus half their squared distance.

    `cosine`: on the unit sphere, so that the similarity is their cosine. Zero vectors have no direction: they are at
    distance 0 from one another and at 1 from all others. `centered`: the same after subtracting the mean token.
    `euclidean`: as they are, scaled to a root mean square norm of 1, so that it equals `cosine` for tokens of equal
    norm.

    Args:
        tokens: (N, D) of any float dtype.
        metric: one of the three.

    Returns:
        (N, E) float32, where E is D, or D + 1 if a zero vector needs a direction of its own.
    """
    return _METRICS[metric](tokens)


def _cosine(tokens: Tensor) -> Tensor:
    return with_zeros_apart(unit_vectors(tokens))


def with_zeros_apart(units: Tensor) -> Tensor:
    """(N, D) unit vectors; zero vectors, if any, become another unit vector in an extra dimension."""
    zero = torch.linalg.vector_norm(units, dim=1, keepdim=True) == 0
    return torch.cat([units, zero.float()], 1) if zero.any() else units


def _centered(tokens: Tensor) -> Tensor:
    tokens = in_range(tokens).float()
    centred = tokens - tokens.mean(0)
    apart = centred.norm(dim=1, keepdim=True) > ROUNDING * tokens.norm(dim=1, keepdim=True)
    return _cosine(centred * apart)


def _euclidean(tokens: Tensor) -> Tensor:
    points = in_range(tokens).float()
    scale = points.square().sum(1).mean().sqrt()
    return points / torch.where(scale > 0, scale, 1)


_METRICS: dict[str, Callable[[Tensor], Tensor]] = {"cosine": _cosine, "centered": _centered, "euclidean": _euclidean}
