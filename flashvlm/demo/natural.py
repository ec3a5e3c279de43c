"""Natural conditions for scenes of the demo world: what a phone films, instead of a textured background.

Behind the objects lies footage, seen by a camera that pans, zooms and shakes, with cuts to other footage and with
clutter: pictures of nothing in particular. Light, blur and noise cover everything, the objects too. *The objects keep
the places and ways that the scene gives them, as fractions of the picture: only what lies behind them moves with the
camera.* So every question keeps its answer. An "object" in a question is one of the 26 pictures of the world, never
clutter or a part of the footage.

Everything is deterministic by seed, and any moment can be drawn without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from flashvlm.demo.world import Scene, draw_things, make_scene

# Width : height of what phones film.
ASPECTS = ((16, 9), (9, 16), (4, 3), (3, 4), (1, 1), (13, 6), (6, 13))
# Objects are at least this much of their usual size, and at most.
ZOOMS = (0.85, 1.05)
# A clip with a brief object lasts a minute and is sampled at 64 frames: an object of a second is just in one of them.
BRIEF_FRAMES, BRIEF_SECONDS, BRIEF_LENGTHS = 64, 60.0, (1.1, 2.0)
# How many seconds lie between two frames that a scene was planned for.
FRAME_SECONDS = 0.5
# The share of clips that have each condition; several come together.
CUTS_SHARE, CLUTTER_SHARE, BLUR_SHARE, SMEAR_SHARE, FLICKER_SHARE = 0.4, 0.6, 0.35, 0.35, 0.4
CUTS_MOST, CLUTTER_MOST = 4, 6
# The standard deviation of a sensor's noise, in levels of 256.
NOISE = (0.0, 12.0)

# What lies behind the objects: at so many seconds of a shot, through this window (left, top, width and height as
# fractions of the whole), at this size (width, height).
Window = tuple[float, float, float, float]
Footage = Callable[[float, Window, tuple[int, int]], Image.Image]
# Generates footage to be seen at about this size (width, height).
Source = Callable[[np.random.Generator, tuple[int, int]], Footage]
# Makes a canvas of this size, for a camera to look at.
Painter = Callable[[np.random.Generator, tuple[int, int]], Image.Image]


def make_natural_scene(rng: np.random.Generator, brief: bool = False, **settings: Any) -> Scene:
    """Generate a scene in a shape that phones film; if `brief`, with an object visible for 1 to 2 s of 60 s.

    The brief object comes after one or two others and before one or two more. `settings` are those of `make_scene`.
    """
    settings = {"aspect": ASPECTS[rng.integers(len(ASPECTS))], "zoom": float(rng.uniform(*ZOOMS)), **settings}
    if brief:
        settings |= {"frames": BRIEF_FRAMES, "sequence": True, "spans": brief_spans(rng)}
    return make_scene(rng, **settings)


def brief_spans(rng: np.random.Generator) -> list[tuple[float, float]]:
    """When each object is visible, as fractions of the clip: the brief one, and one or two at either side of it."""
    length = float(rng.uniform(*BRIEF_LENGTHS)) / BRIEF_SECONDS
    before, after = rng.permutation([1, int(rng.integers(1, 3))]).tolist()
    # Each of the others has about a tenth of the clip or more.
    begin = float(rng.uniform(0.12 * before, 1 - length - 0.12 * after))
    rest = begin + length
    parts = [*pairwise(np.linspace(0, begin, before + 1)), (begin, rest), *pairwise(np.linspace(rest, 1, after + 1))]
    last, spans = BRIEF_FRAMES - 1, []
    for place, (low, high) in enumerate(parts):
        if place != before:
            # From one frame to another, with a gap of one or two before; a file's frames may be a little off.
            low = (math.ceil(low * last) + int(rng.integers(1, 3)) - 0.2) / last
            high = (math.floor(high * last) + (0.2 if high == 1 else -0.8)) / last
        spans.append((float(low), float(min(high, 1.0))))
    return spans


def is_brief(scene: Scene) -> bool:
    """Whether an object of the scene is visible for as short a time as in a `brief` one."""
    shortest = min((thing.vanishes - thing.appears for thing in scene.things), default=1.0)
    return scene.frames == BRIEF_FRAMES and shortest <= BRIEF_LENGTHS[1] / BRIEF_SECONDS


def natural_seconds(scene: Scene) -> float:
    """The length of the scene's clip in seconds."""
    return BRIEF_SECONDS if is_brief(scene) else scene.frames * FRAME_SECONDS


