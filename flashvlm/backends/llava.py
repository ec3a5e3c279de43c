"""LLaVA-1.5 (arXiv 2310.03744): pictures; the frames of a video are so many of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from flashvlm.backends.base import Backend
from flashvlm.backends.packing import packed
from flashvlm.backends.towers import clip_features
from flashvlm.backends.video_llava import VideoLlava
from flashvlm.encode import Encoded, Features
from flashvlm.errors import ModelError


class Llava(VideoLlava):
    """CLIP as in Video-LLaVA, of which the language model does not get the class token.

    A model trained on single pictures; the frames of a video follow each other as several pictures do in its prompt.
    """

    model_class = "LlavaForConditionalGeneration"
    chat_template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
        "{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}<image>\n{% else %}{{ content['text'] }} {% endif %}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    template_part = "image"
    # 3,456 tokens, which leave room for a question and its answer in 4,096 positions; seven frames would not.
    default_frames = 6
    class_tokens = 0

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        if (strategy := model.config.vision_feature_select_strategy) != "default":
            raise ModelError(f"LLaVA with the vision features {strategy!r} is not supported, only 'default'.")
        if self.settings.get("do_pad"):
            raise ModelError("LLaVA with pictures padded to squares is not supported.")

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The vision tower and the projector, with their weights laid out for this machine."""
        return packed(self.model.model.vision_tower), packed(self.model.model.multi_modal_projector)

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": super().pixels(frames)["pixel_values_videos"][0]}

    def features(self, frames: Tensor) -> Features:
        tower, projector = self.encoder
        pixels = self.pixels(frames)["pixel_values"].to(self.device, self.dtype)
        features, saliency = clip_features(tower, pixels, self.model.config.vision_feature_layer)
        return Features(projector(features[:, 1:]), saliency[:, 1:])

    @property
    def visual_tokens(self) -> dict[int, str]:
        return {self.model.config.image_token_id: "image"}

    # The frames of a video are pictures, too.
    markers = Backend.markers

    def placeholders(self, encoded: Encoded) -> str:
        return "\n".join([self.markers["image"] * (encoded.height * encoded.width)] * encoded.groups)

    # Video-LLaVA's class takes one tensor for all prompts, this one a list, as most do.
    encoder_output = Backend.encoder_output
