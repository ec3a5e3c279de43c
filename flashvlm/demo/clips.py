"""Scenes as video files, and the sample clips: `python -m flashvlm.demo.clips samples` makes them again."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flashvlm.demo.questions import Question, ask
from flashvlm.demo.world import Scene, make_scene, render

# Training draws its scenes from seeds of two numbers, (stage, step); these are longer.
SAMPLE_SEED = (2025, 12, 20)
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
) -> None:
    """Write a scene as a video file.

    Args:
        codec: FFmpeg's name of the encoder, with its `options`.
        fps: frames per second, unless `times` is given.
        area: approximate pixels per frame.
        seconds: length of the clip (default: as planned).
        rotation: degrees clockwise by which a player has to turn the frames, which are stored turned the other way.
        times: (F,) seconds at which frames are shown, rising; for a variable frame rate.
    """
    import av

    seconds = seconds or duration_of(scene)
    times = np.arange(round(seconds * fps)) / fps if times is None else times
    height, width = picture_size(scene, area)
    pictures = render(scene, times / times[-1], height, width)
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


# For each sample clip: settings of `make_scene`, of `write_clip`, and what is asked.
X264 = {"crf": "26", "preset": "slow"}
UNEVEN = np.cumsum(np.tile([0.04, 0.12, 0.3, 0.06, 0.2], 14))
SAMPLES: dict[str, tuple[dict, dict, tuple[str, ...]]] = {
    "one.mp4": ({"frames": 12, "count": 1, "sequence": False}, {"options": X264}, ("caption", "motion", "kind")),
    "two.mp4": ({"frames": 16, "count": 2, "sequence": False}, {"options": X264}, ("mover", "count", "exist")),
    "sequence.mp4": ({"frames": 24, "count": 3, "sequence": True}, {"options": X264}, ("first", "last", "moment")),
    "av1.mp4": ({"frames": 12, "count": 3, "sequence": False}, {"codec": "libsvtav1"}, ("where", "exist", "count")),
    "vp9.webm": (
        {"frames": 12, "count": 2, "sequence": False},
        {"codec": "libvpx-vp9", "options": {"crf": "36", "b": "0"}},
        ("motion", "start", "end"),
    ),
    "hevc.mp4": (
        {"frames": 16, "count": 2, "sequence": True},
        {"codec": "libx265", "options": {"x265-params": "log-level=none", "crf": "28"}},
        ("caption", "first", "motion"),
    ),
    "mpeg4.mp4": (
        {"frames": 8, "count": 4, "sequence": False},
        {"codec": "mpeg4", "options": {"qscale": "5"}},
        ("count", "exist", "kind"),
    ),
    "phone.mp4": (
        {"frames": 12, "count": 2, "sequence": False, "aspect": (9, 16)},
        {"options": X264, "rotation": 90},
        ("where", "motion", "kind"),
    ),
    "variable-rate.mp4": (
        {"frames": 20, "count": 2, "sequence": False},
        {"options": X264, "times": UNEVEN - UNEVEN[0]},
        ("motion", "mover", "exist"),
    ),
    "still.jpg": ({"frames": 1, "count": 3}, {}, ("where", "count", "exist")),
    "long.mp4": (
        {"frames": 64, "count": 2, "sequence": True, "aspect": (16, 9)},
        {"options": X264 | {"g": "240"}, "seconds": 120.0},
        ("last", "exist", "mover"),
    ),
}


def make_samples(folder: Path) -> None:
    """Write the sample clips and `questions.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (name, (settings, form, families)) in enumerate(SAMPLES.items()):
        rng = np.random.default_rng([*SAMPLE_SEED, number])
        questions: list[Question | None] = [None]
        while not all(questions):
            scene = make_scene(rng, **settings)
            if name == "long.mp4":
                # Two minutes, with an object that passes through within six seconds.
                passing = replace(scene.things[1], appears=0.6, vanishes=0.65)
                scene = replace(scene, things=(replace(scene.things[0], appears=0.0, vanishes=0.4), passing))
            questions = [ask(scene, family, rng) for family in families]
        path = folder / name
        if scene.still:
            height, width = picture_size(scene, 480 * 480)
            Image.fromarray(render(scene, np.zeros(1), height, width)[0]).save(path, quality=88)
        else:
            write_clip(scene, path, **form)
        for question in questions:
            assert question is not None
            line = {"video": name, "question": question.text, "answer": question.answer, "family": question.family}
            lines.append(json.dumps(line) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the sample clips and questions.jsonl.")
    parser.add_argument("folder", type=Path)
    make_samples(parser.parse_args().folder)
