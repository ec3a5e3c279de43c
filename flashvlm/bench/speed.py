"""Where the time goes: every stage at every budget against all tokens, and against transformers' own encoder.

All rows are measured in one run, round by round, so that a slow moment of the machine affects all of them. The first
round, on a few frames, is a warm-up and is discarded.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvlm.bench import memory
from flashvlm.bench.footage import Footage, film
from flashvlm.errors import UsageError
from flashvlm.files import user_folder
from flashvlm.options import AskOptions, Keep

if TYPE_CHECKING:
    from flashvlm import VideoQA
    from flashvlm.backends.base import Backend
    from flashvlm.encode import Encoded
    from flashvlm.pipeline import Decoded, Watched
    from flashvlm.report import Answer

# All tokens, by transformers' own encoder: the baseline.
TRANSFORMERS = "transformers"
UNPRUNED = "100%"
STAGES = ("decode", "encode", "select", "prefill", "generate")
WARM_UP_FRAMES = 4
QUESTION = "What happens in the video?"

Row = dict[str, Any]
# The model's number, the encoder and the budget of a row.
Key = tuple[int, str, str]


@dataclass(frozen=True)
class Settings:
    """What is measured: the budgets `keep`, `repeats` times, with the same `options` otherwise.

    Raises:
        UsageError: a value that makes no sense.
    """

    keep: tuple[str, ...] = (UNPRUNED, "10%")
    options: AskOptions = field(default_factory=AskOptions)
    repeats: int = 3
    question: str = QUESTION

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"--repeat must be at least 1, not {self.repeats}.")
        if not self.keep:
            raise UsageError("--keep takes budgets, such as 100%,10%.")
        for text in self.keep:
            self.options.changed(keep=text)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """(encoder, budget) of each row: transformers' with all tokens, ours with all, ours with the other budgets."""
        budgets = [UNPRUNED, *(text for text in dict.fromkeys(self.keep) if Keep.parse(text).share != 1)]
        return ((TRANSFORMERS, UNPRUNED), *(("flashvlm", text) for text in budgets))


