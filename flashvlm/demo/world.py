"""The small world of the demo models: everyday objects that appear, move or stay on a textured background.

A `Scene` describes what happens, in numbers; `render` draws any moment of it at any size. Everything is deterministic
by seed. Lengths are in units of the square root of the picture's area, so that an object has the same number of pixels
in wide and tall pictures of the same area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFilter

KINDS: dict[str, dict[str, str]] = {
    "animal": {
        "dog": "🐕", "cat": "🐈", "cow": "🐄", "elephant": "🐘",
        "penguin": "🐧", "frog": "🐸", "turtle": "🐢", "butterfly": "🦋",
    },
    "vehicle": {"car": "🚗", "bus": "🚌", "bicycle": "🚲", "airplane": "✈", "rocket": "🚀", "boat": "⛵"},
    "food": {"apple": "🍎", "banana": "🍌", "pizza": "🍕", "carrot": "🥕", "cake": "🍰", "burger": "🍔"},
    "thing": {"umbrella": "🌂", "guitar": "🎸", "key": "🔑", "balloon": "🎈", "book": "📕", "clock": "⏰"},
}  # fmt: skip
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
NAMES = tuple(KIND_OF)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

# Pairs of a name and a direction that occur in no training clip; the model card reports them separately.
HELD_OUT_PAIRS = frozenset((name, tuple(DIRECTIONS)[i // 2 % 4]) for i, name in enumerate(NAMES) if i % 2 == 0)

ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16), (5, 4), (4, 5), (3, 2))
SPRITES = Path(__file__).parent / "sprites"

# One moment of a clip, or many.
Times = TypeVar("Times", float, np.ndarray)


@dataclass(frozen=True)
class Thing:
    """One object and what it does.

    It is visible from `appears` to `vanishes` (fractions of the clip), and its centre moves in a straight line from
    `start` to `end` (x and y as fractions of the picture).
    """

    name: str
    size: float
    appears: float
    vanishes: float
    start: tuple[float, float]
    end: tuple[float, float]
    direction: str | None

    @property
    def kind(self) -> str:
        return KIND_OF[self.name]

    def visible(self, when: float) -> bool:
        """Whether the object is visible at `when` (fraction of the clip); if it vanishes at 1, it still is at 1."""
        return self.appears <= when < self.vanishes or (self.vanishes >= 1.0 and when >= self.appears)

    def centre(self, when: Times) -> tuple[Times, Times]:
        """Where its centre is at `when`, as fractions of width and height."""
        way = (when - self.appears) / (self.vanishes - self.appears)
        return tuple(a + (b - a) * way for a, b in zip(self.start, self.end, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Scene:
    """A clip before it is rendered.

    `aspect` is width : height. `sequence` says that the objects come one after another: each appears at least one
    temporal group after the one before it, and vanishes after it too (unless `make_scene` was given other `spans`).
    """

    aspect: tuple[int, int]
    things: tuple[Thing, ...]
    sequence: bool
    background_seed: int
    frames: int

    @property
    def still(self) -> bool:
        return self.frames == 1

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height, in units of the square root of the area."""
        width, height = self.aspect
        return (width / height) ** 0.5, (height / width) ** 0.5


def third(fraction: float) -> int:
    """0, 1 or 2: the third of the picture that a coordinate lies in."""
    return min(2, int(fraction * 3))


def make_scene(
    rng: np.random.Generator,
    *,
    frames: int | None = None,
    aspect: tuple[int, int] | None = None,
    sequence: bool | None = None,
    count: int | None = None,
    held_out_pairs: bool = False,
    zoom: float = 1.0,
    spans: Sequence[tuple[float, float]] | None = None,
) -> Scene:
    """Generate a scene to be sampled at `frames` frames (1: a still), with objects `zoom` times as large as usual.

    With `held_out_pairs`, every moving object is one of `HELD_OUT_PAIRS`; without, none is. `spans` says when each
    object is visible (fractions of the clip), and so how many there are.
    """
    count = count if spans is None else len(spans)
    frames = frames or int(rng.choice([1, 4, 8, 12, 16, 24, 32, 48, 64]))
    aspect = aspect or ASPECTS[rng.integers(len(ASPECTS))]
    while True:
        in_turn = sequence
        if in_turn is None:
            in_turn = frames >= 8 and bool(rng.random() < (0.55 if frames <= 24 else 0.9))
        in_turn = in_turn and frames > 1
        things = count or int(rng.integers(1 + in_turn, 5))
        # Try again if there is no room for a further object, or nothing can move as required.
        scene = _try_scene(rng, frames, aspect, in_turn, things, held_out_pairs, zoom, spans)
        if scene is not None:
            return scene


