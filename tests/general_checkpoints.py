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


def gemma4(folder: Path) -> Path:
    """3 x 3 patches of 8 pixels a token, at most 70 tokens a frame; a frame's tokens see each other in one layer."""
    sizes = {"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    special = {
        "<bos>": 300, "<turn|>": 301, "<|turn>": 302, "<|image>": 303, "<image|>": 304, "<|img|>": 305,
        "<|video|>": 306, "<|audio|>": 307, "<|audio>": 308, "<audio|>": 309,
    }  # fmt: skip
    return tiny(
        folder,
        "gemma4",
        "Gemma4ForConditionalGeneration",
        {
            "model_type": "gemma4_text",
            "head_dim": 16,
            "global_head_dim": 16,
            "sliding_window": 1024,
            "layer_types": ["sliding_attention", "full_attention"],
            "use_bidirectional_attention": "vision",
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 320,
        },
        {
            **TINY_TOWER,
            "model_type": "gemma4_vision",
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 8,
            "position_embedding_size": 64,
        },
        special=special,
        chat=template("<|img|>", "<|video|>", turn="<|turn>", end="<turn|>"),
        processor={
            "processor_class": "Gemma4Processor",
            "image_processor": {"image_processor_type": "Gemma4ImageProcessor", **sizes},
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor", **sizes},
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        },
        image={},
        named={
            "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|img|>", "video_token": "<|video|>",
            "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
        },
        audio_config=None,
        boi_token_id=303,
        eoi_token_id=304,
        image_token_id=305,
        video_token_id=306,
        audio_token_id=307,
        boa_token_id=308,
        eoa_token_index=309,
    )  # fmt: skip


CLIP = {**TINY_TOWER, "model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, "projection_dim": 16}
LLAVA_CHAT = {"<|endoftext|>": 300, "<|im_end|>": 301, "<|im_start|>": 302, "<image>": 305, "<video>": 306}
SQUARE = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
LLAVA_PROCESSOR = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def llava_next_video(folder: Path) -> Path:
    """Frames of 56 x 56 pixels in 4 x 4 patches: 2 x 2 tokens each, without text between them."""
    return tiny(
        folder,
        "llava_next_video",
        "LlavaNextVideoForConditionalGeneration",
        {"model_type": "llama"},
        CLIP,
        special=LLAVA_CHAT,
        chat=template("<image>", "<video>"),
        processor={"processor_class": "LlavaNextVideoProcessor", **LLAVA_PROCESSOR},
        image={"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS, **SQUARE},
        video={"video_processor_type": "LlavaNextVideoVideoProcessor", **SQUARE},
        image_token_index=305,
        video_token_index=306,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_next(folder: Path) -> Path:
    """Pictures in tiles of 56 x 56 pixels, with tokens that end a row."""
    return tiny(
        folder,
        "llava_next",
        "LlavaNextForConditionalGeneration",
        {"model_type": "llama"},
        CLIP,
        special=LLAVA_CHAT,
        chat=template("<image>"),
        processor={"processor_class": "LlavaNextProcessor", **LLAVA_PROCESSOR},
        image={"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS, **SQUARE},
        image_token_index=305,
        image_grid_pinpoints=PINPOINTS,
    )


def video_llama_3(folder: Path) -> Path:
    """2 x 2 patches of 14 pixels a token; the processor drops tokens of its own accord, unless it is told not to."""
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 64 * 28 * 28}}
    return tiny(
        folder,
        "video_llama_3",
        "VideoLlama3ForConditionalGeneration",
        {"model_type": "qwen2"},
        {**TINY_TOWER, "model_type": "video_llama_3_vision", "patch_size": 14},
        special={"<|endoftext|>": 300, "<|im_end|>": 302, **QWEN_SPECIAL},
        chat=template("<|image_pad|>", "<|video_pad|>"),
        processor={"processor_class": "VideoLlama3Processor"},
        image={"image_processor_type": "VideoLlama3ImageProcessor", **size},
        video={"video_processor_type": "VideoLlama3VideoProcessor", **size},
        image_token_id=305,
        video_token_id=306,
    )


def glm(folder: Path, model_type: str, name: str) -> Path:
    """A video's tokens have the id of a picture's; M-RoPE."""
    special = {
        "<|endoftext|>": 300, "<|user|>": 301, "<|begin_of_image|>": 302, "<|end_of_image|>": 303,
        "<|begin_of_video|>": 304, "<|end_of_video|>": 305, "<|image|>": 306, "<|video|>": 307, "<|end|>": 308,
    }  # fmt: skip
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 128 * 28 * 28}}
    return tiny(
        folder,
        model_type,
        f"{name}ForConditionalGeneration",
        {
            "model_type": "glm4v_text",
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "partial_rotary_factor": 1.0,
            },
        },
        {
            "model_type": "glm4v_vision" if model_type == "glm46v" else "glm4v",
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "image_size": 56,
        },
        special=special,
        chat=template(
            "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>", "<|user|>", ""
        ),
        processor={"processor_class": f"{name}Processor"},
        image={"image_processor_type": f"{name}ImageProcessor", **size},
        video={"video_processor_type": f"{name}VideoProcessor", **size},
        image_token_id=306,
        video_token_id=307,
        image_start_token_id=302,
        image_end_token_id=303,
        video_start_token_id=304,
        video_end_token_id=305,
    )  # fmt: skip


