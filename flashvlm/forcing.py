"""Teacher forcing: the language model gets an answer token by token, and says what it expects at each place of it.

Prompt and answer are one sequence, and go through the model in one pass; nothing is generated.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashvlm.backends.base import Backend, Prompt
from flashvlm.encode import Encoded
from flashvlm.errors import ModelError
from flashvlm.generate import penalties
from flashvlm.report import Difference


@dataclass(frozen=True, eq=False)
class Forced:
    """What the language model expects at each place of an answer of T tokens, given the prompt and those before it."""

    # (T,) int64: the answer's tokens.
    ids: Tensor
    # (T, V) float32: the log-probability of every token of the vocabulary, as the model gives it.
    expected: Tensor
    # (T,) int64: the token that greedy decoding would take: the likeliest, after the checkpoint's penalties.
    choices: Tensor

    @property
    def log_probabilities(self) -> Tensor:
        """(T,) float32: the log-probability of each token of the answer, in nats."""
        return self.expected.gather(1, self.ids[:, None])[:, 0]

    def divergence(self, other: Forced) -> Tensor:
        """(T,) float32: the Kullback-Leibler divergence of what `other` expects from what is expected here, in nats.

        That is how many nats a token of this model costs, on average, if it is coded with the other's probabilities.
        """
        here, there = self.expected, other.expected
        # What is impossible here costs nothing, however impossible it is there.
        return torch.where(here > -math.inf, here.exp() * (here - there), 0.0).sum(dim=1).clamp(min=0)


@torch.inference_mode()
def force(
    backend: Backend,
    prompt: Prompt,
    ids: Sequence[int],
    kept: Tensor,
    vectors: Tensor,
    planes: Tensor | None = None,
) -> list[Forced]:
    """Give the language model an answer, from each of B selections of K tokens, as a batch.

    Args:
        ids: the T tokens of the answer, at least one.
        kept: (B, K) int64, each row ascending: the visual tokens of the prompt that stay.
        vectors: (B, K, D), the vectors that stand there.
        planes: (P, B, K, D), their further features, if the family has any.

    Raises:
        ModelError: the answer has a placeholder of visual tokens among its tokens.
    """
    if not backend.visual_tokens.keys().isdisjoint(ids):
        raise ModelError("The answer contains the model's own marker for a video, so it cannot be compared.")
    inputs = backend.inputs(prompt, kept, vectors, planes)
    answer, batch = torch.tensor(ids, device=backend.device), len(kept)
    # The last token of the answer is expected, and nothing is expected after it.
    given = answer[:-1].expand(batch, -1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], given], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["position_ids"] = _continued(inputs["position_ids"], given.shape[1])
    if "logits_to_keep" in inspect.signature(backend.model.forward).parameters:
        inputs["logits_to_keep"] = len(ids)
    logits = backend.model(**inputs, use_cache=False).logits[:, -len(ids) :]
    return [Forced(answer, row.float().log_softmax(dim=1), _choices(backend, prompt, answer, row)) for row in logits]


def everything(videos: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor | None]:
    """All visual tokens of the videos, as a selection of them: (N,) int64, (N, D), and (P, N, D) or None."""
    tokens = torch.cat([one.tokens for one in videos])
    planes = [one.planes for one in videos if one.planes is not None]
    return torch.arange(len(tokens), device=tokens.device), tokens, torch.cat(planes, dim=1) if planes else None


def answer_ids(backend: Backend, text: str) -> tuple[int, ...]:
    """The tokens of an answer and its end, as the model would generate them."""
    ids = backend.tokenizer(text, add_special_tokens=False).input_ids
    end = backend.tokenizer.eos_token_id
    return (*ids, *([] if end is None else [end]))


def first_difference(backend: Backend, unpruned: Forced, pruned: Forced) -> Difference | None:
    """The first place of an answer where the two would go on with different tokens; None if there is none."""
    places = (unpruned.choices != pruned.choices).nonzero()[:, 0].tolist()
    if not places:
        return None
    texts = [backend.tokenizer.decode(one.choices[places[0]], skip_special_tokens=True) for one in (pruned, unpruned)]
    return Difference(places[0], *texts)


def _continued(positions: Tensor, count: int) -> Tensor:
    """Positions (..., S) followed by `count` more, one after the other."""
    further = positions[..., -1:] + torch.arange(1, count + 1, device=positions.device)
    return torch.cat([positions, further], dim=-1)


def _choices(backend: Backend, prompt: Prompt, answer: Tensor, logits: Tensor) -> Tensor:
    """The (T,) tokens that greedy decoding would take, by the (T, V) logits at each place of the answer."""
    processors = penalties(backend, prompt, len(prompt.ids))
    if not processors:
        return logits.argmax(dim=1)
    sequence = torch.cat([prompt.ids.to(answer.device), answer])[None]
    scores = []
    for place in range(len(answer)):
        before: Any = sequence[:, : len(prompt.ids) + place]
        scores.append(processors(before, logits[place : place + 1].float()))  # type: ignore[arg-type]
    return torch.cat(scores).argmax(dim=1)
