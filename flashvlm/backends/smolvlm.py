"""SmolVLM2 (arXiv 2504.05299): every frame a small square of few tokens, with its time in words before it."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from flashvlm.backends.checks import LARGEST_FRAME
from flashvlm.backends.packing import packed
from flashvlm.backends.towers import Squares, siglip_features
from flashvlm.encode import Encoded, Features
from flashvlm.options import AskOptions
from flashvlm.pixels import SMOLVLM_LONGEST, smolvlm_frame, smolvlm_grid, smolvlm_tiles
from flashvlm.units import in_words


class SmolVLM(Squares):
    """The published checkpoints sample one frame a second, at most 64; here it is two, as for other families, and 64.

    transformers leaves out frames whose normalised pixels are all 0, which pads batches. No grey level becomes 0 with
    the published mean and deviation, so a black frame stays in a video there, and here.
    """

    model_class = "SmolVLMForConditionalGeneration"
    # The one that transformers uses whenever a conversation has a video. Those of the checkpoints have no place for it;
    # of pictures they make the same.
    chat_template = (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
        "{% if message['content'][0]['type'] != 'image' %} {% endif %}"
        "{% for content in message['content'] %}"
        "{% if content['type'] == 'text' %}{{ content['text'] }}{% else %}<{{ content['type'] }}>{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    towers = ("smolvlm_vision",)
    mean, std = tuple(IMAGENET_STANDARD_MEAN), tuple(IMAGENET_STANDARD_STD)

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        tokenizer.chat_template = self.chat_template
        super().__init__(model, tokenizer, folder)
        # transformers' processor reads `video_size` only where there is no `size`.
        sampling = self.settings.get("video_sampling") or {}
        size = self.settings.get("size") or sampling.get("video_size") or {}
        self.longest_edge = size.get("longest_edge") or 4 * self.side

    @cached_property
    def encoder(self) -> tuple[Any, Any]:
        """The vision tower and the connector, with their weights laid out for this machine."""
        return packed(self.model.model.vision_model), packed(self.model.model.connector)

    @property
    def merge(self) -> int:
        """How many patches lie side by side in a cell."""
        return self.model.config.scale_factor

    def fit(self, frame: Tensor, options: AskOptions, frames: int) -> Tensor:
        return smolvlm_frame(frame, longest_edge=self.longest_edge, side=self.side)

    def tiles(self, picture: Tensor, options: AskOptions) -> tuple[Tensor, int, int]:
        settings = self.image_settings
        if not settings.get("do_image_splitting", True):
            return super().tiles(picture, options)
        edge = min((settings.get("size") or {}).get("longest_edge") or 4 * self.side, SMOLVLM_LONGEST)
        grid = partial(smolvlm_grid, *picture.shape[1:], side=self.side)
        most = (options.max_pixels or LARGEST_FRAME) // self.side**2
        while edge > self.side and math.prod(grid(longest_edge=edge)) > most:
            edge -= self.side
        return smolvlm_tiles(picture, longest_edge=edge, side=self.side)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return self.patches // self.merge, self.patches // self.merge

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": self.normalised(frames)[None]}

    def features(self, frames: Tensor) -> Features:
        tower, connector = self.encoder
        pixels = self.pixels(frames)["pixel_values"][0].to(self.device, self.dtype)
        whole = torch.ones(len(pixels), self.patches, self.patches, dtype=torch.bool, device=self.device)
        hidden, saliency = siglip_features(tower, tower.embeddings(pixels, whole), -1)
        grid = saliency.view(-1, self.patches, self.patches)
        return Features(connector(tower.post_layernorm(hidden)), F.avg_pool2d(grid, self.merge).flatten(1))

    @property
    def visual_tokens(self) -> dict[int, str]:
        return {self.model.config.image_token_id: "image"}

    @property
    def markers(self) -> dict[str, str]:
        return {"video": "<video>", "image": self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)}

    def placeholders(self, encoded: Encoded) -> str:
        """Of a video, a sentence on all of it; then each frame, after the minutes and seconds at which it appears.

        Of a picture in tiles, each tile after its row and column, then the whole picture.
        """
        height, width = encoded.grids[-1]
        cells, around = self.markers["image"] * (height * width), "<fake_token_around_image>"
        frame = f"{around}<global-img>{cells}{around}"
        if encoded.kind == "image":
            rows, columns = (encoded.height // height, encoded.width // width) if encoded.groups > 1 else (0, 0)
            tiles = (
                "".join(f"{around}<row_{row + 1}_col_{column + 1}>{cells}" for column in range(columns)) + "\n"
                for row in range(rows)
            )
            return "".join(tiles) + ("\n" if rows else "") + frame
        shown = "".join(f"\nFrame from {int(at // 60):02}:{int(at % 60):02}:{frame}" for at in encoded.timestamps)
        return (
            f"You are provided the following series of {in_words(encoded.groups)} frames "
            f"from a {timedelta(seconds=int(encoded.duration))} [H:MM:SS] video.\n{shown}\n\n"
        )
