"""Checkpoints of real architectures with random weights: the output is nonsense, the speed that of the real ones.

Sizes, settings and prompts are the published ones (`architectures/`). The tokenizer is synthetic: one token for every
byte, the special tokens at their published ids, and meaningless words at all other ids, so that prompts have the
structure of real ones.
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

PUBLISHED = Path(__file__).parent / "architectures"


@dataclass(frozen=True)
class Architecture:
    """A published checkpoint without its weights and its vocabulary."""

    # Its id on the Hugging Face hub.
    source: str
    # The contents of its JSON files by name, `config.json` among them.
    files: Mapping[str, Mapping[str, Any]]
    # The ids of special tokens.
    special: Mapping[str, int]
    bos: str | None
    eos: str
    pad: str
    # Special tokens that the processor asks the tokenizer for by a name.
    named: Mapping[str, str]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.files["config.json"]

    def model_config(self) -> Any:
        """transformers' configuration object."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.config)

    def with_config(self, **changes: Any) -> Architecture:
        """The same with other entries in `config.json`."""
        return replace(self, files={**self.files, "config.json": {**self.config, **changes}})


def _read(path: Path) -> Architecture:
    published = json.loads(path.read_text())
    return Architecture(published["source"], published["files"], **published["tokenizer"])


ARCHITECTURES = {path.stem: _read(path) for path in sorted(PUBLISHED.glob("*.json"))}


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
        architecture = architecture.with_config(text_config=text)
    config = architecture.model_config()
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    # to_empty allocates tied weights separately.
    model.tie_weights()
    fill(model, scale)
    with no_progress_bars():
        model.save_pretrained(folder, max_shard_size="4GB")
    return write_processor(folder, architecture)


def write_processor(folder: Path, architecture: Architecture) -> Path:
    """Write all of a checkpoint folder but the weights: the published files and a tokenizer. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(architecture, architecture.config["text_config"]["vocab_size"]).save_pretrained(folder)
    for name, content in architecture.files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder


@torch.no_grad()
def fill(model: Any, scale: float) -> None:
    """Fill matrices and embeddings with one repeated block of normal numbers, norms and saved buffers (Gemma 4 scales
    its layers by one) with ones, biases with zeros.

    Drawing billions of numbers would take minutes. The length of the block is prime, so matrix products do not notice
    the repetition.
    """
    block = torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)).mul_(scale).to(torch.bfloat16)
    begin = 0
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.fill_(1)
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        if parameter.ndim < 2 and not name.endswith(("class_embedding", "image_newline")):
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=architecture.bos,
        eos_token=architecture.eos,
        pad_token=architecture.pad,
        extra_special_tokens=dict(architecture.named),
    )
