"""The one place where the stages meet: decode -> encode -> select -> generate -> report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import torch

from flashvlm import backends, models, subtitles, units
from flashvlm.backends.base import Backend, Prompt
from flashvlm.cache import CachedVideo, FeatureCache, entry_key
from flashvlm.encode import Encoded, check_look, encode, second_look, together
from flashvlm.errors import ModelError, UsageError
from flashvlm.files import check_video
from flashvlm.forcing import everything, first_difference, force
from flashvlm.generate import generate, kv_cache_bytes, lifts_top_k, prefill_flops
from flashvlm.options import DEFAULT_KEEP, DEFAULT_SELECTOR, DTYPES, Arguments, AskOptions, Keep
from flashvlm.report import (
    Answer,
    BeforeAfter,
    Check,
    Inspection,
    ModelFacts,
    StageSeconds,
    VideoFacts,
    moments,
    selection_facts,
    settings_of,
    signal,
    versions,
)
from flashvlm.selection import select
from flashvlm.selection.blocks import Directions
from flashvlm.selection.flashvlm import relevance
from flashvlm.selection.result import Selection
from flashvlm.video import Clip, Frames, Limits, decode
from flashvlm.video.memory import taken
from flashvlm.words import content_words

# An error names at most so many words that the model does not know.
NAMED = 5

if TYPE_CHECKING:
    from flashvlm.video.memory import Given

# Several videos. Not a `Sequence`, which a text is, too.
Several = list[Any] | tuple[Any, ...]
# Earlier questions, each with its answer.
History = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A video that was read and is not yet encoded, or one whose tokens the feature cache had."""

    # Its frames, unless the cache had its tokens; if they are many, most are read only as they are encoded.
    clip: Clip | None
    # What the cache had.
    found: CachedVideo | None
    # How long reading or finding it took.
    seconds: float
    # How it is to be encoded.
    options: AskOptions
    # The key of its future entry in the feature cache, if it is to be stored.
    key: str | None = None


@dataclass(frozen=True, eq=False)
class Watched:
    """A decoded and encoded video, for any number of questions."""

    facts: VideoFacts
    encoded: Encoded
    decode_seconds: float
    encode_seconds: float
    # The options that it was looked at with.
    options: AskOptions
    # Its tokens come from the feature cache (finding them took `decode_seconds`) or from an earlier question.
    cached: bool = False
    warnings: tuple[str, ...] = ()
    # (F, 3, h, w) uint8, if it was only encoded from small frames and is to get a second look; else None.
    frames: torch.Tensor | None = None

    @property
    def timestamps(self) -> tuple[float, ...]:
        """The second at which each sampled frame appears."""
        return self.encoded.timestamps

    def __repr__(self) -> str:
        count, looked = len(self.encoded.tokens), units.plural(len(self.timestamps), "frame")
        return f"<Watched {Path(self.facts.path).name}: {looked}, {count} tokens>"

    def again(self) -> Watched:
        """The same video for a further question, for which nothing was decoded or encoded."""
        return replace(self, decode_seconds=0.0, encode_seconds=0.0, cached=True, warnings=())


@dataclass(frozen=True, eq=False)
class Choice:
    """The tokens of one or several videos that were chosen for a question, or for none."""

    question: str | None
    options: AskOptions
    # The videos that they were chosen from, after any second look.
    videos: tuple[Watched, ...]
    # Of the tokens of all videos, one after the other.
    selection: Selection
    # (P, K, D): the chosen tokens' further features, if the model has any.
    planes: torch.Tensor | None
    # How long the choice took.
    seconds: float

    def __repr__(self) -> str:
        return f"<Choice of {self.selection!r} for {self.question!r}>"


