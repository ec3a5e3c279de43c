"""LLaVA-OneVision (arXiv 2408.03326): SigLIP, frames pooled to a quarter of their tokens, pictures in tiles."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm.backends.checks import LARGEST_FRAME
from flashvlm.backends.packing import packed
from flashvlm.backends.towers import CHATML, Squares, siglip_features
from flashvlm.encode import Encoded, Features, at_once
from flashvlm.options import AskOptions
from flashvlm.pixels import onevision_size, onevision_tiles, resize, within
from flashvlm.report import Area


class LlavaOnevision(Squares):
    """The frames of a video follow each other without a word between them, and `image_newline` ends them.

    That vector stands for no place of any frame and is always kept.

    A picture is seen as a whole, and then in tiles, whose tokens form one grid without the canvas's black edges; the
    same vector ends each row.
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
        tokens, saliency, _ = self.unpooled(frames)
        # As transformers pools the projected features.
        grid = saliency.view(-1, 1, self.patches, self.patches)
        pooled = F.interpolate(grid, self.cells((self.side, self.side)), mode="bilinear")
        return Features(self.model.model.apply_pooling(tokens), pooled.flatten(1))

    def unpooled(self, frames: Tensor) -> Features:
        """A token for each patch of (F, 3, h, w) uint8 frames."""
        tower, projector = self.encoder
        pixels = self.pixels(frames)["pixel_values_videos"][0].to(self.device, self.dtype)
        chosen = self.model.config.vision_feature_layer
        features, saliency = siglip_features(tower, tower.embeddings(pixels), chosen)
        return Features(projector(features), saliency)

    def tiles(self, picture: Tensor, options: AskOptions) -> tuple[Tensor, int, int]:
        """Here the whole picture is the first."""
        sizes = [size for size in self.model.config.image_grid_pinpoints if math.prod(size) <= LARGEST_FRAME]
        height, width = picture.shape[1:]
        canvas = onevision_size(height, width, sizes)
        tiles = onevision_tiles(picture, side=self.side, sizes=sizes)
        return tiles, canvas[0] // self.side, canvas[1] // self.side

    @torch.inference_mode()
    def picture(self, picture: Tensor, options: AskOptions) -> Encoded:
        if not self.shows_pictures:
            return super().picture(picture, options)
        if options.max_pixels is not None:
            height, width = picture.shape[1:]
            picture = resize(picture, within(height, width, options.max_pixels))
        tiles, _, _ = self.tiles(picture, options)
        parts = [self.unpooled(part) for part in tiles.split(at_once(self.device, self.patches**2))]
        # The newline's saliency marks where one stands.
        newline = -torch.ones(1, device=self.device)
        tokens = self.joined(torch.cat([part.tokens for part in parts]), self.model.model.image_newline, picture)
        saliency = self.joined(torch.cat([part.saliency for part in parts])[..., None], newline, picture)[:, 0]
        ends = saliency < 0
        rows, count = int(ends.sum()), len(tokens) - int(ends.sum())
        columns = (count - self.patches**2) // rows
        return Encoded(
            tokens[~ends],
            saliency[~ends],
            ((self.patches, self.patches), (rows, columns)),
            timestamps=(0.0,),
            fixed=tokens[ends],
            kind="image",
            order=torch.where(ends, count + ends.cumsum(0), (~ends).cumsum(0)) - 1,
        )

    def joined(self, tiles: Tensor, newline: Tensor, picture: Tensor) -> Tensor:
        """What is made of a picture's tiles (T, P, C), as transformers puts it together: (N + rows, C)."""
        model, size = self.model.model, list(picture.shape[1:])
        (joined,), _ = model.pack_image_features([tiles], [size], newline, self.model.config.vision_aspect_ratio)
        return joined

    def area(self, height: int, width: int, kind: str = "video") -> Area:
        # The edges that are left over lie between the tiles, too: no cell is shown by half its side off its place.
        return Area() if kind == "image" else super().area(height, width)

    def fixed_tokens(self) -> Tensor:
        return self.model.model.image_newline[None]

    def encoder_output(self, kind: str, vectors: list[Tensor], planes: Tensor | None) -> Any:
        if kind == "image":
            return super().encoder_output(kind, vectors, planes)
        return BaseModelOutputWithPooling(pooler_output=torch.stack(vectors))