def _spans(rng: np.random.Generator, frames: int, sequence: bool, count: int) -> list[tuple[float, float]]:
    """When each object is visible. In a sequence, both beginnings and ends are in order and at least a group apart."""
    if not sequence:
        return [(0.0, 1.0)] * count
    groups = frames // 2
    gap = max(1, round(groups * 0.08))
    slack = groups - gap * count
    cuts = np.sort(rng.integers(0, slack + 1, size=count)) if slack > 0 else np.zeros(count, dtype=int)
    if rng.random() < 0.7:
        cuts[0] = 0
    begins = cuts + gap * np.arange(count)
    ends: list[int] = []
    for i, begin in enumerate(begins):
        earliest = max(begin + gap, ends[-1] + gap if ends else 0)
        latest = groups - gap * (count - 1 - i)
        longest = min(latest, max(earliest, begin + 12))
        ends.append(int(rng.integers(earliest, longest + 1)) if longest > earliest else earliest)
    if rng.random() < 0.6 and groups - begins[-1] <= 16:
        ends[-1] = groups
    if ends[-1] > groups:
        return []
    return [(b / groups, e / groups) for b, e in zip(begins.tolist(), ends, strict=True)]


def _try_scene(
    rng: np.random.Generator,
    frames: int,
    aspect: tuple[int, int],
    sequence: bool,
    count: int,
    held_out_pairs: bool,
    zoom: float,
    spans: Sequence[tuple[float, float]] | None,
) -> Scene | None:
    spans = spans or _spans(rng, frames, sequence, count)
    if len(spans) != count:
        return None
    extent = ((aspect[0] / aspect[1]) ** 0.5, (aspect[1] / aspect[0]) ** 0.5)
    things: list[Thing] = []
    for name, (appears, vanishes) in zip(rng.permutation(NAMES)[:count].tolist(), spans, strict=True):
        steps = round((vanishes - appears) * frames) - 1
        # Motion must be visible in each sampled frame, without jumps: 4 to 22 pixels of 224 from one to the next.
        travel = (max(0.2, 0.018 * steps), min(0.8, 0.1 * steps))
        ways = [way for way in DIRECTIONS if ((name, way) in HELD_OUT_PAIRS) == held_out_pairs]
        moves = bool(ways) and travel[0] < travel[1] and rng.random() < 0.7
        for _ in range(40):
            direction = str(rng.choice(ways)) if moves else None
            size = float(rng.uniform(0.24, 0.36)) * zoom
            thing = _try_thing(rng, name, size, appears, vanishes, extent, direction, travel)
            if thing is not None and not any(_meet(thing, other, extent, frames) for other in things):
                things.append(thing)
                break
        else:
            return None
    if held_out_pairs and not any(thing.direction for thing in things):
        return None
    return Scene(aspect, tuple(things), sequence, int(rng.integers(2**31)), frames)


def _try_thing(
    rng: np.random.Generator,
    name: str,
    size: float,
    appears: float,
    vanishes: float,
    extent: tuple[float, float],
    direction: str | None,
    travel: tuple[float, float],
) -> Thing | None:
    margin = tuple(size / 2 / length for length in extent)

    def place(axis: int) -> float:
        # Thirds are equally likely; centres stay clear of the lines between them, where the answer would be unclear.
        part = int(rng.integers(3))
        clear = 0.035
        low = max(margin[axis], part / 3 + clear)
        high = min(1 - margin[axis], (part + 1) / 3 - clear)
        return float(rng.uniform(low, max(low, high)))

    start = [place(0), place(1)]
    end = list(start)
    if direction is not None:
        axis = 0 if direction in ("left", "right") else 1
        end[axis] = place(axis)
        travelled = (end[axis] - start[axis]) * DIRECTIONS[direction][axis] * extent[axis]
        if not travel[0] <= travelled <= travel[1]:
            return None
    return Thing(name, size, appears, vanishes, (start[0], start[1]), (end[0], end[1]), direction)


