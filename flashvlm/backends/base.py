"""What every model family provides to the pipeline, and what all share: prompts, words, positions, generation."""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import category

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer
from transformers.generation import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from flashvlm.backends.loading import choose_device, choose_dtype, load_tokenizer, load_weights
from flashvlm.errors import ModelError, UsageError
from flashvlm.options import DEFAULT_FPS, Sampling
from flashvlm.report import Area, BeforeAfter
from flashvlm.template import ChatTemplate

# How many cells go through the vision encoder together: on a CPU (True) as many as its cache holds the activations of,
# elsewhere as many as keep the device busy.
CELLS_AT_ONCE = {True: 256, False: 8192}

# Held while torch's random generators are a sampled answer's own.
SAMPLING = threading.RLock()


@dataclass(frozen=True, eq=False)
class Encoded:
    """A video as visual tokens, group by group.

    `tokens` (N, D) are in the language model's input space, `saliency` (N,) is float32 >= 0. Each of the `groups` has
    `class_tokens` tokens that stand for no place in the picture, then `height` x `width` cells, row by row.
    `seconds_per_group` is the time from one group to the next. `sources` (groups,) int64 is the group that each takes
    its tokens and saliency from: itself, or an earlier one that shows the same; None if all have their own. `small`
    (groups,) bool marks the groups whose tokens come from a small frame (see `glimpse`); None if there are none.
    """

    tokens: Tensor
    saliency: Tensor
    groups: int
    height: int
    width: int
    class_tokens: int = 0
    seconds_per_group: float = 0.0
    sources: Tensor | None = None
    small: Tensor | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, as (S,) int64 tensors: `before` the visual tokens and `after` them."""

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Generated:
    """What the language model said: the text and how many tokens it took (including its end token)."""

    text: str
    tokens: int


def groups_of(frames: Tensor, size: int) -> tuple[Tensor, ...]:
    """Frames (F, ...) as temporal groups (size, ...); the last frame is repeated to fill its group."""
    missing = -len(frames) % size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])])
    return frames.split(size)


class _AfterPrompt(LogitsProcessor):
    """Wraps a processor that looks at earlier tokens, to show it the ids of the whole unpruned prompt before them."""

    def __init__(self, processor: LogitsProcessor, prompt: Tensor) -> None:
        self.processor, self.prompt = processor, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.processor(torch.cat([self.prompt.expand(len(input_ids), -1), input_ids], dim=1), scores)


class _Streamer(TextStreamer):
    """Passes on finished pieces of text, and reports when the first token came."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], on_first_token: Callable[[], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._on_first_token = on_text, on_first_token

    def put(self, value: Tensor) -> None:
        # generate() passes the prompt first: here it is empty, because the prompt goes in as embeddings.
        if value.numel() and self._on_first_token is not None:
            self._on_first_token()
            self._on_first_token = None  # type: ignore[assignment]
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


