"""The general way: any transformers class that takes `mm_encoder_outputs`, without a file of its own.

The checkpoint's own processor prepares pixels and prompt, `get_video_features` or `get_image_features` makes the
tokens, and `get_rope_index` gives the positions where the model has one. What a family's own file adds is missing: a
saliency from the vision encoder, reuse of repeated moments, and a second look.

All tokens have the same saliency, because transformers returns attention only for all layers together, and computed
without fused kernels: more than 10 GB for 24 frames of a SigLIP tower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from flashvlm.backends.base import Backend, Prompt
from flashvlm.backends.checks import blaming
from flashvlm.backends.loading import no_progress_bars
from flashvlm.encode import Encoded, Features, together
from flashvlm.errors import ModelError, UsageError
from flashvlm.options import AskOptions
from flashvlm.pixels import resize, within

# What processors may do beyond preparing pixels, and shall not: choose among the tokens, or cut the frames of a video
# into tiles, which is for pictures.
SETTINGS = {"use_token_compression": False}
WHOLE_FRAMES = {"do_image_splitting": False, "crop_to_patches": False}
# What a vision encoder may return: anything else would have to be pruned in a way of its own.
ENCODED = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}
# `model_type` -> its class, for those that tests compare with transformers: everything kept gives its logits and words,
# and what is dropped is as if hidden. Others are served, too, but nobody has checked them.
CHECKED = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "llava_next_video": "LlavaNextVideoForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "video_llama_3": "VideoLlama3ForConditionalGeneration",
    "glm4v": "Glm4vForConditionalGeneration",
    "glm46v": "Glm46VForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "aya_vision": "AyaVisionForConditionalGeneration",
}


def backend_of(family: str, model_class: str) -> type[General] | None:
    """The general backend for this transformers class of this `model_type`; None if it cannot be served.

    It cannot if it does not take `mm_encoder_outputs`, or has an encoder for its text: that sees all tokens at once.
    """
    named = getattr(transformers, model_class, None)
    if named is None or getattr(named.config_class, "model_type", None) != family:
        return None
    taken = signature(named.forward).parameters
    if "mm_encoder_outputs" not in taken or "decoder_input_ids" in taken:
        return None
    return type(model_class, (General,), {"model_class": model_class})


class General(Backend):
    """A subclass of `backend_of` serves one class of transformers.

    A class that knows no videos gets the frames as so many pictures, one after the other.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        super().__init__(model, tokenizer, folder)
        self.processor = _processor(folder)
        self.pixels_by = f"torchvision {version('torchvision')}"

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", dtype: str = "auto") -> Backend:
        backend = super().load(folder, device=device, dtype=dtype)
        backend.warnings = (*backend.warnings, *named(backend.model))
        return backend

    @cached_property
    def markers(self) -> dict[str, str]:
        """Of a `video` and an `image`, those that the model, its processor and its chat template all know.

        Raises:
            ModelError: they know neither.
        """
        known = {}
        for kind in ("video", "image"):
            marker, part = (getattr(self.processor, f"{kind}_{name}", None) for name in ("token", "processor"))
            if marker and part and self.encoder(kind) and self.template.writes(marker, kind):
                known[kind] = marker
        if not known:
            raise ModelError(
                f"{self.model_class} and its processor and chat template have no way to show it a picture."
            )
        return known

    @property
    def part(self) -> str:
        return next(iter(self.markers))

    @property
    def visual_tokens(self) -> dict[int, str]:
        # Some classes have one id for pictures and videos: see `inputs`.
        ids = {kind: getattr(self.model.config, f"{kind}_token_id", None) for kind in ("video", "image")}
        return {token: kind for kind, token in ids.items() if token is not None}

    @property
    def frames_per_group(self) -> int:
        vision = getattr(self.model.config, "vision_config", None)
        return getattr(vision, "temporal_patch_size", 1) if self.part == "video" else 1

    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        """As it is, or as large as the bound allows; the processor resizes it."""
        return within(height, width, options.frame_pixels)

    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        """Not known before a video is encoded."""
        return 1, 1

    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return self.prepared(self.part, frames, [float(number) for number in range(len(frames))])

    def features(self, frames: Tensor) -> Features:
        raise NotImplementedError("A video is encoded as a whole: `whole`.")

    def prepared(self, kind: str, frames: Tensor, times: Sequence[float]) -> dict[str, Tensor]:
        """What the checkpoint's processor makes of a marker with these frames, as `generate` takes it.

        Args:
            kind: `video`, or `image` if the frames are pictures.
        """
        size = self.frames_per_group
        if kind == "video" and len(frames) < size:
            # Processors refuse less than one group.
            frames = torch.cat([frames, frames[-1:].expand(size - len(frames), -1, -1, -1)])
            times = [*times, *[times[-1]] * (size - len(times))]
        given: dict[str, Any] = {"text": [self.markers[kind] * (1 if kind == "video" else len(frames))]}
        if kind == "image":
            given["images"] = [list(frames)]
            settings = WHOLE_FRAMES if len(frames) > 1 else {}
            part = self.processor.image_processor
        else:
            # transformers takes an index over a rate for the time of a frame.
            metadata = {
                "total_num_frames": round(times[-1] * 1000) + 1,
                "fps": 1000.0,
                "frames_indices": [round(time * 1000) for time in times],
                "duration": times[-1],
            }
            given |= {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
            settings, part = SETTINGS, self.processor.video_processor
        given |= {name: value for name, value in settings.items() if hasattr(part, name)}
        with blaming(f"The processor of the checkpoint in {self.folder} cannot prepare {len(frames)} frames"):
            return dict(self.processor(**given, add_special_tokens=False, return_tensors="pt"))

    def encoder(self, kind: str) -> Any:
        return getattr(self.model.base_model, f"get_{kind}_features", None)

    def whole(
        self,
        frames: Tensor | Iterator[Tensor],
        seconds_per_frame: float,
        timestamps: tuple[float, ...],
        duration: float,
    ) -> Encoded:
        """All frames through the processor and the vision encoder at once."""
        frames = together(frames)
        groups = -(-len(frames) // self.frames_per_group)
        encoded = self._encoded(self.part, frames, timestamps, groups)
        return replace(encoded, seconds_per_group=seconds_per_frame * len(frames) / groups, duration=duration)

    @torch.inference_mode()
    def picture(self, picture: Tensor, options: AskOptions) -> Encoded:
        """In tiles, if the processor cuts pictures into any."""
        height, width = picture.shape[1:]
        frame = resize(picture, within(height, width, options.picture_pixels))
        return self._encoded("image" if "image" in self.markers else "video", frame[None], (0.0,), 1)

    def _encoded(self, kind: str, frames: Tensor, timestamps: tuple[float, ...], groups: int) -> Encoded:
        """Frames through the processor and the vision encoder.

        Raises:
            ModelError: features that do not match the placeholders, or that cannot be pruned.
        """
        prepared = self.prepared(kind, frames, timestamps)
        ids, encoder = prepared["input_ids"][0], self.encoder(kind)
        taken = {name: value for name, value in prepared.items() if name in signature(encoder).parameters}
        with blaming(f"The vision encoder of {self.model_class} cannot be used"):
            output = encoder(**{name: self._placed(value) for name, value in taken.items()}, return_dict=True)
        if other := sorted(set(output) - ENCODED):
            raise ModelError(f"{self.model_class} makes {other[0]} of a video, which flashvlm cannot prune.")
        rows, form = _rows(output.pooler_output)
        there = torch.isin(ids, torch.tensor(list(self.visual_tokens)))
        if int(there.sum()) != len(rows):
            raise ModelError(
                f"The prompt of {self.model_class} has {int(there.sum())} places for {len(rows)} visual tokens: "
                "such a model is not supported."
            )
        # One token more than the groups have is one that ends the video.
        if len(rows) % groups not in (0, 1):
            groups = 1
        size = len(rows) // groups
        count, grid = groups * size, _grid(size, prepared, len(frames))
        return Encoded(
            rows[:count],
            torch.ones(count, device=rows.device),
            (grid or (1, size),) * groups,
            timestamps=timestamps,
            fixed=rows[count:] if count < len(rows) else None,
            kind=kind,
            placed=grid is not None,
            notes={
                "text": self._text(ids),
                "form": form,
                "grids": {name: value.tolist() for name, value in prepared.items() if name.endswith("grid_thw")},
            },
        )

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def _text(self, ids: Tensor) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self.tokenizer(text, add_special_tokens=False).input_ids != ids.tolist():
            raise ModelError(f"What {self.model_class} has in its prompt for a video cannot be written as text.")
        return text

    def placeholders(self, encoded: Encoded) -> str:
        return _notes(encoded)["text"]

    def prompt(
        self,
        question: str,
        system: str | None,
        videos: Sequence[Encoded],
        history: Sequence[tuple[str, str]] = (),
    ) -> Prompt:
        prompt = super().prompt(question, system, videos, history)
        forms = {video.kind: _notes(video)["form"] for video in videos}
        if len(set(prompt.ids.tolist()) & self.visual_tokens.keys()) < len(forms):
            # transformers could not tell them apart.
            raise UsageError(f"{self.model_class} has one token for pictures and videos: ask about one or the other.")
        return replace(prompt, forms=forms)

    def position_ids(self, ids: Tensor, videos: Sequence[Encoded]) -> Tensor:
        index = getattr(self.model.base_model, "get_rope_index", None)
        if index is None:
            return super().position_ids(ids, videos)
        grids = [grid for video in videos for grid in _notes(video)["grids"].items()]
        given = {name: torch.cat([torch.tensor(grid) for one, grid in grids if one == name]) for name, _ in grids}
        positions, _ = index(input_ids=ids[None], mm_token_type_ids=self._types(ids), **given)
        return positions[:, 0]

    def _types(self, ids: Tensor) -> Tensor:
        """What kind of token stands where, (1, S): 0 is text."""
        return torch.tensor(self.processor.create_mm_token_type_ids([ids.tolist()]))

    def inputs(self, prompt: Prompt, kept: Tensor, vectors: Tensor, planes: Tensor | None = None) -> dict[str, Any]:
        inputs = super().inputs(prompt, kept, vectors, planes)
        outputs = inputs["mm_encoder_outputs"]
        if len(prompt.forms) == 1:
            # Whatever the tokens are called in the prompt.
            inputs["mm_encoder_outputs"] = outputs = dict(zip(prompt.forms, outputs.values(), strict=True))
        for kind, output in outputs.items():
            listed, axes = prompt.forms[kind]
            shaped = [one.view(*[1] * (axes - 2), *one.shape) for one in output.pooler_output]
            output.pooler_output = shaped if listed else torch.cat(shaped)
        if not hasattr(self.model.base_model, "get_rope_index"):
            # Some attend both ways within a picture, and see by these what belongs to one.
            known = signature(self.model.forward).parameters.keys()
            for name in known & {"mm_token_type_ids", "token_type_ids"}:
                inputs[name] = self._types(prompt.ids)[0][prompt.places(kept)].to(self.device)
        return inputs


def _processor(folder: Path) -> Any:
    try:
        import_module("torchvision")
    except ImportError as error:
        raise ModelError(
            "Models without a file of their own in flashvlm need torchvision, built for the torch that is installed: "
            "pip install 'flashvlm[any]', with the index that torch came from."
        ) from error
    with blaming(f"The processor in {folder} cannot be loaded"), no_progress_bars():
        return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def named(model: Any) -> tuple[str, ...]:
    """What there is to say of a model that is served in the general way."""
    family = model.config.model_type
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    told = ["Every token of this model counts as equally salient: flashvlm has no file for its family."]
    if family not in CHECKED:
        told.append(f"Nobody has checked models of type {family} with flashvlm: do not rely on the answer.")
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"} or model._is_stateful:
        told.append(
            "Some layers of this model carry on a state from token to token: what is dropped is as if it had never "
            "been there, which is more than hiding it."
        )
    if kinds & {"sliding_attention", "chunked_attention"}:
        told.append("Some layers of this model see a number of tokens back: further in time, if tokens are dropped.")
    return tuple(told)


def _notes(encoded: Encoded) -> dict[str, Any]:
    assert encoded.notes is not None
    return encoded.notes


def _rows(pooled: Any) -> tuple[Tensor, list[int]]:
    """The features as (N, D), and what they came as: whether in a list, and the number of axes."""
    if isinstance(pooled, Tensor):
        return pooled.flatten(0, -2), [False, pooled.ndim]
    return torch.cat([one.flatten(0, -2) for one in pooled]), [True, pooled[0].ndim]


def _grid(size: int, prepared: dict[str, Tensor], pictures: int) -> tuple[int, int] | None:
    """The (height, width) of the grid of `size` tokens, from what the processor says of the pixels.

    None if that does not tell: of a picture that is cut into tiles, places are not known.

    Args:
        pictures: the number of frames.
    """
    sides = [prepared[name][0].tolist()[-2:] for name in prepared if name.endswith(("grid_thw", "image_sizes"))]
    # (x, y) of every patch.
    places = [
        prepared[name].flatten(0, -2) for name in ("image_position_ids", "video_position_ids") if name in prepared
    ]
    sides += [(place.amax(0).flip(0) + 1).tolist() for place in places]
    for name in ("pixel_values", "pixel_values_videos"):
        values = prepared.get(name)
        # Unless frames are cut into tiles.
        if isinstance(values, Tensor) and values.ndim > 3 and values[..., 0, 0, 0].numel() == pictures:
            sides.append([values.shape[-2], values.shape[-1]])
    for height, width in sides:
        side = math.sqrt(height * width / size)
        rows, columns = round(height / side), round(width / side)
        if rows * columns == size and rows * width == columns * height:
            return rows, columns
    return None
