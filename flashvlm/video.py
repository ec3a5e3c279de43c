"""Decode: a path and a sampling plan in, upright frames with their true timestamps out.

Videos are read with decord. What is known of it (decord2 3.4, checked by the tests) shapes this module:

- It turns frames upright itself, by the container's display matrix, and does not say by how much.
- A seek is exact only if the n-th packet of the file is the n-th frame to be shown. With open groups of pictures
  (x265's default) it is not, and decord then silently returns a wrong frame. So every seek is checked here, and once
  one fails the video is read forward from its first frame.
- It numbers the frames that an edit list hides (a trimmed MP4), but never returns them.
- It fails on HEVC with closed groups of pictures and reordered B-frames, and it cannot rewind MPEG-TS. What decord
  cannot read exactly is read with PyAV.
- Where frames are missing it repeats another one, unless `fault_tol` forbids it. It does not report damaged ones.
- If FFmpeg pads the lines of a very narrow picture to a multiple of its width, decord sees more colour channels.

PyAV reports damaged frames (`is_corrupt`) as FFmpeg marks them: most in H.264 and MPEG-4, few in other codecs. Frames
that depend on a damaged one are not marked.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from flashvlm.errors import UsageError, VideoError
from flashvlm.options import DEFAULT_FPS, MIN_FRAMES, Sampling
from flashvlm.report import VideoFacts

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
# How long a frame of an animation is shown that does not say it, in milliseconds.
UNTIMED = 100
# EXIF orientations without mirroring, in degrees clockwise.
EXIF_ROTATIONS = {3: 180, 6: 90, 8: 270}
# Containers round times, and decord returns them as float32: times closer than this are the same, in seconds.
TIME_TOLERANCE = 5e-4
# decord returns a missing timestamp as far more seconds than this, before or after 0.
NO_TIMESTAMP = 1e9
# The strictest setting of decord: not one frame may stand in for another.
NO_REPEATED_FRAMES = "0.000000001"
# decord stops skipping when its decoding thread is slow; without a frame for this long it is stuck.
STALL_SECONDS = 20.0
# No codec here shows as many frames as this before one that they refer to.
MOST_REORDERED = 16
_SILENCE = threading.RLock()


UNREADABLE = "this is not a video or a picture that can be read"
NO_VIDEO = "there is no video in this file"
DAMAGED = "the video is damaged and cannot be decoded"
HIDDEN = "it has no frame to show, and may be damaged"
NO_TIMES = "this file has no timestamps; ffmpeg -i FILE out.mp4 makes one that has"


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
    rotation, status = _check_file(path)
    read = partial(_read_clip, path, status)
    picture = _open_picture(path)
    try:
        if seek == "fast" and picture is None:
            # What cannot be read this way is left to the other readers; what looks damaged, to PyAV alone.
            with contextlib.suppress(VideoError):
                return read(_Forward(path, rotation), sampling, transform, on_frame)
        return read(picture or _Decord(path, rotation), sampling, transform, on_frame)
    except _InexactError:
        return read(_PyAV(path, rotation), sampling, transform, on_frame)


def frames_at(path: str | Path, timestamps: Sequence[float]) -> Iterator[torch.Tensor]:
    """Read again the frames that appear at `timestamps` (ascending): one by one, (3, H, W) uint8 as displayed.

    Raises:
        VideoError: as `decode`.
    """
    path = Path(path)
    rotation, _ = _check_file(path)
    given = 0
    reader: _Reader
    try:
        reader = _open_picture(path) or _Decord(path, rotation)
        for picture in reader.read([_nearest(reader.starts, moment) for moment in timestamps]):
            yield picture.permute(2, 0, 1)
            given += 1
    except _InexactError:
        # Frames other than those that were looked at may be damaged.
        reader = _PyAV(path, rotation, strict=False)
        for picture in reader.read([_nearest(reader.starts, moment) for moment in timestamps[given:]]):
            yield picture.permute(2, 0, 1)


def times(path: str | Path, start: float, end: float, fps: float | None = None) -> list[float]:
    """The times of the frames that are shown from `start` to `end` (seconds, inclusive), as `frames_at` takes them.

    Args:
        fps: at most this many a second, evenly spaced; None is all of them.

    Raises:
        VideoError: as `decode`.
    """
    path = Path(path)
    rotation, _ = _check_file(path)
    reader: _Reader
    try:
        reader = _open_picture(path) or _Decord(path, rotation)
    except _InexactError:
        reader = _PyAV(path, rotation)
    starts = reader.starts
    first, last = _nearest(starts, start), _nearest(starts, end)
    chosen = range(first, last + 1)
    if fps is not None and len(chosen) > (steps := math.floor((end - start) * fps + TIME_TOLERANCE) + 1):
        return [starts[index] for index in sorted({_nearest(starts, start + step / fps) for step in range(steps)})]
    return [starts[index] for index in chosen]


def choose_frames(starts: Sequence[float], duration: float, sampling: Sampling) -> list[int]:
    """The indices, ascending and distinct, of the frames to look at.

    Candidates: the frames that appear from `sampling.start` to `sampling.end`, inclusive; if there are none, the one
    that is on screen at `start`. How many: `fps` times the seconds asked for, at least MIN_FRAMES, at most
    `max_frames`, and from MIN_FRAMES on an even number (rounded down), because Qwen2-VL joins two frames; or `frames`
    of them; never more than there are candidates. Which ones: those nearest to that many evenly spaced times, from the
    first candidate's to the last one's, inclusive; a single one is taken from the middle. At a constant frame rate this
    is Qwen's linspace over frame indices (https://github.com/QwenLM/Qwen2-VL, qwen-vl-utils).

    Args:
        starts: the second at which each frame appears, ascending.
        duration: of the video, in seconds; 0 for a still picture.

    Raises:
        UsageError: `sampling.start` is at or past the end of the video.
    """
    start = sampling.start or 0.0
    end = duration if sampling.end is None else min(sampling.end, duration)
    if start > 0 and start >= duration:
        what = f"the video, which lasts {duration:.2f} s" if duration else "a still picture, which has no duration"
        raise UsageError(f"--start ({start:g} s) is not before the end of {what}.")
    last = max(bisect_right(starts, end + TIME_TOLERANCE) - 1, 0)
    first = min(bisect_left(starts, start - TIME_TOLERANCE), last)
    available = last - first + 1
    if sampling.frames is not None:
        count = min(sampling.frames, available)
    else:
        wanted = int((sampling.fps or DEFAULT_FPS) * (end - start + TIME_TOLERANCE))
        count = min(max(wanted, MIN_FRAMES), sampling.max_frames, available)
        count -= count % 2 if count >= MIN_FRAMES else 0
    if count == 1:
        return [_nearest(starts, (starts[first] + starts[last]) / 2)]
    step = (starts[last] - starts[first]) / (count - 1)
    chosen = [_nearest(starts, starts[first] + step * number) for number in range(count)]
    # If the frame rate varies, one frame may be the nearest to several times: its neighbours step in.
    for number in range(count):
        lowest = chosen[number - 1] + 1 if number else first
        chosen[number] = min(max(chosen[number], lowest), last - (count - 1 - number))
    return chosen


def near_keys(starts: Sequence[float], keys: Sequence[int], chosen: Sequence[int]) -> list[int] | None:
    """The key frames nearest to the chosen frames; None if one of these has none that is near enough.

    Near enough means within the mean time from one chosen frame to the next; no key frame may serve two.

    Args:
        starts: the second at which each frame appears, ascending.
        keys, chosen: indices of frames, ascending.
    """
    if len(chosen) < 2 or len(keys) < len(chosen):
        return None
    reach = (starts[chosen[-1]] - starts[chosen[0]]) / (len(chosen) - 1)
    times = [starts[key] for key in keys]
    found = [keys[_nearest(times, starts[index])] for index in chosen]
    near = all(abs(starts[key] - starts[index]) <= reach for key, index in zip(found, chosen, strict=True))
    return found if near and len(set(found)) == len(found) else None


def _nearest(starts: Sequence[float], moment: float) -> int:
    after = min(bisect_right(starts, moment), len(starts) - 1)
    return after - 1 if after and moment - starts[after - 1] <= starts[after] - moment else after


class _Reader(Protocol):
    """An opened file: when each frame appears (seconds, ascending), its duration, and the pictures themselves."""

    starts: Sequence[float]
    duration: float
    rotation: int

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        """The frames at these ascending indices, one by one, upright, (H, W, 3) uint8."""
        ...


class _InexactError(Exception):
    """A reader cannot read this file, or cannot be trusted to return the frames that are asked for."""


def _read_clip(
    path: Path,
    status: os.stat_result,
    reader: _Reader,
    sampling: Sampling,
    transform: Callable[[torch.Tensor], torch.Tensor],
    on_frame: Callable[[int, torch.Tensor], None],
) -> Clip:
    import torch

    count, duration = len(reader.starts), reader.duration
    chosen = choose_frames(reader.starts, duration, sampling)
    if isinstance(reader, _Forward):
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


class _Picture:
    """A still picture."""

    def __init__(self, image: torch.Tensor, rotation: int):
        self.starts: Sequence[float] = (0.0,)
        self.duration, self.rotation = 0.0, rotation
        self._image = image

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        yield from (self._image for _ in chosen)


class _Animation:
    """An animated PNG or WebP, which FFmpeg does not play, read with Pillow."""

    def __init__(self, path: Path, image: ImageFile, rotation: int):
        self._path, self.rotation = path, rotation
        # The picture that a PNG shows where animations are not played is not part of its own.
        self._first = int(bool(image.info.get("default_image")))
        ends = [0.0]
        for number in range(self._first, image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            # WebP says how long a frame is shown when it is decoded.
            image.load()
            ends.append(round(ends[-1] + (image.info.get("duration") or UNTIMED) / 1000, 6))
        *starts, self.duration = ends
        self.starts: Sequence[float] = starts

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        from PIL import ImageOps

        with _pictures(self._path) as image:
            for number in chosen:
                image.seek(self._first + number)
                yield _rgb(ImageOps.exif_transpose(image))


def _open_picture(path: Path) -> _Picture | _Animation | None:
    """The picture at `path`; None if the file is not one."""
    from PIL import ExifTags, ImageOps, UnidentifiedImageError

    try:
        with _pictures(path) as image:
            rotation = EXIF_ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 0)
            # The second picture of a JPEG is the same in another size.
            if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                return _Animation(path, image, rotation)
            return _Picture(_rgb(ImageOps.exif_transpose(image)), rotation)
    except UnidentifiedImageError:
        return None


@contextlib.contextmanager
def _pictures(path: Path) -> Iterator[ImageFile]:
    """The file at `path`, opened with Pillow; raises UnidentifiedImageError if it is not a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: the picture cannot be read; it is damaged, cut short or too large.") from error


