"""The directions of tokens, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvlm.selection.metric import SHORTEST, in_range

# Tokens read at once: few enough to stay in the processor's cache.
PART = 512


@dataclass(frozen=True, eq=False)
class Directions:
    """Tokens scaled to length 1, made where they are read.

    All of them in float32 would be written to memory only to be read again, which takes longer than making them anew.
    `tokens` (N, D) is in bfloat16; `lengths` (N, 1) and `mean` (D,), of the unit vectors, are in float32.
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
        for part, length in zip(tokens.split(PART), lengths.split(PART), strict=True):
            values = part.float()
            length.copy_(torch.linalg.vector_norm(values, dim=1, keepdim=True).clamp_(min=SHORTEST))
            total += values.div_(length).sum(0)
        return cls(tokens, lengths, total / len(tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def parts(self) -> Iterator[Tensor]:
        """Up to PART of the unit vectors at a time, in float32; zero vectors stay zero."""
        for part, length in zip(self.tokens.split(PART), self.lengths.split(PART), strict=True):
            yield part.float().div_(length)

    def cosines(self, units: Tensor) -> Tensor:
        """(N, L) float32 cosines with unit vectors (L, D), multiplied in the dtype of these; 0 for zero vectors."""
        products = [(part.to(units.dtype) @ units.T).float() for part in self.tokens.split(PART)]
        return torch.cat(products).div_(self.lengths)

    def has_zeros(self) -> bool:
        """Whether there are vectors without a direction."""
        return bool((self.lengths <= SHORTEST).any())
