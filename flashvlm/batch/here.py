"""Answering in one process: a video's questions together, while the next video is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from flashvlm import aside
from flashvlm.batch.plan import Group
from flashvlm.journal import Record

if TYPE_CHECKING:
    from flashvlm.pipeline import Decoded, VideoQA

# How many seconds the end of a run waits for a video that is being decoded: a thread that is cut off inside the decoder
# aborts the whole process.
PATIENCE = 5.0


class Answering:
    """Answers groups with one model. It holds at most two videos: the current one, and one that is decoded ahead."""

    def __init__(self, qa: VideoQA) -> None:
        self.qa = qa
        self._ahead: tuple[Group, Future[Decoded]] | None = None
        self._last: Future[Decoded] | None = None

    def close(self) -> None:
        """Let a decoding that is under way finish, if that does not take long."""
        if self._last is not None:
            wait([self._last], PATIENCE)

    def records(self, group: Group, following: Group | None = None) -> Iterator[Record]:
        """One record per item of `group`, each as soon as it is ready; `following` is decoded in the meantime.

        Whatever goes wrong with a video or a question becomes its record's error, and the others go on.
        """
        future = self._begun(group)
        try:
            decoded = future.result()
            # Not earlier: two videos decoded at once would slow each other down.
            self._ahead = (following, self._begun(following)) if following else None
            watched = self.qa.encode(decoded)
        except Exception as error:
            yield from (item.failed(error) for item in group)
            return
        del future, decoded
        for item in group:
            try:
                answer = self.qa.answer(watched, item.question, item.options)
                record = {**item.head, **answer.to_json()}
            except Exception as error:
                record = item.failed(error)
            watched = watched.again()
            yield record

    def _begun(self, group: Group) -> Future[Decoded]:
        """The decoding of this group: the one under way, or a new one."""
        if self._ahead and self._ahead[0][0].view == group[0].view:
            ahead, self._ahead = self._ahead[1], None
            return ahead
        self._last = aside.begin(lambda: self._decoded(group), "decode")
        return self._last

    def _decoded(self, group: Group) -> Decoded:
        if self.qa.backend.device.type == "cpu":
            aside.compute_alone()
        return self.qa.decode(group[0].video, group[0].options)


def answered(qa: VideoQA, groups: Sequence[Group]) -> Iterator[Record]:
    """The records of all groups, in their order, each as soon as it is ready."""
    answering = Answering(qa)
    try:
        for place, group in enumerate(groups):
            yield from answering.records(group, groups[place + 1] if place + 1 < len(groups) else None)
    finally:
        answering.close()
