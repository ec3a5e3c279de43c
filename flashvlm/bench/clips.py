"""The data sets `clips`, `eight-looks`, `needle` and `crowd`: made up by number from seeds that training never uses,
and written as H.264 files.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flashvlm.bench.data import Asked, DataSet
from flashvlm.demo.clips import HELD_OUT_SEED, write_clip
from flashvlm.demo.questions import FAMILIES, NUMBERS, PLACES, Question, ask
from flashvlm.demo.world import DIRECTIONS, KINDS, NAMES, Scene, make_scene, make_told_scene, sample_times

NEEDLE_SEED = (2026, 1, 2)
CROWD_SEED = (2026, 1, 3)
# Clips below this number may serve to tune selectors; what is reported is measured from here on.
REPORTED = 2000
# A guess among the answers that a question of the demo world admits; for captions there are too many to matter.
GUESSES = {
    "kind": len(KINDS["animal"]), "motion": len(DIRECTIONS) + 1, "mover": len(NAMES),
    **dict.fromkeys(("where", "start", "end"), sum(map(len, PLACES))),
    "exist": 2, "count": len(NUMBERS), "first": len(NAMES), "last": len(NAMES), "moment": len(NAMES) + 1,
}  # fmt: skip

# A needle clip, in temporal groups of two frames: all of it, the event that is asked about, and the room that any other
# thing has at least. It is there for a group less where it begins late, which still is longer than a needle.
NEEDLE_GROUPS = 32
NEEDLE_LENGTHS = (2, 3)
OTHER_LENGTH = 5
NEEDLE_FAMILIES = ("kind", "motion", "where", "exist")
# In a crowd so many other things are there most of the time, each for so many groups, which is longer than a needle.
CROWD_AT_ONCE = 2
CROWD_LENGTHS = (4, 5, 6)


def film(scene: Scene, rng: np.random.Generator, path: Path) -> Path:
    """Write a scene as an H.264 file of a size and quality drawn by `rng`."""
    options = {"crf": str(int(rng.integers(20, 31))), "preset": "veryfast"}
    fps = 8.0 if scene.frames <= 16 else 4.0
    write_clip(scene, path, options=options, fps=fps, area=int(rng.uniform(224, 400)) ** 2)
    return path


class Generated(DataSet):
    """Clips of the demo world. The families of questions take turns: each number has one of its own, and its scene is
    drawn until that can be asked; further questions are of other families."""

    begin = REPORTED
    guesses = GUESSES
    seed: ClassVar[tuple[int, ...]]
    families: ClassVar[tuple[str, ...]]

    def __init__(self, questions: int = 1) -> None:
        self.each = questions
        self._drawn = lru_cache(maxsize=4096)(self._draw)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.each,)

    @property
    def identity(self) -> dict[str, Any]:
        return {"data": self.name, "questions": self.each}

    def questions(self, number: int) -> tuple[Asked, ...]:
        return self._drawn(number)[1]

    def video(self, number: int, folder: Path) -> Path:
        return film(self._drawn(number)[0], np.random.default_rng([*self.seed, number, 1]), folder / "clip.mp4")

    @abstractmethod
    def scene(self, rng: np.random.Generator) -> Scene:
        """Make up a scene."""

    @abstractmethod
    def ask(self, scene: Scene, family: str, rng: np.random.Generator) -> Question | None:
        """Make up a question of this family on the scene; None where it does not lend itself to it."""

    def _draw(self, number: int) -> tuple[Scene, tuple[Asked, ...]]:
        rng = np.random.default_rng([*self.seed, number])
        own = self.families[number % len(self.families)]
        first = None
        while first is None:
            scene = self.scene(rng)
            first = self.ask(scene, own, rng)
        asked = [first]
        for family in rng.permutation([family for family in self.families if family != own]).tolist():
            further = self.ask(scene, family, rng) if len(asked) < self.each else None
            asked += [further] if further else []
        return scene, tuple(Asked(question.text, question.answer, question.family) for question in asked)


class Clips(Generated):
    """Held-out clips of the kind that the demo model was trained on, of 1 to 64 frames."""

    name = "clips"
    seed = HELD_OUT_SEED
    families = FAMILIES

    def scene(self, rng: np.random.Generator) -> Scene:
        return make_scene(rng)

    def ask(self, scene: Scene, family: str, rng: np.random.Generator) -> Question | None:
        return ask(scene, family, rng)


class EightLooks(Clips):
    """Square ones of them that can be told from eight looks, from first frame to last, as Video-LLaVA has them."""

    name = "eight-looks"

    def scene(self, rng: np.random.Generator) -> Scene:
        return make_told_scene(rng, sample_times(8))


class Needle(Generated):
    """Long clips, 64 frames, in which something is there for two or three temporal groups of 32: that is asked about.

    Two or three other things come and go before and after it. The question names the needle, or a kind that only the
    needle is of; where the answer is that there is no such thing, no other thing is one either.
    """

    name = "needle"
    seed = NEEDLE_SEED
    families = NEEDLE_FAMILIES

    def scene(self, rng: np.random.Generator) -> Scene:
        length = int(rng.choice(NEEDLE_LENGTHS))
        first, last = rng.permutation([1, int(rng.integers(1, 3))]).tolist()
        begin = int(rng.integers(OTHER_LENGTH * first, NEEDLE_GROUPS - length - OTHER_LENGTH * last + 1))
        before = _in_turn(rng, 0, begin, first)
        after = _in_turn(rng, begin + length, NEEDLE_GROUPS, last)
        spans = [(a / NEEDLE_GROUPS, b / NEEDLE_GROUPS) for a, b in [*before, (begin, begin + length), *after]]
        return make_scene(rng, frames=2 * NEEDLE_GROUPS, sequence=True, spans=spans)

    def ask(self, scene: Scene, family: str, rng: np.random.Generator) -> Question | None:
        needle = min(scene.things, key=lambda thing: thing.vanishes - thing.appears).name
        question = ask(scene, family, rng)
        if question is None:
            return None
        if question.answer == "no":
            # As often as the other answer is about the needle.
            return question if rng.random() < 1 / len(scene.things) else None
        named = needle in question.text.rstrip("?.").split()
        return question if named or question.answer == needle else None


class Crowd(Needle):
    """Needles in a crowd: two other things are there most of the time, each soon followed by the next."""

    name = "crowd"
    seed = CROWD_SEED

    def scene(self, rng: np.random.Generator) -> Scene:
        length, shortest = int(rng.choice(NEEDLE_LENGTHS)), min(CROWD_LENGTHS)
        begin = int(rng.integers(shortest, NEEDLE_GROUPS - length - shortest + 1))
        spans = [(begin, begin + length)]
        for _ in range(CROWD_AT_ONCE):
            start = int(rng.integers(3))
            while start <= NEEDLE_GROUPS - shortest:
                end = min(start + int(rng.choice(CROWD_LENGTHS)), NEEDLE_GROUPS)
                spans.append((start, end))
                start = end + int(rng.integers(2))
        shares = [(start / NEEDLE_GROUPS, end / NEEDLE_GROUPS) for start, end in spans]
        return make_scene(rng, frames=2 * NEEDLE_GROUPS, sequence=True, spans=shares)


def _in_turn(rng: np.random.Generator, begin: int, end: int, count: int) -> list[tuple[int, int]]:
    """When one or two things are there, one after the other, in the groups `begin` to `end`; some begin late."""
    cuts = [begin, end]
    if count == 2:
        cuts.insert(1, int(rng.integers(begin + OTHER_LENGTH, end - OTHER_LENGTH + 1)))
    return [(a + int(rng.integers(2)), b) for a, b in pairwise(cuts)]
