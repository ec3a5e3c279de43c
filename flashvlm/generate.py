"""Generate: the kept tokens go to the language model, and its answer comes back, through transformers' `generate`.

The vision encoder's output is handed over as `mm_encoder_outputs`, which transformers takes in place of pixels. The
pruned prompt is a part of the unpruned one: the same ids and positions, without the places of the dropped tokens.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, TextStreamer
from transformers.cache_utils import DynamicLayer
from transformers.generation import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from flashvlm.backends.base import Backend, Prompt
from flashvlm.report import BeforeAfter

# The most tokens that the cache has room for at once: an answer may be allowed any number, and mostly ends early.
MOST_ROOM = 512
# Held while torch's random generators are a sampled answer's own.
SAMPLING = threading.RLock()


@dataclass(frozen=True)
class Generated:
    """What the language model said: the text and its tokens (including its end token)."""

    text: str
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens it took."""
        return len(self.ids)


@torch.inference_mode()
def generate(
    backend: Backend,
    prompt: Prompt,
    kept: Tensor,
    vectors: Tensor,
    planes: Tensor | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
    on_text: Callable[[str], None] = lambda text: None,
    on_first_token: Callable[[], None] = lambda: None,
) -> Generated:
    """Answer from the kept tokens: greedily at temperature 0; above, by sampling.

    Penalties from the checkpoint's `generation_config.json` see the prompt's ids as they would without pruning.

    Args:
        kept: (K,) int64, ascending: the visual tokens of the prompt that stay.
        vectors: (K, D), the vectors that stand there.
        planes: (P, K, D), their further features, if the family has any.
        top_p, top_k: which tokens are drawn from; None is as the checkpoint says, but a top-k of 1, which would leave
            nothing to draw, is lifted.
    """
    inputs = backend.inputs(prompt, kept[None], vectors[None], None if planes is None else planes[:, None])
    streamer = _Streamer(backend.tokenizer, on_text, on_first_token)
    with _seeded(backend, seed) if temperature else contextlib.nullcontext():
        said = _generate(backend, prompt, inputs, max_new_tokens, (temperature, top_p, top_k), streamer)
    return Generated(_text(backend, said[0]), tuple(said[0].tolist()))


@torch.inference_mode()
def answers(
    backend: Backend,
    prompt: Prompt,
    kept: Tensor,
    vectors: Tensor,
    planes: Tensor | None = None,
    *,
    max_new_tokens: int,
) -> list[str]:
    """Answer one question from B selections of K tokens each, batched: greedily, as `generate` would one by one.

    Args:
        kept: (B, K) int64, each row ascending.
        vectors: (B, K, D), the vectors that stand there.
        planes: (P, B, K, D), their further features, if the family has any.
    """
    inputs = backend.inputs(prompt, kept, vectors, planes)
    return [_text(backend, said) for said in _generate(backend, prompt, inputs, max_new_tokens)]


def penalties(backend: Backend, prompt: Prompt, length: int) -> LogitsProcessorList:
    """The penalties of the checkpoint's `generation_config.json`, which look at earlier tokens.

    They get the ids of a prompt of `length` tokens and what follows it, and see the unpruned prompt in its place.
    """
    config, unpruned = backend.model.generation_config, prompt.ids.to(backend.device)
    processors = LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        penalty = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
        processors.append(_Unpruned(penalty, unpruned, length))
    if config.no_repeat_ngram_size:
        processors.append(_Unpruned(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size), unpruned, length))
    return processors


def lifts_top_k(backend: Backend) -> bool:
    """Whether the checkpoint itself draws from the likeliest token alone, which a temperature is to change."""
    return backend.model.generation_config.top_k == 1


def kv_cache_bytes(backend: Backend, tokens: BeforeAfter) -> BeforeAfter:
    """Bytes of keys and values that a prompt of this many tokens leaves in the cache, in the model's dtype."""
    config = backend.text_config
    each = 2 * config.num_key_value_heads * backend.head_dim * backend.dtype.itemsize
    return BeforeAfter(each * _attended(config, tokens.before), each * _attended(config, tokens.after))


