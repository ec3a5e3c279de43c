"""Tokens as points around their mean, cheap to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvlm.selection.directions import Directions

# Similarities are rounded to multiples of 1 / `EQUAL`.
EQUAL = 2**16
# Wider tokens are folded to at most this many numbers.
WIDEST = 256


@dataclass(frozen=True, eq=False)
class Points:
    """Tokens minus their mean; the similarity of two is 1 minus half their squared distance: cosine for unit vectors.

    What all tokens share (on many checkpoints most of their length) is removed, so that all digits are left for what
    distinguishes them. `vectors` (..., E) and `offset` (...,), which is (1 - squared length) / 2, are in float32:
    products in bfloat16 take less time, but turn the tiny differences between float16 and float32 into differences that
    matter.
    """

    vectors: Tensor
    offset: Tensor

    @classmethod
    def of(cls, directions: Directions) -> Points:
        """The N tokens at full width."""
        return cls._around(directions.units().sub_(directions.mean))

    @classmethod
    def folded(cls, directions: Directions) -> Points:
        """The N tokens folded to at most `WIDEST` numbers: sums of their parts, each number with a random sign.

        Comparisons cost less by the same factor. The squared distance of two tokens is right on average; if they differ
        in many numbers, its standard deviation with vectors of E numbers is sqrt(2 / E) of it, 9 % with 256 (feature
        hashing, Weinberger et al. 2009). Equal tokens stay equal.
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

        Rounded, so that equal tokens are equally similar whatever the last digits say.
        """
        products = self.vectors @ others.vectors.transpose(-1, -2)
        products += self.offset[..., :, None]
        products += others.offset[..., None, :]
        return products.mul_(EQUAL).round_().div_(EQUAL)

    def within(self) -> Tensor:
        """(..., n, n) float32 similarities of n tokens (or of each of B rows of n) with one another."""
        return self.to(self)

    def at(self, tokens: Tensor) -> Points:
        """The tokens at int64 indices of any shape, in that shape."""
        vectors = self.vectors.index_select(0, tokens.flatten()).view(*tokens.shape, self.vectors.shape[-1])
        return Points(vectors, self.offset[tokens])

    def reshaped(self, change: Callable[[Tensor], Tensor]) -> Points:
        """The tokens that `change` selects or rearranges; it is applied to `vectors` and to `offset`."""
        return Points(change(self.vectors), change(self.offset))
