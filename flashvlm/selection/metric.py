"""What distance between two visual tokens means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Of a centred token this part of its norm is what rounding leaves of a token equal to the mean.
ROUNDING = 1e-4


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale (M, D) vectors of any float dtype to length 1, in float32; zero vectors stay zero."""
    return functional.normalize(vectors.float(), dim=-1)


@dataclass(frozen=True, eq=False)
class Space:
    """Tokens as points whose similarity is an inner product: 1 - distance, 1 for a token and itself.

    `left` and `right` are (N, E) float32, one tensor where the metric is symmetric in them. Slices, masks and int64
    tensors choose rows of them: `left[i] @ right[j].T` are the similarities of the tokens i with the tokens j.
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, tokens: Tensor, metric: str) -> Space:
        """(N, D) tokens of any float dtype under a metric.

        `cosine`: 1 - cosine. Zero vectors have no direction: at distance 0 from one another, at 1 from all others.
        `centered`: the same once the mean token is subtracted. `euclidean`: half the squared distance, the tokens
        scaled to a root mean square norm of 1, so that for tokens of one norm it is `cosine`.
        """
        return _METRICS[metric](tokens)

    @classmethod
    def of_units(cls, units: Tensor) -> Space:
        """(N, D) unit vectors, or zeros, under `cosine`."""
        # Zero vectors share a direction of their own.
        if (zero := ~units.any(1, keepdim=True)).any():
            units = torch.cat([units, zero.float()], 1)
        return cls(units, units)


def _cosine(tokens: Tensor) -> Space:
    return Space.of_units(unit_vectors(tokens))


def _centered(tokens: Tensor) -> Space:
    tokens = tokens.float()
    centred = tokens - tokens.mean(0)
    apart = centred.norm(dim=1, keepdim=True) > ROUNDING * tokens.norm(dim=1, keepdim=True)
    return _cosine(centred * apart)


def _euclidean(tokens: Tensor) -> Space:
    points = tokens.float()
    scale = points.square().sum(1).mean().sqrt()
    points = points / torch.where(scale > 0, scale, 1)
    half, one = points.square().sum(1, keepdim=True) / 2, points.new_ones(len(points), 1)
    return Space(torch.cat([points, 1 - half, one], 1), torch.cat([points, one, -half], 1))


_METRICS: dict[str, Callable[[Tensor], Space]] = {"cosine": _cosine, "centered": _centered, "euclidean": _euclidean}
