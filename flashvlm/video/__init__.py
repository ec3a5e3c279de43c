"""Decode: a path and a sampling plan in, upright frames with their true timestamps out.

Pictures are read with Pillow; videos with PyAV in one pass, or with decord, which seeks. What neither can read exactly
is read with PyAV from its first frame on.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flashvlm import units
from flashvlm.errors import VideoError
from flashvlm.options import FRAME_PIXELS, Sampling
from flashvlm.report import VideoFacts
from flashvlm.video.containers import checked
from flashvlm.video.memory import Frames
from flashvlm.video.pictures import length_of, open_picture
from flashvlm.video.plan import TIME_TOLERANCE, check_start, choose_frames, near_keys, nearest
from flashvlm.video.reader import DEFAULT_LIMITS, InexactError, Limits, Reader, Source
from flashvlm.video.with_decord import DecordReader
from flashvlm.video.with_pyav import ForwardReader, PyAVReader
from flashvlm.video.with_pyav import opened as opened_file

if TYPE_CHECKING:
    import torch

__all__ = ["Clip", "Frames", "Limits", "Video", "choose_frames", "decode", "frames_at", "glance", "near_keys", "times"]

Video = str | os.PathLike[str] | Frames
# How far the length that a file gives may be from the time of its last frame, in seconds.
ROUGHLY = 1.0
# How many bytes of frames `decode` reads before it returns: what is looked at by default. Further frames wait until
# they are asked for, so that memory does not grow with their number.
AHEAD = Sampling.max_frames * FRAME_PIXELS * 3
# The status of what is no file.
NO_FILE = os.stat_result((0,) * 10)


@dataclass(frozen=True)
class Clip:
    """The frames that were looked at, (F, 3, h, w) uint8 as displayed, and the second at which each of them appears.

    If these are more than `AHEAD` bytes, `frames` goes through them once and reads them on the way, one by one; it may
    raise VideoError. A still picture is a single frame of its own size (`facts.still`).

    Time counts from the beginning of the video; timestamps are those of the file, even if its frame rate varies.
    `seconds_per_frame` is the length of what was looked at over the number of frames: what Qwen calls 1 / sample fps.
    """

    facts: VideoFacts
    frames: torch.Tensor | Iterator[torch.Tensor]
    timestamps: tuple[float, ...]
    seconds_per_frame: float

    def __repr__(self) -> str:
        return f"<Clip of {Path(self.facts.path).name}: {units.plural(len(self.timestamps), 'frame')}>"


def decode(
    path: Video,
    sampling: Sampling,
    fit: Callable[[torch.Tensor, int], torch.Tensor],
    seek: str = "exact",
    limits: Limits = DEFAULT_LIMITS,
) -> Clip:
    """Read the frames that `sampling` asks for (see `choose_frames`) from a video or a still picture.

    Every frame is decoded at its own size, turned upright, passed to `fit` as (3, H, W) uint8 with the number of
    frames in all, and dropped: memory holds what `fit` returned, which must be of one size, up to `AHEAD` bytes of it,
    and what decord decodes ahead in the meantime. A picture (JPEG, PNG, WebP) stays as it is; it has no duration and no
    frame rate. An animated one, as a GIF, is a video. `facts.rotation` is how far frames had to be turned for display.

    Args:
        seek: `exact`, or `fast`: if every frame asked for has a key frame of its own within the mean time from one of
            them to the next, these key frames are read instead; else the same frames as with `exact`, in one pass that
            decodes nothing that they do not depend on. Timestamps are those of the frames that were read.
        limits: what reading may cost.

    Raises:
        VideoError: the file is missing, cannot be read, is cut short, holds no video, is damaged in the part looked at,
            to the extent that the reader reports it, or exceeds the limits.
        UsageError: `sampling.start` is at or past the end of the video.
    """
    source = _source(path, limits)
    readers = _readers(source, [ForwardReader] if seek == "fast" else [DecordReader, ForwardReader], PyAVReader)

    def read(number: int) -> Clip:
        return _clip(path, source, readers[number](source), readers[number + 1 :], sampling, fit, seek)

    for number in range(len(readers) - 1):
        with contextlib.suppress(InexactError, VideoError):
            return read(number)
    return read(len(readers) - 1)


def glance(path: str | os.PathLike[str], sampling: Sampling, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse what `decode` would refuse, as far as the head of the file shows it: quickly, and without torch.

    Raises:
        VideoError: the file is missing, no video, or cut short.
        UsageError: `sampling.start` is past the end of the video.
    """
    source = checked(path, limits)
    start, length = sampling.start or 0.0, length_of(source)
    if length is None:
        with opened_file(source) as (container, _):
            # In millionths of a second.
            length = math.inf if container.duration is None else container.duration / 1e6
        if start < length + ROUGHLY:
            # Some files do not say it exactly.
            return
    check_start(start, length)