def render_natural(scene: Scene, times: np.ndarray, height: int, width: int, source: Source) -> np.ndarray:
    """Draw the scene at `times` (fractions of its length) in natural conditions, in front of footage from `source`.

    Returns:
        (len(times), height, width, 3) uint8.
    """
    rng = np.random.default_rng([scene.background_seed, 1])
    seconds = natural_seconds(scene)
    many = int(rng.integers(1, CUTS_MOST + 1)) if seconds >= 3 and rng.random() < CUTS_SHARE else 0
    cuts = [0.0, *np.sort(rng.uniform(0.05, 0.95, many)).tolist()]
    film = _Film.draw(rng)
    shots: dict[int, _Shot] = {}
    frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
    for frame, when in zip(frames, times.tolist(), strict=True):
        place = sum(cut <= when for cut in cuts) - 1
        if place not in shots:
            own = np.random.default_rng([scene.background_seed, 2, place])
            shots[place] = _Shot.draw(own, source, (width, height))
        picture = shots[place].picture((when - cuts[place]) * seconds, (width, height))
        draw_things(scene, when, picture)
        frame[:] = film.develop(picture, when * seconds, [scene.background_seed, 3, round(when * 1e6)])
    return frames


@dataclass(frozen=True)
class _Camera:
    """Where the camera looks: a window onto the footage, that pans, zooms and shakes."""

    centre: tuple[float, float]
    pan: tuple[float, float]
    size: float
    zoom: float
    shake: float
    phases: tuple[float, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Camera:
        still = rng.random() < 0.25
        speed = 0.0 if still else float(rng.choice([0.0, 0.03, 0.1, 0.25]) * rng.uniform(0.5, 1.0))
        angle = float(rng.uniform(0, 2 * np.pi))
        return cls(
            (float(rng.uniform()), float(rng.uniform())),
            (speed * float(np.cos(angle)), speed * float(np.sin(angle))),
            float(rng.uniform(0.5, 0.8)),
            0.0 if still else float(rng.choice([0.0, 0.0, 0.08, 0.2]) * rng.uniform(0.3, 1.0)),
            0.0 if still else float(rng.uniform(0, 0.02)),
            tuple(rng.uniform(0, 2 * np.pi, 5).tolist()),
        )

    def window(self, seconds: float) -> Window:
        a, b, c, d, e = self.phases
        size = self.size * (1 + self.zoom * float(np.sin(0.7 * seconds + e)))
        shake = [
            self.shake * float(np.sin(9.1 * seconds + one) + np.sin(5.3 * seconds + two))
            for one, two in ((a, b), (c, d))
        ]
        # At the edge of the footage the camera turns back.
        left, top = (
            (1 - size) * _there_and_back(at + way * seconds) + moved
            for at, way, moved in zip(self.centre, self.pan, shake, strict=True)
        )
        return min(max(left, 0.0), 1 - size), min(max(top, 0.0), 1 - size), size, size


def _there_and_back(at: float) -> float:
    """A number that goes from 0 to 1 and back as `at` rises."""
    return 1 - abs(at % 2 - 1)


@dataclass(frozen=True)
class _Shot:
    """The footage between two cuts, with its camera, and with clutter that lies in it: (icon, x, y, size)."""

    footage: Footage
    camera: _Camera
    clutter: Sequence[tuple[Image.Image, float, float, float]]

    @classmethod
    def draw(cls, rng: np.random.Generator, source: Source, size: tuple[int, int]) -> _Shot:
        many = int(rng.integers(1, CLUTTER_MOST + 1)) if rng.random() < CLUTTER_SHARE else 0
        clutter = [
            (_icon(rng), float(rng.uniform()), float(rng.uniform()), float(rng.uniform(0.08, 0.3))) for _ in range(many)
        ]
        return cls(source(rng, size), _Camera.draw(rng), clutter)

    def picture(self, seconds: float, size: tuple[int, int]) -> np.ndarray:
        """What the camera sees, (height, width, 3) float32."""
        width, height = size
        left, top, across, down = window = self.camera.window(seconds)
        seen = self.footage(seconds, window, size)
        for icon, x, y, share in self.clutter:
            pixels = round(share * (width * height) ** 0.5 * 0.65 / across)
            at = (round((x - left) / across * width - pixels / 2), round((y - top) / down * height - pixels / 2))
            if -pixels < at[0] < width and -pixels < at[1] < height:
                small = icon.resize((pixels, pixels), Image.Resampling.BILINEAR)
                seen.paste(small, at, small)
        return np.asarray(seen, dtype=np.float32).copy()


@dataclass(frozen=True)
class _Film:
    """What happens between lens and file: blur, smear, light that changes, noise."""

    blur: float
    smear: tuple[float, ...]
    gain: float
    cast: tuple[float, float, float]
    contrast: float
    sway: float
    rate: float
    phase: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Film:
        return cls(
            blur=float(rng.uniform(0.4, 1.2)) if rng.random() < BLUR_SHARE else 0.0,
            smear=_line(float(rng.uniform(0, np.pi))) if rng.random() < SMEAR_SHARE else (),
            gain=float(rng.uniform(0.6, 1.25)),
            cast=tuple(rng.uniform(0.88, 1.12, 3).tolist()),
            contrast=float(rng.uniform(0.65, 1.1)),
            sway=float(rng.uniform(0.05, 0.3)) if rng.random() < FLICKER_SHARE else 0.0,
            rate=float(rng.choice([0.3, 1.0, 4.0])),
            phase=float(rng.uniform(0, 2 * np.pi)),
            noise=float(rng.uniform(*NOISE)),
        )

    def develop(self, picture: np.ndarray, seconds: float, seed: list[int]) -> np.ndarray:
        """The frame, (height, width, 3) float32 in 0..255; blur is in pixels of about 224 x 224."""
        np.clip(picture, 0, 255, out=picture)
        scale = (picture.shape[0] * picture.shape[1]) ** 0.5 / 224
        if self.blur or self.smear:
            soft = Image.fromarray(picture.astype(np.uint8))
            soft = soft.filter(ImageFilter.GaussianBlur(self.blur * scale)) if self.blur else soft
            soft = soft.filter(ImageFilter.Kernel((5, 5), self.smear)) if self.smear else soft
            picture = np.asarray(soft, dtype=np.float32)
        light = self.gain * (1 + self.sway * np.sin(self.rate * seconds + self.phase))
        picture = (picture - 128) * np.float32(self.contrast) + 128
        picture *= np.asarray(self.cast, dtype=np.float32) * np.float32(light)
        if self.noise:
            grain = np.random.default_rng(seed).standard_normal(picture.shape, dtype=np.float32)
            picture += grain * np.float32(self.noise)
        return np.clip(picture, 0, 255, out=picture)


def _line(angle: float) -> tuple[float, ...]:
    """A 5 x 5 kernel that smears along a line."""
    kernel = np.zeros((5, 5))
    for step in np.linspace(-2, 2, 9):
        kernel[round(2 + step * np.sin(angle)), round(2 + step * np.cos(angle))] += 1
    return tuple((kernel / kernel.sum()).flatten().tolist())


def _icon(rng: np.random.Generator) -> Image.Image:
    """A picture of nothing in particular, RGBA: some coloured forms on top of each other."""
    side = 96
    icon = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(icon)
    colours = rng.integers(0, 256, (3, 3))
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0.2, 0.8, 2) * side
        long, short = rng.uniform(0.08, 0.4, 2) * side
        box = [max(0.0, x - long), max(0.0, y - short), min(side - 1.0, x + long), min(side - 1.0, y + short)]
        fill = (*colours[rng.integers(3)].tolist(), 255)
        match int(rng.integers(4)):
            case 0:
                pen.ellipse(box, fill=fill)
            case 1:
                pen.rounded_rectangle(box, radius=6, fill=fill)
            case 2:
                pen.polygon([tuple(point) for point in (rng.uniform(0.1, 0.9, (4, 2)) * side).tolist()], fill=fill)
            case 3:
                pen.line([box[0], box[1], box[2], box[3]], fill=fill, width=int(rng.integers(3, 10)))
    return icon