def _rgb(picture: Image) -> torch.Tensor:
    """A picture of Pillow as (H, W, 3) uint8, on white where it is transparent."""
    import numpy as np
    import torch
    from PIL import Image

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode.startswith("I;16"):
        # Pillow would clip values above 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(picture.convert("RGB")))


class _Decord:
    """A video read with decord.

    Frames have decord's numbers here, which count those that an edit list hides. decord's own position is the number of
    the frame it returns next, less `_behind`: after a start from the beginning, the hidden frames that never came.
    """

    def __init__(self, path: Path, rotation: int):
        # decord reads it without asking whether it is set.
        os.environ.setdefault("PATH", os.defpath)
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._decord = decord
        self._errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration)
        try:
            with _silent_stderr():
                # The prefix keeps FFmpeg from taking a colon in the name for a protocol.
                self._video = decord.VideoReader(f"file:{path}", num_threads=0, fault_tol=NO_REPEATED_FRAMES)
                spans = self._video.get_frame_timestamp(list(range(len(self._video))))
                self._keys = self._video.get_key_indices()
        except (*self._errors, AssertionError, IndexError, UnicodeError) as error:
            raise _InexactError from error
        starts, ends = spans.T.astype(float).round(6).tolist()
        if len(starts) == 1:
            starts, ends = [0.0], [ends[0] - starts[0]]
        rising = all(earlier < later for earlier, later in pairwise(starts))
        if not rising or abs(starts[0]) > NO_TIMESTAMP or starts[-1] < 0 or self._keys[:1] != [0]:
            raise _InexactError
        self._hidden = bisect_left(starts, -TIME_TOLERANCE)
        self.starts: Sequence[float] = starts[self._hidden :]
        self.duration = _duration(self.starts, ends[-1])
        self.rotation = rotation
        self._count = len(starts)
        self._seekable = True
        self._last = -1
        self._behind = 0

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        for index in chosen:
            try:
                picture = self._frame(index + self._hidden)
            except self._errors as error:
                raise _InexactError from error
            yield picture

    def _frame(self, number: int) -> torch.Tensor:
        """Frame `number`, which comes after those returned so far."""
        key = self._keys[bisect_right(self._keys, number) - 1]
        picture = None
        if self._last < 0 or (self._seekable and key > self._last + 1):
            picture = self._land(key)
            if picture is None and key > 0:
                self._seekable = False
                picture = self._land(0)
            if picture is None:
                raise _InexactError
        while picture is None or self._last < number:
            picture = self._step(number)
        return picture

    def _land(self, key: int) -> torch.Tensor | None:
        """Seek to key frame `key` and return it; None if decord landed elsewhere."""
        if self._position() == key:
            # decord treats a seek to its current position as done, and checks nothing.
            self._next()
        with _silent_stderr():
            self._video.seek_accurate(key)
        # decord looks at the timestamp of what it landed on, and only counts that frame as read if it is the key frame.
        exact = self._position() == key + 1
        if not exact and (key > 0 or not self._hidden):
            return None
        self._behind = 0 if exact else self._hidden
        self._last = key + self._behind
        return self._next()

    def _step(self, number: int) -> torch.Tensor:
        """Skip to frame `number` or the last one before a key frame, whichever is first, without a seek; return it."""
        position = self._position()
        after = bisect_right(self._keys, position)
        # Within a group of pictures decord's seek only skips.
        stop = min(number - self._behind, self._keys[after] - 1 if after < len(self._keys) else self._count)
        deadline = time.monotonic() + STALL_SECONDS
        while position < stop:
            with _silent_stderr():
                self._video.seek_accurate(stop)
            if self._position() > position:
                deadline = time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise _InexactError
            position = self._position()
        self._last = position + self._behind
        return self._next()

    def _next(self) -> torch.Tensor:
        with self._decord.bridge.use_torch():
            picture = self._video.next()
        if picture.shape[2] != 3:
            # It takes the padding of a very narrow picture's lines for colour channels.
            raise _InexactError
        return picture

    def _position(self) -> int:
        return self._decord.video_reader._CAPI_VideoReaderGetCurrentPosition(self._video._handle)


