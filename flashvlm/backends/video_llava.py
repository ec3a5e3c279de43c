"""Video-LLaVA (arXiv 2311.10122): eight frames, CLIP with a class token per frame, positions in one dimension."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm.backends.packing import packed
from flashvlm.backends.towers import Squares, clip_features
from flashvlm.encode import Features
from flashvlm.options import AskOptions
from flashvlm.pixels import clip_pixels, shortest_edge_size
from flashvlm.report import Area


class VideoLlava(Squares):
    """Every frame is resized by its shorter side and cropped to its middle square, as transformers' processor does.

    Kept tokens keep their original positions: with positions closed up, the demo model loses 16 to 24 points
    (docs/results.md).

    A still picture is a video of one frame and goes through the video tower. The class has a tower for pictures too; in
    the published checkpoint the two differ in little but the class token
    (https://github.com/PKU-YuanGroup/Video-LLaVA/issues/223).
    """

    model_class = "VideoLlavaForConditionalGeneration"
    chat_template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
        "{% for content in message['content'] %}"
        "{% if content['type'] == 'video' %}<video>\n{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
        "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    default_frames = 8
    class_tokens = 1
    towers = ("clip_vision_model",)

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        self.edge = max((self.settings.get("size") or {}).get("shortest_edge") or self.side, self.side)

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The video tower and the projector, with their weights laid out for this machine."""
        return packed(self.model.model.video_tower), packed(self.model.model.multi_modal_projector)

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        return shortest_edge_size(height, width, self.edge)

    def area(self, height: int, width: int, kind: str = "video") -> Area:
        """The part of the middle square that whole patches fill."""
        height, width = shortest_edge_size(height, width, self.edge)
        top, left = (height - self.side) // 2, (width - self.side) // 2
        side = self.patches * self.patch
        return Area(top / height, left / width, (top + side) / height, (left + side) / width)

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        pixels = clip_pixels(frames, side=self.side, image_mean=self.mean, image_std=self.std)
        return {"pixel_values_videos": pixels.unsqueeze(0)}

    def features(self, frames: Tensor) -> Features:
        tower, projector = self.encoder
        pixels = self.pixels(frames)["pixel_values_videos"][0].to(self.device, self.dtype)
        features, saliency = clip_features(tower, pixels, self.model.config.vision_feature_layer)
        return Features(projector(features), saliency)

    @property
    def markers(self) -> dict[str, str]:
        return {"video": self.tokenizer.convert_ids_to_tokens(self.model.config.video_token_id)}

    def encoder_output(self, kind: str, vectors: list[Tensor], planes: Tensor | None) -> Any:
        return BaseModelOutputWithPooling(pooler_output=torch.stack(vectors))