# Procedural footage: what training and tuning use.

# How much larger than the picture a canvas is, so that a camera can move over it.
CANVAS = 1.6


def procedural(rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    """Generate footage: a textured place, layers at several depths, water, or a crowd."""
    kind = (_place, layered, _water, _crowd)[int(rng.choice(4, p=[0.35, 0.25, 0.2, 0.2]))]
    return kind(rng, (round(size[0] * CANVAS), round(size[1] * CANVAS)))


def look(canvas: Image.Image, window: Window, size: tuple[int, int]) -> Image.Image:
    """The part of a canvas that is in the window, resized."""
    left, top, across, down = window
    width, height = canvas.size
    box = (left * width, top * height, min(left + across, 1.0) * width, min(top + down, 1.0) * height)
    return canvas.resize(size, Image.Resampling.BILINEAR, box=box)


def _field(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(height, width) float32 in 0..1: noise whose strength falls as 1/f to some power, as in nature."""
    width, height = size
    roughness = float(rng.uniform(0.5, 1.3))
    total = np.zeros((height, width), dtype=np.float32)
    cells = int(rng.integers(2, 5))
    while cells < max(size):
        across, down = max(2, cells * width // max(size)), max(2, cells * height // max(size))
        octave = Image.fromarray(rng.standard_normal((down, across), dtype=np.float32))
        total += np.asarray(octave.resize(size, Image.Resampling.BICUBIC)) * np.float32(cells**-roughness)
        cells *= 2
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _colours(rng: np.random.Generator) -> np.ndarray:
    """(256, 3) uint8: the colours of a place, from its darkest to its lightest."""
    stops = np.sort(rng.uniform(10, 245, int(rng.integers(2, 6))))
    tints = stops[:, None] + rng.normal(0, 1, (len(stops), 3)) * rng.uniform(4, 50)
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, np.arange(len(stops)), tint) for tint in tints.T], axis=1).clip(0, 255).astype("u1")


def _painted(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A place: a 1/f texture and, mostly, forms in front of each other, the smaller the more ("dead leaves")."""
    colours = _colours(rng)
    ground = (_field(rng, size) * 255).astype(np.uint8)
    canvas = Image.fromarray(colours[ground])
    if rng.random() < 0.25:
        return canvas
    pen = ImageDraw.Draw(canvas)
    unit = (size[0] * size[1]) ** 0.5
    square, jitter = rng.random(), float(rng.uniform(5, 60))
    many = int(rng.integers(15, 250))
    radii = np.minimum(0.25, 0.012 * rng.uniform(0.01, 1, many) ** -0.6) * unit
    xs, ys = rng.uniform(0, 1, (2, many)) * np.array(size)[:, None]
    tints = (colours[rng.integers(256, size=many)] + rng.normal(0, jitter, (many, 3))).clip(0, 255).astype(int)
    for x, y, radius, tint in zip(xs.tolist(), ys.tolist(), radii.tolist(), tints.tolist(), strict=True):
        wide = radius * float(rng.uniform(0.3, 2.0) * (1 if rng.random() < 0.5 else -1))
        box, fill = [x - abs(wide), y - radius, x + abs(wide), y + radius], tuple(tint)
        kind = rng.random()
        if kind < 0.2:
            # Branches, wires, blades of grass.
            pen.line([x - 3 * wide, y - 3 * radius, x + 3 * wide, y + 3 * radius], fill=fill, width=1 + int(radius / 8))
        elif kind < 0.2 + 0.8 * square:
            pen.rectangle(box, fill=fill)
        elif rng.random() < 0.5:
            pen.ellipse(box, fill=fill)
        else:
            points = np.array([x, y]) + rng.uniform(-1.3, 1.3, (int(rng.integers(3, 6)), 2)) * [wide, radius]
            pen.polygon([tuple(point) for point in points.tolist()], fill=fill)
    shade = (_field(rng, size) * float(rng.uniform(0, 90))).astype(np.uint8)
    return Image.fromarray(np.asarray(canvas) - np.minimum(np.asarray(canvas), shade[..., None]))


def _place(rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    canvas = _painted(rng, size)
    return lambda seconds, window, shown: look(canvas, window, shown)


def layered(rng: np.random.Generator, size: tuple[int, int], paint: Painter = _painted) -> Footage:
    """Layers at several depths: the nearer, the faster they pass the camera."""
    far = paint(rng, size)
    near = []
    for _ in range(int(rng.integers(1, 3))):
        mask = Image.fromarray(((_field(rng, size) > rng.uniform(0.5, 0.65)) * 255).astype(np.uint8))
        near.append((paint(rng, size), mask, float(rng.uniform(0.02, 0.2)), float(rng.uniform(0, 2))))

    def footage(seconds: float, window: Window, shown: tuple[int, int]) -> Image.Image:
        picture = look(far, window, shown)
        left, top, across, down = window
        for canvas, mask, speed, begin in near:
            passing = ((1 - across) * _there_and_back(begin + left + speed * seconds), top, across, down)
            picture.paste(look(canvas, passing, shown), (0, 0), look(mask, passing, shown))
        return picture

    return footage


def _water(rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    """Two textures that cross each other, coloured by their sum: it glitters like water."""
    fields = [Image.fromarray((_field(rng, size) * 255).astype(np.uint8)) for _ in range(2)]
    colours, speeds = _colours(rng), rng.uniform(-0.3, 0.3, (2, 2)).tolist()

    def footage(seconds: float, window: Window, shown: tuple[int, int]) -> Image.Image:
        left, top, across, down = window
        seen = []
        for field, (x, y) in zip(fields, speeds, strict=True):
            drift = (
                (1 - across) * _there_and_back(left + x * seconds),
                (1 - down) * _there_and_back(top + y * seconds),
            )
            seen.append(np.asarray(look(field, (*drift, across, down), shown), dtype=np.uint16))
        return Image.fromarray(colours[(seen[0] + seen[1]) // 2])

    return footage


def _crowd(rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    """Many figures that go their ways in front of a place."""
    canvas = _painted(rng, size)
    many = int(rng.integers(8, 40))
    starts = rng.uniform(0, 2, (many, 2))
    ways = rng.normal(0, 1, (many, 2)) * np.array([0.15, 0.02])
    tall = rng.uniform(0.06, 0.22, many)
    tints = rng.integers(0, 256, (many, 3, 3)).tolist()

    def footage(seconds: float, window: Window, shown: tuple[int, int]) -> Image.Image:
        picture = look(canvas, window, shown)
        pen = ImageDraw.Draw(picture)
        left, top, across, down = window
        for start, way, share, (head, body, legs) in zip(starts, ways, tall, tints, strict=True):
            x, y = (_there_and_back(at) for at in (start + way * seconds).tolist())
            x, y = (x - left) / across * shown[0], (y - top) / down * shown[1]
            step = share * min(shown) * 0.65 / across / 4
            pen.rectangle([x - step * 0.6, y + step, x + step * 0.6, y + 2 * step], fill=tuple(legs))
            pen.rounded_rectangle([x - step * 0.8, y - step, x + step * 0.8, y + step], step / 2, fill=tuple(body))
            pen.ellipse([x - step / 2, y - 2 * step, x + step / 2, y - step], fill=tuple(head))
        return picture

    return footage
