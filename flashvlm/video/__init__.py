"""Decode: a path and a sampling plan in, upright frames with their true timestamps out.

Pictures are read with Pillow; videos with PyAV in one pass, or with decord, which seeks. What decord cannot read
exactly is read with PyAV from its first frame on.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flashvlm.errors import VideoError
from flashvlm.options import Sampling
from flashvlm.report import VideoFacts
from flashvlm.video.containers import check_file
from flashvlm.video.pictures import open_picture
from flashvlm.video.plan import TIME_TOLERANCE, choose_frames, near_keys, nearest
from flashvlm.video.reader import InexactError, Reader
from flashvlm.video.with_decord import DecordReader
from flashvlm.video.with_pyav import ForwardReader, PyAVReader

if TYPE_CHECKING:
    import torch

__all__ = ["Clip", "choose_frames", "decode", "frames_at", "near_keys", "times"]


@dataclass(frozen=True)
class Clip:
    """The frames that were looked at, (F, 3, h, w) uint8 as displayed, and the second at which each of them appears.

    Time counts from the beginning of the video; timestamps are those of the file, even if its frame rate varies.
    `seconds_per_frame` is the length of what was looked at over the number of frames: what Qwen calls 1 / sample fps.
    """

    facts: VideoFacts
    frames: torch.Tensor
    timestamps: tuple[float, ...]
    seconds_per_frame: float


def decode(
    path: str | Path,
    sampling: Sampling,
    transform: Callable[[torch.Tensor], torch.Tensor],
    seek: str = "exact",
    on_frame: Callable[[int, torch.Tensor], None] = lambda number, frame: None,
) -> Clip:
    """Read the frames that `sampling` asks for (see `choose_frames`) from a video or a still picture.

    Every frame is decoded at its own size, turned upright, passed to `transform` as (3, H, W) uint8, and dropped:
    memory holds what `transform` returned, which must be of one size, and what decord decodes ahead in the meantime. A
    picture (JPEG, PNG, WebP) counts as a video of one frame, with no duration and no frame rate; an animated one, as a
    GIF, is a video. `facts.rotation` is what an MP4, a MOV or a picture declares; frames of other
    files are turned all the same.

    Args:
        seek: `exact`, or `fast`: if every frame asked for has a key frame of its own within the mean time from one of
            them to the next, these key frames are read instead; else the same frames as with `exact`, in one pass that
            decodes nothing that they do not depend on. Timestamps are those of the frames that were read.
        on_frame: gets each frame's number and the transformed frame as soon as it is there; from 0 again if they must
            be read another way.

    Raises:
        VideoError: the file is missing, cannot be read, is cut short, holds no video, or is damaged in the part looked
            at, to the extent that the reader reports it.
        UsageError: `sampling.start` is at or past the end of the video.
    """
    path = Path(path)
    rotation, status = check_file(path)
    read = partial(_read_clip, path, status)
    picture = open_picture(path)
    try:
        if seek == "fast" and picture is None:
            # What cannot be read this way is left to the other readers; what looks damaged, to PyAV alone.
            with contextlib.suppress(VideoError):
                return read(ForwardReader(path, rotation), sampling, transform, on_frame)
        return read(picture or DecordReader(path, rotation), sampling, transform, on_frame)
    except InexactError:
        return read(PyAVReader(path, rotation), sampling, transform, on_frame)


def frames_at(path: str | Path, timestamps: Sequence[float]) -> Iterator[torch.Tensor]:
    """Read again the frames that appear at `timestamps` (ascending): one by one, (3, H, W) uint8 as displayed.

    Raises:
        VideoError: as `decode`.
    """
    path = Path(path)
    rotation, _ = check_file(path)
    given = 0
    reader: Reader
    try:
        reader = open_picture(path) or DecordReader(path, rotation)
        for picture in reader.read([nearest(reader.starts, moment) for moment in timestamps]):
            yield picture.permute(2, 0, 1)
            given += 1
    except InexactError:
        # Frames other than those that were looked at may be damaged.
        reader = PyAVReader(path, rotation, strict=False)
        for picture in reader.read([nearest(reader.starts, moment) for moment in timestamps[given:]]):
            yield picture.permute(2, 0, 1)


def times(path: str | Path, start: float, end: float, fps: float | None = None) -> list[float]:
    """The times of the frames that are shown from `start` to `end` (seconds, inclusive), as `frames_at` takes them.

    Args:
        fps: at most this many a second, evenly spaced; None is all of them.

    Raises:
        VideoError: as `decode`.
    """
    path = Path(path)
    rotation, _ = check_file(path)
    reader: Reader
    try:
        reader = open_picture(path) or DecordReader(path, rotation)
    except InexactError:
        reader = PyAVReader(path, rotation)
    starts = reader.starts
    first, last = nearest(starts, start), nearest(starts, end)
    chosen = range(first, last + 1)
    if fps is not None and len(chosen) > (steps := math.floor((end - start) * fps + TIME_TOLERANCE) + 1):
        return [starts[index] for index in sorted({nearest(starts, start + step / fps) for step in range(steps)})]
    return [starts[index] for index in chosen]


def _read_clip(
    path: Path,
    status: os.stat_result,
    reader: Reader,
    sampling: Sampling,
    transform: Callable[[torch.Tensor], torch.Tensor],
    on_frame: Callable[[int, torch.Tensor], None],
) -> Clip:
    import torch

    count, duration = len(reader.starts), reader.duration
    chosen = choose_frames(reader.starts, duration, sampling)
    # Nothing outside the part that is asked about is looked at.
    keys = [key for key in reader.keys if chosen[0] <= key <= chosen[-1]]
    chosen = near_keys(reader.starts, keys, chosen) or chosen
    frames = []
    for picture in reader.read(chosen):
        height, width = picture.shape[:2]
        frames.append(transform(picture.permute(2, 0, 1)))
        on_frame(len(frames) - 1, frames[-1])
    facts = VideoFacts(
        path="",
        width=width,
        height=height,
        frame_count=count,
        fps=count / duration if duration else 0.0,
        duration=duration,
        rotation=reader.rotation,
    ).of(path, status)
    end = duration if sampling.end is None else min(sampling.end, duration)
    length = max(end - (sampling.start or 0.0), 0.0)
    # Rounded, so that the noise of a container's times does not turn a whole second into 0.99999.
    seconds_per_frame = round(length / len(chosen), 4)
    return Clip(facts, torch.stack(frames), tuple(reader.starts[index] for index in chosen), seconds_per_frame)
