"""The kept tokens and how well they stand for the dropped ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from flashvlm.selection.coverage import cover
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.metric import Space

# Tokens less similar than this do not stand for one another.
ALIKE = 0.5


@dataclass(frozen=True, eq=False)
class Selection:
    """K kept tokens of N, all tensors on the device of the tokens.

    `indices` (K,) int64 is ascending; `important` (K,) bool says whether each was kept for the question (True) or for
    coverage (False), and is all False if the selector makes no such distinction; `scores` (N,) float32 is the fused
    score, zeros if the selector has none. `vectors` (K, D) are what the language model gets for the kept tokens, in the
    dtype of `tokens` (N, D): the tokens themselves, unless a selector merges others into them: then `merged_into` (N,)
    int64 is, for each token, the position in `indices` of the one whose mean it is part of. `metric` defines distance.
    `redundancy` is the mean similarity between dropped tokens and those that stand for them, for each round of a
    thinning and, last, from one temporal group to the next if there are several; empty if the selector does not measure
    it. `told_apart` is False if `important` says nothing.
    """

    indices: Tensor
    important: Tensor
    scores: Tensor
    vectors: Tensor = field(repr=False)
    tokens: Tensor = field(repr=False)
    metric: str
    redundancy: tuple[float, ...] = ()
    told_apart: bool = False
    merged_into: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        diverse: Tensor,
        important: Tensor | None = None,
        scores: Tensor | None = None,
        redundancy: tuple[float, ...] = (),
    ) -> Selection:
        """Put the kept tokens into their original order.

        Args:
            diverse: (K1,) int64 on any device, kept for coverage or for no stated reason.
            important: (K2,) int64 on the same device, kept for the question; shares none with `diverse`. None if the
                selector makes no distinction.
            scores: (N,) float32.
            redundancy: as measured by the selector.
        """
        device, told_apart = inputs.tokens.device, important is not None
        if important is None:
            important = diverse.new_empty(0)
        if scores is None:
            scores = torch.zeros(len(inputs.tokens), dtype=torch.float32)
        indices, order = torch.cat([important, diverse]).sort()
        indices = indices.to(device)
        for_question = (order < len(important)).to(device)
        kept, scores = inputs.tokens[indices], scores.to(device)
        return cls(indices, for_question, scores, kept, inputs.tokens, inputs.metric, redundancy, told_apart)

    @property
    def little_to_drop(self) -> bool:
        """Whether tokens differ from one another in round one, from the previous group, and some from all kept."""
        unlike = bool(self.redundancy) and max(self.redundancy[0], self.redundancy[-1]) < ALIKE
        return unlike and self.delta > 1 - ALIKE

    @cached_property
    def _cover(self) -> tuple[Tensor, Tensor]:
        return cover(Space.of(self.tokens, self.metric), self.indices)

    @property
    def nearest(self) -> Tensor:
        """(N,) int64: for each token, the position in `indices` of the nearest kept one; for a kept token, its own."""
        return self._cover[0]

    @cached_property
    def delta(self) -> float:
        """The measured coverage radius: the largest distance from any token to its nearest kept one."""
        return self._cover[1].max().item()
