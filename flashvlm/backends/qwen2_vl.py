"""Qwen2-VL (arXiv 2409.12191): two frames per temporal group, 2x2 patches per token, M-RoPE positions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flashvlm.backends.base import Backend, Encoded, Prompt
from flashvlm.backends.loading import video_settings
from flashvlm.backends.packing import packed
from flashvlm.backends.vision import Layout, layout, see
from flashvlm.errors import ModelError
from flashvlm.pixels import qwen2_vl_patches, smart_resize

# Defaults of transformers' Qwen2VLVideoProcessor, for what a checkpoint does not set.
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28


class Qwen2VL(Backend):
    model_class = "Qwen2VLForConditionalGeneration"

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        settings = video_settings(folder)
        size = settings.get("size") or {}
        self.min_pixels = settings.get("min_pixels") or size.get("shortest_edge") or MIN_PIXELS
        self.max_pixels = settings.get("max_pixels") or size.get("longest_edge") or MAX_PIXELS
        self.mean = tuple(settings.get("image_mean") or OPENAI_CLIP_MEAN)
        self.std = tuple(settings.get("image_std") or OPENAI_CLIP_STD)
        self.vision = model.config.vision_config
        # What transformers finds out when it answers.
        attention, sections = model.model.visual.blocks[0].attn, model.model.language_model.rotary_emb.mrope_section
        if attention.num_heads * attention.head_dim != attention.dim:
            raise ModelError(
                f"{attention.num_heads} heads of the vision encoder do not divide {attention.dim} channels."
            )
        if 2 * sum(sections) != self._head_dim or min(sections) < 0:
            raise ModelError(f"The parts {sections} of positions do not make up half of {self._head_dim} channels.")

    @cached_property
    def encoder(self) -> Any:
        """The vision encoder, with its weights laid out for this machine."""
        return packed(self.model.model.visual)

    @property
    def frames_per_group(self) -> int:
        return self.vision.temporal_patch_size

    def frame_size(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        most = min(max_pixels, self.max_pixels)
        factor = self.vision.patch_size * self.vision.spatial_merge_size
        return smart_resize(height, width, factor=factor, min_pixels=min(self.min_pixels, most), max_pixels=most)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        side = self.vision.patch_size * self.vision.spatial_merge_size
        return frame[0] // side, frame[1] // side

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        pixel_values, grid_thw = qwen2_vl_patches(
            frames,
            patch_size=self.vision.patch_size,
            temporal_patch_size=self.vision.temporal_patch_size,
            merge_size=self.vision.spatial_merge_size,
            image_mean=self.mean,
            image_std=self.std,
        )
        return {"pixel_values_videos": pixel_values, "video_grid_thw": grid_thw}

    def see(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.pixels(frames)
        groups, height, width = inputs["video_grid_thw"][0].tolist()
        patches = inputs["pixel_values_videos"].to(self.device, self.dtype).view(groups, height * width, -1)
        merge = self.vision.spatial_merge_size
        # Patches are ordered block by block, so those of each merged token are adjacent.
        axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = [axis.view(height // merge, merge, width // merge, merge).transpose(1, 2).flatten() for axis in axes]
        return see(self.encoder, patches, torch.stack(places, dim=1), self.layout(height, width))

    def layout(self, height: int, width: int) -> Layout:
        """Which of a group's height x width patches attend to each other: all."""
        merge = self.vision.spatial_merge_size
        return layout(height // merge, width // merge, merge, [True] * self.vision.depth)

    def times(self, encoded: Encoded) -> Tensor:
        """The positions of the groups on the time axis, (groups,) int64: 0, 1, 2, ..."""
        return torch.arange(encoded.groups)

    def position_ids(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        """M-RoPE as the checkpoints were trained: every part starts one past the highest position before it.

        transformers 5.x starts the text after a video at max(height, width) past the video's start instead, which is
        the same as long as there are no more groups than that.
        """
        begin = len(prompt.before)
        axes = (self.times(encoded), torch.arange(encoded.height), torch.arange(encoded.width))
        video = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1) + begin
        after = torch.arange(len(prompt.after)) + int(video.max()) + 1
        return torch.cat([torch.arange(begin).expand(3, -1), video, after.expand(3, -1)], dim=1)

    def kept_positions(self, prompt: Prompt, encoded: Encoded, places: Tensor) -> Tensor:
        # A video takes far fewer positions than it has tokens.
        return self.position_ids(prompt, encoded)[:, places]
