"""Qwen3-VL (arXiv 2511.21631): a time before every moment, and features of three vision layers for the first decoder
layers (deepstack)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from flashvlm.backends.qwen2_vl import Qwen2VL
from flashvlm.encode import Encoded
from flashvlm.options import AskOptions
from flashvlm.pixels import qwen3_vl_size


class Qwen3VL(Qwen2VL):
    """The prompt is that of transformers' processor, which leaves the template's own markers around the whole video."""

    model_class = "Qwen3VLForConditionalGeneration"
    default_mean, default_std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    default_pixels = (128 * 32 * 32, 768 * 32 * 32)

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        # The checkpoint's bounds are for the whole video, the user's for a frame.
        most = min(options.frame_pixels * frames, self.max_pixels)
        return qwen3_vl_size(
            height,
            width,
            frames,
            factor=self.side,
            temporal_patch_size=self.vision.temporal_patch_size,
            min_pixels=min((options.min_pixels or 0) * frames or self.min_pixels, most),
            max_pixels=most,
        )

    def further(self, height: int, width: int) -> dict[str, Any]:
        visual = self.encoder
        places, weights = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, height, width]], device=self.device),
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        learned = (visual.pos_embed(places) * weights[:, :, None]).sum(dim=1).to(self.dtype)
        mergers = dict(zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True))
        return {"learned": learned, "mergers": mergers}

    def placeholders(self, encoded: Encoded) -> str:
        """Each moment of a video between markers, after the mean time of its first and last frame.

        transformers takes a frame's index over the frame rate for its time; here it is the timestamp in the file. The
        two differ where the frame rate varies, or where the first frame is not at 0.
        """
        if encoded.kind == "image":
            return super().placeholders(encoded)
        size, times = self.frames_per_group, encoded.timestamps
        start, end = (self.tokenizer.convert_ids_to_tokens(number) for number in self.vision_tokens)
        moment = f"{start}{self.markers['video'] * (encoded.height * encoded.width)}{end}"
        ends = [(times[first], times[min(first + size, len(times)) - 1]) for first in range(0, len(times), size)]
        return "".join(f"<{(first + last) / 2:.1f} seconds>{moment}" for first, last in ends)

    @property
    def vision_tokens(self) -> tuple[int, int]:
        """The ids before and after the visual tokens of a moment."""
        return self.model.config.vision_start_token_id, self.model.config.vision_end_token_id

    def runs(self, video: Encoded) -> list[Tensor]:
        """Every moment is a grid of its own; what time it is, the text before it says."""
        axes = (torch.arange(1), torch.arange(video.height), torch.arange(video.width))
        return [torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)] * video.groups

    def encoder_output(self, kind: str, vectors: list[Tensor], planes: Tensor | None) -> Any:
        further: Any = None if planes is None else [[plane] for plane in planes]
        tokens: Any = tuple(vectors)
        return BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=further)


class Qwen3VLMoe(Qwen3VL):
    """The same with a mixture of experts as language model."""

    model_class = "Qwen3VLMoeForConditionalGeneration"