class VideoQA:
    """A loaded model that answers any number of questions on any number of videos.

    Its methods take options as arguments (`keep="10%", fps=1, start="1:30"`), as an `AskOptions`, or as both; arguments
    then stand in for single options of it.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        name: str | None = None,
        load_seconds: float = 0.0,
        *,
        model: Any = None,
        processor: Any = None,
    ) -> None:
        """Wrap a model that is loaded already: `VideoQA(model=model, processor=processor)`.

        Nothing of it is kept in the feature cache, since no file tells its weights.

        Args:
            backend: what `flashvlm.backends` made of a model; instead of `model` and `processor`.
            name: what answers call the model.
            model: of transformers; it is put into evaluation mode.
            processor: the model's own.

        Raises:
            UsageError: these are no model and processor.
            ModelError: the family is not supported, or the processor does not fit.
        """
        if backend is not None and not isinstance(backend, Backend):
            raise UsageError(
                "VideoQA.from_pretrained loads a checkpoint; VideoQA(model=..., processor=...) wraps a model."
            )
        if backend is None:
            backend = backends.wrap(model, processor)
            name = name or Path(model.config.name_or_path).name
        name = name or backend.model_class
        self.backend, self.name, self.load_seconds = backend, name, load_seconds

    def __repr__(self) -> str:
        facts = self._facts()
        return f"<VideoQA {facts.name}: {facts.family}, {facts.device}, {facts.dtype}>"

    @property
    def single_turn(self) -> bool:
        """Whether the model was trained on single questions, so that a history makes its answers worse."""
        return self.backend.single_turn

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = models.DEFAULT_MODEL,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        on_download: Callable[[int, int], None] = lambda done, total: None,
    ) -> VideoQA:
        """Load a model: an alias (`demo`), a Hugging Face id, or a checkpoint folder.

        Args:
            device: `auto`, `cpu`, `cuda` (or `cuda:1`, say) or `mps`.
            dtype: `auto`, `float32`, `bfloat16`, `float16` or, on a CPU, `int8`; or torch's own (`torch.float32`).
            revision: a branch, tag or commit of a model on the hub.
            on_download: gets the bytes downloaded so far and the bytes wanted, while the model is downloaded.

        Raises:
            ModelError: the model is not available, incomplete, too large, or of a family without a backend.
            UsageError: the dtype is unknown, the device is not on this machine, or a revision of a folder is asked for.
        """
        named = str(dtype).removeprefix("torch.")
        if named not in DTYPES:
            raise UsageError(f"The dtype is one of {', '.join(DTYPES)}; not {dtype!r}.")
        folder = models.fetch(str(model), revision, on_download)
        begin = time.perf_counter()
        backend = backends.load(folder, device=str(device), dtype=named)
        return cls(backend, str(model), time.perf_counter() - begin)

    def ask(
        self,
        video: Given | Several,
        question: str,
        options: AskOptions | None = None,
        *,
        history: History = (),
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Answer:
        """Answer one question on one video (or still image), or on several.

        Args:
            video: its path, its web address (with yt-dlp), its bytes or an open file; `flashvlm.Frames`; a picture
                (an array, a tensor or one of Pillow). Or a list of several; the budget is for all of them together.
            options: everything that can be set; `given` stands in for single options of it.
            history: the earlier questions on the video, each with its answer, as for `answer`.
            on_text: gets the answer piece by piece as it is generated.
            on_stage: gets `decode`, `encode`, `select`, `prefill`, `generate` and, with `check`, that as each begins.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the options or the question make no sense, or the model cannot read a word of the question.
            ModelError: the model makes tokens that are not finite numbers.
        """
        options = _options(options, given)
        self.check(question, options, history)
        self._check_words(question)
        watched = self.watch(video, options, on_stage=on_stage)
        return self.answer(watched, question, options, history=history, on_text=on_text, on_stage=on_stage)

    @overload
    def watch(
        self,
        video: Given,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = ...,
        **given: Unpack[Arguments],
    ) -> Watched: ...

    @overload
    def watch(
        self,
        video: Several,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = ...,
        **given: Unpack[Arguments],
    ) -> tuple[Watched, ...]: ...

    def watch(
        self,
        video: Given | Several,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Watched | tuple[Watched, ...]:
        """Decode and encode a video once, for any number of questions on it (`answer`), which may differ in all options
        that do not concern the video.

        Args:
            video: as for `ask`. The options are for each of several.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the part asked for does not exist.
        """
        options = _options(options, given)
        several = [taken(one) for one in (video if isinstance(video, list | tuple) else [video])]
        watched = (self.encode(self.decode(one, options, on_stage=on_stage), on_stage=on_stage) for one in several)
        return tuple(watched) if isinstance(video, list | tuple) else next(watched)

    def decode(
        self,
        video: Given,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Decoded:
        """The first half of `watch`: the frames or, if the feature cache has them, the tokens.

        It runs no model, so it can run in a thread of its own while the model is at work.

        Raises:
            VideoError: the video cannot be read.
            UsageError: the part asked for does not exist, or the size set for the cache is invalid.
        """
        options = _options(options, given)
        self.check(None, options)
        path = taken(video)
        on_stage("decode")
        begin = time.perf_counter()

        # A second look needs frames, which the cache does not keep.
        key = None
        if options.cache and options.look == "once" and self._fingerprint and not isinstance(path, Frames):
            status = check_video(path)
            key = entry_key(path, self.backend, self._fingerprint, options)
            found = None if key is None else self._cache.get(key, self.backend.device)
            if found is not None:
                found = replace(found, facts=found.facts.of(path, status))
                return Decoded(None, found, time.perf_counter() - begin, options)
        clip = decode(
            path,
            self.backend.sampling(options.sampling),
            lambda frame, frames: self.backend.fit(frame, options, frames),
            options.seek,
            Limits(options.timeout, options.max_source_pixels),
        )
        return Decoded(clip, None, time.perf_counter() - begin, options, key)

    def encode(self, decoded: Decoded, *, on_stage: Callable[[str], None] = lambda stage: None) -> Watched:
        """The second half of `watch`: the tokens of what `decode` returned, stored in the feature cache if asked.

        It can be done once: of many frames, most are read only now, and dropped.

        Raises:
            VideoError: such a frame cannot be read.
        """
        options, clip, found = decoded.options, decoded.clip, decoded.found
        if found is not None:
            took, warnings = (decoded.seconds, 0.0), self.backend.warnings
            return Watched(found.facts, found.encoded, *took, options, cached=True, warnings=warnings)
        assert clip is not None
        clock = _Clock(on_stage, self.backend)
        clock.start("encode")
        reading = _Timed(clip.frames)
        # A second look needs all frames.
        frames = together(reading) if options.look == "twice" and not clip.facts.still else None
        if clip.facts.still:
            encoded = self.backend.picture(next(reading), options)
        else:
            encoded = encode(
                self.backend,
                reading if frames is None else frames,
                which=options.encode,
                look=options.look,
                seconds_per_frame=clip.seconds_per_frame,
                timestamps=clip.timestamps,
                duration=clip.facts.duration,
            )
        clock.stop()
        warnings = self.backend.warnings
        if decoded.key is not None:
            try:
                self._cache.put(decoded.key, CachedVideo(clip.facts, encoded))
            except OSError as error:
                told = f"The feature cache {self._cache.folder} cannot be written: {error.strerror or error}."
                warnings = (*warnings, told)
        seconds = decoded.seconds + reading.seconds, clock.seconds["encode"] - reading.seconds
        return Watched(clip.facts, encoded, *seconds, options, warnings=warnings, frames=frames)

    def look_again(
        self,
        watched: Watched,
        question: str | None,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Watched:
        """Encode the ends and what the question asks about at full size, if the video was seen in small frames.

        Any other video is returned as it is. `choose` does this first, for each video by itself.
        """
        if watched.frames is None:
            return watched
        options = _options(options, given, watched)
        clock = _Clock(on_stage, self.backend)
        clock.start("encode")
        usual = replace(options, keep=Keep.parse(DEFAULT_KEEP), selector=DEFAULT_SELECTOR, merge=False)
        scores = self._select((watched,), question, usual).scores
        full = second_look(self.backend, watched.encoded, watched.frames, scores)
        clock.stop()
        seconds = watched.encode_seconds + clock.seconds["encode"]
        return replace(watched, encoded=full, encode_seconds=seconds, cached=False, frames=None)

    def answer(
        self,
        watched: Watched | Sequence[Watched],
        question: str,
        options: AskOptions | None = None,
        *,
        history: History = (),
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Answer:
        """Answer a question on a video, or several, that `watch` has encoded: `choose`, then `respond`.

        The answer's times include decoding and encoding, unless it is given `watched.again()`.

        Args:
            options: None is those that the (first) video was looked at with.
            history: the earlier questions on the video, each with its answer. The model reads them; the tokens are
                chosen for this question alone.

        Raises:
            UsageError: the question, the history or the selector makes no sense.
            ModelError: the model makes tokens that are not finite numbers, or takes no history.
        """
        options = _options(options, given, _several(watched)[0])
        self.check(question, options, history)
        self._check_words(question)
        choice = self.choose(watched, question, options, on_stage=on_stage)
        return self.respond(choice, history=history, on_text=on_text, on_stage=on_stage)

    def choose(
        self,
        watched: Watched | Sequence[Watched],
        question: str | None,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Choice:
        """Choose the tokens that the language model gets, of a video or of several together; a `question` of None
        chooses for the video alone.

        A video that was seen in small frames gets its second look first (`look_again`).

        Args:
            options: None is those that the (first) video was looked at with.

        Raises:
            UsageError: the question or the selector makes no sense.
            ModelError: the model makes tokens that are not finite numbers.
        """
        several = _several(watched)
        options = _options(options, given, several[0])
        self.check(question, options)
        videos = tuple(self.look_again(one, question, options, on_stage=on_stage) for one in several)
        clock = _Clock(on_stage, self.backend)
        clock.start("select")
        selection = self._select(videos, question, options)
        if options.merge:
            selection = selection.merged()
        further = [one.encoded.planes for one in videos if one.encoded.planes is not None]
        planes = selection.pooled(_one_after_the_other(further, 1)) if further else None
        clock.stop()
        return Choice(question, options, videos, selection, planes, clock.seconds["select"])

    def _select(self, videos: Sequence[Watched], question: str | None, options: AskOptions) -> Selection:
        encoded = [one.encoded for one in videos]
        tokens = _one_after_the_other([one.tokens for one in encoded], 0)
        saliency = torch.cat([one.saliency for one in encoded])
        try:
            return select(
                tokens,
                saliency,
                self.backend.words(question or ""),
                group_sizes=[size for one in encoded for size in one.group_sizes],
                budget=options.keep.budget(len(tokens)),
                delta=options.keep.delta,
                selector=options.selector,
                metric=options.metric,
                seed=options.seed,
            )
        except UsageError as error:
            if tokens.isfinite().all() and saliency.isfinite().all():
                raise
            dtype = self._facts().dtype
            why = f"its weights are damaged, or too large for {dtype}"
            raise ModelError(f"{self.name} makes tokens that are not finite numbers: {why}.") from error

    def respond(
        self,
        choice: Choice,
        *,
        history: History = (),
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Answer:
        """Answer the question from the tokens that were chosen for it: generate, report.

        Args:
            history: as for `answer`.

        Raises:
            UsageError: the tokens were chosen for no question, or for one with words that the model cannot read, or the
                prompt is longer than the model reads (the unpruned one, if the answer is to be checked).
            ModelError: the model takes no history.
        """
        if choice.question is None:
            raise UsageError("The question is empty.")
        self.check(choice.question, choice.options, history)
        self._check_words(choice.question)
        options, clock = choice.options, _Clock(on_stage, self.backend)
        said, videos = _subtitles(choice), [one.encoded for one in choice.videos]
        prompt = self.backend.prompt(subtitles.joined(choice.question, said), options.system, videos, history)
        if options.check:
            self._check_length(prompt)
        clock.start("prefill")
        generated = generate(
            self.backend,
            prompt,
            choice.selection.indices,
            choice.selection.vectors,
            choice.planes,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=options.seed,
            on_text=on_text,
            on_first_token=lambda: clock.start("generate"),
        )
        clock.start("delta")
        chosen = selection_facts(options, choice.selection)
        clock.stop()
        check = self._checked(choice, prompt, generated.ids, on_stage) if options.check else None
        seconds = _seconds(choice) | clock.seconds
        first = sum(seconds[stage] for stage in ("decode", "encode", "select", "prefill"))
        shared = self._shared(choice)
        prompt_tokens = BeforeAfter(
            *(prompt.staying + count for count in (prompt.tokens, len(choice.selection.indices)))
        )
        shared["warnings"] += self._of_prompt(options, said, history)
        return Answer(
            **shared,
            subtitles=sum(map(len, said)),
            answer=generated.text,
            history=tuple((asked, said) for asked, said in history),
            generated_tokens=generated.tokens,
            prompt_tokens=prompt_tokens,
            kv_cache_bytes=kv_cache_bytes(self.backend, prompt_tokens),
            prefill_flops=prefill_flops(self.backend, prompt_tokens),
            check=check,
            selection=chosen,
            seconds=StageSeconds(
                load=self.load_seconds,
                **seconds,
                time_to_first_token=first,
                total=first + seconds["generate"],
            ),
        )

    def _of_prompt(self, options: AskOptions, said: Sequence[Any], history: History) -> tuple[str, ...]:
        """What there is to say of what stands beside the question: `said` are the subtitles."""
        told = []
        if options.subtitles is not None and not any(said):
            told.append("There are no subtitles within the part that was looked at.")
        spoken = " ".join(line.text for lines in said for line in lines)
        if self.backend.knows_whole_words and (unknown := self.backend.unknown_words(spoken)):
            told.append(f"This model does not know {len(unknown)} words of the subtitles. Its answer may be off.")
        if history and self.single_turn:
            told.append("This model was trained on single questions: earlier ones may make its answer worse.")
        return tuple(told)

    def _check_length(self, prompt: Prompt) -> None:
        """Refuse to check an answer if the unpruned prompt is too long, before there is one."""
        try:
            self.backend.kept_positions(prompt, torch.arange(len(prompt.ids))[None])
        except UsageError as error:
            told = "`check` needs the unpruned prompt, which is longer than this model reads"
            raise UsageError(f"{told}: look at fewer frames, or leave it out.") from error

    def _checked(self, choice: Choice, prompt: Prompt, ids: tuple[int, ...], on_stage: Callable[[str], None]) -> Check:
        """Whether all tokens would have given this answer, too."""
        clock, selection = _Clock(on_stage, self.backend), choice.selection
        clock.start("check")
        planes = None if choice.planes is None else choice.planes[:, None]
        (pruned,) = force(self.backend, prompt, ids, selection.indices[None], selection.vectors[None], planes)
        kept, vectors, planes = everything([one.encoded for one in choice.videos])
        further = None if planes is None else planes[:, None]
        (unpruned,) = force(self.backend, prompt, ids, kept[None], vectors[None], further)
        difference = first_difference(self.backend, unpruned, pruned)
        kl = unpruned.divergence(pruned).mean().item()
        clock.stop()
        return Check(difference is None, kl, difference, clock.seconds["check"])

    @torch.inference_mode()
    def inspect(self, choice: Choice) -> Inspection:
        """Report which tokens were chosen, where they lie, and what the selector based its choice on."""
        backend, selection = self.backend, choice.selection
        clock = _Clock(lambda stage: None, backend)
        clock.start("delta")
        chosen = selection_facts(choice.options, selection)
        clock.stop()
        videos = [one.encoded for one in choice.videos]
        signals = {"saliency": torch.cat([one.saliency for one in videos])}
        if choice.question is not None:
            signals["relevance"] = relevance(Directions.of(selection.tokens), backend.words(choice.question))
        if selection.scores.any():
            signals["score"] = selection.scores
        signals["distance"] = selection.distance
        return Inspection(
            **self._shared(choice),
            selection=chosen,
            seconds={"load": self.load_seconds, **_seconds(choice), **clock.seconds},
            signals={name: signal(values, videos) for name, values in signals.items()},
        )

    def _shared(self, choice: Choice) -> dict[str, Any]:
        """What an answer and an inspection both report."""
        videos, selection = choice.videos, choice.selection
        facts, encoded = tuple(one.facts for one in videos), [one.encoded for one in videos]
        areas = tuple(
            self.backend.area(one.height, one.width, seen.kind) for one, seen in zip(facts, encoded, strict=True)
        )
        return {
            "question": choice.question,
            "model": self._facts(),
            "video": facts[0],
            "frames": sum(len(one.timestamps) for one in encoded),
            "tokens": BeforeAfter(len(selection.tokens), len(selection.indices)),
            "moments": moments(encoded, selection),
            "area": areas[0],
            "settings": settings_of(videos[0].options, choice.options),
            "versions": versions(),
            "warnings": self._warnings(choice),
            "cached": all(one.cached for one in videos),
            **({"videos": facts, "areas": areas} if len(videos) > 1 else {}),
        }

    def _warnings(self, choice: Choice) -> tuple[str, ...]:
        options, warnings = choice.options, list(dict.fromkeys(told for one in choice.videos for told in one.warnings))
        if unknown := self.backend.unknown_words(f"{choice.question or ''} {options.system or ''}"):
            warnings.append(f"This model does not know: {', '.join(unknown)}. Its answer may be off.")
        if options.temperature and options.top_k is None and lifts_top_k(self.backend):
            warnings.append("This checkpoint's own top_k of 1 is left out, so that the temperature has an effect.")
        return tuple(warnings)

    def check(self, question: str | None, options: AskOptions, history: History = ()) -> None:
        """Refuse a question that cannot be answered, before any video is looked at for it.

        Raises:
            UsageError: it is empty, no text, or longer than the model reads, `options` are none, or the `history` is no
                pairs of texts, or the model cannot look twice.
        """
        _check_options(options)
        check_look(self.backend, options.look)
        if isinstance(history, str) or not all(_is_turn(turn) for turn in history):
            raise UsageError(f"The history must be pairs of a question and its answer, not {history!r}.")
        if question is not None and not isinstance(question, str):
            raise UsageError(f"The question must be a text, not {question!r}.")
        if options.subtitles not in (None, subtitles.AUTO):
            subtitles.read(options.subtitles)
        if question is not None and not question.strip():
            raise UsageError("The question is empty.")
        earlier = "\n".join(text for turn in history for text in turn)
        for name, text in (("question", question), ("system prompt", options.system), ("history", earlier)):
            # A stray byte on the command line, or half of a surrogate pair in JSON: no tokenizer takes either.
            if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"The {name} is not valid Unicode.")
            if text is not None and self.backend.too_long(text):
                most = self.backend.text_config.max_position_embeddings
                raise UsageError(f"The {name} is longer than the {most} tokens that this model reads.")

    def _check_words(self, question: str | None) -> None:
        """Refuse to answer a question of which the model reads only a part: what it would say is about another one.

        Raises:
            UsageError: there is no question; or the vocabulary is of whole words, as the demo models' is, and lacks
                some of the question.
        """
        if question is None:
            raise UsageError("The question is empty.")
        # Without "please" or "this" a question is still the same one: for these there is a warning.
        unknown = self.backend.unknown_words(question) if self.backend.knows_whole_words else []
        if unknown := [word for word in unknown if content_words(word) or not word.isalpha()]:
            named = ", ".join(unknown[:NAMED]) + (f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else "")
            word = "word" if len(unknown) == 1 else "words"
            bundled = self.name in models.ALIASES and models.ALIASES[self.name].bundled
            others = "as questions.jsonl in the folder of 'flashvlm samples' does" if bundled else "in other words"
            raise UsageError(f"This model does not know the {word} {named}: ask {others}.")

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.of_user()

    @cached_property
    def _fingerprint(self) -> str | None:
        """What tells the weights from others; None if they are in no file."""
        # A change that the samples miss would give wrong answers: the weights' modification times count, too.
        written = sorted(path.stat().st_mtime_ns for path in self.backend.folder.glob("*.safetensors"))
        return f"{models.fingerprint(self.backend.folder)} {written}" if written else None

    def _facts(self) -> ModelFacts:
        backend = self.backend
        revision = models.revision_of(backend.folder)
        return ModelFacts(
            self.name, str(backend.folder), backend.family, backend.device.type, backend.precision, revision
        )


class _Timed:
    """Frames one by one, and the seconds that they took to come."""

    def __init__(self, frames: torch.Tensor | Iterator[torch.Tensor]) -> None:
        self.seconds = 0.0
        self._frames = iter(frames)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        begin = time.perf_counter()
        try:
            return next(self._frames)
        finally:
            self.seconds += time.perf_counter() - begin


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


def _seconds(choice: Choice) -> dict[str, float]:
    """The seconds of the stages up to the choice, over all videos."""
    return {
        "decode": sum(one.decode_seconds for one in choice.videos),
        "encode": sum(one.encode_seconds for one in choice.videos),
        "select": choice.seconds,
    }


def _one_after_the_other(tensors: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Features of several videos joined; those of one as they are, because a copy of a long video's takes gigabytes."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=axis)


def _is_turn(turn: object) -> bool:
    return isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def _several(watched: Watched | Sequence[Watched]) -> Sequence[Watched]:
    several = (watched,) if isinstance(watched, Watched) else watched
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Watched) for one in several):
        raise UsageError("`watched` must be what `watch` returned, or a list of such.")
    if not several:
        raise UsageError("There is no video to choose from.")
    return several


def _subtitles(choice: Choice) -> list[list[subtitles.Line]]:
    """The lines of each video that join the question.

    Raises:
        UsageError: one file is given for several videos, or cannot be read.
    """
    wanted, several = choice.options.subtitles, choice.videos
    if wanted is None:
        return []
    if wanted != subtitles.AUTO and len(several) > 1:
        raise UsageError("`subtitles` takes a file for one video; auto finds those of each of several.")
    limits = Limits(choice.options.timeout, choice.options.max_source_pixels)
    return [
        subtitles.within(
            subtitles.of_video(one.facts.source, limits) if wanted == subtitles.AUTO else subtitles.read(wanted),
            one.options.sampling.start,
            one.options.sampling.end,
        )
        for one in several
    ]


def _check_options(options: AskOptions) -> None:
    if not isinstance(options, AskOptions):
        raise UsageError(f"options must be AskOptions, not {options!r}.")


def _options(options: AskOptions | None, given: Arguments, watched: Watched | None = None) -> AskOptions:
    """These options, or those that the video was looked at with, or the defaults; with what is `given` besides."""
    if options is None:
        options = AskOptions() if watched is None else watched.options
    _check_options(options)
    return options.changed(**given) if given else options
