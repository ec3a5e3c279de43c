"""The kept tokens and how well they stand for the dropped ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space, cover, gathered
from flashvlm.selection.inputs import Inputs

# Tokens less similar than this do not stand for one another.
ALIKE = 0.5


@dataclass(frozen=True, eq=False)
class Selection:
    """K kept tokens of N, in their original order. All tensors are on the device of the tokens."""

    # (K,) int64, ascending: the kept tokens.
    indices: Tensor
    # (K,) bool: whether each was kept for the question (True) or for coverage (False); see `distinguishes`.
    important: Tensor
    # (N,) float32: how much the selector values each token; zeros if it does not say.
    scores: Tensor
    # (K, D), in the dtype of `tokens`: what the language model gets for the kept tokens. They are the tokens, or means
    # of several if the selector merges tokens.
    vectors: Tensor = field(repr=False)
    # (N, D): all tokens of the video.
    tokens: Tensor = field(repr=False)
    # How distance between tokens is measured.
    metric: str
    # How similar dropped tokens were to the tokens that stand for them (1: equal). There is a mean for every round of
    # thinning within the temporal groups. If there are several groups, the last value is the mean similarity of their
    # tokens to the group before. Empty if the selector does not measure it.
    redundancy: tuple[float, ...] = ()
    # Whether the selector distinguishes tokens for the question from tokens for coverage. If not, `important` is all
    # False and says nothing.
    distinguishes: bool = False
    # (N,) int64: for each token, the position in `indices` of the kept one whose mean it is part of. None if `vectors`
    # are not plain means of all tokens.
    merged_into: Tensor | None = field(default=None, repr=False)
    # If `vectors` are weighted sums: the (M,) tokens of the first, of the second, ...; how many each has (K,); and the
    # weights (M,) of these tokens.
    sums: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"<Selection of {len(self.indices)} of {len(self.tokens)} tokens>"

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
        device, distinguishes = inputs.tokens.device, important is not None
        if important is None:
            important = diverse.new_empty(0)
        if scores is None:
            scores = torch.zeros(len(inputs.tokens), dtype=torch.float32)
        indices, order = torch.cat([important, diverse]).sort()
        indices = indices.to(device)
        for_question = (order < len(important)).to(device)
        kept, scores = inputs.tokens[indices], scores.to(device)
        return cls(indices, for_question, scores, kept, inputs.tokens, inputs.metric, redundancy, distinguishes)

    @classmethod
    def mixed(cls, inputs: Inputs, kept: Tensor, tokens: Tensor, weights: Tensor) -> Selection:
        """Keep weighted sums of tokens.

        Args:
            kept: (M,) int64, the kept token that each of `tokens` is added to; each of its own adds itself, too.
            tokens: (M,) int64, in any order; a token may be added to several.
            weights: (M,) float32.
        """
        selection = cls.of(inputs, kept.unique())
        if len(selection.indices) == len(kept):
            return selection
        order, sizes = gathered(torch.searchsorted(selection.indices, kept), len(selection.indices))
        return replace(selection, sums=(tokens[order], sizes, weights[order])).remade(inputs.tokens)

    @property
    def merges(self) -> bool:
        """Whether some `vectors` are made of several tokens."""
        return self.merged_into is not None or self.sums is not None

    def pooled(self, values: Tensor) -> Tensor:
        """Reduce other values of the N tokens to the K kept ones, as `vectors` reduces `tokens`.

        Args:
            values: (..., N, D) of any float dtype, on the device of the tokens.

        Returns:
            (..., K, D) in the same dtype: the rows of the kept tokens; or, if the selector merges tokens, the means or
            sums of the rows that were merged into each, in float32. The same on every run.
        """
        rows = values.movedim(-2, 0)
        if self.merged_into is not None:
            order, sizes = gathered(self.merged_into, len(self.indices))
            pooled = torch.segment_reduce(rows[order].flatten(1).float(), "mean", lengths=sizes)
        elif self.sums is not None:
            tokens, sizes, weights = self.sums
            pooled = torch.segment_reduce(rows[tokens].flatten(1).float() * weights[:, None], "sum", lengths=sizes)
        else:
            return values.index_select(-2, self.indices)
        return pooled.to(values.dtype).view(-1, *rows.shape[1:]).movedim(0, -2)

    def merged(self) -> Selection:
        """The same choice, with every dropped token merged into its nearest kept one."""
        selection = replace(self, merged_into=self.nearest, sums=None)
        selection = replace(selection, vectors=selection.pooled(self.tokens))
        # Neither the tokens nor the kept ones have changed: the cover, which is slow to measure, is still right.
        vars(selection)["_cover"] = self._cover
        return selection

    def remade(self, tokens: Tensor) -> Selection:
        """The same choice, made of other (N, D) tokens."""
        return replace(self, tokens=tokens, vectors=self.pooled(tokens))

    @property
    def little_to_drop(self) -> bool:
        """Whether the tokens are all unlike one another, so that whatever is dropped is lost.

        It is so if the first round of thinning already dropped tokens unlike those that stand for them, each temporal
        group is unlike the one before, and some token is unlike all kept ones.
        """
        unlike = bool(self.redundancy) and max(self.redundancy[0], self.redundancy[-1]) < ALIKE
        return unlike and self.delta > 1 - ALIKE

    @cached_property
    def _cover(self) -> tuple[Tensor, Tensor]:
        return cover(Space.of(self.tokens, self.metric), self.indices)

    @property
    def nearest(self) -> Tensor:
        """(N,) int64: for each token, the position in `indices` of the nearest kept one; for a kept token, its own."""
        return self._cover[0]

    @property
    def distance(self) -> Tensor:
        """(N,) float32: how far each token is from its nearest kept one; 0 for a kept token."""
        return self._cover[1]

    @cached_property
    def delta(self) -> float:
        """The measured coverage radius: the largest distance from any token to its nearest kept one."""
        return self.distance.max().item()
