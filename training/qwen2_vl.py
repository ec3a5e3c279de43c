"""The demo model `demo`: a small Qwen2-VL, its sizes, grids and clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from flashvlm.demo.natural import BRIEF_FRAMES, make_natural_scene
from flashvlm.demo.world import Scene, make_scene
from flashvlm.pixels import qwen2_vl_patches
from training.blueprint import (
    BRIEF_SHARE,
    NATURAL_SHARE,
    SHAPES_AT_ONCE,
    SHAPES_SHARE,
    WIDTH,
    Blueprint,
    Shown,
    build_tokenizer,
)
from training.drawing import draw_frames, draw_questions, draw_scene, shape_pixels
from training.labels import cell_labels
from training.shapes import ShapeImage

PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
CELL = PATCH * MERGE
# Pixels of a frame: about 224 x 224 at any aspect ratio, 52 to 64 tokens per group.
MIN_PIXELS, MAX_PIXELS = 52 * CELL**2, 64 * CELL**2
# Grids (rows, columns of tokens) that `pixels.smart_resize` gives pictures of these shapes at the demo's pixel limits.
GRIDS = {
    (1, 1): (8, 8), (4, 3): (6, 9), (3, 4): (9, 6), (16, 9): (6, 10), (9, 16): (10, 6),
    (5, 4): (7, 8), (4, 5): (8, 7), (3, 2): (6, 9), (13, 6): (5, 11), (6, 13): (11, 5),
}  # fmt: skip
# How often a clip has this many frames. A stage starts with short clips, which teach nearly as much in a fraction of
# the time.
FRAMES = {1: 4, 4: 8, 8: 12, 12: 12, 16: 14, 24: 14, 32: 14, 48: 10, 64: 8}
SHORT_FRAMES = {1: 6, 4: 20, 8: 30, 12: 24, 16: 12, 24: 8}
# A stage also starts with small grids. In `eyes`, objects keep their size in pixels and so fill more of the picture.
ZOOM = 1.6
SMALL_GRIDS = {(1, 1): (5, 5), (5, 4): (5, 6), (4, 5): (6, 5)}
SHAPES_GRID = GRIDS[1, 1]
# Families that are harder to learn come up more often.
WEIGHTS = {
    "moment": 1.5, "count": 1.6, "caption": 1.7, "first": 2.0, "last": 1.0, "start": 1.6, "end": 1.4, "mover": 1.4,
    "kind": 0.5, "exist": 0.8, "where": 0.8, "motion": 0.7,
}  # fmt: skip

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|unknown|>",
)  # fmt: skip

# Qwen2-VL's message format, without its default system prompt: the world has no words for it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Qwen2VL(Blueprint):
    name = "demo"
    steps = {"eyes": 3200, "words": 6600, "answers": 2800}  # noqa: RUF012
    video_token = "<|video_pad|>"

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = build_tokenizer(SPECIAL_TOKENS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer

    def build_model(self) -> Any:
        def token_id(token: str) -> Any:
            return self.tokenizer.convert_tokens_to_ids(token)

        config = Qwen2VLConfig(
            text_config={
                "vocab_size": len(self.tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                # M-RoPE gives time the highest frequencies: half of the head, with periods of up to 160 moments.
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [16, 8, 8]},
                "tie_word_embeddings": True,
                "bos_token_id": token_id("<|endoftext|>"),
                "eos_token_id": token_id("<|im_end|>"),
                "pad_token_id": token_id("<|endoftext|>"),
            },
            vision_config={
                "depth": 4,
                "embed_dim": 128,
                "hidden_size": WIDTH,
                "num_heads": 2,
                "mlp_ratio": 4,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": TEMPORAL_PATCH,
            },
            image_token_id=token_id("<|image_pad|>"),
            video_token_id=token_id("<|video_pad|>"),
            vision_start_token_id=token_id("<|vision_start|>"),
            vision_end_token_id=token_id("<|vision_end|>"),
            tie_word_embeddings=True,
        )
        model: Any = Qwen2VLForConditionalGeneration(config)
        _embed_by_a_product(model.model.visual.patch_embed)
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(self.codes.words)
            _let_words_find_their_like(model)
        return model

    def eyes(self, model: Any) -> torch.nn.Module:
        return model.model.visual

    def see(self, model: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        sizes = torch.tensor([[len(pixels), grid[0] * MERGE, grid[1] * MERGE]], device=pixels.device)
        tokens = model.model.visual(pixels.flatten(0, 1), grid_thw=sizes).pooler_output
        return tokens.unflatten(0, (len(pixels), -1))

    def draw_eyes(self, rng: np.random.Generator, *, small: bool) -> tuple[tuple[int, int], list[Shown]]:
        grids = SMALL_GRIDS if small else GRIDS
        aspect = list(grids)[rng.integers(len(grids))]
        drawn, clips = [], 16 if small else 9
        if not small and rng.random() < SHAPES_SHARE:
            aspect, clips = (1, 1), clips // 2
            drawn = self.draw_shapes(rng, 16, 0, SHAPES_GRID, pixels=True)
        grid = grids[aspect]
        for _ in range(clips):
            frames = int(rng.choice([1, 4, 8, 8, 16, 32, 64]))
            natural = rng.random() < NATURAL_SHARE
            brief = natural and not small and rng.random() < BRIEF_SHARE
            settings: dict[str, Any] = {"zoom": ZOOM, "count": 1} if small else {"brief": True} if brief else {}
            scene, times = draw_scene(rng, BRIEF_FRAMES if brief else frames, aspect, _maker(natural), **settings)
            # Four groups of a clip teach nearly as much as all of them.
            if len(times) > 8:
                starts = 2 * rng.choice(len(times) // 2, size=4, replace=False)
                if brief:
                    thing = min(scene.things, key=lambda thing: thing.vanishes - thing.appears)
                    starts[0] = np.searchsorted(times, thing.appears) // 2 * 2
                times = times[np.sort(np.concatenate([starts, starts + 1]))]
            patches = draw_patches(scene, times, grid, rng, natural=natural)
            drawn.append(Shown(cell_labels(scene, times, *grid), [], patches))
        return grid, drawn

    def draw_clips(
        self, rng: np.random.Generator, questions: int, *, small: bool, pixels: bool
    ) -> tuple[tuple[int, int], list[Shown]]:
        if rng.random() < SHAPES_SHARE:
            grid = _zoomed(SHAPES_GRID) if small else SHAPES_GRID
            return grid, self.draw_shapes(rng, SHAPES_AT_ONCE, questions // 2, grid, pixels=pixels)
        choice = SHORT_FRAMES if small else FRAMES
        chances = np.array(list(choice.values()), dtype=float)
        frames = int(rng.choice(list(choice), p=chances / chances.sum()))
        brief = not small and rng.random() < NATURAL_SHARE * BRIEF_SHARE
        frames = BRIEF_FRAMES if brief else frames
        aspect = list(GRIDS)[rng.integers(len(GRIDS))]
        grid, groups = GRIDS[aspect], (frames + 1) // 2
        if small:
            grid = _zoomed(grid)
        drawn = []
        for _ in range(max(2, min(4, 40 // groups))):
            natural = brief or rng.random() < NATURAL_SHARE
            scene, times = draw_scene(rng, frames, aspect, _maker(natural), **({"brief": True} if brief else {}))
            patches = draw_patches(scene, times, grid, rng, natural=natural) if pixels else None
            asked = draw_questions(scene, rng, questions, WEIGHTS)
            drawn.append(Shown(cell_labels(scene, times, *grid), asked, patches))
        return grid, drawn

    def shape_input(self, image: ShapeImage, grid: tuple[int, int]) -> Tensor:
        return _patches(shape_pixels(image, grid[0] * CELL), grid)

    def positions(self, before: int, groups: int, grid: tuple[int, int], length: int) -> tuple[Tensor, Tensor]:
        t, y, x = torch.meshgrid(torch.arange(groups), torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        video = torch.stack([t.flatten(), y.flatten(), x.flatten()]) + before
        shared = torch.cat([torch.arange(before).expand(3, -1), video], dim=1)
        return shared, (torch.arange(length) + int(shared.max()) + 1).expand(3, -1)

    def finish(self, model: Any) -> None:
        pass

    def settings(self) -> dict[str, dict[str, Any]]:
        settings = {
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
            "patch_size": PATCH,
            "temporal_patch_size": TEMPORAL_PATCH,
            "merge_size": MERGE,
            "image_mean": OPENAI_CLIP_MEAN,
            "image_std": OPENAI_CLIP_STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
        }
        return {
            "preprocessor_config.json": settings
            | {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"},
            "video_preprocessor_config.json": settings
            | {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2VLProcessor"},
        }


def draw_patches(
    scene: Scene, times: np.ndarray, grid: tuple[int, int], rng: np.random.Generator, *, natural: bool = False
) -> Tensor:
    """The encoder's input for a scene."""
    return _patches(draw_frames(scene, times, grid[0] * CELL, grid[1] * CELL, rng, natural=natural), grid)


