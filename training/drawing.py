"""Scenes as training draws them: sampled a little early or late, some passed through a codec, with questions."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashvlm.demo.natural import is_brief, procedural, render_natural
from flashvlm.demo.questions import FAMILIES, Question, ask
from flashvlm.demo.world import Scene, make_scene, render, sample_times
from training.photographs import are_there, photographs
from training.shapes import ShapeImage, shape_images

# The share of natural footage that is made of photographs, if these are there.
PHOTOGRAPHS_SHARE = 0.5


def through_codec(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(F, h, w, 3) uint8 frames after encoding and decoding as H.264 of ordinary quality."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": str(int(rng.integers(16, 36)))}
        stream.thread_count = 1
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        source.streams.video[0].thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def draw_scene(
    rng: np.random.Generator,
    frames: int,
    aspect: tuple[int, int],
    make: Callable[..., Scene] = make_scene,
    **settings: Any,
) -> tuple[Scene, np.ndarray]:
    """A scene and its sampling times: as planned, or each a little early or late."""
    scene = make(rng, frames=frames, aspect=aspect, **settings)
    times = sample_times(frames)
    # A second of a minute is only just in one frame.
    if frames > 1 and not is_brief(scene) and rng.random() < 0.5:
        times = np.clip(times + rng.uniform(-0.35, 0.35, frames) / frames, 0, 1)
    return scene, times


def draw_frames(
    scene: Scene, times: np.ndarray, height: int, width: int, rng: np.random.Generator, *, natural: bool = False
) -> Tensor:
    """A scene at these times, (F, 3, height, width) uint8, as from a file: some are resized, some have been encoded.

    If `natural`, in natural conditions, and half of them have been encoded. Footage is procedural, and half of it
    photographs if these are there.
    """
    larger = 2 if rng.random() < 0.15 else 1
    source = photographs if natural and are_there() and rng.random() < PHOTOGRAPHS_SHARE else procedural
    draw = partial(render_natural, source=source) if natural else render
    frames = draw(scene, times, height * larger, width * larger)
    if rng.random() < (0.5 if natural else 0.3):
        frames = through_codec(frames, rng)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if larger > 1:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return pixels


def draw_questions(
    scene: Scene, rng: np.random.Generator, many: int, family_weights: dict[str, float]
) -> list[Question]:
    """`many` questions about a scene, with families drawn by `family_weights`."""
    weights = np.array([family_weights.get(family, 1.0) for family in FAMILIES])
    found: list[Question] = []
    while len(found) < many:
        question = ask(scene, FAMILIES[rng.choice(len(FAMILIES), p=weights / weights.sum())], rng)
        if question is not None:
            found.append(question)
    return found


def draw_shape(rng: np.random.Generator, questions: int) -> tuple[ShapeImage, list[Question]]:
    """One of easy-vqa's images, randomly rotated and mirrored, with this many of its questions."""
    images = shape_images()
    image = images[rng.integers(len(images))]
    turned = np.rot90(image.pixels, int(rng.integers(4)))
    turned = turned[:, ::-1] if rng.random() < 0.5 else turned
    asked = [image.questions[i] for i in rng.integers(len(image.questions), size=questions)]
    return replace(image, pixels=turned), asked


def shape_pixels(image: ShapeImage, side: int) -> Tensor:
    """The image enlarged, (1, 3, side, side) uint8."""
    frame = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(frame, (side, side), mode="bicubic", antialias=True)
