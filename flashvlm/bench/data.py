"""Data sets: questions about videos, with the right answers. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from flashvlm.batch.rows import of_file, of_videos
from flashvlm.errors import UsageError
from flashvlm.files import check_video
from flashvlm.units import plural
from flashvlm.words import content_words

UNRELATED_WITHIN = 200
# What choices are called in a question.
LETTERS = string.ascii_uppercase
# How many generated clips a run has by default.
GENERATED_LIMIT = 300
# More than this would take longer than anyone waits.
GENERATED_MOST = 100_000


@dataclass(frozen=True)
class Asked:
    """One question and its right answer; `choices` are the answers to choose from, empty for an open question."""

    text: str
    answer: str
    family: str
    choices: tuple[str, ...] = ()


class DataSet(ABC):
    """Videos by number, each with its questions. `begin` is the first number used for reported results."""

    name: str
    begin: int = 0
    guesses: ClassVar[Mapping[str, int]] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this data set from others, as JSON."""
        return {"data": self.name}

    @property
    def count(self) -> int | None:
        """How many videos there are; None if there is no limit."""
        return None

    def numbers(self, begin: int | None = None, limit: int | None = None) -> range:
        """At most `limit` videos starting at number `begin`; None stands for the data set's defaults.

        Raises:
            UsageError: there are none, or more than a run can take.
        """
        begin = self.begin if begin is None else begin
        if self.count is None and limit is not None and limit > GENERATED_MOST:
            raise UsageError(f"{self.name} makes at most {GENERATED_MOST:,} videos a run.")
        total = begin + GENERATED_LIMIT if self.count is None else self.count
        end = total if limit is None else begin + limit
        numbers = range(begin, end if self.count is None else min(end, self.count))
        if begin < 0 or not numbers:
            raise UsageError(f"{self.name} has no video number {begin}" + (f" of {self.count}." if self.count else "."))
        return numbers

    @abstractmethod
    def questions(self, number: int) -> tuple[Asked, ...]:
        """The questions about video `number`; the video itself is not touched."""

    @abstractmethod
    def video(self, number: int, folder: Path) -> Path:
        """The file of video `number`, written into `folder` if it is generated."""

    def unrelated(self, number: int, asked: Asked) -> str:
        """The next question in the data set, of any video, of another family and with no content word in common.

        If there is none nearby, the next one with a different text; if there is none of these either, the question
        itself.
        """
        total = self.count or number + UNRELATED_WITHIN + 1
        near = [(number + step) % total for step in range(1, min(total, UNRELATED_WITHIN) + 1)]
        others = (other for place in near for other in self.questions(place))
        otherwise = None
        for other in others:
            if other.text == asked.text:
                continue
            otherwise = otherwise or other.text
            if other.family != asked.family and not content_words(other.text) & content_words(asked.text):
                return other.text
        return otherwise or asked.text


class Listed(DataSet):
    """Videos that a user has, each with its questions."""

    def __init__(self, name: str, asked: Mapping[Path, Sequence[Asked]], content: bytes) -> None:
        """`content` is what the questions were made from."""
        self.name, self._asked, self._videos = name, asked, tuple(asked)
        # A replaced video most likely has another size.
        parts = (content, repr([video.stat().st_size for video in self._videos]).encode())
        self._digests = [hashlib.sha256(part).hexdigest()[:16] for part in parts]

    @property
    def identity(self) -> dict[str, Any]:
        content, videos = self._digests
        return {"data": Path(self.name).name, "content": content, "videos": videos}

    @property
    def count(self) -> int:
        return len(self._videos)

    def questions(self, number: int) -> tuple[Asked, ...]:
        return tuple(self._asked[self._videos[number]])

    def video(self, number: int, folder: Path) -> Path:
        return self._videos[number]


class Lines(Listed):
    """A JSONL file of questions, one `{"video", "question", "answer"}` per line.

    Optional keys are `"choices"` (a list of texts; the answer is one of them or its letter) and `"family"`. Video paths
    are relative to the file. Lines about the same video are asked together.
    """

    def __init__(self, path: Path, answered: bool = True) -> None:
        """Read the file; unless `answered`, no line needs an answer, and none is read.

        Raises:
            UsageError: it is missing, unreadable or empty, or a line is invalid or names a missing video; the message
                names the line.
        """
        asked: dict[Path, list[Asked]] = {}
        for row in of_file(path):
            where = f"{path}, line {row.line}"
            if row.error:
                raise UsageError(f"{where}: {row.error}")
            name, question = _asked(row.columns, where, answered)
            video = path.parent / name
            if video not in asked and not video.is_file():
                raise UsageError(f"{where}: there is no video {str(video)!r}.")
            asked.setdefault(video, []).append(question)
        super().__init__(str(path), asked, path.read_bytes())


class Videos(Listed):
    """The same questions, without answers, about every video that a path or pattern names."""

    def __init__(self, patterns: Sequence[str], questions: Sequence[str]) -> None:
        """Look the files up.

        Raises:
            UsageError: no file matches a pattern, one names a folder, or a question is empty or given twice.
        """
        if not all(question.strip() for question in questions):
            raise UsageError("The question is empty.")
        if len(set(questions)) < len(questions):
            raise UsageError("Give each question once.")
        asked = [Asked(question, "", "other") for question in questions]
        videos = [Path(row.columns["video"]) for row in of_videos(patterns, questions[:1])]
        for video in videos:
            check_video(video)
        content = repr([questions, [str(video) for video in videos]]).encode()
        super().__init__(plural(len(videos), "video"), dict.fromkeys(videos, asked), content)


def _asked(value: dict[str, Any], where: str, answered: bool) -> tuple[str, Asked]:
    """The video and the question of a line, without its answer unless `answered`."""
    needed = ("video", "question", "answer") if answered else ("video", "question")
    for key in needed:
        if key not in value:
            raise UsageError(f"{where}: {key!r} is missing.")
    for key in (*needed, "family"):
        if key in value and not (isinstance(value[key], str) and value[key].strip()):
            raise UsageError(f"{where}: {key!r} must be a non-empty text.")
    choices = value.get("choices") or ()
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) and choice for choice in choices):
        raise UsageError(f"{where}: 'choices' must be a list of texts.")
    if len(choices) == 1 or len(set(choices)) < len(choices):
        raise UsageError(f"{where}: 'choices' must be at least two, and all different.")
    places = {choice.upper(): place for place, choice in enumerate(choices)}
    if any(places.get(letter, place) != place for place, letter in enumerate(LETTERS[: len(choices)])):
        raise UsageError(f"{where}: 'choices' must not be letters that stand for other choices.")
    answer = value["answer"] if answered else ""
    if answered and choices and answer not in choices:
        place = LETTERS.find(answer.strip())
        if not 0 <= place < len(choices) or len(answer.strip()) != 1:
            raise UsageError(f"{where}: 'answer' must be one of the 'choices' or its letter.")
        answer = choices[place]
    return value["video"], Asked(value["question"], answer, value.get("family", "other"), tuple(choices))
