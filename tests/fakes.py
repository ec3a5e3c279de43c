"""What stands for the library in tests of the command line, so that they load no model.

`python tests/fakes.py ARGUMENTS` is the command line with it; FAKE holds attributes of `FakeVideoQA`, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flashvlm
from flashvlm.errors import ModelError, UsageError
from flashvlm.report import (
    Answer,
    BeforeAfter,
    ModelFacts,
    Moment,
    SelectionFacts,
    StageSeconds,
    VideoFacts,
)

if TYPE_CHECKING:
    from flashvlm.cache import CachedVideo

HERE = Path(__file__).parent
PIECES = ("The dog", " runs to the", " right.")
STAGES = ("decode", "encode", "select", "prefill", "generate")


def moments(counts: list[tuple[int, int]], seconds: float = 1.0, tokens: int = 64) -> tuple[Moment, ...]:
    """Moments of two frames and 8 x 8 cells that keep so many (important, diverse) tokens."""
    made = []
    for index, (important, diverse) in enumerate(counts):
        cells = tuple((cell // 8, cell % 8) for cell in range(important + diverse))
        flags = (True,) * important + (False,) * diverse
        start = index * seconds
        made.append(Moment((start, start + seconds / 2), tokens, 8, 8, cells, flags))
    return tuple(made)


def an_answer(counts: list[tuple[int, int]] | None = None, **changes: object) -> Answer:
    made = moments(counts or [(1, 2), (1, 2), (16, 2), (4, 2)])
    kept = sum(len(moment.kept) for moment in made)
    important = sum(sum(moment.important) for moment in made)
    total = 64 * len(made)
    answer = Answer(
        question="Where does the dog go?",
        answer="The dog runs to the right.",
        generated_tokens=7,
        model=ModelFacts("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", "cpu", "bfloat16"),
        video=VideoFacts("clip.mp4", 640, 360, 120, 29.97, 4.0),
        frames=2 * len(made),
        tokens=BeforeAfter(total, kept),
        prompt_tokens=BeforeAfter(total + 20, kept + 20),
        kv_cache_bytes=BeforeAfter(88_100_000, 9_210_000),
        prefill_flops=BeforeAfter(12_300_000_000_000, 981_000_000_000),
        selection=SelectionFacts("paper", kept, important, kept - important, 0.312),
        seconds=StageSeconds(4.2, 0.41, 0.93, 0.0042, 0.62, 0.81, 0.02, 1.98, 2.79),
        moments=made,
        settings={"keep": "10%"},
        versions={"flashvlm": "0.1.0"},
    )
    return replace(answer, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FakeWatched:
    """Stands for a video that was watched."""

    facts: VideoFacts
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    cached: bool = False
    warnings: tuple[str, ...] = ()

    def again(self) -> FakeWatched:
        return self


class FakeVideoQA:
    """Stands for `flashvlm.VideoQA`: says `pieces`, returns `said` or raises `error`, remembers what it was asked."""

    name = "fake"
    single_turn = False
    asked: ClassVar[dict[str, object]] = {}
    pieces: tuple[str, ...] = PIECES
    said: Answer = an_answer()
    error: BaseException | None = None
    model_error: BaseException | None = None
    loading = 0.0
    pause = 0.0

    @classmethod
    def from_pretrained(cls, model, *, device="auto", dtype="auto", revision=None, on_download=None):
        if cls.model_error:
            raise cls.model_error
        time.sleep(cls.loading)
        cls.asked = {"model": model, "revision": revision, "device": device, "dtype": dtype}
        return cls()

    def ask(self, video, question, options, *, on_text, on_stage):
        self.asked.update(video=video, question=question, options=options)
        for stage in STAGES:
            on_stage(stage)
        for piece in self.pieces:
            on_text(piece)
            time.sleep(self.pause)
        if self.error:
            raise self.error
        return self.said

    def watch(self, path, options, *, on_stage):
        return FakeWatched(self.said.video)

    def choose(self, watched, question, options, *, on_stage):
        return question, options

    def respond(self, choice, *, history=(), on_text, on_stage):
        question, options = choice
        if not question.strip():
            raise UsageError("The question is empty.")
        return replace(self.ask(None, question, options, on_text=on_text, on_stage=on_stage), question=question)


@dataclass(frozen=True)
class Alias:
    name: str
    source: str
    description: str
    bundled: bool


def fake_models() -> types.ModuleType:
    module = types.ModuleType("flashvlm.models")

    def fetch(model, revision=None, on_download=None):
        if model == "nowhere":
            raise ModelError("The hub cannot be reached.")
        return Path("/models") / model / (revision or "main")

    module.__dict__.update(
        ALIASES={
            "demo": Alias("demo", "flashvlm-demo", "a small world of emoji", True),
            "qwen2-vl-2b": Alias("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "real videos", False),
        },
        DEFAULT_MODEL="qwen2-vl-2b",
        present=lambda name, revision=None: name == "demo",
        state=lambda name: "here" if name == "demo" else "away",
        to_download=lambda name, revision=None: None,
        fetch=fetch,
    )
    return module


def fake_samples() -> types.ModuleType:
    module = types.ModuleType("flashvlm.samples")
    module.__dict__["samples_dir"] = lambda: Path("/somewhere/samples")
    return module


def child(*arguments: str, **settings: Any) -> tuple[list[str], dict[str, str]]:
    """The faked command line as a process of its own, and its environment; `settings` are those of `FakeVideoQA`."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "FAKE": json.dumps(settings), "TERM": "xterm-256color"}
    environment.pop("PYTHONUNBUFFERED", None)  # streams as they are by default
    return [sys.executable, str(HERE / "fakes.py"), *arguments], environment


def features(bytes_each: int) -> CachedVideo:
    """A video whose tokens take this many bytes in the cache."""
    import torch

    from flashvlm.cache import CachedVideo
    from flashvlm.encode import Encoded

    tokens = torch.zeros(bytes_each // 4 - 1, 1)
    return CachedVideo(VideoFacts("v", 1, 1, 1, 0.0, 0.0), Encoded(tokens, torch.zeros(1), ((1, 1),)))


class Echo(FakeVideoQA):
    """Its answer says what was asked of which file."""

    def ask(self, video, question, options, **callbacks):
        answer = super().ask(video, question, options, **callbacks)
        return replace(answer, question=question, video=replace(answer.video, path=video or answer.video.path))


if __name__ == "__main__":
    from flashvlm_cli.app import main

    sys.modules["flashvlm.models"] = fake_models()
    flashvlm.VideoQA = type("FakeVideoQA", (Echo,), json.loads(os.environ["FAKE"]))  # type: ignore[misc]
    sys.exit(main())
