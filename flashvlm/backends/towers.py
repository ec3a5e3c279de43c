"""What families with a vision tower of plain layers share: frames as squares of one size, features and saliency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flashvlm.backends.base import Backend
from flashvlm.backends.loading import image_settings, video_settings
from flashvlm.backends.vision import attention_received
from flashvlm.errors import ModelError
from flashvlm.options import AskOptions
from flashvlm.pixels import normalised
from flashvlm.report import Area

# The chat template that Qwen2's checkpoints share, with a line for every video or picture.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}{% else %}<{{ content['type'] }}>\n{% endif %}"
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Squares(Backend):
    """A family that sees every frame by itself, squeezed into a square of the one size that its vision tower takes."""

    frames_per_group = 1
    # `model_type` of the vision towers that the family's file knows.
    towers: ClassVar[tuple[str, ...]]
    # The normalisation of transformers' own processor, for what a checkpoint does not set.
    mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    std: tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        self.vision = model.config.vision_config
        if self.vision.model_type not in self.towers:
            raise ModelError(
                f"Models of type {self.family!r} with a vision encoder of type {self.vision.model_type!r} "
                "are not supported."
            )
        self.settings, self.image_settings = video_settings(folder), image_settings(folder)
        self.mean = tuple(self.settings.get("image_mean") or self.mean)
        self.std = tuple(self.settings.get("image_std") or self.std)
        # InternVL gives height and width, which are the same.
        self.side, self.patch = (
            size if isinstance(size, int) else size[0] for size in (self.vision.image_size, self.vision.patch_size)
        )

    @property
    def patches(self) -> int:
        """How many whole patches lie side by side in the square."""
        return self.side // self.patch

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        return self.side, self.side

    def area(self, height: int, width: int, kind: str = "video") -> Area:
        """What whole patches fill: pixels at the lower and right edges may be left over."""
        seen = self.patches * self.patch / self.side
        return Area(bottom=seen, right=seen)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return self.patches, self.patches

    def normalised(self, frames: Tensor) -> Tensor:
        """(F, 3, h, w) uint8 frames as float32 with the checkpoint's mean and deviation."""
        return normalised(frames, self.mean, self.std)


def clip_features(tower: Any, pixels: Tensor, chosen: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """A CLIP tower's features of frames, from the layers of `vision_feature_layer`, and its class token's attention.

    Args:
        tower: transformers' `CLIPVisionModel`, or a twin of it (`packed`).
        pixels: (F, 3, h, w) frames.
        chosen: the hidden state to use, or several to concatenate; 0 is the input of the first layer.

    Returns:
        (F, 1 + P, C) features, the class token first, and their (F, 1 + P) saliency (`class_attention`).
    """
    features, last, hidden = _through(tower, tower.pre_layrnorm(tower.embeddings(pixels)), chosen)
    return features, class_attention(last.self_attn, last.layer_norm1(hidden))


def siglip_features(tower: Any, embedded: Tensor, chosen: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `clip_features`, for a SigLIP tower (also SmolVLM's), which has no class token.

    Args:
        embedded: (F, P, C), what the tower's embeddings make of the frames.

    Returns:
        (F, P, C) features, and (F, P) saliency: the attention that each patch receives from the others.
    """
    features, last, hidden = _through(tower, embedded, chosen)
    query, key = (_heads(last.self_attn, name, last.layer_norm1(hidden)) for name in ("q", "k"))
    return features, attention_received(query, key, last.self_attn.scale, [(1, hidden.shape[1])])


def class_attention(attention: Any, hidden: Tensor) -> Tensor:
    """The class token's row of attention in one layer, averaged over heads: its attention to itself and every patch.

    Args:
        attention: the layer's attention module.
        hidden: (F, 1 + P, C), its input, the class token first.

    Returns:
        (F, 1 + P) float32; each row sums to 1.
    """
    query, key = _heads(attention, "q", hidden[:, :1]), _heads(attention, "k", hidden)
    scores = torch.einsum("fqhd,fkhd->fhk", query, key).float() * attention.scale
    return scores.softmax(dim=-1).mean(dim=1)


def _through(tower: Any, embedded: Tensor, chosen: int | Sequence[int]) -> tuple[Tensor, Any, Tensor]:
    """The hidden states asked for, side by side; the deepest layer that they come from; and that layer's input."""
    layers = tower.encoder.layers
    numbers = [n % (len(layers) + 1) for n in ([chosen] if isinstance(chosen, int) else chosen)]
    deepest = max(*numbers, 1)
    hidden = [embedded]
    # Layers after the deepest one asked for are not computed.
    for layer in layers[:deepest]:
        hidden.append(layer(hidden[-1], attention_mask=None))
    return torch.cat([hidden[number] for number in numbers], dim=-1), layers[deepest - 1], hidden[deepest - 1]


def _heads(attention: Any, name: str, hidden: Tensor) -> Tensor:
    """The queries (`q`) or keys (`k`) that attention makes of (F, P, C), head by head: (F, P, heads, d)."""
    made = getattr(attention, f"{name}_proj")(hidden)
    # InternVL's, before they are split into heads.
    norm = getattr(attention, f"{name}_norm", None)
    return (made if norm is None else norm(made)).unflatten(-1, (attention.num_heads, -1))
