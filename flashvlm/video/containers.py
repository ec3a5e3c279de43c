"""What a file says of itself: whether all of it is there, and how its pictures are to be turned."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from flashvlm.errors import VideoError
from flashvlm.files import check_video
from flashvlm.video.reader import Limits, Source

if TYPE_CHECKING:
    import numpy as np


class Orientation(NamedTuple):
    """How a stored picture becomes upright: it is mirrored left to right if `mirrored`, and then turned by `rotation`
    degrees clockwise (0, 90, 180 or 270)."""

    rotation: int = 0
    mirrored: bool = False


def orientation(matrix: Sequence[int]) -> Orientation:
    """What a display matrix asks for, as players follow it: the nearest right angle, and a mirror if it has one.

    Args:
        matrix: 3 x 3 numbers, row by row, as the track header of an MP4 has them (ISO/IEC 14496-12, 8.3.2) and FFmpeg
            passes them on for other files too. A stored pixel (x, y) is shown at (ax + cy, bx + dy), where a, b are
            the first two numbers and c, d the fourth and the fifth. If this squeezes the picture into a line or a
            point, nothing is turned.
    """
    a, b, _, c, d = matrix[:5]
    area = a * d - b * c
    if area == 0:
        return Orientation()
    if area < 0:
        a, b = -a, -b
    return Orientation(round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, area < 0)


def upright(picture: np.ndarray, turned: Orientation) -> np.ndarray:
    """A stored picture (H, W, C) as it is displayed."""
    import numpy as np

    picture = picture[:, ::-1] if turned.mirrored else picture
    return np.ascontiguousarray(np.rot90(picture, -turned.rotation // 90))


def checked(path: str | os.PathLike[str], limits: Limits) -> Source:
    """Refuse all but readable, whole files.

    FFmpeg reads what there is of a file that is cut short, and reports nothing. Most containers give their own length.

    Raises:
        VideoError: there is no such file, it cannot be read, is no ordinary file, is empty, or cut short.
    """
    status = check_video(path)
    path = Path(path)
    if not status.st_size:
        # The files that the kernel makes up have no size either, and may block whoever reads them.
        raise VideoError(f"{path}: the file is empty.")
    source = Source(path, status, limits)
    source.restart()
    try:
        with open(path, "rb") as file:
            declared = _declared_size(file, source)
    except PermissionError:
        raise VideoError(f"{path}: there is no permission to read it.") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: the file cannot be opened.") from error
    if declared > status.st_size:
        raise VideoError(f"{path}: the file is cut short: {status.st_size} bytes of at least {declared} are there.")
    return source


def _declared_size(file: BinaryIO, source: Source) -> int:
    """How many bytes a container claims to have; 0 if it does not say."""
    head = file.read(64)
    with contextlib.suppress(struct.error, IndexError):
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _end_of_boxes(file, source)
        if head[:4] == b"RIFF":
            (length,) = struct.unpack("<I", head[4:8])
            return length + 8 if length < 2**32 - 1 else 0
        if head[:4] == b"\x1a\x45\xdf\xa3":  # Matroska, WebM: an EBML header, then one segment
            header, start, _ = _ebml_size(head, 4)
            length, start, unknown = _ebml_size(head, start + header + 4)
            return 0 if unknown else start + length
    return 0


def _end_of_boxes(file: BinaryIO, source: Source) -> int:
    """Where the last box of an MP4 or MOV ends that holds pictures or says where they are."""
    start = declared = 0
    while start + 8 <= source.status.st_size:
        source.seconds_left()
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        elif length == 0:
            length = source.status.st_size - start
        if length < 8:
            break
        start += length
        if kind in (b"mdat", b"moov", b"moof"):
            declared = start
    return declared


def _ebml_size(data: bytes, start: int) -> tuple[int, int, bool]:
    """The EBML size at byte `start`: its value, where it ends, and whether it stands for "unknown"."""
    width = 9 - data[start].bit_length()
    value = int.from_bytes(data[start : start + width], "big") & (1 << 7 * width) - 1
    return value, start + width, value == (1 << 7 * width) - 1