class SpeedRun:
    """Times every row: `measure` does so step by step, `table` returns the results."""

    def __init__(
        self, qa: VideoQA, settings: Settings, video: Path | Footage, peaks: bool = True, others: Sequence[VideoQA] = ()
    ) -> None:
        """`others` are the same model in other dtypes, which are compared with `qa`."""
        self.qa, self.settings, self.video = qa, settings, video
        self._peaks = peaks and memory.measurable(qa.backend.device.type)
        self._models = (qa, *others)
        self._measured: dict[Key, list[tuple[Answer, int | None]]] = {}

    @property
    def rows(self) -> tuple[Key, ...]:
        """The model, the encoder and the budget of each row; of the other models, only what `flashvlm` does."""
        return tuple(
            (number, *row)
            for number in range(len(self._models))
            for row in self.settings.rows
            if number == 0 or row[0] != TRANSFORMERS
        )

    @property
    def steps(self) -> int:
        """How many steps `measure` takes."""
        return len(self.rows) * (self.settings.repeats + 1)

    def measure(self) -> Iterator[None]:
        """Measure, after a warm-up.

        Raises:
            VideoError: the video cannot be read.
        """
        self._measured = {row: [] for row in self.rows}
        with tempfile.TemporaryDirectory() as folder:
            made = isinstance(self.video, Footage)
            path = film(self.video, Path(folder) / "clip.mp4") if isinstance(self.video, Footage) else self.video
            for row in self.rows:
                few = replace(self.settings.options.sampling, fps=None, frames=WARM_UP_FRAMES)
                self._answer(path, row, replace(self.settings.options, sampling=few, max_new_tokens=2))
                yield
            for _ in range(self.settings.repeats):
                for row in self.rows:
                    self._measured[row].append(self._once(path, row, made))
                    yield

    def _once(self, path: Path, row: Key, made: bool) -> tuple[Answer, int | None]:
        answers: list[Answer] = []

        def call() -> None:
            answers.append(self._answer(path, row, self.settings.options))

        taken = None
        if self._peaks:
            taken = memory.peak(call, self.qa.backend.device.type)
        else:
            call()
        answer = answers[0]
        # The path of a generated clip means nothing.
        return (replace(answer, video=replace(answer.video, path="")) if made else answer), taken

    def _answer(self, path: Path, row: Key, options: AskOptions) -> Answer:
        number, encoder, keep = row
        qa, options = self._models[number], replace(options, keep=Keep.parse(keep))
        watched = as_transformers(qa, path, options) if encoder == TRANSFORMERS else qa.watch(path, options)
        return qa.answer(watched, self.settings.question, options)

    def table(self) -> dict[str, Any]:
        """Rows of median seconds, and of medians of the ratios to a reference row of the same round.

        `decode_ratio`, `encode_ratio`, `prefill_ratio` and `first_ratio` (time to the first token) say how many times
        less time a row takes than transformers' encoder with all tokens; `first_to_unpruned` and `prefill_to_unpruned`,
        than ours with all tokens, both in the first dtype. `same_ratios` say it of every stage against the same row in
        the first dtype. `peak_bytes` is the largest of all rounds; None if the system does not report it.
        """
        import torch

        theirs = [answer for answer, _ in self._measured[0, TRANSFORMERS, UNPRUNED]]
        unpruned = [answer for answer, _ in self._measured[0, "flashvlm", UNPRUNED]]
        rows = [self._row(row, theirs, unpruned) for row in self.rows]
        answer = theirs[0]
        return {
            "rows": rows,
            "model": asdict(answer.model),
            "video": answer.to_json()["video"] | {"kind": self.video.kind if isinstance(self.video, Footage) else None},
            "frames": answer.frames,
            "moments": len(answer.moments),
            "cells": [answer.moments[0].grid_height, answer.moments[0].grid_width],
            "settings": {"repeats": self.settings.repeats, **answer.settings, "keep": list(self.settings.keep)},
            "versions": answer.versions,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
        }

    def _row(self, row: Key, theirs: Sequence[Answer], unpruned: Sequence[Answer]) -> Row:
        measured = self._measured[row]
        answers = [answer for answer, _ in measured]
        same = [answer for answer, _ in self._measured[0, row[1], row[2]]]
        taken = [peak for _, peak in measured if peak is not None]

        def ratio(stage: str, others: Sequence[Answer]) -> float | None:
            pairs = [
                (getattr(other.seconds, stage), getattr(answer.seconds, stage))
                for other, answer in zip(others, answers, strict=True)
            ]
            return statistics.median(a / b for a, b in pairs) if all(b for _, b in pairs) else None

        last = answers[-1]
        rates = [rate for rate in map(tokens_a_second, answers) if rate is not None]
        stages = (*STAGES, "time_to_first_token")
        return {
            "dtype": last.model.dtype,
            "encoder": row[1],
            "keep": row[2],
            "tokens": last.tokens.after,
            "encoded": sum(moment.like is None for moment in last.moments),
            "kv_cache_bytes": last.kv_cache_bytes.after,
            "seconds": {
                stage: statistics.median(getattr(answer.seconds, stage) for answer in answers) for stage in stages
            },
            "tokens_a_second": statistics.median(rates) if rates else None,
            "peak_bytes": max(taken) if taken else None,
            "decode_ratio": ratio("decode", theirs),
            "encode_ratio": ratio("encode", theirs),
            "prefill_ratio": ratio("prefill", theirs),
            "first_ratio": ratio("time_to_first_token", theirs),
            "prefill_to_unpruned": ratio("prefill", unpruned),
            "first_to_unpruned": ratio("time_to_first_token", unpruned),
            "same_ratios": {stage: ratio(stage, same) for stage in (*STAGES, "time_to_first_token")}
            if row[0]
            else None,
            "runs": [asdict(answer.seconds) for answer in answers],
        }


