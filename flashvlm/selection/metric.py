"""What distance between two visual tokens means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a centred token this part of its norm is what rounding leaves of a token equal to the mean.
ROUNDING = 1e-4
# Values whose squares, summed over a vector, are safe in float32; and the shortest vector that has a direction.
FAR_OUT = 1e12
SHORTEST = 1e-12


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale (M, D) vectors of any float dtype to length 1, in float32; zero vectors stay zero."""
    values = in_range(vectors).float()
    lengths = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_(min=SHORTEST)
    return values / lengths if values is vectors else values.div_(lengths)


def in_range(vectors: Tensor) -> Tensor:
    """Vectors, all scaled alike where their squares would not fit in float32: no distance here hangs on scale."""
    if not vectors.numel():
        return vectors
    largest = torch.stack(torch.aminmax(vectors)).abs().max()
    return vectors if largest == 0 or 1 / FAR_OUT < largest < FAR_OUT else vectors / largest


@dataclass(frozen=True, eq=False)
class Space:
    """Tokens as points whose similarity is an inner product: 1 - distance, 1 for a token and itself.

    `left` and `right` are (N, E) float32, one tensor where the metric is symmetric in them:
    `left[i] @ right[j].T` are the similarities of the tokens i with the tokens j.
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
    """Put tokens where the similarity of two is 1 less half their squared distance.

    `cosine`: on the unit sphere, so that it is their cosine. Zero vectors have no direction: they are at distance 0
    from one another, at 1 from all others. `centered`: the same once the mean token is subtracted. `euclidean`: as
    they are, scaled to a root mean square norm of 1, so that for tokens of one norm it is `cosine`.

    Args:
        tokens: (N, D) of any float dtype.
        metric: one of the three.

    Returns:
        (N, E) float32, E being D, or D + 1 where a zero vector needs a direction of its own.
    """
    return _METRICS[metric](tokens)


def _cosine(tokens: Tensor) -> Tensor:
    return with_zeros_apart(unit_vectors(tokens))


def with_zeros_apart(units: Tensor) -> Tensor:
    """(N, D) unit vectors, and zero vectors as another unit vector of one more dimension, where there are any."""
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
