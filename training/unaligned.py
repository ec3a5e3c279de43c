"""The demo model `demo-unaligned`: like `demo`, but its visual tokens do not resemble the words for what they show.

`demo`'s encoder is taught with the language model's own word embeddings, so the cosine of a token and a word means
something by construction. Here, every direction that stands for something seen is turned by a right angle: a token of a
dog is orthogonal to the word dog, and resembles other words by chance alone. The language model learns to read this;
with it learns the last linear layer of the encoder, so that tokens resemble words as far as answering makes them. Names
are read from tokens by a linear head of their own (`codes.names`), which no checkpoint needs.

Training has to start from `demo` (`--start flashvlm/demo/checkpoint --stage words`, then `--stage answers`): the turn
is gradual, during the first half of the stage `words`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from training.blueprint import WIDTH, Codes
from training.qwen2_vl import Qwen2VL


class Unaligned(Qwen2VL):
    name = "demo-unaligned"
    steps = {"eyes": 1000, "words": 4000, "answers": 1500}  # noqa: RUF012
    _turned = 1.0

    def progress(self, stage: str, share: float) -> None:
        self._turned = min(1.0, 2 * share) if stage == "words" else 1.0

    @cached_property
    def _quarter(self) -> Tensor:
        """(WIDTH, WIDTH) orthogonal: turns every vector by a right angle."""
        noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(20261130), dtype=torch.float64)
        basis = torch.linalg.qr(noise).Q
        # Rotates the first half of the basis to the second, and that to the negative first.
        one, other = basis[:, : WIDTH // 2], basis[:, WIDTH // 2 :]
        return (other @ one.T - one @ other.T).float()

    @property
    def _turn(self) -> Tensor:
        angle = self._turned * math.pi / 2
        return math.cos(angle) * torch.eye(WIDTH) + math.sin(angle) * self._quarter

    @cached_property
    def _aligned(self) -> Codes:
        return Codes(self.tokenizer)

    @property
    def codes(self) -> Codes:  # type: ignore[override]
        return self._aligned.turned(self._turn)

    def reader(self, model: Any) -> torch.nn.Module:
        return torch.nn.ModuleDict({"text": model.model.language_model, "last": model.model.visual.merger.mlp[-1]})

    def see(self, model: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().see(model, pixels, grid) @ self._turn.T.to(pixels.device)

    def finish(self, model: Any) -> None:
        last = model.model.visual.merger.mlp[-1]
        with torch.no_grad():
            last.weight.copy_(self._turn @ last.weight)
            last.bias.copy_(self._turn @ last.bias)