class _Held:
    """Pictures of frames that may depend on a frame shown later, and share its damage: held until that one is out.

    `pictures` has them by the key of their frame, each with how many frames had come out before.
    """

    def __init__(self) -> None:
        self.pictures: dict[int, tuple[int, torch.Tensor]] = {}
        self._shown = 0

    def take(self, key: int, picture: torch.Tensor) -> None:
        """Hold the picture of the frame that has just come out."""
        self.pictures[key] = (self._shown, picture)

    def let_go(self, frame: Any) -> list[tuple[int, torch.Tensor]]:
        """Release what depends on no frame after `frame`, which has just come out whole; all at the end (None)."""
        from av.video.frame import PictureType

        self._shown += 1
        oldest = self._shown - MOST_REORDERED if frame is not None and frame.pict_type == PictureType.B else self._shown
        sure = [(key, picture) for key, (shown, picture) in self.pictures.items() if shown < oldest]
        for key, _ in sure:
            del self.pictures[key]
        return sure


class _PyAV:
    """A video read with PyAV from its first frame on: slower than decord, but right where decord is not.

    If `strict`, damaged frames are refused like missing ones.
    """

    def __init__(self, path: Path, rotation: int, strict: bool = True):
        import av

        self._av, self._path, self.rotation, self._strict = av, path, rotation, strict
        with self._opened() as (container, stream):
            # AVI says when a frame is decoded, not when it is shown. If the two orders may differ, frames are
            # identified by their number alone.
            self._in_turn = container.format.name == "avi" and stream.codec_context.has_b_frames
            # In decoding order.
            packets, timeless = [], False
            for packet in container.demux(stream):
                moment = packet.dts if self._in_turn else packet.pts
                if moment is not None:
                    packets.append((moment, packet.duration or 0, packet.is_keyframe, packet.is_discard))
                elif packet.size:
                    timeless = True
            unit = float(stream.time_base)
        self._packets = [(moment, is_key) for moment, _, is_key, _ in packets]
        # Nothing can be decoded before the first key frame, and an edit list may hide what can.
        first = next((moment for moment, _, is_key, _ in packets if is_key), math.inf)
        shown = sorted((moment, length) for moment, length, _, hidden in packets if moment >= first and not hidden)
        if not shown:
            raise VideoError(f"{path}: {NO_TIMES if timeless else HIDDEN if packets else NO_VIDEO}.")
        self._times = [moment for moment, _ in shown]
        self.starts: Sequence[float] = [round((moment - self._times[0]) * unit, 6) for moment in self._times]
        self.duration = _duration(self.starts, self.starts[-1] + shown[-1][1] * unit)

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        wanted, held, damaged = set(chosen), _Held(), False
        with self._opened() as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                if number >= len(self._times) or not (self._in_turn or frame.pts == self._times[number]):
                    break
                # What is shown after a damaged frame, up to the next key frame, may depend on it.
                damaged = bool(frame.is_corrupt) or (damaged and not frame.key_frame)
                if damaged and self._strict and (held.pictures or number in wanted):
                    held = _Held()
                    break
                if number in wanted:
                    held.take(number, self._upright(frame))
                for sure, picture in held.let_go(frame):
                    wanted.remove(sure)
                    yield picture
                if not wanted:
                    return
            for sure, picture in held.let_go(None):
                wanted.remove(sure)
                yield picture
            if not wanted:
                return
        raise VideoError(
            f"{self._path}: the video is damaged; its frame at {self.starts[min(wanted)]:.2f} s cannot be read."
        )

    @staticmethod
    def _upright(frame: Any) -> torch.Tensor:
        """A PyAV frame as (H, W, 3) uint8, rotated as it says."""
        import numpy as np
        import torch

        if max(part.bits for part in frame.format.components) > 8:
            return torch.from_numpy(_filtered(frame).to_ndarray())
        picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        return torch.from_numpy(np.ascontiguousarray(picture))

    @contextlib.contextmanager
    def _opened(self):
        problem = UNREADABLE
        try:
            with self._av.open(f"file:{self._path}", metadata_errors="replace") as container:
                if not container.streams.video:
                    raise VideoError(f"{self._path}: {NO_VIDEO}.")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                problem = DAMAGED
                yield container, stream
        except (self._av.FFmpegError, UnicodeError) as error:
            raise VideoError(f"{self._path}: {problem}.") from error


