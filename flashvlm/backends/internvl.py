"""InternVL3 (arXiv 2504.10479): InternViT, four patches per token, and the number of each frame before it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm.backends.checks import LARGEST_FRAME
from flashvlm.backends.packing import packed
from flashvlm.backends.towers import CHATML, Squares, class_attention
from flashvlm.encode import Encoded, Features
from flashvlm.errors import ModelError
from flashvlm.options import AskOptions
from flashvlm.pixels import internvl_tiles


class InternVL(Squares):
    """Two frames a second and at most 64, as for most families, are about 17,000 of the 32,768 positions.

    A picture is cut into the grid of tiles that is nearest to its aspect ratio, and then seen as a whole.

    The tower has a class token, which the language model does not get; its attention is the patches' saliency.
    """

    model_class = "InternVLForConditionalGeneration"
    # Its checkpoints write the token of a cell where a picture goes.
    chat_template = CHATML.replace(
        "<{{ content['type'] }}>", "{{ '<video>' if content['type'] == 'video' else '<IMG_CONTEXT>' }}"
    )
    towers = ("internvl_vision",)

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        if (chosen := model.config.vision_feature_layer) != -1:
            raise ModelError(f"InternVL with features from vision layer {chosen} is not supported, only from the last.")

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The vision tower and the projector, with their weights laid out for this machine."""
        return packed(self.model.model.vision_tower), packed(self.model.model.multi_modal_projector)

    @property
    def merge(self) -> int:
        """How many patches lie side by side in a cell."""
        return round(1 / self.model.config.downsample_ratio)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return self.patches // self.merge, self.patches // self.merge

    def tiles(self, picture: Tensor, options: AskOptions) -> tuple[Tensor, int, int]:
        bound = (options.max_pixels or LARGEST_FRAME) // self.side**2
        most = max(1, min(self.image_settings.get("max_patches") or 12, bound))
        least = min(self.image_settings.get("min_patches") or 1, most)
        return internvl_tiles(picture, side=self.side, least=least, most=most)

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": self.normalised(frames)}

    def features(self, frames: Tensor) -> Features:
        tower, projector = self.encoder
        hidden = tower.embeddings(self.pixels(frames)["pixel_values"].to(self.device, self.dtype))
        *layers, last = tower.encoder.layer
        for layer in layers:
            hidden = layer(hidden)
        saliency = class_attention(last.attention, last.layernorm_before(hidden))
        # Without the class token.
        grids = [x[:, 1:].unflatten(1, (self.patches, self.patches)) for x in (tower.layernorm(last(hidden)), saliency)]
        shuffled = self.model.model.pixel_shuffle(grids[0], 1 / self.merge).flatten(1, 2)
        return Features(projector(shuffled), F.avg_pool2d(grids[1], self.merge).flatten(1))

    @property
    def visual_tokens(self) -> dict[int, str]:
        return {self.model.config.image_token_id: "image"}

    @property
    def markers(self) -> dict[str, str]:
        return {"video": "<video>", "image": self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)}

    def placeholders(self, encoded: Encoded) -> str:
        token = self.markers["image"]
        if encoded.kind == "image":
            return f"<img>{token * len(encoded.tokens)}</img>"
        frame = f"<img>{token * (encoded.height * encoded.width)}</img>"
        return "\n".join(f"Frame{number + 1}: {frame}" for number in range(encoded.groups))

    def encoder_output(self, kind: str, vectors: list[Tensor], planes: Tensor | None) -> Any:
        return BaseModelOutputWithPooling(pooler_output=torch.stack(vectors))
