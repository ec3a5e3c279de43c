"""Scenes as video files."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from flashvlm.demo.world import Scene, render

# Training draws its scenes from seeds of two numbers, (stage, step); these are longer.
HELD_OUT_SEED = (2026, 1, 1)
PLANNED_FPS = 2.0


def duration_of(scene: Scene) -> float:
    """The length in seconds at which sampling twice a second gives the number of frames planned for the scene."""
    return scene.frames / PLANNED_FPS


def picture_size(scene: Scene, area: int) -> tuple[int, int]:
    """(height, width) in pixels, both even, of about this area."""
    width, height = scene.extent
    return (round(height * area**0.5 / 2) * 2, round(width * area**0.5 / 2) * 2)


def write_clip(
    scene: Scene,
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    fps: float = 8.0,
    area: int = 320 * 320,
    seconds: float | None = None,
    rotation: int = 0,
    times: np.ndarray | None = None,
    draw: Callable[[Scene, np.ndarray, int, int], np.ndarray] = render,
) -> None:
    """Write a scene as a video file.

    Args:
        codec: FFmpeg's name of the encoder, with its `options`.
        fps: frames per second, unless `times` is given.
        area: approximate pixels per frame.
        seconds: length of the clip (default: as planned).
        rotation: degrees clockwise by which a player has to turn the frames, which are stored turned the other way.
        times: (F,) seconds at which frames are shown, rising; for a variable frame rate.
        draw: what makes the frames, like `world.render`.
    """
    import av

    seconds = seconds or duration_of(scene)
    times = np.arange(round(seconds * fps)) / fps if times is None else times
    height, width = picture_size(scene, area)
    pictures = draw(scene, times / times[-1], height, width)
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options or {})
        stream.height, stream.width = (height, width) if rotation % 180 == 0 else (width, height)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        if rotation:
            stream.set_display_rotation(-rotation)
        for when, picture in zip(times.tolist(), pictures, strict=True):
            turned = np.ascontiguousarray(np.rot90(picture, rotation // 90))
            frame = av.VideoFrame.from_ndarray(turned, format="rgb24")
            frame.pts, frame.time_base = round(when / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
