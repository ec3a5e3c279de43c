"""What distance between two visual tokens means, and how far the dropped ones are from the kept ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A centred token shorter than this share of its original norm is rounding: the token equals the mean.
ROUNDING = 1e-4
# Between 1 / `FAR_OUT` and `FAR_OUT`, values can be squared and summed over a vector in float32; a vector shorter than
# `SHORTEST` has no direction.
FAR_OUT = 1e12
SHORTEST = 1e-12
# The paper's temperature of the softmax over the words of a question.
WORD_TEMPERATURE = 0.05
# Floats in one block of similarities: 16 MB, whatever the number of tokens.
BLOCK = 2**22


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


def word_similarity(cosines: Tensor) -> Tensor:
    """How similar each token is to the words of a question, the most similar words weighing most (arXiv 2512.20561).

    The published word gate (weights by the words' norms) is left out: it is computed after normalising, where it is 1.

    Args:
        cosines: (N, L) of each token with each word, L at least 1.

    Returns:
        (N,) float32, from -1 to 1.
    """
    return ((cosines / WORD_TEMPERATURE).softmax(-1) * cosines).sum(-1)


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
    if metric == "cosine":
        return with_zeros_apart(unit_vectors(tokens))
    points = in_range(tokens).float()
    if metric == "centered":
        centred = points - points.mean(0)
        real = centred.norm(dim=1, keepdim=True) > ROUNDING * points.norm(dim=1, keepdim=True)
        return with_zeros_apart(unit_vectors(centred * real))
    scale = points.square().sum(1).mean().sqrt()
    return points / torch.where(scale > 0, scale, 1)


def with_zeros_apart(units: Tensor) -> Tensor:
    """(N, D) unit vectors; zero vectors, if any, become another unit vector in an extra dimension."""
    zero = torch.linalg.vector_norm(units, dim=1, keepdim=True) == 0
    return torch.cat([units, zero.float()], 1) if zero.any() else units


def cover(space: Space, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest kept token of every token: N x K products, in blocks of near-constant memory.

    Ties go to the first kept token, but a kept token always stands for itself.

    Args:
        space: the N tokens under a metric.
        indices: (K,) int64, the kept ones.

    Returns:
        nearest: (N,) int64, positions in `indices`.
        distance: (N,) float32, at least 0; for cosines at most 2.
    """
    similarity, nearest = most_similar(space.left, space.right[indices])
    distance = (1 - similarity).clamp(min=0)
    nearest[indices] = torch.arange(len(indices), device=indices.device)
    distance[indices] = 0
    return nearest, distance


def most_similar(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The highest inner product of each of (N, E) rows with any of (K, E) others, and the place of the first such."""
    others = right.T
    blocks = [(block @ others).max(1) for block in left.split(max(1, BLOCK // max(others.shape)))]
    return torch.cat([block.values for block in blocks]), torch.cat([block.indices for block in blocks])


def gathered(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sort members by the place they belong to, so that sums per place are the same on every run and device.

    Args:
        places: (N,) int64 below `count`, the place of each member.

    Returns:
        order: (N,) int64, the members of the first place, then those of the second, ...
        sizes: (count,) int64, how many members each place has.
    """
    return places.argsort(stable=True), torch.bincount(places, minlength=count)