class Backend(ABC):
    """One loaded checkpoint of one family.

    A family's class sets `model_class` and implements what is abstract here. Where the defaults do not fit, it also
    overrides `class_tokens`, `area`, `default_frames`, `chat_template`, `visual_token`, `text_config`, and
    `position_ids` with `kept_positions`.
    """

    # The name of transformers' class.
    model_class: ClassVar[str]
    # The published prompt format, for checkpoints that come without a chat template.
    chat_template: ClassVar[str | None] = None
    # How many frames to look at if the user does not say; None: a number per second, as in `Sampling`.
    default_frames: ClassVar[int | None] = None
    # Tokens in each group that stand for no place in the picture; they come first.
    class_tokens: ClassVar[int] = 0
    # What there is to say of the checkpoint.
    warnings: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.template = ChatTemplate(tokenizer, folder)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", dtype: str = "auto") -> Backend:
        """Load a checkpoint folder through transformers' own classes; safetensors only, no remote code.

        Raises:
            ModelError: files that are missing, damaged, or do not fit the family.
            UsageError: a device that this machine does not have.
        """
        device = choose_device(device)
        chosen = choose_dtype(dtype, device)
        tokenizer = load_tokenizer(folder, cls.chat_template)
        model, warnings = load_weights(folder, cls.model_class, device=device, dtype=chosen)
        backend = cls(model, tokenizer, folder)
        backend.warnings = warnings
        return backend

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    # What a family has to define.

    @property
    @abstractmethod
    def frames_per_group(self) -> int:
        """How many frames make one temporal group."""

    @abstractmethod
    def frame_size(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """The (height, width) in pixels that a frame of this size is resized to."""

    def area(self, height: int, width: int) -> Area:
        """The part of a frame of this size, as displayed, that the grid of its tokens divides into equal cells."""
        return Area()

    @abstractmethod
    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the grid of cells that a frame of this `frame_size` becomes."""

    @abstractmethod
    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        """(F, 3, h, w) uint8 frames of `frame_size` as transformers' `get_video_features` takes them."""

    @abstractmethod
    def see(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Turn whole groups of (F, 3, h, w) uint8 frames of `frame_size` into visual tokens, each group independently.

        The number of groups in a call is chosen for speed and must not change the result. It is called in inference
        mode, so it may write in place.

        Returns:
            The tokens (G, n, D) in the language model's input space, `class_tokens` and then the cells, row by row; and
            their saliency (G, n) float32 >= 0.
        """

    # What all families share.

    @property
    def family(self) -> str:
        """`model_type` of config.json."""
        return self.model.config.model_type

    @property
    def visual_token(self) -> int:
        """The id of the token that stands for a visual token in a prompt."""
        return self.model.config.video_token_id

    @property
    def text_config(self) -> Any:
        """The language model's configuration."""
        return self.model.config.get_text_config()

    def encode(self, frames: Tensor, seconds_per_frame: float = 1 / DEFAULT_FPS) -> Encoded:
        """Encode (F, 3, h, w) uint8 frames of `frame_size` as visual tokens with their saliency.

        The last frame is repeated to fill its group.

        Args:
            seconds_per_frame: how long each frame stands for; a family that does not count seconds ignores it.
        """
        encoding = Encoding(self)
        for group in groups_of(frames, self.frames_per_group):
            encoding.add(group)
        return encoding.end(seconds_per_frame)

    def sampling(self, asked: Sampling) -> Sampling:
        """The sampling asked for, with the family's own number of frames if neither fps nor frames was given."""
        if self.default_frames is None or asked.fps is not None or asked.frames is not None:
            return asked
        return replace(asked, frames=min(self.default_frames, asked.max_frames))

    def prompt(self, question: str, system: str | None) -> Prompt:
        """The checkpoint's own chat template around the question, split where the video goes.

        Raises:
            UsageError: a question or system prompt that contains a video marker itself.
            ModelError: a chat template that has none, or cannot be used.
        """
        text = self.template.fill(question, system)
        # As in transformers' processors: a tokenizer that has a BOS token adds it, unless the template already has it.
        first = self.tokenizer.bos_token
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=not (first and text.startswith(first))).input_ids)
        places = (ids == self.visual_token).nonzero().flatten().tolist()
        if not places:
            raise ModelError(f"The chat template of this model has no place for a video (token {self.visual_token}).")
        if len(places) > 1:
            if self.tokenizer(self.template.fill("", system and "")).input_ids.count(self.visual_token) > 1:
                raise ModelError("The chat template of this model has several places for a video.")
            raise UsageError("The question must not contain the model's own marker for a video.")
        return Prompt(ids[: places[0]], ids[places[0] + 1 :])

    def words(self, question: str) -> Tensor:
        """Input embeddings of the question's own tokens, (L, D)."""
        ids = self.tokenizer(question, add_special_tokens=False).input_ids
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    def too_long(self, text: str) -> bool:
        """Whether the tokens of `text` alone are more than the model has positions."""
        most = self.text_config.max_position_embeddings
        # No tokenizer makes tokens of so many characters on average, and it may take minutes to find that out.
        return len(text) > 64 * most or len(self.tokenizer(text, add_special_tokens=False, verbose=False)[0]) > most

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the tokenizer has no token for, each once."""
        unknown = self.tokenizer.unk_token_id
        # An emoji counts as a word, and so does a run of several; punctuation and joining characters do not.
        symbols = "".join(sign if category(sign) == "So" else " " for sign in text).split()
        words = dict.fromkeys([*re.findall(r"[\w'-]+", text), *symbols])
        return [w for w in words if unknown in self.tokenizer(w, add_special_tokens=False).input_ids]

    def inputs(self, prompt: Prompt, encoded: Encoded, kept: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        """The language model's inputs: embeddings and positions of the prompt with the kept tokens, in a batch of B.

        Args:
            kept: (B, K) int64, ascending indices into `encoded.tokens`. Every token keeps the position that it had in
                the full sequence, and so does the text, if `kept_positions` can provide it.
            vectors: (B, K, D), the vectors that stand there.
        """
        embed = self.model.get_input_embeddings()
        before, after = embed(prompt.before.to(self.device)), embed(prompt.after.to(self.device))
        batch, count, begin = len(kept), len(encoded.tokens), len(prompt.before)
        text = [torch.arange(begin), torch.arange(len(prompt.after)) + begin + count]
        places = torch.cat([text[0].expand(batch, -1), begin + kept.cpu(), text[1].expand(batch, -1)], dim=1)
        position_ids = self.kept_positions(prompt, encoded, places).to(self.device)
        parts = [before.expand(batch, -1, -1), vectors.to(before), after.expand(batch, -1, -1)]
        return {
            "inputs_embeds": torch.cat(parts, dim=1),
            "attention_mask": torch.ones_like(places, device=self.device),
            "position_ids": position_ids if len(position_ids) > 1 else position_ids[0],
        }

    def position_ids(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        """Positions of the whole unpruned sequence, (axes, S) int64 with S = before + N + after: here 0 to S - 1."""
        return torch.arange(len(prompt.before) + len(encoded.tokens) + len(prompt.after)).unsqueeze(0)

    def kept_positions(self, prompt: Prompt, encoded: Encoded, places: Tensor) -> Tensor:
        """The original positions (axes, B, S') of the tokens at `places` (B, S') of the unpruned sequence.

        If the unpruned sequence has more positions than the model supports, they are closed up, on one axis; a family
        with more axes must override this.

        Raises:
            UsageError: more tokens than the model has positions.
        """
        most, count = self.text_config.max_position_embeddings, places.shape[1]
        if count > most:
            raise UsageError(
                f"The prompt takes {count} tokens, and this model reads at most {most}: "
                "look at fewer frames or keep less."
            )
        positions = self.position_ids(prompt, encoded)
        if positions.shape[1] <= most:
            return positions[:, places]
        return torch.arange(count).expand(1, len(places), -1)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Prompt,
        encoded: Encoded,
        kept: Tensor,
        vectors: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_text: Callable[[str], None],
        on_first_token: Callable[[], None],
    ) -> Generated:
        """Answer from the kept tokens, through transformers' `generate`.

        At temperature 0 it is greedy; above, it samples (with the checkpoint's own top-k and top-p). Penalties from its
        `generation_config.json` see the prompt's ids as they would without pruning.

        Args:
            kept: (K,) int64, ascending indices into `encoded.tokens`.
            vectors: (K, D), the vectors that stand there.
        """
        inputs = self.inputs(prompt, encoded, kept.unsqueeze(0), vectors.unsqueeze(0))
        streamer = _Streamer(self.tokenizer, on_text, on_first_token)
        with self._seeded(seed) if temperature else contextlib.nullcontext():
            output = self._generate(prompt, encoded, inputs, max_new_tokens, temperature, streamer)
        return Generated(self.tokenizer.decode(output[0], skip_special_tokens=True).strip(), output.shape[1])

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Sampling draws from the generators that all threads share: one at a time has them, and puts them back."""
        with SAMPLING, torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @torch.inference_mode()
    def answers(
        self, prompt: Prompt, encoded: Encoded, kept: Tensor, vectors: Tensor, *, max_new_tokens: int
    ) -> list[str]:
        """Answer one question from B selections of K tokens each, batched: greedily, as `generate` would one by one.

        Args:
            kept: (B, K) int64, ascending indices into `encoded.tokens`.
            vectors: (B, K, D), the vectors that stand there.
        """
        inputs = self.inputs(prompt, encoded, kept, vectors)
        output = self._generate(prompt, encoded, inputs, max_new_tokens)
        return [self.tokenizer.decode(said, skip_special_tokens=True).strip() for said in output]

    def _generate(
        self,
        prompt: Prompt,
        encoded: Encoded,
        inputs: dict[str, Tensor],
        max_new_tokens: int,
        temperature: float = 0.0,
        streamer: TextStreamer | None = None,
    ) -> Tensor:
        """The (B, T) ids that follow B prompts."""
        config = copy.deepcopy(self.model.generation_config)
        processors = LogitsProcessorList()
        ids = torch.cat(
            [prompt.before, torch.full((len(encoded.tokens),), self.visual_token), prompt.after]
        ).to(self.device)  # fmt: skip
        # generate() replaces None with the model's own setting, so it takes neutral values to switch something off.
        if config.repetition_penalty not in (None, 1.0):
            penalty = RepetitionPenaltyLogitsProcessor(config.repetition_penalty)
            processors.append(_AfterPrompt(penalty, ids.unsqueeze(0)))
            config.repetition_penalty = 1.0
        if config.no_repeat_ngram_size:
            processors.append(_AfterPrompt(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size), ids.unsqueeze(0)))
            config.no_repeat_ngram_size = 0
        config.max_new_tokens = max_new_tokens
        config.do_sample = temperature > 0
        if config.do_sample:
            config.temperature = temperature
        else:
            config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
        return self.model.generate(**inputs, generation_config=config, logits_processor=processors, streamer=streamer)

    def kv_cache_bytes(self, tokens: BeforeAfter) -> BeforeAfter:
        """Bytes of keys and values that a prompt of this many tokens leaves in the cache, in the model's dtype."""
        config = self.text_config
        heads = config.num_key_value_heads
        each = 2 * config.num_hidden_layers * heads * self._head_dim * self.dtype.itemsize
        return BeforeAfter(each * tokens.before, each * tokens.after)

    def prefill_flops(self, tokens: BeforeAfter) -> BeforeAfter:
        """Floating-point operations of the language model's pass over a prompt.

        Two per weight and token in the layers, causal attention, and the output layer for the last token.
        """
        config = self.text_config
        linear = sum(
            parameter.numel()
            for name, parameter in self.model.get_decoder().named_parameters()
            if parameter.ndim == 2 and "embed_tokens" not in name
        )
        # Scores and weighted values: two (S x d) by (S x d) products per head, half of which the causal mask saves.
        attention = 2 * config.num_hidden_layers * config.num_attention_heads * self._head_dim
        last = 2 * config.hidden_size * config.vocab_size

        def flops(count: int) -> int:
            return 2 * linear * count + attention * count**2 + last

        return BeforeAfter(flops(tokens.before), flops(tokens.after))

    @property
    def _head_dim(self) -> int:
        config = self.text_config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class Encoding:
    """Temporal groups on their way through the vision encoder; they may be added one by one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sources: list[int] = []
        self._own: list[int] = []
        self._waiting: list[Tensor] = []
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._cells = (0, 0)

    def add(self, group: Tensor, source: int | None = None) -> None:
        """Add the next group, (frames_per_group, 3, h, w) uint8 frames of `frame_size`.

        Args:
            source: the index of the group whose tokens it uses: an earlier one that has its own, or this one; None
                means this one.
        """
        number = len(self._sources)
        self._cells = self._backend.cells((group.shape[2], group.shape[3]))
        self._sources.append(number if source is None else source)
        if self._sources[-1] == number:
            self._own.append(number)
            self._waiting.append(group)
            cells = self._cells[0] * self._cells[1]
            if len(self._waiting) == max(1, CELLS_AT_ONCE[self._backend.device.type == "cpu"] // cells):
                self._see()

    @torch.inference_mode()
    def end(self, seconds_per_frame: float) -> Encoded:
        """All groups that were added, each frame standing for this many seconds."""
        if self._waiting:
            self._see()
        groups = len(self._sources)
        sources, device = torch.tensor(self._sources), self._backend.device
        places = torch.searchsorted(torch.tensor(self._own), sources).to(device)
        return Encoded(
            torch.cat([tokens for tokens, _ in self._seen])[places].flatten(0, 1),
            torch.cat([saliency for _, saliency in self._seen])[places].flatten(),
            groups,
            *self._cells,
            self._backend.class_tokens,
            seconds_per_frame * self._backend.frames_per_group,
            None if len(self._own) == groups else sources,
        )

    @torch.inference_mode()
    def _see(self) -> None:
        tokens, saliency = self._backend.see(torch.cat(self._waiting))
        expected = (len(self._waiting), self._backend.class_tokens + self._cells[0] * self._cells[1])
        if not tokens.shape[:2] == saliency.shape == expected:
            raise ValueError(
                f"{self._backend.family}: tokens {tuple(tokens.shape)} and saliency {tuple(saliency.shape)} do not fit "
                f"{expected[0]} groups of {expected[1]}: {self._backend.class_tokens} class tokens and "
                f"{self._cells[0]} x {self._cells[1]} cells."
            )
        self._seen.append((tokens, saliency))
        self._waiting = []
