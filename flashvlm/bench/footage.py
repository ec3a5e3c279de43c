"""Synthetic footage of any size and length for measuring speed, as H.264 files: what matters is how much changes.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashvlm.demo.world import NAMES, SPRITES, background
from flashvlm.errors import UsageError

KINDS = ("moving", "still", "screen")
SEED = 20251222
# Larger frames do not fit in memory everywhere.
LARGEST_SIDE = 8192
# The size of the moving object, as a share of the shorter side; and how many seconds the camera takes for one round.
THING_SHARE = 0.25
ROUND_SECONDS = 12.0
MARGIN_SHARE = 0.15
# How many seconds a page of a screen recording stays.
PAGE_SECONDS = 8.0
# When an object crosses the picture of the still camera, as fractions of the clip.
CROSSING = (0.4, 0.6)


@dataclass(frozen=True)
class Footage:
    """What to film.

    `moving`: camera and object move all the time. `still`: the camera stands still, and an object crosses the picture
    during a fifth of the time. `screen`: pages of text, one after the other.

    Raises:
        UsageError: an unknown kind, or a size or length that is not possible.
    """

    kind: str = "moving"
    width: int = 448
    height: int = 448
    seconds: float = 8.0
    fps: int = 25
    key_every: int = 250

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"--clip is one of {', '.join(KINDS)}, not {self.kind!r}.")
        if not all(56 <= side <= LARGEST_SIDE and side % 2 == 0 for side in (self.width, self.height)):
            raise UsageError(f"A clip has even sides of 56 to {LARGEST_SIDE:,} pixels, not {self.width}x{self.height}.")
        if not 1 <= self.seconds <= 24 * 3600:
            raise UsageError(f"A clip lasts from 1 second to a day, not {self.seconds:g} s.")


def film(footage: Footage, path: Path) -> Path:
    """Write the footage as an H.264 file."""
    import av

    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "23", "sc_threshold": "0"}
        stream: Any = out.add_stream("libx264", rate=Fraction(footage.fps), options=options)
        stream.width, stream.height, stream.pix_fmt = footage.width, footage.height, "yuv420p"
        stream.codec_context.gop_size = footage.key_every
        for picture in pictures(footage):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode())
    return path


def pictures(footage: Footage) -> Iterator[np.ndarray]:
    """The frames, (height, width, 3) uint8 each."""
    height, width = footage.height, footage.width
    margin = round(min(height, width) * MARGIN_SHARE) if footage.kind == "moving" else 0
    scenery = background(SEED, height + 2 * margin, width + 2 * margin).clip(0, 255).astype(np.uint8)
    side = round(min(height, width) * THING_SHARE)
    sprite = np.asarray(Image.open(SPRITES / f"{NAMES[0]}.png").convert("RGBA").resize((side, side)), np.float32)
    page, text = -1, scenery
    for number in range(round(footage.seconds * footage.fps)):
        when = number / footage.fps
        share = when / footage.seconds
        if footage.kind == "screen":
            if int(when / PAGE_SECONDS) != page:
                page = int(when / PAGE_SECONDS)
                text = _page(height, width, page)
            yield text
            continue
        turn = 2 * np.pi * when / ROUND_SECONDS
        top, left = (round(margin * (1 + part)) for part in (np.sin(turn), np.cos(turn)))
        picture = scenery[top : top + height, left : left + width]
        begin, end = CROSSING if footage.kind == "still" else (0.0, 1.0)
        if begin <= share < end:
            x = round((width - side) * (share - begin) / (end - begin))
            picture = _with_thing(picture, sprite, (height - side) // 2, x)
        yield picture


def _with_thing(picture: np.ndarray, sprite: np.ndarray, top: int, left: int) -> np.ndarray:
    picture = picture.copy()
    side = len(sprite)
    spot = picture[top : top + side, left : left + side]
    opacity = sprite[..., 3:] / 255
    spot[:] = spot * (1 - opacity) + sprite[..., :3] * opacity
    return picture


def _page(height: int, width: int, number: int) -> np.ndarray:
    """A light page with lines of dark words."""
    rng = np.random.default_rng([SEED, number])
    page = np.full((height, width, 3), 245, np.uint8)
    line = max(8, height // 30)
    for top in range(line, height - line, 2 * line):
        left = line
        while left < width - 4 * line:
            length = int(rng.integers(line, 5 * line))
            page[top : top + line, left : min(left + length, width - line)] = rng.integers(20, 120, 3)
            left += length + line // 2
    return page
