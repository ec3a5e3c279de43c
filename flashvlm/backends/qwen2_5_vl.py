"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with windows in its vision blocks and seconds on its time axis."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.backends.base import Encoded
from flashvlm.backends.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    family = "qwen2_5_vl"
    model_class = "Qwen2_5_VLForConditionalGeneration"

    def order(self, groups: int, height: int, width: int) -> Tensor:
        """The vision blocks hold the tokens window by window, and row by row inside one."""
        side = self.vision.window_size // self.vision.patch_size // self.vision.spatial_merge_size
        group, row, column = torch.meshgrid(*map(torch.arange, (groups, height, width)), indexing="ij")
        across, down = -(-width // side), -(-height // side)
        window = (group * down + row // side) * across + column // side
        return window.flatten().argsort(stable=True).argsort()

    def times(self, encoded: Encoded) -> Tensor:
        """Time is counted in `tokens_per_second`, rounded down where a group is no whole number of them.

        The product is in float32, as the checkpoints were trained: it decides which way a position falls.
        """
        interval = torch.tensor(encoded.seconds_per_group, dtype=torch.float32) * self.vision.tokens_per_second
        return (torch.arange(encoded.groups) * interval).long()
