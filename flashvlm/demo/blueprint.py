"""How the demo model is built: its words, its sizes, and the code that its visual tokens are trained to speak.

The checkpoint is an ordinary `Qwen2VLForConditionalGeneration`; nothing here is needed to run it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from flashvlm.demo.world import DIRECTIONS, KIND_OF, NAMES, CellLabels

PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
CELL = PATCH * MERGE
WIDTH = 256
# Pixels of a frame: near 224 x 224 whatever the aspect, 52 to 64 tokens a group.
MIN_PIXELS, MAX_PIXELS = 52 * CELL**2, 64 * CELL**2
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|unknown|>",
)  # fmt: skip

# Every word the world has. A place in this list is a direction of the code that the encoder is trained to speak
# (`Codes`): new words go to the end, and only a training from nothing may do more.
WORDS = """
    which is there what in the video do you see name way does move direction of where go moves object moving
    goes position part picture start at end how many are count appears first comes last happening visible located
    happens describe to dog cat cow elephant penguin frog turtle butterfly car bus bicycle airplane rocket boat
    apple banana pizza carrot cake burger umbrella guitar key balloon book clock animal vehicle food thing
    animals vehicles foods shown objects left right up down none one two three four top middle bottom a an yes
    no nowhere stays still and then nothing user assistant system
""".split()  # noqa: SIM905

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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, case and punctuation dropped; words of no use in the world become `<|unknown|>`."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[?.!,;:\"]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unknown|>",
        additional_special_tokens=list(SPECIAL[1:7]),
        model_max_length=32768,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained model of the demo's size, its word embeddings set to the codes of `Codes` and tied."""

    def token_id(token: str) -> Any:
        return tokenizer.convert_tokens_to_ids(token)

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            # M-RoPE gives time the highest frequencies: half of the head for it, down to 160 moments a turn.
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
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(Codes(tokenizer).words)
        _let_words_find_their_like(model)
    return model


def _let_words_find_their_like(model: Any) -> None:
    """Start two heads of the first two layers so that a word attends to the visual tokens of what it names.

    Queries and keys share one random projection there, in the half of the head that positions hardly turn. Training
    finds this by itself, but late: questions on a thing by its name stay at chance until it has.
    """
    generator = torch.Generator().manual_seed(7)
    for layer in model.model.language_model.layers[:2]:
        dim = layer.self_attn.head_dim
        slow = torch.cat([torch.arange(dim // 4, dim // 2), torch.arange(3 * dim // 4, dim)])
        shared = torch.randn(len(slow), WIDTH, generator=generator) * 0.07
        layer.self_attn.k_proj.weight[slow] = shared
        for head in range(layer.self_attn.num_key_value_groups):
            layer.self_attn.q_proj.weight[head * dim + slow] = shared


class Codes:
    """What a visual token should be, for what it shows: a sum of orthogonal unit directions.

    A token of a dog that moves left is the embedding of the *word* dog, plus something of the words animal and left,
    plus something of the directions that stand for where the dog is. Background is the word nothing and where it is.
    So the cosine of a visual token with a word of the question means what the method takes it to mean.
    """

    KIND, MOTION, PLACE = 0.4, 0.45, 0.35
    ANCHORS = 6

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        size = len(tokenizer)
        if size + 2 * self.ANCHORS > WIDTH:
            raise ValueError(f"{size} words and {2 * self.ANCHORS} places do not fit into {WIDTH} directions.")
        noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(20251220), dtype=torch.float64)
        directions = torch.linalg.qr(noise).Q.T.float()
        self.words = directions[:size]
        self.rows = directions[size : size + self.ANCHORS]
        self.columns = directions[size + self.ANCHORS : size + 2 * self.ANCHORS]

        def of(word: str) -> torch.Tensor:
            return self.words[tokenizer.convert_tokens_to_ids(word)]

        # The last entry of each serves the label -1: background, and no direction.
        self.names = torch.stack([*map(of, NAMES), of("nothing")])
        self.things = torch.stack([*(of(n) + self.KIND * of(KIND_OF[n]) for n in NAMES), of("nothing")])
        self.motions = torch.stack([*(of(way) for way in DIRECTIONS), torch.zeros(WIDTH)])

    def _shares(self, at: torch.Tensor) -> torch.Tensor:
        """How much each anchor stands for these coordinates in 0..1, (..., ANCHORS): two neighbours at most."""
        scaled = at.clamp(0, 1) * (self.ANCHORS - 1)
        return (1 - (scaled.unsqueeze(-1) - torch.arange(self.ANCHORS)).abs()).clamp(min=0)

    def places(self, labels: CellLabels) -> tuple[torch.Tensor, torch.Tensor]:
        """How much each row and each column anchor stands for a cell's place, (groups, rows, columns, ANCHORS) each."""
        return self._shares(torch.from_numpy(labels.y).float()), self._shares(torch.from_numpy(labels.x).float())

    def targets(self, labels: CellLabels) -> torch.Tensor:
        """The ideal tokens, (groups, rows, columns, WIDTH) float32; an unclear cell counts as background here."""
        thing = torch.from_numpy(np.maximum(labels.thing, -1))
        motion = torch.from_numpy(np.where(labels.motion < 0, 4, labels.motion))
        down, across = self.places(labels)
        place = down @ self.rows + across @ self.columns
        return self.things[thing] + self.MOTION * self.motions[motion] + self.PLACE * place


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary checkpoint folder: bf16 safetensors, tokenizer, chat template, preprocessor settings."""
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | kinds, indent=2) + "\n")
    kinds = {"video_processor_type": "Qwen2VLVideoProcessor", "processor_class": "Qwen2VLProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings | kinds, indent=2) + "\n")