def _maker(natural: bool) -> Callable[..., Scene]:
    return make_natural_scene if natural else make_scene


def _patches(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(F, 3, h, w) uint8 as (groups, patches, values) float32, in the order of Qwen2-VL's patches."""
    values, _ = qwen2_vl_patches(
        pixels,
        patch_size=PATCH,
        temporal_patch_size=TEMPORAL_PATCH,
        merge_size=MERGE,
        image_mean=OPENAI_CLIP_MEAN,
        image_std=OPENAI_CLIP_STD,
    )
    return values.unflatten(0, (-1, grid[0] * grid[1] * MERGE**2))


def _zoomed(grid: tuple[int, int]) -> tuple[int, int]:
    return round(grid[0] / ZOOM), round(grid[1] / ZOOM)


def _embed_by_a_product(embed: Any) -> None:
    """Have each patch multiplied by the kernel as a matrix: the same sum, a tenth of the time in the backward pass."""
    embed.forward = lambda patches: F.linear(patches, embed.proj.weight.flatten(1))


def _let_words_find_their_like(model: Any) -> None:
    """Initialise two heads in both of the first two layers so that words attend to the visual tokens of what they name.

    Their queries and keys share one random projection, in the half of the head that positions hardly rotate. Training
    finds this by itself, but late: until then, questions that name an object stay at chance.
    """
    generator = torch.Generator().manual_seed(7)
    for layer in model.model.language_model.layers[:2]:
        dim = layer.self_attn.head_dim
        slow = torch.cat([torch.arange(dim // 4, dim // 2), torch.arange(3 * dim // 4, dim)])
        shared = torch.randn(len(slow), WIDTH, generator=generator) * 0.07
        layer.self_attn.k_proj.weight[slow] = shared
        for head in range(layer.self_attn.num_key_value_groups):
            layer.self_attn.q_proj.weight[head * dim + slow] = shared
