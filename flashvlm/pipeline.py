"""The one place where the stages meet: decode -> encode -> select -> generate -> report."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from flashvlm import aside, backends, files, glimpse, models, pixels, video
from flashvlm.backends.base import Backend, Encoded
from flashvlm.backends.loading import DTYPES
from flashvlm.cache import FeatureCache, Features, entry_key
from flashvlm.errors import ModelError, UsageError
from flashvlm.options import DEFAULT_KEEP, DEFAULT_SELECTOR, AskOptions, Keep, Sampling
from flashvlm.report import (
    Answer,
    BeforeAfter,
    Inspection,
    ModelFacts,
    StageSeconds,
    VideoFacts,
    versions,
)
from flashvlm.reporting import moments, selection_facts, settings_of, signal
from flashvlm.seeing import Seeing
from flashvlm.selection import select
from flashvlm.selection.directions import Directions
from flashvlm.selection.merge import merge
from flashvlm.selection.result import Selection
from flashvlm.selection.weights import standing_out


@dataclass(frozen=True)
class Decoded:
    """A video that is decoded and not yet encoded; `options` say how to do that.

    `key` is the key of its future entry in the feature cache, if any.
    """

    clip: video.Clip
    seconds: float
    options: AskOptions
    key: str | None = None


@dataclass(frozen=True, eq=False)
class Watched:
    """A decoded and encoded video: facts, timestamps of the sampled frames in seconds, tokens, times, and the
    options that it was looked at with.

    `cached`: the tokens come from the feature cache (finding them took `decode_seconds`) or from an earlier question.
    `frames` (F, 3, h, w) uint8 are there if they were only seen small and may be looked at again; else None.
    """

    facts: VideoFacts
    timestamps: tuple[float, ...]
    encoded: Encoded
    decode_seconds: float
    encode_seconds: float
    options: AskOptions
    cached: bool = False
    warnings: tuple[str, ...] = ()
    frames: torch.Tensor | None = None

    def again(self) -> Watched:
        """The same video for a further question, for which nothing was decoded or encoded."""
        return replace(self, decode_seconds=0.0, encode_seconds=0.0, cached=True, warnings=())


@dataclass(frozen=True, eq=False)
class Choice:
    """The tokens of a video that were chosen for a question, or for none, and the seconds that this took.

    `vectors` (K, D) are what the language model gets for them.
    """

    question: str | None
    options: AskOptions
    selection: Selection
    vectors: torch.Tensor
    seconds: float


class VideoQA:
    """A loaded model that answers any number of questions on any number of videos."""

    def __init__(self, backend: Backend, name: str, load_seconds: float = 0.0) -> None:
        self.backend, self.name, self.load_seconds = backend, name, load_seconds

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = models.DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        on_download: Callable[[int, int], None] = lambda done, total: None,
    ) -> VideoQA:
        """Load a model: an alias (`demo`), a Hugging Face id, or a checkpoint folder.

        Args:
            device: `auto`, `cpu`, `cuda` (or `cuda:1`, say) or `mps`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            revision: a branch, tag or commit of a model on the hub.
            on_download: gets the bytes downloaded so far and the bytes wanted, while the model is downloaded.

        Raises:
            ModelError: the model is not available, incomplete, too large, or of a family without a backend.
            UsageError: the dtype is unknown, the device is not on this machine, or a revision of a folder is asked for.
        """
        if dtype not in ("auto", *DTYPES):
            raise UsageError(f"The dtype is one of auto, {', '.join(DTYPES)}; not {dtype!r}.")
        folder = models.fetch(str(model), revision, on_download)
        begin = time.perf_counter()
        backend = backends.load(folder, device=str(device), dtype=dtype)
        return cls(backend, str(model), time.perf_counter() - begin)

    def ask(
        self,
        path: str | Path,
        question: str,
        options: AskOptions | None = None,
        *,
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
        **settings: Any,
    ) -> Answer:
        """Answer one question on one video (or still image).

        Args:
            options: everything that can be set; `settings` override single fields of `AskOptions` or `Sampling`
                (`keep=0.1`, `selector="uniform"`, `fps=1`, `start=10`).
            on_text: gets the answer piece by piece as it is generated.
            on_stage: gets `decode`, `encode`, `select`, `prefill` and `generate` as each begins.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the options or the question make no sense.
            ModelError: the model makes tokens that are not finite numbers.
        """
        options = _options(AskOptions() if options is None else options, settings)
        self._check(question, options)
        watched = self.watch(path, options, on_stage=on_stage)
        return self.answer(watched, question, options, on_text=on_text, on_stage=on_stage)

    def watch(
        self, path: str | Path, options: AskOptions, *, on_stage: Callable[[str], None] = lambda stage: None
    ) -> Watched:
        """Decode and encode a video once, for any number of questions on it (`answer`), which may differ in all options
        that do not concern the video.

        With `options.overlap`, `decode_seconds` lasts until the last frame has arrived, longer than decoding alone, and
        `encode_seconds` counts from then on.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the part asked for does not exist.
        """
        _check_options(options)
        if options.overlap:
            return self._watch_overlapped(path, options, on_stage)
        return self.encode(self.decode(path, options, on_stage=on_stage), on_stage=on_stage)

    def _watch_overlapped(self, path: str | Path, options: AskOptions, on_stage: Callable[[str], None]) -> Watched:
        begin = time.perf_counter()
        arriving: SimpleQueue[tuple[int, torch.Tensor] | None] = SimpleQueue()
        given_up = threading.Event()

        def hand_on(number: int, frame: torch.Tensor) -> None:
            if given_up.is_set():
                raise _GivenUpError
            if number == 0:
                # The frames that wait here will come again.
                with contextlib.suppress(Empty):
                    while True:
                        arriving.get_nowait()
            arriving.put((number, frame))

        def decode() -> Decoded | Watched:
            try:
                return self.decode(path, options, on_frame=hand_on)
            finally:
                arriving.put(None)

        on_stage(stage := "decode")
        decoding: Future[Decoded | Watched] = aside.begin(decode, "decode")
        try:
            for number, frame in iter(arriving.get, None):
                if stage == "decode" and decoding.done():
                    # A video that cannot be read fails here, not only after all waiting frames are encoded.
                    decoding.result()
                    on_stage(stage := "encode")
                if number == 0:
                    seeing = Seeing(self.backend, options.encode, options.look)
                seeing.add(frame)
            decoded = decoding.result()
            if isinstance(decoded, Watched):
                return decoded
            if stage == "decode":
                on_stage("encode")
            encoded = seeing.end(decoded.clip.seconds_per_frame)
        except BaseException:
            given_up.set()
            # Takes as long as the current frame: a thread that is cut off inside the decoder aborts the process.
            wait([decoding])
            raise
        self.backend.wait()
        return self._seen(decoded, encoded, time.perf_counter() - begin - decoded.seconds)

    def decode(
        self,
        path: str | Path,
        options: AskOptions,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        on_frame: Callable[[int, torch.Tensor], None] = lambda number, frame: None,
    ) -> Decoded | Watched:
        """The first half of `watch`: the frames or, if the feature cache has them, the tokens.

        It runs no model, so it can run in a thread of its own while the model is at work.

        Args:
            on_frame: gets each frame's number and the frame as soon as it is there; from 0 again if they are reread.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the part asked for does not exist, or the size set for the cache is invalid.
        """
        self._check(None, options)
        status = files.check_video(path)
        on_stage("decode")
        begin = time.perf_counter()

        def fit(frame: torch.Tensor) -> torch.Tensor:
            height, width = frame.shape[1:]
            return pixels.resize(frame, self.backend.frame_size(height, width, options.max_pixels))

        # A second look needs frames, which the cache does not keep.
        cached = options.cache and options.look == "once"
        key = entry_key(path, self.backend, self._fingerprint, options) if cached else None
        found = None if key is None else self._cache.get(key, self.backend.device)
        if found is not None:
            seconds = time.perf_counter() - begin
            facts = found.facts.of(path, status)
            took, told = (seconds, 0.0), self.backend.warnings
            return Watched(facts, found.timestamps, found.encoded, *took, options, cached=True, warnings=told)
        clip = video.decode(path, self.backend.sampling(options.sampling), fit, options.seek, on_frame)
        return Decoded(clip, time.perf_counter() - begin, options, key)

    def encode(self, decoded: Decoded | Watched, *, on_stage: Callable[[str], None] = lambda stage: None) -> Watched:
        """The second half of `watch`: the tokens of what `decode` returned, stored in the feature cache if asked."""
        if isinstance(decoded, Watched):
            return decoded
        clock = _Clock(on_stage, self.backend)
        clock.start("encode")
        seeing = Seeing(self.backend, decoded.options.encode, decoded.options.look)
        for frame in decoded.clip.frames:
            seeing.add(frame)
        encoded = seeing.end(decoded.clip.seconds_per_frame)
        clock.stop()
        return self._seen(decoded, encoded, clock.seconds["encode"])

    def _seen(self, decoded: Decoded, encoded: Encoded, seconds: float) -> Watched:
        clip = decoded.clip
        warnings = self.backend.warnings
        if decoded.key is not None:
            try:
                self._cache.put(decoded.key, Features(clip.facts, clip.timestamps, encoded))
            except OSError as error:
                told = f"The feature cache {self._cache.folder} cannot be written: {error.strerror or error}."
                warnings = (*warnings, told)
        options = decoded.options
        frames = clip.frames if options.look == "twice" else None
        took = (decoded.seconds, seconds)
        return Watched(clip.facts, clip.timestamps, encoded, *took, options, warnings=warnings, frames=frames)

    def look_again(
        self,
        watched: Watched,
        question: str | None,
        options: AskOptions,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Watched:
        """Encode the ends and what the question asks about at full size, if the video was seen in small frames.

        Any other video is returned as it is. `answer` does this first, before `choose` and `respond`.
        """
        encoded = watched.encoded
        if watched.frames is None:
            return watched
        clock = _Clock(on_stage, self.backend)
        clock.start("encode")
        going_by = replace(options, keep=Keep.parse(DEFAULT_KEEP), selector=DEFAULT_SELECTOR, merge=False)
        scores = self.choose(watched, question, going_by).selection.scores.view(encoded.groups, -1)
        like = torch.arange(encoded.groups) if encoded.sources is None else encoded.sources
        moments = glimpse.worth_another_look(scores, like)
        size = self.backend.frames_per_group
        places = (moments[:, None] * size + torch.arange(size)).flatten().clamp(max=len(watched.frames) - 1)
        full = glimpse.put_in(encoded, self.backend.encode(watched.frames[places]), moments)
        clock.stop()
        seconds = watched.encode_seconds + clock.seconds["encode"]
        return replace(watched, encoded=full, encode_seconds=seconds, cached=False, frames=None)

    def answer(
        self,
        watched: Watched,
        question: str,
        options: AskOptions,
        *,
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Answer:
        """Answer a question on a video that `watch` has encoded: `look_again`, `choose`, then `respond`.

        The answer's times include decoding and encoding, unless it is given `watched.again()`.

        Raises:
            UsageError: the question or the selector makes no sense.
            ModelError: the model makes tokens that are not finite numbers.
        """
        watched = self.look_again(watched, question, options, on_stage=on_stage)
        choice = self.choose(watched, question, options, on_stage=on_stage)
        return self.respond(watched, choice, on_text=on_text, on_stage=on_stage)

    def choose(
        self,
        watched: Watched,
        question: str | None,
        options: AskOptions,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Choice:
        """Choose the tokens of a video that the language model gets; a `question` of None chooses for the video alone.

        Raises:
            UsageError: the question or the selector makes no sense.
            ModelError: the model makes tokens that are not finite numbers.
        """
        self._check(question, options)
        encoded, clock = watched.encoded, _Clock(on_stage, self.backend)
        count = len(encoded.tokens)
        clock.start("select")
        try:
            selection = select(
                encoded.tokens,
                encoded.saliency,
                self.backend.words(question or ""),
                group_sizes=[count // encoded.groups] * encoded.groups,
                budget=options.keep.budget(count),
                delta=options.keep.delta,
                selector=options.selector,
                metric=options.metric,
                seed=options.seed,
            )
        except UsageError as error:
            if encoded.tokens.isfinite().all() and encoded.saliency.isfinite().all():
                raise
            dtype = self._facts().dtype
            why = f"its weights are damaged, or too large for {dtype}"
            raise ModelError(f"{self.name} makes tokens that are not finite numbers: {why}.") from error
        vectors = merge(selection) if options.merge else selection.vectors
        clock.stop()
        return Choice(question, options, selection, vectors, clock.seconds["select"])

    def respond(
        self,
        watched: Watched,
        choice: Choice,
        *,
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Answer:
        """Answer the question from the tokens that were chosen for it: generate, report.

        Raises:
            UsageError: the tokens were chosen for no question, or from another video.
        """
        _check_choice(watched, choice)
        if choice.question is None:
            raise UsageError("The question is empty.")
        question, options, selection = choice.question, choice.options, choice.selection
        backend, encoded, clock = self.backend, watched.encoded, _Clock(on_stage, self.backend)
        prompt = backend.prompt(question, options.system)
        clock.start("prefill")
        generated = backend.generate(
            prompt,
            encoded,
            selection.indices,
            choice.vectors,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            on_text=on_text,
            on_first_token=lambda: clock.start("generate"),
        )
        clock.start("delta")
        chosen = selection_facts(choice.options, selection)
        clock.stop()
        before = {"decode": watched.decode_seconds, "encode": watched.encode_seconds, "select": choice.seconds}
        seconds = before | clock.seconds
        first = sum(seconds[stage] for stage in ("decode", "encode", "select", "prefill"))
        text = len(prompt.before) + len(prompt.after)
        shared = self._shared(watched, choice)
        prompt_tokens = BeforeAfter(text + shared["tokens"].before, text + shared["tokens"].after)
        return Answer(
            **shared,
            answer=generated.text,
            generated_tokens=generated.tokens,
            prompt_tokens=prompt_tokens,
            kv_cache_bytes=backend.kv_cache_bytes(prompt_tokens),
            prefill_flops=backend.prefill_flops(prompt_tokens),
            selection=chosen,
            seconds=StageSeconds(
                load=self.load_seconds,
                **seconds,
                time_to_first_token=first,
                total=first + seconds["generate"],
            ),
        )

    @torch.inference_mode()
    def inspect(self, watched: Watched, choice: Choice) -> Inspection:
        """Report which tokens were chosen, where they lie, and what the selector based its choice on.

        Raises:
            UsageError: the tokens were chosen from another video.
        """
        _check_choice(watched, choice)
        backend, encoded, selection = self.backend, watched.encoded, choice.selection
        clock = _Clock(lambda stage: None, backend)
        clock.start("delta")
        chosen = selection_facts(choice.options, selection)
        clock.stop()
        signals = {"saliency": encoded.saliency}
        if choice.question is not None:
            signals["relevance"] = standing_out(Directions.of(encoded.tokens), backend.words(choice.question))
        if selection.scores.any():
            signals["score"] = selection.scores
        return Inspection(
            **self._shared(watched, choice),
            selection=chosen,
            seconds={
                "load": self.load_seconds,
                "decode": watched.decode_seconds,
                "encode": watched.encode_seconds,
                "select": choice.seconds,
                **clock.seconds,
            },
            signals={name: signal(values, encoded) for name, values in signals.items()},
        )

    def _shared(self, watched: Watched, choice: Choice) -> dict[str, Any]:
        """What an answer and an inspection both report."""
        facts, encoded, selection = watched.facts, watched.encoded, choice.selection
        return {
            "question": choice.question,
            "model": self._facts(),
            "video": facts,
            "frames": len(watched.timestamps),
            "tokens": BeforeAfter(len(encoded.tokens), len(selection.indices)),
            "moments": moments(watched.timestamps, encoded, selection, self.backend.frames_per_group),
            "area": self.backend.area(facts.height, facts.width),
            "settings": settings_of(watched.options, choice.options),
            "versions": versions(),
            "warnings": self._warnings(watched, choice),
            "cached": watched.cached,
        }

    def _warnings(self, watched: Watched, choice: Choice) -> tuple[str, ...]:
        unknown = self.backend.unknown_words(f"{choice.question or ''} {choice.options.system or ''}")
        return (
            *watched.warnings,
            *((f"This model does not know: {', '.join(unknown)}. Its answer may be off.",) if unknown else ()),
        )

    def _check(self, question: str | None, options: AskOptions) -> None:
        _check_options(options)
        if question is not None and not isinstance(question, str):
            raise UsageError(f"The question must be a text, not {question!r}.")
        if question is not None and not question.strip():
            raise UsageError("The question is empty.")
        for name, text in (("question", question), ("system prompt", options.system)):
            # A stray byte on the command line, or half of a surrogate pair in JSON: no tokenizer takes either.
            if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"The {name} is not valid Unicode.")
            if text is not None and self.backend.too_long(text):
                most = self.backend.text_config.max_position_embeddings
                raise UsageError(f"The {name} is longer than the {most} tokens that this model reads.")

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.of_user()

    @cached_property
    def _fingerprint(self) -> str:
        # A change that the samples miss would give wrong answers: the weights' modification times count, too.
        written = sorted(path.stat().st_mtime_ns for path in self.backend.folder.glob("*.safetensors"))
        return f"{models.fingerprint(self.backend.folder)} {written}"

    def _facts(self) -> ModelFacts:
        backend = self.backend
        dtype = str(backend.dtype).removeprefix("torch.")
        revision = models.revision_of(backend.folder)
        return ModelFacts(self.name, str(backend.folder), backend.family, backend.device.type, dtype, revision)


class _GivenUpError(Exception):
    """Nobody waits for the frames of this video any more."""


class _Clock:
    """Wall-clock seconds of consecutive stages; waits for the device before it reads the time."""

    def __init__(self, on_stage: Callable[[str], None], backend: Backend) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage, self._backend = on_stage, backend
        self._stage: str | None = None
        self._since = 0.0

    def start(self, stage: str) -> None:
        self.stop()
        if stage != "delta":
            self._on_stage(stage)
        self._stage, self._since = stage, time.perf_counter()

    def stop(self) -> None:
        if self._stage is None:
            return
        self._backend.wait()
        self.seconds[self._stage] = time.perf_counter() - self._since
        self._stage = None


def _check_choice(watched: Watched, choice: Choice) -> None:
    mine, theirs = watched.encoded.tokens, choice.selection.tokens
    same = len(mine) == len(theirs) and mine[choice.selection.indices].equal(theirs[choice.selection.indices])
    if not same:
        raise UsageError("These tokens were chosen from another video, or from one that was looked at in another way.")


def _check_options(options: AskOptions) -> None:
    if not isinstance(options, AskOptions):
        raise UsageError(f"options must be AskOptions, not {options!r}.")


def _options(options: AskOptions, settings: dict[str, Any]) -> AskOptions:
    _check_options(options)
    sampling = {name: settings.pop(name) for name in list(settings) if name in Sampling.__dataclass_fields__}
    unknown = [name for name in settings if name not in AskOptions.__dataclass_fields__]
    if unknown:
        raise UsageError(f"There is no option {unknown[0]!r}.")
    if "keep" in settings:
        settings["keep"] = Keep.parse(settings["keep"])
    options = replace(options, **settings)
    return replace(options, sampling=replace(options.sampling, **sampling))
