"""A video's tokens in small blocks: comparing tokens only within a block costs no more per token in a longer video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.points import Points

# Most tokens per block: a frame of 224 x 224 pixels in Qwen2-VL, or some rows of a larger one.
LARGEST = 64


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stretches of at most `LARGEST` tokens, each within one temporal group.

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
            return points.reshaped(lambda tokens: tokens.view(*self.tokens.shape, *tokens.shape[1:]))
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