def prefill_flops(backend: Backend, tokens: BeforeAfter) -> BeforeAfter:
    """Floating-point operations of the language model's pass over a prompt.

    Two per weight and token in the layers, causal attention, and the output layer for the last token.
    """
    config = backend.text_config
    # The weights of all experts are in one tensor, of which a token passes through some.
    used = (getattr(config, "num_experts_per_tok", None) or 1) / (getattr(config, "num_experts", None) or 1)
    linear = sum(
        int(parameter.numel() * (used if parameter.ndim == 3 else 1))
        for name, parameter in backend.model.get_decoder().named_parameters()
        if parameter.ndim in (2, 3) and "embed_tokens" not in name
    )
    # Scores and weighted values: two (S x d) by (S x d) products per head, half of which the causal mask saves.
    attention = 2 * config.num_attention_heads * backend.head_dim
    last = 2 * config.hidden_size * config.vocab_size

    def flops(count: int) -> int:
        return 2 * linear * count + attention * count * _attended(config, count) + last

    return BeforeAfter(flops(tokens.before), flops(tokens.after))


def _attended(config: Any, count: int) -> int:
    """How many of `count` tokens the last one attends to, summed over the layers: none where a layer has a state."""
    window = min(getattr(config, "sliding_window", None) or count, count)
    seen = {"full_attention": count, "sliding_attention": window}
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return sum(seen.get(kind, 0) for kind in kinds)


def _generate(
    backend: Backend,
    prompt: Prompt,
    inputs: dict[str, Any],
    max_new_tokens: int,
    sampling: tuple[float, float | None, int | None] = (0.0, None, None),
    streamer: TextStreamer | None = None,
) -> Tensor:
    """The (B, T) ids that follow B prompts."""
    config = copy.deepcopy(backend.model.generation_config)
    pruned = inputs["input_ids"].shape[1]
    processors = penalties(backend, prompt, pruned)
    # generate() replaces None with the model's own setting, so it takes neutral values to switch something off.
    config.repetition_penalty, config.no_repeat_ngram_size = 1.0, 0
    config.max_new_tokens = max_new_tokens
    temperature, top_p, top_k = sampling
    config.do_sample = temperature > 0
    if config.do_sample:
        config.temperature, config.top_p = temperature, top_p or config.top_p
        config.top_k = top_k or (0 if lifts_top_k(backend) else config.top_k)
    else:
        config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
    output = backend.model.generate(
        **inputs,
        past_key_values=roomy_cache(backend, min(max_new_tokens, MOST_ROOM)),
        generation_config=config,
        logits_processor=processors,
        streamer=streamer,
    )
    return output[:, pruned:]


def roomy_cache(backend: Backend, room: int) -> DynamicCache | None:
    """transformers' own cache of keys and values, with room for this many tokens after the prompt.

    Without it, all keys and values are copied for every token; now they are when the room is full, to have as much
    again. None if the model brings a cache of its own kind.
    """
    if not backend.model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=backend.text_config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _RoomyLayer(DynamicLayer):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._held: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (B, heads, T, d) keys and values; returns all."""
        states = key_states, value_states
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if not begin:
            self.lazy_initialization(*states)
        if not begin or end > self._held[0].shape[-2]:
            full = [held[..., :begin, :] for held in self._held]
            self._held = [new.new_empty(*new.shape[:-2], end + self.room, new.shape[-1]) for new in states]
            for held, before in zip(self._held, full, strict=bool(begin)):
                held[..., :begin, :] = before
        for held, new in zip(self._held, states, strict=True):
            held[..., begin:end, :] = new
        self.keys, self.values = (held[..., :end, :] for held in self._held)
        return self.keys, self.values


def _text(backend: Backend, ids: Tensor) -> str:
    return backend.tokenizer.decode(ids, skip_special_tokens=True).strip()


@contextlib.contextmanager
def _seeded(backend: Backend, seed: int) -> Iterator[None]:
    """Sampling draws from the generators that all threads share: one at a time has them, and puts them back."""
    with SAMPLING, torch.random.fork_rng(devices=[backend.device] if backend.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Unpruned(LogitsProcessor):
    """Wraps a processor that looks at earlier tokens, to show it the unpruned prompt in place of the pruned one."""

    def __init__(self, processor: LogitsProcessor, unpruned: Tensor, pruned: int) -> None:
        self.processor, self.unpruned, self.pruned = processor, unpruned, pruned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        said = input_ids[:, self.pruned :]
        return self.processor(torch.cat([self.unpruned.expand(len(said), -1), said], dim=1), scores)


class _Streamer(TextStreamer):
    """Passes on finished pieces of text, and reports when the first token came."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], on_first_token: Callable[[], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._on_first_token = on_text, on_first_token
        self._begun = False

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt and not self._begun:
            self._begun = True
            self._on_first_token()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)