def idefics3(folder: Path) -> Path:
    """Tiles of 64 x 64 pixels in 8 x 8 patches: 2 x 2 tokens each."""
    special = {
        "<|endoftext|>": 300, "<end_of_utterance>": 301, "<|begin_of_text|>": 302, "<fake_token_around_image>": 303,
        "<global-img>": 304, "<image>": 305,
    }  # fmt: skip
    return tiny(
        folder,
        "idefics3",
        "Idefics3ForConditionalGeneration",
        {"model_type": "llama"},
        {**TINY_TOWER, "model_type": "idefics3_vision", "image_size": 64, "patch_size": 8},
        special=special,
        chat=template("<image>", turn="<|begin_of_text|>", end="<end_of_utterance>"),
        processor={"processor_class": "Idefics3Processor", "image_seq_len": 4},
        image={
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 128},
            "max_image_size": {"longest_edge": 64},
        },
        scale_factor=4,
        image_token_id=305,
    )


def mistral3(folder: Path) -> Path:
    """Pictures of any shape: 2 x 2 patches of 8 pixels a token, and a token of text after each row."""
    special = {"<s>": 300, "</s>": 301, "[INST]": 302, "[IMG_BREAK]": 303, "[IMG_END]": 304, "[IMG]": 305}
    return tiny(
        folder,
        "mistral3",
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        {**TINY_TOWER, "model_type": "pixtral", "image_size": 64, "patch_size": 8, "head_dim": 16},
        special=special,
        chat=template("[IMG]", turn="[INST]", end="</s>"),
        processor={"processor_class": "PixtralProcessor", "patch_size": 8, "spatial_merge_size": 2},
        image={"image_processor_type": "PixtralImageProcessor", "patch_size": 8, "size": {"longest_edge": 64}},
        image_token_index=305,
        spatial_merge_size=2,
    )


def aya_vision(folder: Path) -> Path:
    """Tiles of 56 x 56 pixels in 4 x 4 patches: 2 x 2 tokens each."""
    special = {
        "<BOS>": 300, "<|END|>": 301, "<|START|>": 302, "<|START_OF_IMG|>": 303, "<|END_OF_IMG|>": 304,
        "<|IMG_PATCH|>": 305, "<image>": 306, "TILE_GLOBAL": 307, "TILE": 308,
    }  # fmt: skip
    return tiny(
        folder,
        "aya_vision",
        "AyaVisionForConditionalGeneration",
        {"model_type": "cohere2", "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]},
        SIGLIP,
        special=special,
        chat=template("<image>", turn="<|START|>", end="<|END|>"),
        processor={"processor_class": "AyaVisionProcessor", "patch_size": 14, "img_size": 56, "downsample_factor": 2},
        image={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 56, "width": 56},
            "crop_to_patches": True,
            "max_patches": 4,
        },
        image_token_index=305,
    )


# `model_type` -> a checkpoint of that family, written into a folder.
GENERAL: dict[str, Callable[[Path], Path]] = {
    "qwen3_5": qwen3_5,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "llava_next_video": llava_next_video,
    "llava_next": llava_next,
    "video_llama_3": video_llama_3,
    "glm4v": lambda folder: glm(folder, "glm4v", "Glm4v"),
    "glm46v": lambda folder: glm(folder, "glm46v", "Glm46V"),
    "idefics3": idefics3,
    "mistral3": mistral3,
    "aya_vision": aya_vision,
}
