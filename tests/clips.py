"""Small video files for tests: every frame carries its own number, so that a test can tell which frame it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8
TIME_BASE = Fraction(1, 1000)
# Key frames only where they are asked for, and B-frames where the codec knows them.
OPTIONS = {
    "libx264": {"preset": "veryfast", "sc_threshold": "0", "bf": "3"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=none:scenecut=0"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
    "libsvtav1": {"preset": "10"},
    "mpeg4": {},
}


def numbered_frame(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A (height, width, 3) uint8 picture that shows `number` (0-255) as eight black or white columns, lowest bit left.

    The columns fill the lower half; the upper half is red on the left and blue on the right, so that a turned or
    mirrored picture cannot be read as a number.
    """
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (220, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 30, 220)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        picture[height // 2 :, left:right] = 235 if number >> bit & 1 else 20
    return picture


def number_of(frame) -> int | None:
    """The number that a (3, h, w) frame shows; None when it is not an upright, readable `numbered_frame`."""
    picture = np.asarray(frame).astype(np.int16)
    _, height, width = picture.shape
    left, right = picture[:, height // 4, width // 4], picture[:, height // 4, 3 * width // 4]
    if left[0] - left[2] < 60 or right[2] - right[0] < 60:
        return None
    columns = [picture[:, 3 * height // 4, (2 * bit + 1) * width // (2 * BITS)].mean() for bit in range(BITS)]
    if any(80 < column < 170 for column in columns):
        return None
    return sum(1 << bit for bit, column in enumerate(columns) if column > 128)


def steady(count: int, fps: float = 25.0) -> list[float]:
    """Display times of `count` frames at `fps` frames a second, from 0 on."""
    return [number / fps for number in range(count)]


def write_clip(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (160, 96),
    key_every: int = 12,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    mux_options: dict[str, str] | None = None,
    picture: Callable[[int, int, int], np.ndarray] = numbered_frame,
) -> Path:
    """Write a clip of numbered frames that appear at `times` (seconds, rising); `size` is (width, height) as displayed.

    `picture`: what to show instead; a function of the number, the width and the height.

    `rotation`: the pictures are stored turned, and the file says to turn them by so many degrees clockwise for display.
    """
    width, height = size if rotation % 180 == 0 else size[::-1]
    with av.open(str(path), "w", options=mux_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=OPTIONS[codec] | (options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if width % 2 or height % 2:
            stream.pix_fmt = "yuv444p"
        stream.codec_context.time_base = stream.time_base = TIME_BASE
        stream.codec_context.gop_size = key_every
        if rotation:
            stream.set_display_rotation(-rotation)
        for number, time in enumerate(times):
            turned = np.rot90(picture(number, *size), rotation // 90)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_trimmed(path: Path, source: Path, start: float) -> Path:
    """`source` from `start` (seconds) on, cut as a phone does it: from the key frame before, which stays hidden."""
    with av.open(str(source)) as whole, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as trimmed:
        stream = whole.streams.video[0]
        copy = trimmed.add_stream_from_template(stream)
        packets = [packet for packet in whole.demux(stream) if packet.pts is not None]
        shift = round(start / stream.time_base)
        key = max(packet.pts for packet in packets if packet.is_keyframe and packet.pts <= shift)
        for packet in packets:
            if packet.pts >= key:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                trimmed.mux(packet)
    return path


def write_without_frame(path: Path, source: Path, number: int) -> Path:
    """The HEVC clip `source` with packet `number` emptied: the file counts a frame more than can be decoded."""
    with av.open(str(source)) as whole, av.open(str(path), "w") as holed:
        stream = whole.streams.video[0]
        copy = holed.add_stream_from_template(stream)
        for index, original in enumerate(whole.demux(stream)):
            if original.pts is None:
                continue
            packet = av.Packet(b"\0\0\0\4\x4c\x01\xff\x80") if index == number else original
            packet.pts, packet.dts, packet.duration = original.pts, original.dts, original.duration
            packet.time_base, packet.stream = original.time_base, copy
            holed.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    """One second of silence, without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
