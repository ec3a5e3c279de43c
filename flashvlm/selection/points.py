"""Tokens as points around their mean, cheap to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.precision import quick_dtype
from flashvlm.selection.directions import PART, Directions
from flashvlm.selection.metric import with_zeros_apart

# Similarities are told apart to one part in so many.
EQUAL = 2**13
# Wider tokens are folded to so many numbers at most.
WIDEST = 384


@dataclass(frozen=True, eq=False)
class Points:
    """Tokens less their mean, whose similarity is 1 less half the squared distance of two: cosine for unit vectors.

    What all tokens share (on many checkpoints most of their length) is not in them, so that half precision is left for
    what tells them apart. `vectors` (..., E) is in bfloat16 where the processor multiplies it, else in float32;
    `offset` (...,) float32 is half of what 1 exceeds their squared length by.
    """

    vectors: Tensor
    offset: Tensor

    @classmethod
    def of(cls, places: Tensor) -> Points:
        """(N, E) float32 tokens under a metric, as `metric.places` gives them."""
        return cls._around(places.mean(0), places.split(PART), len(places))

    @classmethod
    def of_directions(cls, directions: Directions) -> Points:
        """Tokens under the metric `cosine`."""
        if directions.has_zeros():
            return cls.of(with_zeros_apart(torch.cat(list(directions.parts()))))
        return cls._around(directions.mean, directions.parts(), len(directions))

    @classmethod
    def _around(cls, centre: Tensor, parts: Iterable[Tensor], count: int) -> Points:
        vectors = centre.new_empty(count, len(centre), dtype=quick_dtype(centre.device))
        offset = centre.new_empty(count)
        for part, of, half in zip(parts, vectors.split(PART), offset.split(PART), strict=True):
            of.copy_(part - centre)
            half.copy_((1 - of.float().square().sum(-1)) / 2)
        return cls(vectors, offset)

    def to(self, others: Points) -> Tensor:
        """(..., n, m) float32 similarities of n tokens (or B rows of n) with m others.

        Equal tokens are equally similar, whatever the last digits say.
        """
        products = (self.vectors @ others.vectors.transpose(-1, -2)).float()
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

    def folded(self) -> Points:
        """N tokens in vectors of at most `WIDEST` numbers: sums of their parts, each number with a random sign.

        What is compared costs so many times less. The squared distance of two tokens is right on average; where they
        differ in many numbers its standard deviation is sqrt(2 / E) of it with vectors of E numbers, 7 % with 384
        (feature hashing, Weinberger et al. 2009). Equal ones stay equal.
        """
        width = self.vectors.shape[-1]
        parts = -(-width // WIDEST)
        if parts == 1:
            return self
        missing = -width % parts
        signs = 2 * torch.randint(2, (width,), generator=torch.Generator().manual_seed(0)) - 1
        signs = signs.to(self.vectors)
        summed = [
            functional.pad(some * signs, (0, missing)).unflatten(1, (parts, -1)).sum(1)
            for some in self.vectors.split(PART)
        ]
        vectors = torch.cat(summed)
        return Points(vectors, (1 - vectors.float().square().sum(-1)) / 2)

    def reshaped(self, change: Callable[[Tensor], Tensor]) -> Points:
        """The same tokens in another arrangement, which `change` makes of (B, n, ...)."""
        return Points(change(self.vectors), change(self.offset))
