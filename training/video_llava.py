"""The demo model `demo-video-llava`: a small Video-LLaVA, its sizes and clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast, VideoLlavaConfig, VideoLlavaForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flashvlm.backends.video_llava import VideoLlava as Backend
from flashvlm.demo.natural import ZOOMS
from flashvlm.demo.world import (
    DIRECTIONS,
    NAMES,
    Scene,
    make_scene,
    make_told_scene,
    sample_times,
)
from flashvlm.models import fetch
from flashvlm.pixels import clip_pixels
from training.blueprint import (
    NATURAL_SHARE,
    SHAPES_AT_ONCE,
    SHAPES_SHARE,
    WIDTH,
    Blueprint,
    Shown,
    build_tokenizer,
)
from training.drawing import draw_frames, draw_questions, shape_pixels
from training.labels import CellLabels, cell_labels
from training.shapes import ShapeImage

SIDE, PATCH, VISION_WIDTH = 224, 28, 192
GRID = (SIDE // PATCH, SIDE // PATCH)
SMALL_GRID = (5, 5)
PER_FRAME = 1 + GRID[0] * GRID[1]
LOOKS = 8
# How often a clip is sampled at this many frames.
LOOKS_SHARE = {1: 0.05, 3: 0.05, 4: 0.08, 5: 0.08, 6: 0.1, 7: 0.08, LOOKS: 0.56}
# How often a clip was planned for this many frames: the more, the shorter its objects are visible.
PLANNED = {4: 14, 8: 24, 12: 24, 16: 12, 24: 10, 32: 6, 48: 2, 64: 2}
# The language model starts from the first demo's, whose time axis counts groups, up to 32 of them. This many positions
# of this model correspond to one group there, which makes 8 frames of 65 tokens about as long as its longest clips.
POSITIONS_PER_GROUP = 16.0
# Pairs of dimensions that rotate by less than half a turn in a clip, and how strongly they separate early from late.
EARLY_AND_LATE, TIME_STRENGTH = (11, 12, 13), 2.5
LIKENESS, WAYS = 0.095, 1.5
# The pair that rotates by half a turn in half a clip.
MIDDLE, MIDDLE_STRENGTH = 8, 6.3
# Scales queries down: the first demo's attention is so sharp that none of its heads would learn to attend elsewhere.
SOFTER = 0.15
FIRST_DEMO = fetch("demo") / "model.safetensors"
WEIGHTS = {
    "moment": 1.0, "count": 1.4, "caption": 2.2, "first": 1.1, "last": 1.0, "start": 1.4, "end": 1.4, "mover": 2.6,
    "kind": 0.4, "exist": 0.7, "where": 0.7, "motion": 1.2,
}  # fmt: skip
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<reserved_3>", "<reserved_4>", "<image>", "<video>", "<unk>")


class VideoLlava(Blueprint):
    name = "demo-video-llava"
    steps = {"eyes": 1500, "words": 4500, "answers": 1500}  # noqa: RUF012
    video_token = "<video>"
    class_tokens = 1
    shows_motion = False
    patch_rate = 0.05

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = build_tokenizer(SPECIAL_TOKENS, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
        )
        tokenizer.chat_template = Backend.chat_template
        return tokenizer

    def build_model(self) -> Any:
        config = VideoLlavaConfig(
            text_config={
                "model_type": "llama",
                "vocab_size": len(self.tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                "attention_bias": True,
                "rope_parameters": {"rope_type": "linear", "factor": POSITIONS_PER_GROUP, "rope_theta": 1000.0},
                "tie_word_embeddings": True,
                "bos_token_id": self.tokenizer.bos_token_id,
                "eos_token_id": self.tokenizer.eos_token_id,
                "pad_token_id": self.tokenizer.pad_token_id,
            },
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": VISION_WIDTH,
                "intermediate_size": 4 * VISION_WIDTH,
                "num_hidden_layers": 4,
                "num_attention_heads": 3,
                "image_size": SIDE,
                "patch_size": PATCH,
                "projection_dim": WIDTH,
                "hidden_act": "gelu",
            },
            image_token_index=SPECIAL_TOKENS.index("<image>"),
            video_token_index=SPECIAL_TOKENS.index("<video>"),
            # A layer after the one that the features come from would be dead weight here.
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_seq_length=PER_FRAME,
            video_seq_length=LOOKS * PER_FRAME,
            tie_word_embeddings=True,
        )
        model: Any = VideoLlavaForConditionalGeneration(config)
        first = {
            name.removeprefix("model.").removeprefix("language_model."): weight
            for name, weight in load_file(FIRST_DEMO).items()
            if "visual" not in name and "embed_tokens" not in name
        }
        lacking = model.model.language_model.load_state_dict(first, strict=False)
        if lacking.unexpected_keys:
            raise ValueError(f"The first demo's language model does not fit: {lacking.unexpected_keys[0]}.")
        with torch.no_grad():
            for layer in model.model.language_model.layers:
                layer.self_attn.o_proj.bias.zero_()
                layer.self_attn.q_proj.weight.mul_(SOFTER)
                layer.self_attn.q_proj.bias.mul_(SOFTER)
            model.get_input_embeddings().weight.copy_(self.codes.words)
            model.model.video_tower.embeddings.position_embedding.weight.copy_(_places())
            layers = model.model.language_model.layers
            _let_words_find_first_and_last(layers[0])
            _let_ways_find_what_goes_there(layers[1], self.codes.motions[:-1])
        return model

    def eyes(self, model: Any) -> torch.nn.Module:
        return torch.nn.ModuleDict({"tower": model.model.video_tower, "projector": model.model.multi_modal_projector})

    def see(self, model: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        return model.model.get_video_features(pixels.unsqueeze(0)).pooler_output

    def draw_eyes(self, rng: np.random.Generator, *, small: bool) -> tuple[tuple[int, int], list[Shown]]:
        drawn = []
        for _ in range(24):
            if rng.random() < SHAPES_SHARE:
                drawn += self.draw_shapes(rng, 2, 0, GRID, pixels=True)
                continue
            # Many objects at a time: a cell of background teaches little.
            natural, sequence = rng.random() < NATURAL_SHARE, bool(rng.random() < 0.15)
            scene = make_scene(
                rng, frames=8, aspect=(1, 1), sequence=sequence, count=_count(rng), zoom=_zoom(rng, natural)
            )
            times = np.sort(rng.random(2))
            labels = cell_labels(scene, times, *GRID, frames_per_group=1)
            drawn.append(Shown(labels, [], _pixels(draw_frames(scene, times, SIDE, SIDE, rng, natural=natural))))
        return GRID, drawn

    def draw_clips(
        self, rng: np.random.Generator, questions: int, *, small: bool, pixels: bool
    ) -> tuple[tuple[int, int], list[Shown]]:
        grid = SMALL_GRID if small else GRID
        if rng.random() < SHAPES_SHARE:
            return grid, self.draw_shapes(rng, SHAPES_AT_ONCE, questions // 2, grid, pixels=pixels)
        looks = int(rng.choice(list(LOOKS_SHARE), p=list(LOOKS_SHARE.values())))
        chances = np.array(list(PLANNED.values()), dtype=float)
        drawn = []
        for _ in range(8 if looks == 1 else 4):
            frames = 1 if looks == 1 else int(rng.choice(list(PLANNED), p=chances / chances.sum()))
            times = _look_times(rng, looks)
            natural = rng.random() < NATURAL_SHARE
            scene = make_told_scene(rng, times, frames=frames, zoom=_zoom(rng, natural))
            seen = _pixels(draw_frames(scene, times, SIDE, SIDE, rng, natural=natural)) if pixels else None
            asked = draw_questions(scene, rng, questions, WEIGHTS)
            labels = cell_labels(scene, times, *grid, frames_per_group=1)
            drawn.append(Shown(labels, asked, seen, _ways(scene, labels)))
        return grid, drawn

    def shape_input(self, image: ShapeImage, grid: tuple[int, int]) -> Tensor:
        return _pixels(shape_pixels(image, SIDE))

    def positions(self, before: int, groups: int, grid: tuple[int, int], length: int) -> tuple[Tensor, Tensor]:
        # The cells of a smaller grid keep their relative locations in the full one.
        rows, columns = (torch.arange(cells) * whole // cells for cells, whole in zip(grid, GRID, strict=True))
        cells = 1 + (rows.unsqueeze(1) * GRID[1] + columns).flatten()
        frame = torch.cat([torch.zeros(1, dtype=torch.long), cells])
        video = before + (torch.arange(groups).unsqueeze(1) * PER_FRAME + frame).flatten()
        shared = torch.cat([torch.arange(before), video]).unsqueeze(0)
        return shared, (before + groups * PER_FRAME + torch.arange(length)).unsqueeze(0)

    def finish(self, model: Any) -> None:
        # The image tower is not used here, but the class has one: a copy of the video tower.
        model.model.image_tower.load_state_dict(model.model.video_tower.state_dict())

    def settings(self) -> dict[str, dict[str, Any]]:
        settings = {
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
            "image_mean": OPENAI_CLIP_MEAN,
            "image_std": OPENAI_CLIP_STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "processor_class": "VideoLlavaProcessor",
        }
        return {
            "preprocessor_config.json": settings | {"image_processor_type": "VideoLlavaImageProcessor"},
            "video_preprocessor_config.json": settings | {"video_processor_type": "VideoLlavaVideoProcessor"},
            "processor_config.json": {
                "processor_class": "VideoLlavaProcessor",
                "patch_size": PATCH,
                "vision_feature_select_strategy": "full",
                "num_additional_image_tokens": 1,
            },
        }


def _places() -> Tensor:
    """Initial position embeddings, (PER_FRAME, VISION_WIDTH): waves down and across, zeros for the class token.

    With the default initialisation they are too small next to the patches, and no token learns where it is.
    """
    waves = torch.arange(1, VISION_WIDTH // 4 + 1) / (VISION_WIDTH // 4) * GRID[0] / 2
    rows, columns = (torch.arange(cells) / cells for cells in GRID)
    axes = [torch.outer(at, 2 * torch.pi * waves) for at in (rows, columns)]
    down, across = (torch.cat([axis.sin(), axis.cos()], dim=1) for axis in axes)
    cells = torch.cat([down.repeat_interleave(GRID[1], 0), across.repeat(GRID[0], 1)], dim=1)
    return torch.cat([torch.zeros(1, VISION_WIDTH), cells]) * 0.7


def _let_words_find_first_and_last(layer: Any) -> None:
    """Initialise two heads so that words and tokens attend to similar tokens: one head to early, one to late ones.

    A single frame does not show motion: it is the difference between an object's early and late locations. Training
    alone does not find this in a thousand steps, because only both criteria together, similar and early, are of use.
    """
    attention, generator = layer.self_attn, torch.Generator().manual_seed(8)
    dim = attention.head_dim
    half = dim // 2
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, dim)])
    likeness = torch.randn(len(slow), WIDTH, generator=generator) * LIKENESS / layer.input_layernorm.weight
    early, late = LOOKS * PER_FRAME / POSITIONS_PER_GROUP, 0.0
    for projection, spans in ((attention.q_proj, (early, late)), (attention.k_proj, (0.0,))):
        for head, span in enumerate(spans):
            own = slice(head * dim, (head + 1) * dim)
            projection.weight[own], projection.bias[own] = 0, 0
            projection.weight[head * dim + slow] = likeness
            for pair in EARLY_AND_LATE:
                # Scores contain the cosine of the rotation from key to query plus the query's own angle.
                angle = torch.tensor(-span * 1000.0 ** (-pair / half))
                at = [head * dim + pair, head * dim + half + pair]
                projection.bias[at] = TIME_STRENGTH * torch.stack([angle.cos(), angle.sin()])


def _let_ways_find_what_goes_there(layer: Any, ways: Tensor) -> None:
    """Initialise a head so that a direction word attends to tokens that the first layer found to move that way.

    A second head, which has the same keys, attends to tokens similar to the query's.
    """
    attention, generator = layer.self_attn, torch.Generator().manual_seed(9)
    dim = attention.head_dim
    half = dim // 2
    slow = torch.cat([torch.arange(half // 2, half - len(ways)), torch.arange(half + half // 2, dim)])
    slowest = torch.arange(half - len(ways), half)
    likeness = torch.randn(len(slow), WIDTH, generator=generator) * LIKENESS / layer.input_layernorm.weight
    attention.k_proj.weight[:dim], attention.k_proj.bias[:dim] = 0, 0
    attention.q_proj.weight[: 2 * dim], attention.q_proj.bias[: 2 * dim] = 0, 0
    attention.k_proj.weight[slowest] = attention.q_proj.weight[slowest] = WAYS * ways / layer.input_layernorm.weight
    attention.k_proj.weight[slow] = attention.q_proj.weight[dim + slow] = likeness
    # The word would match itself best, and an object's first frames do not show where it goes: favour tokens half a
    # clip back.
    attention.k_proj.bias[MIDDLE] = MIDDLE_STRENGTH
    attention.q_proj.bias[MIDDLE] = -MIDDLE_STRENGTH


def _ways(scene: Scene, labels: CellLabels) -> Tensor:
    """`Shown.ways` of a clip with one frame per group."""
    ways = np.where(labels.thing == -1, 4, -1)
    for thing in scene.things:
        shows = labels.thing == NAMES.index(thing.name)
        # The first frame that shows it does not count.
        again = np.cumsum(shows.any(axis=(1, 2))) > 1
        way = 4 if thing.direction is None else tuple(DIRECTIONS).index(thing.direction)
        ways[shows & again[:, None, None]] = way
    class_tokens = torch.full((len(ways), 1), 4)
    return torch.cat([class_tokens, torch.from_numpy(ways).flatten(1)], dim=1).flatten()


def _count(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3, 4], p=[0.1, 0.2, 0.3, 0.4]))


def _zoom(rng: np.random.Generator, natural: bool) -> float:
    return float(rng.uniform(*ZOOMS)) if natural else 1.0


def _look_times(rng: np.random.Generator, looks: int) -> np.ndarray:
    """The sampling times of a clip: even, up to the deviations that a file's frame rate causes."""
    times = sample_times(looks)
    return np.clip(times + rng.uniform(-0.015, 0.015, looks), 0, 1) if looks > 1 else times


def _pixels(frames: Tensor) -> Tensor:
    """(F, 3, h, w) uint8 as the encoder takes it, float32."""
    return clip_pixels(frames, side=SIDE, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD)
