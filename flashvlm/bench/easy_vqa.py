"""The data set `easy-vqa`: the test split of https://pypi.org/project/easy-vqa, which training never sees.

1,000 images of one plain coloured shape each, and 9,673 questions not written for this project. Imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from flashvlm.bench.data import Asked, DataSet
from flashvlm.errors import UsageError


class EasyVQA(DataSet):
    """Each image as a video, with all of its questions: about its `shape`, its `colour`, or with answer `yes or no`."""

    name = "easy-vqa"
    # The answers that the package lists.
    guesses: ClassVar[Mapping[str, int]] = {"shape": 3, "colour": 8, "yes or no": 2}

    def __init__(self) -> None:
        """Find the package.

        Raises:
            UsageError: it is not installed.
        """
        try:
            import easy_vqa  # noqa: F401
        except ImportError:
            raise UsageError(
                "--data easy-vqa needs its package: install it with pip install 'flashvlm[bench]'."
            ) from None

    @property
    def identity(self) -> dict[str, Any]:
        return {"data": self.name, "package": version("easy-vqa")}

    @property
    def count(self) -> int:
        return len(self._images)

    def questions(self, number: int) -> tuple[Asked, ...]:
        return self._questions[number]

    def video(self, number: int, folder: Path) -> Path:
        return Path(self._images[number])

    @cached_property
    def _images(self) -> dict[int, str]:
        from easy_vqa import get_test_image_paths

        return get_test_image_paths()

    @cached_property
    def _questions(self) -> dict[int, tuple[Asked, ...]]:
        from easy_vqa import get_test_questions

        asked: dict[int, list[Asked]] = {}
        for text, answer, number in zip(*get_test_questions(), strict=True):
            asked.setdefault(number, []).append(Asked(text, answer, _family(text)))
        return {number: tuple(questions) for number, questions in asked.items()}


def _family(text: str) -> str:
    """The family of a question: `what color is the triangle?` is `colour`, `what is the blue shape?` is `shape`."""
    words = text.strip("?").split()
    if words[0] != "what":
        return "yes or no"
    return "colour" if "color" in words else "shape"
