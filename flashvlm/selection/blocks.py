"""The tokens of a video where comparing them is cheap: read part by part, folded to few numbers, in small blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.geometry import SHORTEST, in_range, places, with_zeros_apart

# Tokens read at a time: few enough to stay in the processor's cache.
PART = 512
# Wider tokens are folded to at most this many numbers.
WIDEST = 256
# Similarities are rounded to multiples of 1 / `EQUAL`.
EQUAL = 2**16
# Most tokens per block: a frame of 224 x 224 pixels in Qwen2-VL, or some rows of a larger one.
LARGEST = 64


@dataclass(frozen=True, eq=False)
class Directions:
    """Tokens as unit vectors, or as points placed by a metric, computed as they are read.

    Writing all of them to memory in float32 and reading them back would take longer than computing them again. `tokens`
    (N, D) are in bfloat16, or in float32 if a metric has placed them; `lengths` (N, 1), which they are divided by, and
    `mean` (D,), the mean of the results, are in float32.
    """

    tokens: Tensor
    lengths: Tensor
    mean: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Directions:
        """(N, D) tokens of any float dtype, read in bfloat16."""
        tokens = in_range(tokens).bfloat16()
        lengths = tokens.new_empty(len(tokens), 1, dtype=torch.float32)
        total = tokens.new_zeros(tokens.shape[1], dtype=torch.float32)
        for part, length in zip(_in_turn(tokens), lengths.split(PART), strict=True):
            length.copy_(torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_(min=SHORTEST))
            # The sum of the unit vectors, without making them.
            total += length[:, 0].reciprocal() @ part
        return cls(tokens, lengths, total / len(tokens))

    def units(self) -> Tensor:
        """(N, D) float32 unit vectors, or points placed by a metric; zero vectors stay zero."""
        return self.tokens.float() / self.lengths

    def scaled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Up to `PART` tokens at a time, in float32, and their lengths (PART, 1); each part overwrites the last."""
        return zip(_in_turn(self.tokens), self.lengths.split(PART), strict=True)

    def cosines(self, units: Tensor) -> Tensor:
        """(N, L) cosines with float32 unit vectors (L, D); 0 for zero vectors."""
        # A product with few rows takes half the time of one with few columns.
        return torch.cat([units @ part.T for part, _ in self.scaled()], 1).T / self.lengths

    def at(self, tokens: Tensor) -> Directions:
        """The tokens at (M,) int64 indices, with the mean of all tokens."""
        return Directions(self.tokens[tokens], self.lengths[tokens], self.mean)

    def under(self, metric: str) -> Directions:
        """The tokens as points placed by a metric (see `places`) instead of as directions."""
        if metric != "cosine":
            where = places(self.tokens, metric)
        elif bool((self.lengths <= SHORTEST).any()):
            where = with_zeros_apart(self.units())
        else:
            return self
        return Directions(where, torch.ones_like(self.lengths), where.mean(0))


def _in_turn(tokens: Tensor) -> Iterator[Tensor]:
    """Up to `PART` of (N, D) tokens at a time, in float32, all in one buffer, because allocating more costs time."""
    memory = tokens.new_empty(min(PART, len(tokens)), tokens.shape[1], dtype=torch.float32)
    for part in tokens.split(PART):
        yield memory[: len(part)].copy_(part)


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

    def at(self, places: Tensor) -> Points:
        """The tokens, or rows of tokens, at int64 places of any shape, in that shape."""
        vectors = self.vectors.index_select(0, places.flatten()).view(*places.shape, *self.vectors.shape[1:])
        return Points(vectors, self.offset[places])


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stretches of at most `LARGEST` tokens, each within one temporal group.

    Comparing tokens only within a block costs no more per token in a longer video.

    `tokens` (B, n) int64 are the indices of each block's tokens, padded with its last one where `real` (B, n) is False.
    `group` (B,) int64 is each block's group. `before` (B,) int64 is the block at the same place in the previous group;
    for a block of the first group, the block itself.
    """

    tokens: Tensor
    real: Tensor
    group: Tensor
    before: Tensor

    @classmethod
    def of(cls, group_sizes: Sequence[int], device: torch.device) -> Blocks:
        """Cut groups of these sizes, each into as few blocks as possible, as equal in size as possible."""
        begins: list[int] = []
        sizes: list[int] = []
        groups: list[int] = []
        before: list[int] = []
        first_of_last, parts_of_last, begin = 0, 0, 0
        for group, size in enumerate(group_sizes):
            first, parts = len(begins), -(-size // LARGEST)
            for part in range(parts):
                end = size * (part + 1) // parts
                begins.append(begin + size * part // parts)
                sizes.append(begin + end - begins[-1])
                groups.append(group)
                before.append(first_of_last + part * parts_of_last // parts if parts_of_last else first + part)
            first_of_last, parts_of_last, begin = first, parts, begin + size
        length = torch.tensor(sizes, device=device)[:, None]
        place = torch.arange(max(sizes), device=device)
        tokens = torch.tensor(begins, device=device)[:, None] + place.minimum(length - 1)
        return cls(tokens, place < length, torch.tensor(groups, device=device), torch.tensor(before, device=device))

    def share(self, count: int) -> int:
        """The smallest m such that m tokens per block, or all it has, total at least `count` (or are all)."""
        sizes = self.real.sum(1).sort().values
        # If m is the size of the i-th smallest block: all tokens of the smaller blocks and m of each other one.
        others = len(sizes) - torch.arange(len(sizes), device=sizes.device)
        smaller = sizes.cumsum(0) - sizes
        enough = (smaller + sizes * others >= count).nonzero()
        if not len(enough):
            return int(sizes[-1])
        first = enough[0, 0]
        return max(1, -(-(count - int(smaller[first])) // int(others[first])))

    def rows(self, points: Points) -> Points:
        """The N tokens in blocks, (B, n)."""
        if self.real.all():
            return Points(points.vectors.unflatten(0, self.tokens.shape), points.offset.view(self.tokens.shape))
        return points.at(self.tokens)

    def joins(self, count: int, ends: bool) -> Tensor:
        """Which blocks to join: `count` successive ones at a time, (J, count) int64, padded with -1.

        With `ends`, blocks of the first and of the last temporal group are not joined with those of other groups.
        """
        last = self.group[-1]
        # 0 in the first group, 1 in those between, 2 in the last.
        part = (self.group > 0).long() + (self.group == last) if ends else torch.zeros_like(self.group)
        places = torch.arange(len(part), device=part.device).split(
            torch.unique_consecutive(part, return_counts=True)[1].tolist()
        )
        filled = [functional.pad(some, (0, -len(some) % count), value=-1) for some in places]
        return torch.cat(filled).view(-1, count)


def join(rows: Tensor, joins: Tensor) -> Tensor:
    """Join rows (B, m, ...) as `Blocks.joins` says, to (J, count * m, ...), with zeros for its -1."""
    joined = rows.index_select(0, joins.flatten().clamp(min=0))
    joined[joins.flatten() < 0] = 0
    return joined.view(len(joins), -1, *rows.shape[2:])
