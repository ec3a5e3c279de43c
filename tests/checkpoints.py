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
from flashvlm.options import AskOptions

QWEN_SPECIAL = {
    "<|endoftext|>": 300, "<|im_start|>": 301, "<|im_end|>": 302, "<|vision_start|>": 303, "<|vision_end|>": 304,
    "<|image_pad|>": 305, "<|video_pad|>": 306,
}  # fmt: skip


# The language model of the families that have an ordinary one.
TINY_TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "bos_token_id": 300, "eos_token_id": 302,
    "pad_token_id": 300,
}  # fmt: skip
TINY_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}


def tiny(
    name: str,
    special: dict[str, int],
    text: dict[str, Any],
    vision: dict[str, Any],
    files: dict[str, dict[str, Any]] | None = None,
    **others: Any,
) -> Architecture:
    """A published architecture at other sizes; `files` are changes to other files than `config.json`."""
    published = ARCHITECTURES[name]
    text = {**published.config["text_config"], **text}
    ids = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    changed = {file: {**content, **(files or {}).get(file, {})} for file, content in published.files.items()}
    return replace(published, files={**changed, "generation_config.json": ids}, special={**special}).with_config(
        text_config=text, vision_config={**published.config["vision_config"], **vision}, **others
    )


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
        {"preprocessor_config.json": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}},
        image_token_index=300,
        video_token_index=301,
        **settings,
    )
    return write(folder, architecture, scale=0.2)


def tiny_qwen3_vl_architecture(**vision: Any) -> Architecture:
    return tiny(
        "qwen3-vl-2b",
        QWEN_SPECIAL,
        {
            **TINY_TEXT,
            "head_dim": 16,
            "rope_theta": 10000,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
        },
        {
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 2],
            **vision,
        },
        {"preprocessor_config.json": {"size": {"longest_edge": 65536, "shortest_edge": 4096}}},
        vision_start_token_id=303,
        vision_end_token_id=304,
        image_token_id=305,
        video_token_id=306,
    )


def tiny_qwen3_vl(folder: Path, **vision: Any) -> Path:
    """Features of two of four vision blocks are added in the two layers of the decoder; 32 pixels a token."""
    return write(folder, tiny_qwen3_vl_architecture(**vision), scale=0.2)


def tiny_qwen3_vl_moe(folder: Path) -> Path:
    """As `tiny_qwen3_vl`, with two of four experts for each token."""
    dense = tiny_qwen3_vl_architecture()
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    architecture = dense.with_config(
        architectures=["Qwen3VLMoeForConditionalGeneration"],
        model_type="qwen3_vl_moe",
        text_config={**dense.config["text_config"], "model_type": "qwen3_vl_moe_text", **experts},
        vision_config={**dense.config["vision_config"], "model_type": "qwen3_vl_moe"},
    )
    return write(folder, architecture, scale=0.2)


LLAVA_SPECIAL = {"<|endoftext|>": 300, "<|im_start|>": 301, "<|im_end|>": 302, "<image>": 305, "<video>": 306}


def tiny_llava_onevision(folder: Path) -> Path:
    """Frames of 70 x 70 pixels in 5 x 5 patches: 3 x 3 tokens each."""
    sizes = [[height, width] for height in (70, 140) for width in (70, 140)]
    square = {"size": {"height": 70, "width": 70}}
    architecture = tiny(
        "llava-onevision-0.5b",
        LLAVA_SPECIAL,
        TINY_TEXT,
        {**TINY_TOWER, "image_size": 70},
        {
            "preprocessor_config.json": {**square, "image_grid_pinpoints": sizes},
            "video_preprocessor_config.json": square,
            "processor_config.json": {"num_image_tokens": 25},
        },
        image_token_index=305,
        video_token_index=306,
        image_grid_pinpoints=sizes,
    )
    return write(folder, architecture, scale=0.2)


def tiny_llava(folder: Path) -> Path:
    """Pictures of 56 x 56 pixels in 4 x 4 patches: 16 tokens each."""
    architecture = tiny(
        "llava-1.5-7b",
        {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 305, "<pad>": 306},
        {**TINY_TEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 306},
        {**TINY_TOWER, "image_size": 56, "projection_dim": 16},
        {"preprocessor_config.json": {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}},
        image_token_index=305,
        pad_token_id=306,
    )
    return write(folder, architecture, scale=0.2)


def tiny_internvl(folder: Path) -> Path:
    """Frames and tiles of 56 x 56 pixels in 4 x 4 patches: 2 x 2 tokens each."""
    square = {"size": {"height": 56, "width": 56}}
    architecture = tiny(
        "internvl3-1b",
        {
            "<|endoftext|>": 300,
            "<|im_start|>": 301,
            "<|im_end|>": 302,
            "<img>": 303,
            "</img>": 304,
            "<IMG_CONTEXT>": 305,
            "<video>": 306,
        },
        TINY_TEXT,
        {**TINY_TOWER, "image_size": [56, 56]},
        {
            "preprocessor_config.json": square,
            "video_preprocessor_config.json": square,
            "processor_config.json": {"image_seq_length": 4},
        },
        image_token_id=305,
        image_seq_length=4,
    )
    return write(folder, architecture, scale=0.2)


def tiny_smolvlm(folder: Path) -> Path:
    """Frames and tiles of 64 x 64 pixels in 8 x 8 patches: 2 x 2 tokens each."""
    architecture = tiny(
        "smolvlm2-500m",
        {
            "<|endoftext|>": 300,
            "<|im_start|>": 301,
            "<|im_end|>": 302,
            "<fake_token_around_image>": 303,
            "<global-img>": 304,
            "<image>": 305,
            "<end_of_utterance>": 306,
        },
        {**TINY_TEXT, "head_dim": 16, "eos_token_id": 306, "pad_token_id": 302},
        {**TINY_TOWER, "image_size": 64, "patch_size": 8},
        {
            "preprocessor_config.json": {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}},
            "processor_config.json": {"image_seq_len": 4},
        },
        image_token_id=305,
    )
    return write(folder, architecture, scale=0.2)


# `model_type` -> a checkpoint of that family, written into a folder.
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": lambda folder: fetch("demo"),
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "qwen3_vl_moe": tiny_qwen3_vl_moe,
    "video_llava": tiny_video_llava,
    "smolvlm": tiny_smolvlm,
    "llava_onevision": tiny_llava_onevision,
    "internvl": tiny_internvl,
    "llava": tiny_llava,
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
    prompt = backend.prompt(question, system, [encode(backend, noise(1, *backend.frame_size(56, 56, AskOptions())))])
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
