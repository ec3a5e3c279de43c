"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with windows in its vision blocks and seconds on its time axis."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.backends.qwen2_vl import Qwen2VL
from flashvlm.backends.vision import Layout, layout
from flashvlm.encode import Encoded


class Qwen25VL(Qwen2VL):
    model_class = "Qwen2_5_VLForConditionalGeneration"

    def layout(self, height: int, width: int) -> Layout:
        """Most vision blocks attend within windows; those named in the configuration attend to the whole group."""
        merge = self.vision.spatial_merge_size
        whole = [block in self.vision.fullatt_block_indexes for block in range(self.vision.depth)]
        side = self.vision.window_size // self.vision.patch_size // merge
        return layout(height // merge, width // merge, merge, whole, side)

    def times(self, encoded: Encoded) -> Tensor:
        """Time is counted in units of 1 / `tokens_per_second`, rounded down if a group is not a whole number of them.

        The product is in float32, as the checkpoints were trained: it decides how a position is rounded.
        """
        interval = torch.tensor(encoded.seconds_per_group, dtype=torch.float32) * self.vision.tokens_per_second
        return (torch.arange(encoded.groups) * interval).long()
