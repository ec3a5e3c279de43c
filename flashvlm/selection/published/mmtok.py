"""Tokens that cover the question's words and the video at once."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import BLOCK, Space, unit_vectors
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

# Published settings: temperatures of the softmax over the tokens for a word and for a token, and the weight of the
# token cover.
WORD_TEMPERATURE = 0.02
TOKEN_TEMPERATURE = 0.2
TOKEN_WEIGHT = 0.5
# A table of all covers may take up to 1 GiB; beyond that, covers are computed on demand.
TABLE_BYTES = 2**30
# Gains that are updated at once.
CANDIDATES = 32


def mmtok(inputs: Inputs) -> Selection:
    """Greedy maximum coverage of words and tokens: MMTok (arXiv 2508.18264).

    It maximises the mean over the words of their best cover by a kept token, plus half the same mean over all tokens.
    The covers of one word, or token, by all tokens are the softmax of its similarities to them. Once no token adds to
    the sum, the first ones left fill up the budget.
    """
    covers = Covers(inputs)
    kept = greedy_coverage(covers, inputs.budget)
    if (missing := inputs.budget - len(kept)) > 0:
        rest = torch.ones(len(inputs.tokens), dtype=torch.bool, device=kept.device).index_fill(0, kept, False)
        kept = torch.cat([kept, rest.nonzero()[:missing, 0]])
    return Selection.of(inputs, kept)


class Covers:
    """How well each of N tokens covers each of L words and N tokens, weighted: (N, L + N), computed in blocks."""

    def __init__(self, inputs: Inputs) -> None:
        count = len(inputs.tokens)
        self._space = Space.of(inputs.tokens, inputs.metric)
        self._words = _word_covers(inputs)
        self._weight = self._words.new_ones(count)
        self._table: Tensor | None = None
        blocks = torch.arange(count, device=inputs.tokens.device).split(max(1, BLOCK // count))
        if 4 * count**2 <= TABLE_BYTES:
            table = self._words.new_empty(count, self._words.shape[1] + count)
            for block in blocks:
                table[block] = self.of(block)
            self._table = table
        likeness = torch.cat([self.of(block)[:, -count:].sum(1) for block in blocks])
        self._weight = TOKEN_WEIGHT / (count * likeness)
        if self._table is not None:
            self._table[:, -count:] *= self._weight
        self.total = torch.cat([self.of(block).sum(1) for block in blocks])

    def of(self, tokens: Tensor) -> Tensor:
        """The covers by C tokens, (C, L + N)."""
        if self._table is not None:
            return self._table.index_select(0, tokens)
        # No similarity exceeds a token's to itself, which is 1: the exponential cannot overflow.
        likeness = (self._space.left[tokens] @ self._space.right.T).sub_(1).div_(TOKEN_TEMPERATURE).exp_()
        return torch.cat([self._words[tokens], likeness.mul_(self._weight)], 1)


def greedy_coverage(covers: Covers, count: int) -> Tensor:
    """Choose up to `count` tokens, each the one that adds most to the sum over all columns of the best cover.

    Lazily: gains only shrink as tokens are chosen, so an outdated gain is an upper bound, and only a few are updated at
    each step.

    Returns:
        (count,) int64 in the order of choice; fewer if no remaining token adds anything.
    """
    gains = covers.total
    best = torch.zeros_like(covers.of(torch.zeros(1, dtype=torch.int64, device=gains.device)))
    outdated = torch.full_like(gains, -torch.inf)
    chosen: list[Tensor] = []
    while len(chosen) < count:
        place = gains.argmax()
        if not gains[place] > 0:
            break
        if outdated[place] == -torch.inf:
            chosen.append(place)
            torch.maximum(best, covers.of(place[None]), out=best)
            gains[place] = -torch.inf
            outdated = gains.clone()
        else:
            tried = outdated.topk(min(CANDIDATES, len(gains))).indices
            gain = (covers.of(tried) - best).clamp_(min=0).sum(1)
            gains[tried] = torch.where(outdated[tried] == -torch.inf, gains[tried], gain)
            outdated[tried] = -torch.inf
    return torch.stack(chosen) if chosen else gains.new_empty(0, dtype=torch.int64)


def _word_covers(inputs: Inputs) -> Tensor:
    """(N, L): for each word a softmax over the tokens, divided by the number of words."""
    if not len(inputs.words):
        return inputs.saliency.new_empty(len(inputs.tokens), 0)
    cosines = unit_vectors(inputs.tokens) @ unit_vectors(inputs.words).T
    return (cosines / WORD_TEMPERATURE).softmax(0) / len(inputs.words)
