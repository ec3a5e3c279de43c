"""Tiny checkpoints of the real classes with random weights, and how transformers alone would run them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flashvlm import VideoQA
from flashvlm.bench.random_weights import ARCHITECTURES, Architecture, write
from flashvlm.encode import encode
from flashvlm.generate import generate
from flashvlm.models import fetch

QWEN_SPECIAL = {
    "<|endoftext|>": 300, "<|im_start|>": 301, "<|im_end|>": 302, "<|vision_start|>": 303, "<|vision_end|>": 304,
    "<|image_pad|>": 305, "<|video_pad|>": 306,
}  # fmt: skip


def tiny(
    name: str, special: dict[str, int], text: dict[str, Any], vision: dict[str, Any], **others: Any
) -> Architecture:
    """A published architecture at other sizes."""
    published = ARCHITECTURES[name]
    config = {
        **published.config,
        "text_config": {**published.config["text_config"], **text},
        "vision_config": {**published.config["vision_config"], **vision},
        **others,
    }
    return replace(published, config=config, special=special)


def tiny_qwen2_5_vl(folder: Path, **vision: Any) -> Path:
    """Windows of 2 x 2 tokens in two of three vision blocks."""
    architecture = tiny(
        "qwen2.5-vl-3b",
        QWEN_SPECIAL,
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "bos_token_id": 300,
            "eos_token_id": 302,
            "pad_token_id": 300,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        {
            "depth": 3,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [2],
            **vision,
        },
        vision_start_token_id=303,
        vision_end_token_id=304,
        image_token_id=305,
        video_token_id=306,
    )
    return write(folder, architecture, scale=0.2)


VIDEO_LLAVA_SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 300, "<video>": 301, "<pad>": 302}


def tiny_video_llava(folder: Path, **settings: Any) -> Path:
    """Frames of 28 x 28 pixels in 2 x 2 patches: five tokens each."""
    architecture = tiny(
        "video-llava-7b",
        VIDEO_LLAVA_SPECIAL,
        {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 302,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 28,
            "projection_dim": 16,
        },
        image_token_index=300,
        video_token_index=301,
        **settings,
    )
    frames = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return write(folder, replace(architecture, frames=frames), scale=0.2)


# `model_type` -> a checkpoint of that family, written into a folder.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": lambda folder: fetch("demo"),
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "video_llava": tiny_video_llava,
}


def load(folder: Path) -> VideoQA:
    return VideoQA.from_pretrained(folder, device="cpu", dtype="float32")


def noise(count: int, height: int, width: int) -> torch.Tensor:
    """(count, 3, height, width) uint8 frames, the same every time."""
    frames = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(count))
    return frames.to(torch.uint8)


def our_inputs(
    qa: VideoQA, video: torch.Tensor, question: str, kept: list[int] | None = None, seconds: float = 0.5
) -> dict[str, torch.Tensor]:
    encoded = encode(qa.backend, video, seconds_per_frame=seconds)
    places = torch.arange(len(encoded.tokens)) if kept is None else torch.tensor(kept)
    planes = None if encoded.planes is None else encoded.planes[:, places][:, None]
    prompt = qa.backend.prompt(question, None, [encoded])
    return qa.backend.inputs(prompt, places[None], encoded.tokens[places][None], planes)


def around(qa: VideoQA, question: str, system: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the prompt before and after a video."""
    backend = qa.backend
    prompt = backend.prompt(question, system, [encode(backend, noise(1, *backend.frame_size(56, 56, 10**6)))])
    places = (prompt.visual >= 0).nonzero()
    return prompt.ids[: places[0]], prompt.ids[places[-1] + 1 :]


def our_text(qa: VideoQA, video: torch.Tensor, question: str, seconds: float = 0.5) -> str:
    encoded = encode(qa.backend, video, seconds_per_frame=seconds)
    prompt = qa.backend.prompt(question, None, [encoded])
    everything = torch.arange(len(encoded.tokens))
    said = generate(qa.backend, prompt, everything, encoded.tokens, encoded.planes, max_new_tokens=12)
    return said.text


def their_text(qa: VideoQA, inputs: dict[str, torch.Tensor]) -> str:
    output = qa.backend.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return qa.backend.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
