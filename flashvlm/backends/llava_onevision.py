"""LLaVA-OneVision (arXiv 2408.03326): SigLIP, frames pooled to a quarter of their tokens, one more token at the end."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm.backends.packing import packed
from flashvlm.backends.towers import CHATML, Squares, siglip_features
from flashvlm.encode import Features


class LlavaOnevision(Squares):
    """The frames of a video follow each other without a word between them, and `image_newline` ends them.

    That vector stands for no place of any frame and is always kept.
    """

    model_class = "LlavaOnevisionForConditionalGeneration"
    chat_template = CHATML
    # The published checkpoints were trained and evaluated on 32 evenly spaced frames, however long the video.
    default_frames = 32
    towers = ("siglip_vision_model",)

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The vision tower and the projector, with their weights laid out for this machine."""
        return packed(self.model.model.vision_tower), packed(self.model.model.multi_modal_projector)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        # Halved and rounded up.
        return -(-self.patches // 2), -(-self.patches // 2)

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return {"pixel_values_videos": self.normalised(frames)[None]}

    def features(self, frames: Tensor) -> Features:
        tower, projector = self.encoder
        pixels = self.pixels(frames)["pixel_values_videos"][0].to(self.device, self.dtype)
        chosen = self.model.config.vision_feature_layer
        features, saliency = siglip_features(tower, tower.embeddings(pixels), chosen)
        # As transformers pools the projected features.
        grid = saliency.view(-1, 1, self.patches, self.patches)
        pooled = F.interpolate(grid, self.cells((self.side, self.side)), mode="bilinear")
        return Features(self.model.model.apply_pooling(projector(features)), pooled.flatten(1))

    def fixed_tokens(self) -> Tensor:
        return self.model.model.image_newline[None]

    def encoder_output(self, vectors: list[Tensor], planes: Tensor | None) -> Any:
        return BaseModelOutputWithPooling(pooler_output=torch.stack(vectors))
