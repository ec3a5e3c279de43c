"""Tokens as points around their mean, cheap to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvlm.selection.directions import Directions

# Similarities are told apart to one part in so many.
EQUAL = 2**16
# Wider tokens are folded to so many numbers at most.
WIDEST = 256


@dataclass(frozen=True, eq=False)
class Points:
    """Tokens less their mean, whose similarity is 1 less half the squared distance of two: cosine for unit vectors.

    What all tokens share (on many checkpoints most of their length) is not in them, so that all digits are left for
    what tells them apart. `vectors` (..., E) and `offset` (...,), half of what 1 exceeds their squared length by, are
    in float32: products in bfloat16 take less time, but make of the little that float16 and float32 differ in
    differences that count.
    """

    vectors: Tensor
    offset: Tensor

    @classmethod
    def of(cls, directions: Directions) -> Points:
        """The N tokens as they are."""
        return cls._around(directions.units().sub_(directions.mean))

    @classmethod
    def folded(cls, directions: Directions) -> Points:
        """N tokens in vectors of at most `WIDEST` numbers: sums of their parts, each number with a random sign.

        What is compared costs so many times less. The squared distance of two tokens is right on average; where they
        differ in many numbers its standard deviation is sqrt(2 / E) of it with vectors of E numbers, 9 % with 256
        (feature hashing, Weinberger et al. 2009). Equal ones stay equal.
        """
        width = len(directions.mean)
        parts = -(-width // WIDEST)
        if parts == 1:
            return cls.of(directions)
        signs = 2 * torch.randint(2, (width,), generator=torch.Generator().manual_seed(0)) - 1
        signs = signs.to(directions.mean).split(-(-width // parts))

        def fold(vectors: Tensor) -> Tensor:
            first, *others = vectors.split(len(signs[0]), -1)
            total = first * signs[0]
            for other, sign in zip(others, signs[1:], strict=True):
                total[..., : len(sign)].addcmul_(other, sign)
            return total

        centre = fold(directions.mean)
        summed = [fold(part).div_(length).sub_(centre) for part, length in directions.scaled()]
        return cls._around(torch.cat(summed))

    @classmethod
    def _around(cls, vectors: Tensor) -> Points:
        return cls(vectors, (1 - torch.linalg.vector_norm(vectors, dim=-1).square()) / 2)

    def to(self, others: Points) -> Tensor:
        """(..., n, m) float32 similarities of n tokens (or B rows of n) with m others.

        Equal tokens are equally similar, whatever the last digits say.
        """
        products = self.vectors @ others.vectors.transpose(-1, -2)
        products += self.offset[..., :, None]
        products += others.offset[..., None, :]
        return products.mul_(EQUAL).round_().div_(EQUAL)

    def within(self) -> Tensor:
        """(..., n, n) float32 similarities of n tokens (or of each of B rows of n) with one another."""
        return self.to(self)

    def at(self, tokens: Tensor) -> Points:
        """The tokens of int64 places of any shape, in that shape."""
        vectors = self.vectors.index_select(0, tokens.flatten()).view(*tokens.shape, self.vectors.shape[-1])
        return Points(vectors, self.offset[tokens])

    def reshaped(self, change: Callable[[Tensor], Tensor]) -> Points:
        """The same tokens in another arrangement, which `change` makes of (B, n, ...)."""
        return Points(change(self.vectors), change(self.offset))
