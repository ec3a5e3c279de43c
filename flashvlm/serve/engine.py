"""One model for many requests: a thread that decodes, a thread in which the model works, and what both are asked for.

Each thread takes what it is asked in the order in which it was asked, so that the next video is decoded while the
model works, and nobody is overtaken for long. A request that is given up leaves the queue at once; if the model is at
work on it, the model stops at the next stage or piece of text.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from flashvlm import page
from flashvlm.aside import compute_alone
from flashvlm.errors import FlashVLMError
from flashvlm.options import AskOptions, watching
from flashvlm.pipeline import Decoded, VideoQA, Watched
from flashvlm.report import Answer, Inspection, VideoFacts
from flashvlm.serve.asked import Asked
from flashvlm.serve.media import Source
from flashvlm.serve.memory import Memory
from flashvlm.serve.refusals import renamed

T = TypeVar("T")
S = TypeVar("S", Answer, Inspection)


def model_thread() -> ThreadPoolExecutor:
    """The thread in which the model works; best, it is loaded there too, for the reason that `compute_alone` has."""
    return ThreadPoolExecutor(1, "model", torch.set_num_threads, (torch.get_num_threads(),))


class GivenUp(Exception):
    """Nobody waits for this any more."""


@dataclass
class Looking:
    """A video that is being decoded and encoded, and how many requests wait for it."""

    task: asyncio.Task[Watched]
    # The file that it is read from: a file of the same content may have another name.
    source: Source
    users: int = 0


class Engine:
    """Answers requests with one loaded model. Its methods belong to one event loop."""

    def __init__(self, qa: VideoQA, memory: int, model: ThreadPoolExecutor) -> None:
        """`model` is the thread of the model (see `model_thread`)."""
        self.qa, self.memory, self._model = qa, Memory(memory), model
        on_cpu = qa.backend.device.type == "cpu"
        self._reader = ThreadPoolExecutor(1, "decode", compute_alone if on_cpu else None)
        self._looking: dict[str, Looking] = {}

    def close(self) -> None:
        """Let what is running finish, and drop what has not begun."""
        for threads in (self._reader, self._model):
            threads.shutdown(wait=True, cancel_futures=True)

    async def watched(self, source: Source, options: AskOptions) -> Watched:
        """The video as visual tokens: from memory, from a request that looks at the same, or looked at now.

        Raises:
            FlashVLMError: as `VideoQA.watch`.
        """
        key = f"{source.digest} {json.dumps(watching(options), sort_keys=True)}"
        if (kept := self.memory.get(key)) is not None:
            return _named(kept, source)
        looking = self._looking.get(key)
        first = looking is None
        if looking is None:
            looking = self._looking[key] = Looking(asyncio.ensure_future(self._look(key, source, options)), source)
            looking.task.add_done_callback(lambda done: self._forget(key, done))
        looking.users += 1
        try:
            watched = await asyncio.shield(looking.task)
        except FlashVLMError as error:
            raise type(error)(str(error).replace(str(looking.source.path), str(source.path))) from error
        finally:
            looking.users -= 1
            if not looking.users:
                looking.task.cancel()
        return _named(watched if first else watched.again(), source)

    async def answer(
        self,
        watched: Sequence[Watched],
        asked: Asked,
        on_text: Callable[[str], None],
        began: Callable[[], None],
    ) -> Answer:
        """Answer a question on videos, with `on_text` called in the thread of the model, `began` when it begins.

        Raises:
            FlashVLMError: as `VideoQA.answer`.
        """

        def answered(stop: Callable[..., None]) -> Answer:
            began()

            def said(text: str) -> None:
                stop()
                on_text(text)

            return self.qa.answer(
                tuple(watched),
                asked.question,
                asked.options,
                history=asked.history,
                on_text=said,
                on_stage=stop,
            )

        return await self._run(self._model, answered)

    async def inspect(self, watched: Watched, question: str | None, several: Sequence[AskOptions]) -> list[Inspection]:
        """What each of several options chooses of a video, without an answer.

        Raises:
            FlashVLMError: as `VideoQA.choose`.
        """

        def inspected(stop: Callable[..., None]) -> list[Inspection]:
            made = []
            for options in several:
                stop()
                made.append(self.qa.inspect(self.qa.choose(watched, question, options)))
            return made

        return await self._run(self._model, inspected)

    async def pictures(self, seen: Inspection) -> list[list[str]]:
        """The frames of each moment as data URIs, read from the video again."""
        return await self._run(self._reader, lambda stop: page.pictures(seen))

    async def _look(self, key: str, source: Source, options: AskOptions) -> Watched:
        decoded: Decoded = await self._run(self._reader, lambda stop: self.qa.decode(source.path, options))
        watched = await self._run(self._model, lambda stop: self.qa.encode(decoded))
        self.memory.put(key, watched)
        return watched

    def _forget(self, key: str, done: asyncio.Task[Watched]) -> None:
        if not done.cancelled():
            # Whoever waited has been told; if nobody did, nobody needs to know.
            done.exception()
        if (looking := self._looking.get(key)) is not None and looking.task is done:
            del self._looking[key]

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[Callable[..., None]], T]) -> T:
        """Do work in a thread when its turn comes. It gets what raises once nobody waits any more."""
        given_up = threading.Event()

        def stop(*_: object) -> None:
            if given_up.is_set():
                raise GivenUp

        try:
            return await asyncio.get_running_loop().run_in_executor(threads, work, stop)
        except BaseException:
            given_up.set()
            raise


def _named(watched: Watched, source: Source) -> Watched:
    """A video that may have been looked at under another name."""
    if watched.facts.path == str(source.path):
        return watched
    return replace(watched, facts=watched.facts.of(source.path, source.path.stat()))


def as_told(seen: S, names: Mapping[str, str], model: str) -> S:
    """An answer or an inspection that names files as the client does, and keeps to itself where the model lies.

    Args:
        names: what the client calls each file, by its path.
    """

    def facts(video: VideoFacts) -> VideoFacts:
        return replace(video, path=names.get(video.path, video.path))

    return replace(
        seen,
        video=facts(seen.video),
        videos=tuple(map(facts, seen.videos)),
        model=replace(seen.model, name=model, source=model),
        warnings=tuple(renamed(warning, names) for warning in seen.warnings),
    )