def _filtered(frame: Any) -> Any:
    """A PyAV frame, upright and in RGB by FFmpeg's filters, as decord has them: with more than 8 bits, PyAV's own
    conversion places colours differently."""
    from av.filter import Graph

    graph = Graph()
    unit = frame.time_base or Fraction(1)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
    turns = [graph.add("transpose", "cclock") for _ in range(frame.rotation // 90 % 4)]
    chain = [source, *turns, graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
    for one, following in pairwise(chain):
        one.link_to(following)
    graph.configure()
    graph.push(frame)
    return graph.pull()


class _Forward(_PyAV):
    """A video read with PyAV in one pass that leaves out what no chosen frame depends on.

    That is: whole groups of pictures without a chosen frame, what follows the last chosen one of a group, and pictures
    that no other one refers to. `keys` are the indices of the key frames.
    """

    def __init__(self, path: Path, rotation: int):
        super().__init__(path, rotation)
        if self._in_turn:
            raise VideoError(f"{path}: AVI does not say which packet holds which frame.")
        self.keys = [bisect_left(self._times, moment) for moment in self._key_times()]

    def _key_times(self) -> list[int]:
        shown = set(self._times)
        return sorted(moment for moment, is_key in self._packets if is_key and moment in shown)

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        wanted = {self._times[index] for index in chosen}
        ahead = self._ahead_of_their_keys()
        last = self._last_needed(wanted, ahead)
        found: dict[int, torch.Tensor] = {}
        held = _Held()
        with self._opened() as (container, stream):
            number = group = -1
            latest = -math.inf
            for packet in container.demux(stream):
                if packet.pts is not None:
                    number += 1
                    group += packet.is_keyframe
                    if number > last.get(group, -1):
                        continue
                    # Of the frames that are not wanted, only those that others refer to are decoded.
                    stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    if frame.pts is not None:
                        if frame.pts < latest:
                            # One that others refer to is missing, and they have been mixed up.
                            raise VideoError(f"{self._path}: its frames do not come in the order of their times.")
                        latest = frame.pts
                    if frame.is_corrupt and (frame.pts in wanted or frame.pts not in ahead):
                        raise _InexactError
                    if frame.pts in wanted:
                        held.take(frame.pts, self._upright(frame))
                    found.update(held.let_go(frame))
                if not packet.size:
                    # Nothing follows it.
                    found.update(held.let_go(None))
                while chosen and (moment := self._times[chosen[0]]) in found:
                    yield found.pop(moment)
                    chosen = chosen[1:]
                if not chosen:
                    return
        raise VideoError(f"{self._path}: its frame at {self.starts[chosen[0]]:.2f} s was not to be had in one pass.")

    def _ahead_of_their_keys(self) -> set[int]:
        """The times of frames that follow a key frame in the file but are shown before it: they may depend on the group
        of pictures before, and do not count as damaged if that is left out."""
        ahead, key = set(), 0
        for moment, is_key in self._packets:
            key = moment if is_key else key
            if moment < key:
                ahead.add(moment)
        return ahead

    def _last_needed(self, wanted: set[int], ahead: set[int]) -> dict[int, int]:
        """For each group of pictures that has any packet to decode, the number of the last one."""
        last: dict[int, int] = {}
        group, end_before = -1, -1
        for number, (moment, is_key) in enumerate(self._packets):
            if is_key:
                group, end_before = group + 1, number - 1
            if moment in wanted:
                last[group] = number
                if moment in ahead:
                    # It may refer to the whole group before.
                    last[group - 1] = end_before
        return last


def _duration(starts: Sequence[float], end: float) -> float:
    """When the last frame leaves the screen; if the file does not say, it stays as long as the others on average."""
    if end > starts[-1] or len(starts) == 1:
        return max(end, 0.0)
    return starts[-1] + (starts[-1] - starts[0]) / (len(starts) - 1)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence decord, which writes warnings straight to file descriptor 2: one thread at a time, because the last one
    out must restore what the first one found."""
    with _SILENCE:
        try:
            kept = os.dup(2)
        except OSError:  # closed
            yield
            return
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _check_file(path: Path) -> tuple[int, os.stat_result]:
    """Refuse all but readable, whole files; returns the rotation that an MP4 or MOV declares, in degrees clockwise, and
    the status of the file.

    FFmpeg reads what there is of a file that is cut short, and reports nothing. Most containers give their own length.

    Raises:
        VideoError: there is no such file, it cannot be read, is empty or cut short, or claims more frames than bytes.
    """
    try:
        if path.is_dir():
            raise VideoError(f"{path}: this is a folder, not a video.")
        if path.exists() and not path.is_file():
            raise VideoError(f"{path}: this is not an ordinary file.")
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            if not size:
                raise VideoError(f"{path}: the file is empty.")
            declared, rotation, frames = _container_facts(file, size)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(f"{path}: there is no such file.") from None
    except PermissionError:
        raise VideoError(f"{path}: there is no permission to read it.") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: the file cannot be opened.") from error
    if declared > size:
        raise VideoError(f"{path}: the file is cut short: {size} bytes of at least {declared} are there.")
    if frames > size:
        # decord would reserve memory for that many, and end the process.
        raise VideoError(f"{path}: the file is damaged: it claims to have {frames} frames in {size} bytes.")
    return rotation, status


def _container_facts(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """What a container says of itself: bytes, display rotation in degrees clockwise, frames; 0 if it does not say."""
    head = file.read(64)
    declared = rotation = frames = 0
    with contextlib.suppress(struct.error, IndexError):
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            for kind, body, end in _boxes(file, size):
                if kind in (b"mdat", b"moov", b"moof"):
                    declared = max(declared, end)
                elif kind == b"tkhd":
                    rotation = rotation or _track_rotation(file, body)
                elif kind == b"stts":
                    file.seek(body + 4)
                    (runs,) = struct.unpack(">I", file.read(4))
                    table = file.read(8 * runs) if 8 * runs < size else b""
                    frames = max(frames, runs, sum(run for run, _ in struct.iter_unpack(">II", table)))
        elif head[:4] == b"RIFF":
            (length,) = struct.unpack("<I", head[4:8])
            declared = length + 8 if length < 2**32 - 1 else 0
        elif head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska, WebM: an EBML header, then one segment
            header, start, _ = _ebml_size(head, 4)
            length, start, unknown = _ebml_size(head, start + header + 4)
            declared = 0 if unknown else start + length
    return declared, rotation, frames


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an MP4 or MOV, and those nested on the way to the sample tables: kind, start of the body, end."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        body = start + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            body += 8
        elif length == 0:
            length = size - start
        if start + length < body:
            return
        yield kind, body, start + length
        start = body if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl") else start + length


def _track_rotation(file: BinaryIO, body: int) -> int:
    """The rotation in the matrix of the track header at byte `body`; 0 for a track without a picture."""
    file.seek(body)
    wide = file.read(1) == b"\x01"
    file.seek(body + (52 if wide else 40))
    cosine, sine, *_, width, _ = struct.unpack(">9i2I", file.read(44))
    return round(math.degrees(math.atan2(sine, cosine))) % 360 if width else 0


def _ebml_size(data: bytes, start: int) -> tuple[int, int, bool]:
    """The EBML size at byte `start`: its value, where it ends, and whether it stands for "unknown"."""
    width = 9 - data[start].bit_length()
    value = int.from_bytes(data[start : start + width], "big") & (1 << 7 * width) - 1
    return value, start + width, value == (1 << 7 * width) - 1
