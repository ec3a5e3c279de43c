"""Qwen2-VL (arXiv 2409.12191): two frames a temporal group, 2x2 patches a token, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from flashvlm.backends.base import Backend, Encoded, Prompt
from flashvlm.backends.loading import video_settings
from flashvlm.options import DEFAULT_FPS
from flashvlm.pixels import qwen2_vl_patches, smart_resize

# What transformers' Qwen2VLVideoProcessor takes where a checkpoint says nothing.
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Qwen2VL(Backend):
    family = "qwen2_vl"
    model_class = "Qwen2VLForConditionalGeneration"

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        settings = video_settings(folder)
        size = settings.get("size") or {}
        self.min_pixels = settings.get("min_pixels") or size.get("shortest_edge") or MIN_PIXELS
        self.max_pixels = settings.get("max_pixels") or size.get("longest_edge") or MAX_PIXELS
        self.mean = tuple(settings.get("image_mean") or MEAN)
        self.std = tuple(settings.get("image_std") or STD)
        self.vision = model.config.vision_config

    @property
    def frames_per_group(self) -> int:
        return self.vision.temporal_patch_size

    @property
    def visual_token(self) -> int:
        return self.model.config.video_token_id

    @property
    def text_config(self) -> Any:
        return self.model.config.text_config

    def frame_size(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        most = min(max_pixels, self.max_pixels)
        factor = self.vision.patch_size * self.vision.spatial_merge_size
        return smart_resize(height, width, factor=factor, min_pixels=min(self.min_pixels, most), max_pixels=most)

    @torch.inference_mode()
    def encode(self, frames: Tensor, seconds_per_frame: float = 1 / DEFAULT_FPS) -> Encoded:
        visual = self.model.model.visual
        pixel_values, grid_thw = qwen2_vl_patches(
            frames,
            patch_size=self.vision.patch_size,
            temporal_patch_size=self.vision.temporal_patch_size,
            merge_size=self.vision.spatial_merge_size,
            image_mean=self.mean,
            image_std=self.std,
        )
        groups, height, width = grid_thw[0].tolist()
        last: dict[str, Any] = {}

        def keep_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            last["hidden"] = args[0] if args else kwargs["hidden_states"]
            last["rotary"] = kwargs["position_embeddings"]
            last["lengths"] = kwargs["cu_seqlens"].diff().tolist()

        hook = visual.blocks[-1].attn.register_forward_pre_hook(keep_inputs, with_kwargs=True)
        try:
            output = visual(pixel_values.to(self.device, self.dtype), grid_thw=grid_thw.to(self.device))
        finally:
            hook.remove()
        merge = self.vision.spatial_merge_size
        height, width = height // merge, width // merge
        received = attention_received(visual.blocks[-1].attn, last["hidden"], last["rotary"], last["lengths"])
        # Patches come block by block, so each merged token's patches stand together.
        saliency = received.view(-1, merge**2).mean(dim=1)[self.order(groups, height, width).to(received.device)]
        return Encoded(
            output.pooler_output,
            saliency,
            groups,
            height,
            width,
            seconds_per_group=seconds_per_frame * self.frames_per_group,
        )

    def order(self, groups: int, height: int, width: int) -> Tensor:
        """Where the last vision block has each token of the merged grid, (N,) int64."""
        return torch.arange(groups * height * width)

    def times(self, encoded: Encoded) -> Tensor:
        """The positions of the groups on the time axis, (groups,) int64 from 0: they are counted."""
        return torch.arange(encoded.groups)

    def position_ids(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        """M-RoPE as the checkpoints were trained: every part starts one past the highest position before it.

        transformers 5.x starts the text after a video at max(height, width) past the video's start instead, which is
        the same while there are no more groups than that.
        """
        begin = len(prompt.before)
        axes = (self.times(encoded), torch.arange(encoded.height), torch.arange(encoded.width))
        video = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1) + begin
        after = torch.arange(len(prompt.after)) + int(video.max()) + 1
        return torch.cat([torch.arange(begin).expand(3, -1), video, after.expand(3, -1)], dim=1)


def attention_received(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
    """How much attention each patch receives from the others that see it in one vision block, mean over heads.

    Computed from the block's own weights, one stretch at a time: nothing larger than (heads, P, P) at once.

    Args:
        attention: the block's attention module.
        hidden: (S, C) its input.
        rotary: its position embeddings.
        lengths: how many patches each stretch has that attends to itself (a group, or a window); S in all.

    Returns:
        (S,) float32, non-negative; zeros where a stretch is a single patch.
    """
    query, key, _ = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
    received = []
    for q, k in zip(query.split(lengths), key.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k).float() * attention.scaling
        weights = scores.softmax(dim=-1).mean(dim=0)
        others = max(len(weights) - 1, 1)
        received.append((weights.sum(dim=0) - weights.diagonal()) / others)
    return torch.cat(received).clamp(min=0)
