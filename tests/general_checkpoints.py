"""Tiny checkpoints with random weights of classes that flashvlm serves in the general way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import QWEN_SPECIAL, TINY_TEXT, TINY_TOWER

from flashvlm.bench.random_weights import Architecture, write

SIGLIP = {**TINY_TOWER, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14}
QWEN_MARKERS = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
QWEN_IDS = {"vision_start_token_id": 303, "vision_end_token_id": 304, "image_token_id": 305, "video_token_id": 306}


def template(image: str, video: str | None = None, turn: str = "<|im_start|>", end: str = "<|im_end|>") -> str:
    """A chat template that writes these markers."""
    of_video = f"{{% elif content['type'] == 'video' %}}{video}" if video else ""
    return (
        "{% for message in messages %}" + turn + "{{ message['role'] }}\n{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}" + image + of_video + "{% elif content['type'] == 'text' %}"
        "{{ content['text'] }}{% endif %}{% endfor %}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}" + turn + "assistant\n{% endif %}"
    )


def tiny(
    folder: Path,
    model_type: str,
    model_class: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    *,
    special: dict[str, int],
    chat: str,
    processor: dict[str, Any],
    image: dict[str, Any],
    video: dict[str, Any] | None = None,
    named: dict[str, str] | None = None,
    **others: Any,
) -> Path:
    """A checkpoint folder.

    Args:
        special: the ids of special tokens: first the one that is BOS and padding, and one that ends a turn.
        processor: what processor_config.json says; `image` and `video` are the preprocessors' settings.
        named: special tokens that the processor asks the tokenizer for by a name.
        others: further entries of config.json.
    """
    tokens = list(special)
    bos, end = tokens[0], tokens[1]
    ids = {"bos_token_id": special[bos], "eos_token_id": special[end], "pad_token_id": special[bos]}
    config = {
        "architectures": [model_class],
        "model_type": model_type,
        "text_config": {**TINY_TEXT, **ids, **text},
        "vision_config": vision,
        **others,
    }
    files = {
        "config.json": config,
        "generation_config.json": ids,
        "chat_template.json": {"chat_template": chat},
        "processor_config.json": processor,
        "preprocessor_config.json": image,
        **({"video_preprocessor_config.json": video} if video else {}),
    }
    return write(folder, Architecture(model_type, files, special, None, end, bos, named or {}), scale=0.2)


def qwen3_5(folder: Path) -> Path:
    """One layer of linear attention and one of full attention."""
    size = {"size": {"longest_edge": 65536, "shortest_edge": 4096}}
    text = {
        "model_type": "qwen3_5_text", "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
            "partial_rotary_factor": 1.0,
        },
    }  # fmt: skip
    vision = {
        "model_type": "qwen3_5", "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48,
        "out_hidden_size": 64, "num_position_embeddings": 16,
    }  # fmt: skip
    return tiny(
        folder,
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        text,
        vision,
        special={"<|endoftext|>": 300, "<|im_end|>": 302, **QWEN_SPECIAL},
        chat=template(*QWEN_MARKERS),
        processor={"processor_class": "Qwen3VLProcessor"},
        image={"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, **size},
        video={"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16, **size},
        **QWEN_IDS,
    )


def gemma3(folder: Path) -> Path:
    """Pictures of 56 x 56 pixels: 2 x 2 tokens each, which see each other; one layer has a window."""
    return tiny(
        folder,
        "gemma3",
        "Gemma3ForConditionalGeneration",
        {
            "model_type": "gemma3_text",
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 1024,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        SIGLIP,
        special={"<bos>": 300, "<end_of_turn>": 301, "<start_of_turn>": 302, "<boi>": 303, "<eoi>": 304, "<img>": 305},
        chat=template("<boi>", turn="<start_of_turn>", end="<end_of_turn>"),
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
        image={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}},
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"},
        mm_tokens_per_image=4,
        boi_token_index=303,
        eoi_token_index=304,
        image_token_index=305,
    )


# `model_type` -> a checkpoint of that family, written into a folder.
GENERAL: dict[str, Callable[[Path], Path]] = {"qwen3_5": qwen3_5, "gemma3": gemma3}