def _meet(one: Thing, other: Thing, extent: tuple[float, float], frames: int) -> bool:
    """Whether two objects ever touch while both are visible."""
    reach = (one.size + other.size) / 2 * 1.02
    begin, end = max(one.appears, other.appears), min(one.vanishes, other.vanishes)
    if begin > end:
        return False
    when = np.linspace(begin, end, 2 * frames + 1)
    if end < 1.0:
        when = when[when < end]
    across, down = (
        abs(a - b) * length for a, b, length in zip(one.centre(when), other.centre(when), extent, strict=True)
    )
    return bool((np.maximum(across, down) < reach).any())


@lru_cache(maxsize=1)
def _sprites() -> dict[str, Image.Image]:
    return {name: Image.open(SPRITES / f"{name}.png").convert("RGBA") for name in NAMES}


@lru_cache(maxsize=512)
def _sprite(name: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours times opacity, (pixels, pixels, 3), and transparency, (pixels, pixels, 1), both float32."""
    picture = np.asarray(_sprites()[name].resize((pixels, pixels), Image.Resampling.LANCZOS), dtype=np.float32)
    opacity = picture[..., 3:] / 255
    return picture[..., :3] * opacity, 1 - opacity


def background(seed: int, height: int, width: int) -> np.ndarray:
    """A textured background, (height, width, 3) float32 in 0..255: soft blotches of two colours and some grain."""
    rng = np.random.default_rng(seed)
    two = rng.uniform(60, 215, size=(2, 3)).astype(np.float32)
    cells = int(rng.integers(2, 9))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    blotches = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    picture = two[0] + (two[1] - two[0]) * blotches * rng.uniform(0.2, 1.0)
    grain = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
    if rng.random() < 0.5:
        grain = grain.filter(ImageFilter.BoxBlur(1))
    return picture + (np.asarray(grain, dtype=np.float32)[..., None] - 128) * rng.uniform(0.02, 0.2)


def sample_times(frames: int) -> np.ndarray:
    """The sampling times of a clip, as fractions of its length: evenly spaced, first and last frame included."""
    return np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)


def render(scene: Scene, times: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw the scene at `times` (fractions of its length).

    Returns:
        (len(times), height, width, 3) uint8.
    """
    empty = background(scene.background_seed, height, width)
    frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
    for frame, when in zip(frames, times.tolist(), strict=True):
        picture = empty.copy()
        draw_things(scene, when, picture)
        np.clip(picture, 0, 255, out=picture)
        frame[:] = picture
    return frames


def draw_things(scene: Scene, when: float, picture: np.ndarray) -> None:
    """Draw the objects that are visible at `when` onto the picture, (height, width, 3) float32, in place."""
    height, width = picture.shape[:2]
    for thing in scene.things:
        if not thing.visible(when):
            continue
        pixels = max(4, round(thing.size * (height * width) ** 0.5))
        x, y = thing.centre(when)
        left = min(max(round(x * width - pixels / 2), 0), width - pixels)
        top = min(max(round(y * height - pixels / 2), 0), height - pixels)
        colours, through = _sprite(thing.name, pixels)
        spot = picture[top : top + pixels, left : left + pixels]
        spot *= through
        spot += colours


def tells(scene: Scene, times: np.ndarray) -> bool:
    """Whether these times (fractions of the clip, rising) are enough to understand what happens.

    Every object must be seen, moving ones at least twice, first in the thirds where it starts and last in those where
    it ends. In a sequence, each object must be first seen, and last seen, later than the one before.
    """
    firsts, lasts = [], []
    for thing in scene.things:
        seen = [when for when in times.tolist() if thing.visible(when)]
        if not seen or (thing.direction is not None and len(seen) < 2):
            return False
        for when, place in ((seen[0], thing.start), (seen[-1], thing.end)):
            if any(third(a) != third(b) for a, b in zip(thing.centre(when), place, strict=True)):
                return False
        firsts.append(seen[0])
        lasts.append(seen[-1])
    return not scene.sequence or all(a < b for ends in (firsts, lasts) for a, b in pairwise(ends))


def make_told_scene(rng: np.random.Generator, times: np.ndarray, **settings: Any) -> Scene:
    """Generate a square scene that these times are enough to understand (`tells`), with `settings` of `make_scene`."""
    while True:
        scene = make_scene(rng, aspect=(1, 1), **settings)
        if tells(scene, times):
            return scene
