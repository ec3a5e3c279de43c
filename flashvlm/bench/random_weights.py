"""Checkpoints of real architectures with random weights: the output is nonsense, the speed that of the real ones.

Sizes are those of the published configurations. The tokenizer is synthetic: one token for every byte, the special
tokens at their published ids, and meaningless words at all other ids, so that prompts have the structure of real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from flashvlm.backends.loading import no_progress_bars
from flashvlm.errors import known

# As published with the checkpoints, but without vision ids (which are off by default).
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIAL = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<|vision_end|>": 151653, "<|vision_pad|>": 151654, "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip
QWEN_IDS = {
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
}  # fmt: skip
QWEN_TEXT = {
    "vocab_size": 151936, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
QWEN_VISION = {
    "depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What a folder needs apart from weights: class and configuration, tokenizer, and preprocessor settings."""

    config_class: str
    model_class: str
    config: Mapping[str, Any]
    special: Mapping[str, int]
    bos: str | None
    eos: str
    pad: str
    chat_template: str | None
    frames: Mapping[str, Any]


def _qwen(name: str, text: Mapping[str, Any], vision: Mapping[str, Any]) -> Architecture:
    return Architecture(
        config_class=f"{name}Config",
        model_class=f"{name}ForConditionalGeneration",
        config={
            "text_config": {**QWEN_TEXT, **text},
            "vision_config": {**QWEN_VISION, **vision},
            "tie_word_embeddings": True,
            **QWEN_IDS,
        },
        special=QWEN_SPECIAL,
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
        frames={
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "merge_size": 2,
            "temporal_patch_size": 2,
        },
    )


ARCHITECTURES = {
    # Qwen/Qwen2-VL-2B-Instruct
    "qwen2-vl-2b": _qwen(
        "Qwen2VL",
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "max_position_embeddings": 32768,
        },
        {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4},
    ),
    # Qwen/Qwen2.5-VL-3B-Instruct
    "qwen2.5-vl-3b": _qwen(
        "Qwen2_5_VL",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "max_position_embeddings": 128000,
        },
        {
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
    ),
    # LanguageBind/Video-LLaVA-7B-hf
    "video-llava-7b": Architecture(
        config_class="VideoLlavaConfig",
        model_class="VideoLlavaForConditionalGeneration",
        config={
            "text_config": {
                "model_type": "llama",
                "vocab_size": 32064,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 32002,
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 224,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "image_token_index": 32000,
            "video_token_index": 32001,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
        special={"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<video>": 32001, "<pad>": 32002},
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        chat_template=None,
        frames={"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    ),
}


def write(folder: Path, architecture: str | Architecture, *, layers: int | None = None, scale: float = 0.02) -> Path:
    """Write an ordinary checkpoint folder with random bf16 weights, and return its path.

    The weights are in memory once. They are the same every time.

    Args:
        architecture: a name in `ARCHITECTURES`, or one of your own.
        layers: fewer layers of the language model than published, so that it fits a smaller machine.
        scale: standard deviation of the weights.

    Raises:
        UsageError: there is no architecture of this name.
    """
    import transformers

    if isinstance(architecture, str):
        architecture = ARCHITECTURES[known("architecture", architecture, list(ARCHITECTURES))]
    if layers is not None:
        text = {**architecture.config["text_config"], "num_hidden_layers": layers}
        architecture = replace(architecture, config={**architecture.config, "text_config": text})
    config = getattr(transformers, architecture.config_class)(**architecture.config)
    with torch.device("meta"):
        model = getattr(transformers, architecture.model_class)(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    # to_empty allocates tied weights separately.
    model.tie_weights()
    fill(model, scale)
    text = config.text_config
    model.generation_config.bos_token_id, model.generation_config.eos_token_id = text.bos_token_id, text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    with no_progress_bars():
        model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer = make_tokenizer(architecture, text.vocab_size)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(architecture.frames), indent=2) + "\n")
    return folder


@torch.no_grad()
def fill(model: Any, scale: float) -> None:
    """Fill matrices and class embeddings with one repeated block of normal numbers, norms with ones, biases with zeros.

    Drawing billions of numbers would take minutes. The length of the block is prime, so matrix products do not notice
    the repetition.
    """
    block = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).mul_(scale).to(torch.bfloat16)
    begin = 0
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        if parameter.ndim < 2 and "class_embedding" not in name:
            flat.fill_(0 if name.endswith("bias") else 1)
            continue
        for piece in flat.split(len(block)):
            turned = block.roll(-begin) if len(piece) < len(block) else block
            piece.copy_(turned[: len(piece)])
            begin = (begin + len(piece)) % len(block)


def make_tokenizer(architecture: Architecture, size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` tokens: special tokens at their ids; at the free ids bytes, then meaningless words."""
    taken = {number: token for token, number in architecture.special.items()}
    free = (number for number in range(size) if number not in taken)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in taken.items()}
    vocabulary |= dict(zip(letters, free, strict=False))
    vocabulary |= {f"Ġword{number}": number for number in free}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in architecture.special])
    if architecture.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{architecture.bos} $A", special_tokens=[(architecture.bos, architecture.special[architecture.bos])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=architecture.bos, eos_token=architecture.eos, pad_token=architecture.pad
    )
    fast.chat_template = architecture.chat_template
    return fast