def frames_at(path: Video, timestamps: Sequence[float], limits: Limits = DEFAULT_LIMITS) -> Iterator[torch.Tensor]:
    """Read again the frames that appear at `timestamps` (ascending): one by one, (3, H, W) uint8 as displayed.

    Raises:
        VideoError: as `decode`.
    """
    source = _source(path, limits)
    given = 0

    def read(opened: _Opened) -> Iterator[torch.Tensor]:
        nonlocal given
        reader = opened(source)
        for frame in _frames(source, reader, [nearest(reader.starts, moment) for moment in timestamps[given:]]):
            yield frame
            given += 1

    # Frames other than those that were looked at may be damaged.
    *others, last = _readers(source, [ForwardReader], partial(PyAVReader, strict=False))
    for opened in others:
        with contextlib.suppress(InexactError, VideoError):
            yield from read(opened)
            return
    yield from read(last)


def times(
    path: Video, start: float, end: float, fps: float | None = None, limits: Limits = DEFAULT_LIMITS
) -> list[float]:
    """The times of the frames that are shown from `start` to `end` (seconds, inclusive), as `frames_at` takes them.

    Args:
        fps: at most this many a second, evenly spaced; None is all of them.

    Raises:
        VideoError: as `decode`.
    """
    source = _source(path, limits)
    (opened,) = _readers(source, [], PyAVReader)
    starts = opened(source).starts
    first, last = nearest(starts, start), nearest(starts, end)
    chosen = range(first, last + 1)
    if fps is not None and len(chosen) > (steps := math.floor((end - start) * fps + TIME_TOLERANCE) + 1):
        return [starts[index] for index in sorted({nearest(starts, start + step / fps) for step in range(steps)})]
    return [starts[index] for index in chosen]


_Opened = Callable[[Source], Reader]


def _source(path: Video, limits: Limits) -> Source:
    return Source(Path(path.name), NO_FILE, limits, path) if isinstance(path, Frames) else checked(path, limits)


def _readers(source: Source, quick: Sequence[_Opened], patient: _Opened) -> Sequence[_Opened]:
    """The readers to try on a file, one after the other; the last one says best what is wrong with it."""
    picture = source.reader or open_picture(source)
    return [*quick, patient] if picture is None else [lambda _: picture]


def _frames(source: Source, reader: Reader, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
    """The frames at these indices, (3, H, W) uint8, each with a time of its own to come in."""
    for picture in reader.read(chosen):
        yield picture.permute(2, 0, 1)
        source.restart()


def _clip(
    given: Video,
    source: Source,
    reader: Reader,
    others: Sequence[_Opened],
    sampling: Sampling,
    fit: Callable[[torch.Tensor, int], torch.Tensor],
    seek: str,
) -> Clip:
    """What one reader makes of a file; `others` read on where it fails later."""
    import torch

    count, duration = len(reader.starts), reader.duration
    chosen = choose_frames(reader.starts, duration, sampling)
    if seek == "fast":
        # Nothing outside the part that is asked about is looked at.
        keys = [key for key in reader.keys if chosen[0] <= key <= chosen[-1]]
        chosen = near_keys(reader.starts, keys, chosen) or chosen
    height = width = size = 0

    def fitted(frames: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        nonlocal height, width
        for frame in frames:
            height, width = frame.shape[1:]
            yield fit(frame, len(chosen)) if duration else frame

    coming, ahead = fitted(_frames(source, reader, chosen)), deque[torch.Tensor]()
    for frame in coming:
        ahead.append(frame)
        size += frame.nbytes
        if size > AHEAD:
            break
    facts = VideoFacts(
        path="",
        width=width,
        height=height,
        frame_count=count,
        fps=count / duration if duration else 0.0,
        duration=duration,
        rotation=reader.rotation,
    ).of(given, source.status)
    end = duration if sampling.end is None else min(sampling.end, duration)
    length = max(end - (sampling.start or 0.0), 0.0)
    timestamps = tuple(reader.starts[index] for index in chosen)
    frames: torch.Tensor | Iterator[torch.Tensor]
    if len(ahead) == len(chosen):
        frames = torch.stack(list(ahead))
    else:
        frames = _read_on(source, ahead, coming, others, timestamps, fitted)
    return Clip(facts, frames, timestamps, length / len(chosen))


def _read_on(
    source: Source,
    ahead: deque[torch.Tensor],
    coming: Iterator[torch.Tensor],
    others: Sequence[_Opened],
    timestamps: Sequence[float],
    fitted: Callable[[Iterator[torch.Tensor]], Iterator[torch.Tensor]],
) -> Iterator[torch.Tensor]:
    """The frames that were read `ahead`, those `coming`, and where reading these fails, what the `others` make of them.

    Another one reads all frames again, so that it sees all damage that it would have seen alone.
    """
    given = len(ahead)
    while ahead:
        yield ahead.popleft()
    while True:
        try:
            for frame in coming:
                yield frame
                given += 1
            return
        except (InexactError, VideoError):
            if not others:
                raise
        opened, *others = others
        coming = islice(fitted(_at(source, opened, timestamps)), given, None)


def _at(source: Source, opened: _Opened, timestamps: Sequence[float]) -> Iterator[torch.Tensor]:
    """The frames at the times that another reader gave.

    Raises:
        VideoError: this one has no frames at these times.
    """
    reader = opened(source)
    chosen = [nearest(reader.starts, moment) for moment in timestamps]
    if any(abs(reader.starts[index] - at) > TIME_TOLERANCE for index, at in zip(chosen, timestamps, strict=True)):
        raise VideoError(f"{source.path}: the video is damaged; it does not say for certain when its frames appear.")
    yield from _frames(source, reader, chosen)
