"""The tokens of a video in small blocks, so that what is compared within them costs no more for a longer video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.points import Points

# Tokens of a block at most: a frame of 224 x 224 pixels in Qwen2-VL, or some rows of a larger one.
LARGEST = 64


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stretches of at most `LARGEST` tokens, each within one temporal group.

    `tokens` (B, n) int64 are the places of the tokens of each block, filled up with its last one where `real` (B, n)
    is False. `group` (B,) int64 is the group of each block. `before` (B,) int64 is the block at the same place in the
    group before, a block of the first group its own.
    """

    tokens: Tensor
    real: Tensor
    group: Tensor
    before: Tensor

    @classmethod
    def of(cls, group_sizes: Sequence[int], device: torch.device) -> Blocks:
        """Cut groups of these sizes, each into as few blocks as can be, as equal as can be."""
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
        """The least m for which m tokens of each block, or all it has, make at least `count` (or are all)."""
        sizes = self.real.sum(1).sort().values
        # With m the size of the i-th smallest block: all of the smaller ones and m of each other one.
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
            return points.reshaped(lambda tokens: tokens.view(*self.tokens.shape, *tokens.shape[1:]))
        return points.at(self.tokens)

    def joins(self, count: int, ends: bool) -> Tensor:
        """Which blocks are joined: successive ones, `count` at a time, (J, count) int64, -1 for none.

        With `ends`, the first and the last temporal group are joined with no other.
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
    """(B, m, ...) to (J, count * m, ...), the rows that `Blocks.joins` joins in one; zeros where there is none."""
    joined = rows.index_select(0, joins.flatten().clamp(min=0))
    joined[joins.flatten() < 0] = 0
    return joined.view(len(joins), -1, *rows.shape[2:])
