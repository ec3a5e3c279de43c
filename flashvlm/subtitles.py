"""Subtitles: the lines that are shown within the part of a video that is looked at, and the prompt that they join."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashvlm import units
from flashvlm.errors import UsageError, VideoError
from flashvlm.video.containers import checked
from flashvlm.video.reader import DEFAULT_LIMITS, Limits
from flashvlm.video.with_pyav import opened

AUTO = "auto"
SUFFIXES = (".srt", ".vtt")
# `00:01:02,500 --> 00:01:04,000` in SubRip, with a point and perhaps without hours in WebVTT.
TIMES = re.compile(r"((?:\d+:)?\d+:\d+[,.]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[,.]\d+)")
# How a text looks: tags of HTML, and commands of SubStation Alpha, which some SubRip files have, too.
LOOKS = re.compile(r"<[^>]*>|\{[^}]*\}")
# A file of subtitles may have this many bytes; a film's has a tenth of a million.
MOST_BYTES = 10_000_000


class Line(NamedTuple):
    """A text, and the seconds at which it appears and disappears."""

    start: float
    end: float
    text: str


def read(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a file of subtitles, SubRip or WebVTT, in its order.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES} bytes.")
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UsageError(f"{path} is not UTF-8 text.") from None
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    lines = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        if found := TIMES.search(block):
            said = _plain(block[found.end() :].partition("\n")[2])
            if said:
                lines.append(Line(_seconds(found[1]), _seconds(found[2]), said))
    if not lines:
        raise UsageError(f"{path} holds no subtitles: lines such as 00:00:01,000 --> 00:00:02,500, and a text below.")
    return lines


def of_video(path: Any, limits: Limits = DEFAULT_LIMITS) -> list[Line]:
    """The subtitles that belong to a video: of a file beside it of the same name (`clip.srt`, `clip.en.srt`), or of the
    first track of subtitles in it; none if it has neither, or is no file."""
    if not isinstance(path, str | os.PathLike):
        return []
    beside, stem = Path(path).parent, Path(path).stem
    names = [f"{stem}{suffix}" for suffix in SUFFIXES]
    with contextlib.suppress(OSError):
        names += sorted(
            name for name in os.listdir(beside) if name.startswith(f"{stem}.") and name.lower().endswith(SUFFIXES)
        )
    for name in names:
        if (beside / name).is_file():
            return read(beside / name)
    with contextlib.suppress(VideoError), opened(checked(path, limits)) as (container, _):
        for stream in container.streams.subtitles[:1]:
            return [line for packet in container.demux(stream) for line in _decoded(packet)]
    return []


def joined(question: str, parts: Sequence[Sequence[Line]]) -> str:
    """The question as the model gets it: after the lines of each video, with their times."""
    texts = []
    for number, lines in enumerate(parts, 1):
        head = f"Subtitles of video {number}:" if len(parts) > 1 else "Subtitles:"
        if lines:
            texts.append("\n".join([head, *(f"{units.timestamp(line.start)} {line.text}" for line in lines)]))
    return "\n\n".join([*texts, question])


def within(lines: Sequence[Line], start: float | None, end: float | None) -> list[Line]:
    """The lines that are on screen at some time from `start` to `end`; None is the beginning or the end."""
    first, last = start or 0.0, float("inf") if end is None else end
    return [line for line in lines if line.end > first and line.start <= last]


def _decoded(packet: Any) -> list[Line]:
    if packet.pts is None:
        return []
    start = float(packet.pts * packet.time_base)
    end = start + float((packet.duration or 0) * packet.time_base)
    texts = [_plain(part.dialogue.decode(errors="replace")) for part in packet.decode() if hasattr(part, "dialogue")]
    return [Line(start, end, text) for text in texts if text]


def _plain(text: str) -> str:
    return " ".join(LOOKS.sub("", text.replace("\\N", " ")).split())


def _seconds(text: str) -> float:
    total = 0.0
    for part in text.replace(",", ".").split(":"):
        total = total * 60 + float(part)
    return total
