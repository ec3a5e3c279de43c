"""Qwen2-VL (arXiv 2409.12191): two frames per temporal group, 2x2 patches per token, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flashvlm.backends.base import Backend
from flashvlm.backends.loading import image_settings, video_settings
from flashvlm.backends.packing import packed
from flashvlm.backends.vision import Layout, forward, layout
from flashvlm.encode import Encoded, Features
from flashvlm.errors import ModelError
from flashvlm.options import AskOptions
from flashvlm.pixels import qwen2_vl_patches, resize, smart_resize


class Qwen2VL(Backend):
    model_class = "Qwen2VLForConditionalGeneration"
    # Of transformers' processors, for what a checkpoint does not set.
    default_mean: ClassVar[Sequence[float]] = OPENAI_CLIP_MEAN
    default_std: ClassVar[Sequence[float]] = OPENAI_CLIP_STD
    default_pixels: ClassVar[tuple[int, int]] = (128 * 28 * 28, 768 * 28 * 28)
    default_picture_pixels: ClassVar[tuple[int, int]] = (56 * 56, 1280 * 28 * 28)
    looks_twice = True
    encodes_parts = True

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        settings = video_settings(folder)
        self.min_pixels, self.max_pixels = _bounds(settings, self.default_pixels)
        self.picture_bounds = _bounds(image_settings(folder), self.default_picture_pixels)
        self.mean = tuple(settings.get("image_mean") or self.default_mean)
        self.std = tuple(settings.get("image_std") or self.default_std)
        self.vision = model.config.vision_config
        # What transformers finds out when it answers.
        attention, sections = model.model.visual.blocks[0].attn, model.model.language_model.rotary_emb.mrope_section
        if attention.num_heads * attention.head_dim != attention.dim:
            raise ModelError(
                f"{attention.num_heads} heads of the vision encoder do not divide {attention.dim} channels."
            )
        if 2 * sum(sections) != self.head_dim or min(sections) < 0:
            raise ModelError(f"The parts {sections} of positions do not make up half of {self.head_dim} channels.")

    @cached_property
    def encoder(self) -> Any:
        """The vision encoder, with its weights laid out for this machine."""
        return packed(self.model.model.visual)

    @property
    def frames_per_group(self) -> int:
        return self.vision.temporal_patch_size

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        most = min(options.frame_pixels, self.max_pixels)
        least = min(options.min_pixels or self.min_pixels, most)
        return smart_resize(height, width, factor=self.side, min_pixels=least, max_pixels=most)

    def tiles(self, picture: Tensor, options: AskOptions) -> tuple[Tensor, int, int]:
        most = min(options.picture_pixels, self.picture_bounds[1])
        least = min(options.min_pixels or self.picture_bounds[0], most)
        size = smart_resize(*picture.shape[1:], factor=self.side, min_pixels=least, max_pixels=most)
        return resize(picture, size)[None], 1, 1

    @property
    def side(self) -> int:
        """The side of a cell in pixels."""
        return self.vision.patch_size * self.vision.spatial_merge_size

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return frame[0] // self.side, frame[1] // self.side

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

    def features(self, frames: Tensor) -> Features:
        return self._features(frames)

    def kept_features(self, frames: Tensor, kept: list[Tensor], changed: Tensor | None = None) -> Features:
        return self._features(frames, kept=kept, changed=changed)

    def _features(self, frames: Tensor, **kept: Any) -> Features:
        inputs = self.pixels(frames)
        groups, height, width = inputs["video_grid_thw"][0].tolist()
        patches = inputs["pixel_values_videos"].to(self.device, self.dtype).view(groups, height * width, -1)
        merge = self.vision.spatial_merge_size
        # Patches are ordered block by block, so those of each merged token are adjacent.
        axes = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = [axis.view(height // merge, merge, width // merge, merge).transpose(1, 2).flatten() for axis in axes]
        more = self.further(height, width)
        return forward(self.encoder, patches, torch.stack(places, dim=1), self.layout(height, width), **more, **kept)

    def further(self, height: int, width: int) -> dict[str, Any]:
        """What else the vision encoder needs for groups of height x width patches (see `forward`)."""
        return {}

    def layout(self, height: int, width: int) -> Layout:
        """Which of a group's height x width patches attend to each other: all."""
        merge = self.vision.spatial_merge_size
        return layout(height // merge, width // merge, merge, [True] * self.vision.depth)

    def times(self, encoded: Encoded) -> Tensor:
        """The positions of the groups on the time axis, (groups,) int64: 0, 1, 2, ..."""
        return torch.arange(encoded.groups)

    def position_ids(self, ids: Tensor, videos: Sequence[Encoded]) -> Tensor:
        """M-RoPE as the checkpoints were trained: every part starts one past the highest position before it.

        transformers 5.x starts the text after a video at max(height, width) past the video's start instead, which is
        the same as long as there are no more groups than that.
        """
        visual = torch.isin(ids, torch.tensor(list(self.visual_tokens)))
        parts, place, position = [], 0, 0
        for run in (run for video in videos for run in self.runs(video)):
            text = int(visual[place:].int().argmax())
            parts += [(torch.arange(text) + position).expand(3, -1), run + position + text]
            place, position = place + text + run.shape[1], int(parts[-1].max()) + 1
        parts.append((torch.arange(len(ids) - place) + position).expand(3, -1))
        return torch.cat(parts, dim=1)

    def runs(self, video: Encoded) -> list[Tensor]:
        """The positions (3, n) of each run of visual tokens in the prompt, relative to where it starts."""
        axes = (self.times(video), torch.arange(video.height), torch.arange(video.width))
        return [torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)]


def _bounds(settings: dict[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most pixels, as a processor's settings say."""
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or default[0]
    return least, settings.get("max_pixels") or size.get("longest_edge") or default[1]
