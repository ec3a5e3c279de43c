"""The directions of tokens, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvlm.selection.metric import SHORTEST, in_range, places, with_zeros_apart

# Tokens read at a time: few enough to stay in the processor's cache.
PART = 512


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
        """The tokens as points placed by a metric (`metric.places`) instead of as directions."""
        if metric != "cosine":
            return self._at_places(places(self.tokens, metric))
        if bool((self.lengths <= SHORTEST).any()):
            return self._at_places(with_zeros_apart(self.units()))
        return self

    def _at_places(self, where: Tensor) -> Directions:
        return Directions(where, torch.ones_like(self.lengths), where.mean(0))


def _in_turn(tokens: Tensor) -> Iterator[Tensor]:
    """Up to `PART` of (N, D) tokens at a time, in float32, all in one buffer, because allocating more costs time."""
    memory = tokens.new_empty(min(PART, len(tokens)), tokens.shape[1], dtype=torch.float32)
    for part in tokens.split(PART):
        yield memory[: len(part)].copy_(part)