def tokens_a_second(answer: Answer) -> float | None:
    """The speed of generation after the first token; None if there were no further tokens."""
    further = answer.generated_tokens - 1
    return further / answer.seconds.generate if further > 0 and answer.seconds.generate else None


def as_transformers(qa: VideoQA, path: Path, options: AskOptions) -> Watched:
    """What `VideoQA.watch` returns, but with every group of frames encoded by transformers' own encoder."""
    from flashvlm.pipeline import Watched

    options = replace(options, seek="exact", look="once", cache=False)
    decoded = qa.decode(path, options)
    begin = time.perf_counter()
    encoded = their_encoding(qa.backend, decoded)
    seconds = time.perf_counter() - begin
    assert decoded.clip is not None
    return Watched(decoded.clip.facts, encoded, decoded.seconds, seconds, options)


def their_encoding(backend: Backend, decoded: Decoded) -> Encoded:
    """The tokens that transformers' own encoder makes; it has no saliency, so that is set to ones."""
    import torch

    from flashvlm.encode import Encoded, together

    clip = decoded.clip
    assert clip is not None
    if clip.facts.still:
        raise UsageError("bench speed times videos, not pictures.")
    frames, times = together(clip.frames), (clip.timestamps, clip.facts.duration)
    with torch.inference_mode():
        if (whole := backend.whole(frames, clip.seconds_per_frame, *times)) is not None:
            return whole
    # For some families, the frames of a video are pictures.
    kind = next(iter(backend.visual_tokens.values()))
    with torch.inference_mode():
        inputs = {
            name: value.to(backend.device, backend.dtype if value.is_floating_point() else value.dtype)
            for name, value in backend.pixels(frames).items()
        }
        encoder = getattr(backend.model.model, f"get_{kind}_features")
        wanted = [name for name, one in signature(encoder).parameters.items() if one.default is one.empty]
        if lacking := [name for name in wanted if name not in inputs and name not in ("args", "kwargs")]:
            raise UsageError(
                f"{type(backend).__name__}.pixels gives {', '.join(inputs)}, and transformers' get_{kind}_features "
                f"needs {', '.join(lacking)}: without it, there is nothing to compare with."
            )
        output = encoder(**inputs)
        pooled, deepstack = output.pooler_output, getattr(output, "deepstack_features", None)
        tokens = torch.cat(list(pooled)) if isinstance(pooled, list | tuple) else pooled.flatten(0, -2)
        planes = None if deepstack is None else torch.stack([torch.cat(list(plane)) for plane in deepstack])
        fixed = backend.fixed_tokens()
        if fixed is not None:
            tokens = tokens[: -len(fixed)]
    backend.wait()
    height, width = backend.cells((frames.shape[2], frames.shape[3]))
    groups = len(tokens) // (height * width + backend.class_tokens)
    saliency = torch.ones(len(tokens), device=tokens.device)
    seconds = clip.seconds_per_frame * backend.frames_per_group
    return Encoded(
        tokens,
        saliency,
        ((height, width),) * groups,
        backend.class_tokens,
        seconds,
        *times,
        planes=planes,
        fixed=fixed,
    )


def random_weights(name: str, layers: int | None) -> Path:
    """The checkpoint folder of a published architecture with random weights, in the user's cache folder.

    Raises:
        UsageError: there is no such architecture, `layers` is less than 1, or there is no home folder.
    """
    from flashvlm.bench.random_weights import write

    if layers is not None and layers < 1:
        raise UsageError(f"--layers must be at least 1, not {layers}.")
    folder = user_folder("cache") / "random-weights"
    target = folder / (name if layers is None else f"{name}-{layers}-layers")
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            write(Path(unfinished) / "made", name, layers=layers).rename(target)
    return target
