"""What distance between two visual tokens means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a centred token this part of its norm is what rounding leaves of a token equal to the mean.
ROUNDING = 1e-4
EQUAL = 2**13
# Values whose squares, summed over a vector, are safe in float32; and the shortest vector that has a direction.
FAR_OUT = 1e12
SHORTEST = 1e-12


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale (M, D) vectors of any float dtype to length 1, in float32; zero vectors stay zero."""
    values = in_range(vectors)
    lengths = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_(min=SHORTEST)
    return values / lengths if values is vectors else values.div_(lengths)


def in_range(vectors: Tensor) -> Tensor:
    """Vectors in float32, all scaled alike where their squares would not fit in it: no distance here hangs on scale."""
    values = vectors.float()
    if not values.numel():
        return values
    largest = torch.stack(torch.aminmax(values)).abs().max()
    return values if largest == 0 or 1 / FAR_OUT < largest < FAR_OUT else values / largest


@dataclass(frozen=True, eq=False)
class Space:
    """Tokens as points whose similarity is an inner product: 1 - distance, 1 for a token and itself.

    `left` and `right` are (N, E) float32, or (B, n, E) in rows, one tensor where the metric is symmetric in them:
    `left[i] @ right[j].T` are the similarities of the tokens i with the tokens j.
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
        if (zero := torch.linalg.vector_norm(units, dim=1, keepdim=True) == 0).any():
            units = torch.cat([units, zero.float()], 1)
        return cls(units, units)

    def at(self, tokens: Tensor) -> Space:
        """The tokens of (B, n) int64, as (B, n, E)."""
        return self.reshaped(lambda rows: rows.index_select(0, tokens.flatten()).view(*tokens.shape, -1))

    def within(self) -> Tensor:
        """(B, n, n) similarities of the tokens in each row of (B, n, E), told apart to one part in `EQUAL`.

        Equal tokens are so equally similar, whatever the last digits say, on every device.
        """
        similarity = torch.bmm(self.left, self.right.transpose(1, 2))
        return similarity.mul_(EQUAL).round_().div_(EQUAL)

    def reshaped(self, change: Callable[[Tensor], Tensor]) -> Space:
        """The same tokens in another arrangement."""
        left = change(self.left)
        return Space(left, left if self.right is self.left else change(self.right))


def _cosine(tokens: Tensor) -> Space:
    return Space.of_units(unit_vectors(tokens))


def _centered(tokens: Tensor) -> Space:
    tokens = in_range(tokens)
    centred = tokens - tokens.mean(0)
    apart = centred.norm(dim=1, keepdim=True) > ROUNDING * tokens.norm(dim=1, keepdim=True)
    return _cosine(centred * apart)


def _euclidean(tokens: Tensor) -> Space:
    points = in_range(tokens)
    scale = points.square().sum(1).mean().sqrt()
    points = points / torch.where(scale > 0, scale, 1)
    half, one = points.square().sum(1, keepdim=True) / 2, points.new_ones(len(points), 1)
    return Space(torch.cat([points, 1 - half, one], 1), torch.cat([points, one, -half], 1))


_METRICS: dict[str, Callable[[Tensor], Space]] = {"cosine": _cosine, "centered": _centered, "euclidean": _euclidean}
