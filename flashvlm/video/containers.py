"""What a file says of itself: whether all of it is there, and how its pictures are turned."""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flashvlm.errors import VideoError


def check_file(path: Path) -> tuple[int, os.stat_result]:
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
