"""Video-LLaVA (arXiv 2311.10122): eight frames, CLIP with a class token per frame, positions in one dimension."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm.backends.base import Backend
from flashvlm.backends.loading import video_settings
from flashvlm.backends.packing import packed
from flashvlm.encode import Features
from flashvlm.errors import ModelError
from flashvlm.options import AskOptions
from flashvlm.pixels import clip_pixels, shortest_edge_size
from flashvlm.report import Area


class VideoLlava(Backend):
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
        "{% if content['type'] == 'video' %}<video>\n{% else %}{{ content['text'] }}{% endif %}{% endfor %} "
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    default_frames = 8
    frames_per_group = 1
    class_tokens = 1

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        self.vision = model.config.vision_config
        if self.vision.model_type != "clip_vision_model":
            raise ModelError(f"Video-LLaVA with a vision encoder of type {self.vision.model_type!r} is not supported.")
        settings = video_settings(folder)
        # The towers take this size and no other.
        self.side = self.vision.image_size
        self.edge = max((settings.get("size") or {}).get("shortest_edge") or self.side, self.side)
        self.mean = tuple(settings.get("image_mean") or OPENAI_CLIP_MEAN)
        self.std = tuple(settings.get("image_std") or OPENAI_CLIP_STD)

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The video tower and the projector, with their weights laid out for this machine."""
        return packed(self.model.model.video_tower), packed(self.model.model.multi_modal_projector)

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        return shortest_edge_size(height, width, self.edge)

    def area(self, height: int, width: int) -> Area:
        """The part of the middle square that whole patches fill."""
        height, width = shortest_edge_size(height, width, self.edge)
        top, left = (height - self.side) // 2, (width - self.side) // 2
        side = self.side // self.vision.patch_size * self.vision.patch_size
        return Area(top / height, left / width, (top + side) / height, (left + side) / width)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        side = self.side // self.vision.patch_size
        return side, side

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        pixels = clip_pixels(frames, side=self.side, image_mean=self.mean, image_std=self.std)
        return {"pixel_values_videos": pixels.unsqueeze(0)}

    def features(self, frames: Tensor) -> Features:
        tower, projector = self.encoder
        pixels = self.pixels(frames)["pixel_values_videos"][0].to(self.device, self.dtype)
        features, saliency = clip_features(tower, pixels, self.model.config.vision_feature_layer)
        return Features(projector(features), saliency)

    def encoder_output(self, vectors: list[Tensor], planes: Tensor | None) -> Any:
        return BaseModelOutputWithPooling(pooler_output=torch.stack(vectors))


def clip_features(tower: Any, pixels: Tensor, chosen: int | list[int]) -> tuple[Tensor, Tensor]:
    """A CLIP tower's features of frames, from the layers of `vision_feature_layer`, and its class token's attention.

    Args:
        tower: transformers' `CLIPVisionModel`, or a twin of it (`packed`).
        pixels: (F, 3, h, w) frames.
        chosen: the hidden state to use, or several to concatenate; 0 is the input of the first layer.

    Returns:
        (F, 1 + P, C) features, the class token first, and their (F, 1 + P) saliency (`class_attention`).
    """
    layers = tower.encoder.layers
    numbers = [n % (len(layers) + 1) for n in ([chosen] if isinstance(chosen, int) else chosen)]
    deepest = max(*numbers, 1)
    hidden = [tower.pre_layrnorm(tower.embeddings(pixels))]
    # Layers after the deepest one asked for are not computed.
    for layer in layers[:deepest]:
        hidden.append(layer(hidden[-1], attention_mask=None))
    features = torch.cat([hidden[number] for number in numbers], dim=-1)
    last = layers[deepest - 1]
    return features, class_attention(last.self_attn, last.layer_norm1(hidden[deepest - 1]))


def class_attention(attention: Any, hidden: Tensor) -> Tensor:
    """The class token's row of attention in one layer, averaged over heads: its attention to itself and every patch.

    Args:
        attention: the layer's attention module.
        hidden: (F, 1 + P, C), its input, the class token first.

    Returns:
        (F, 1 + P) float32; each row sums to 1.
    """
    query = attention.q_proj(hidden[:, :1]).unflatten(-1, (attention.num_heads, -1))
    key = attention.k_proj(hidden).unflatten(-1, (attention.num_heads, -1))
    scores = torch.einsum("fqhd,fkhd->fhk", query, key).float() * attention.scale
    return scores.softmax(dim=-1).mean(dim=1)
