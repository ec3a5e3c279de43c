"""Videos that are given in memory: frames with their times, pictures, and the bytes of a file."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from flashvlm import web
from flashvlm.errors import UsageError
from flashvlm.files import check_video
from flashvlm.video.reader import Reader, duration_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    # One frame, or several.
    Pixels: TypeAlias = "np.ndarray | torch.Tensor | Image | Sequence[np.ndarray | torch.Tensor | Image]"
    # What a video may be given as.
    Given: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Frames | np.ndarray | torch.Tensor | Image"

SHAPES = "(H, W, 3) or (3, H, W) uint8"


class Frames(Reader):
    """A video in memory: its frames and their times, which count from the first frame.

    It is read like a file: options such as `fps` and `start` choose which of its frames are looked at.
    """

    def __init__(self, frames: Pixels, *, fps: float | None = None, timestamps: Sequence[float] | None = None) -> None:
        """
        Args:
            frames: an array or a tensor, (F, H, W, 3) or (F, 3, H, W) uint8; or a list of F pictures of one size, each
                an array, a tensor or a picture of Pillow.
            fps: how many of them are shown a second.
            timestamps: instead, the second at which each is shown, ascending.

        Raises:
            UsageError: other shapes or types, no frames, or times that are missing or do not fit.
        """
        pictures = frames if isinstance(frames, list | tuple) else list(_stack(frames))
        self._pictures = [_picture(one) for one in pictures]
        sizes = {tuple(one.shape) for one in self._pictures}
        if len(sizes) != 1:
            raise UsageError("Frames must be pictures of one size, at least one.")
        count = len(self._pictures)
        if (fps is None) == (timestamps is None) and count > 1:
            raise UsageError("Give the fps of frames or their timestamps, one of the two.")
        if timestamps is None:
            if fps is not None and not (isinstance(fps, int | float) and 0 < fps < math.inf):
                raise UsageError(f"The fps of frames must be a number more than 0, not {fps!r}.")
            timestamps = [place / (fps or 1.0) for place in range(count)]
        times = [float(at) for at in timestamps]
        if len(times) != count or not all(math.isfinite(at) for at in times):
            raise UsageError(f"{count} frames need {count} timestamps, each a number; there are {len(times)}.")
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise UsageError("The timestamps of frames must be ascending.")
        self.starts = [at - times[0] for at in times]
        self.duration = duration_of(self.starts, 0.0)

    @property
    def name(self) -> str:
        """What it is called where a file has its path."""
        return "frames" if len(self.starts) > 1 else "picture"

    def __str__(self) -> str:
        return self.name

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        yield from (self._pictures[number] for number in chosen)

    def __repr__(self) -> str:
        height, width, _ = self._pictures[0].shape
        return f"<Frames: {len(self.starts)} of {width} x {height}, {self.duration:g} s>"


class StoredFile(os.PathLike[str]):
    """A temporary file with the bytes of a video; it is removed when nothing refers to this any more."""

    def __init__(self, content: bytes, name: str = "video") -> None:
        folder = tempfile.mkdtemp(prefix="flashvlm-")
        self._path = Path(folder, name)
        self._removed = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._path.write_bytes(content)

    def __fspath__(self) -> str:
        return str(self._path)

    __str__ = __fspath__


def taken(given: Any) -> str | os.PathLike[str] | Frames:
    """A video in any form as a path or frames. A path is checked (`check_video`), an address is downloaded (`web`),
    bytes become a `StoredFile`.

    Raises:
        UsageError: it is in no form that a video may have, or an array of several frames without times.
        VideoError: there is no such file, or it cannot be a video.
    """
    if isinstance(given, Frames):
        return given
    if isinstance(given, bytes | bytearray | memoryview):
        return StoredFile(bytes(given))
    if hasattr(given, "read"):
        return _of_file(given)
    if hasattr(given, "shape") or type(given).__module__.startswith("PIL."):
        frames = list(_stack(given))
        if len(frames) > 1:
            raise UsageError(
                f"{len(frames)} frames do not say when they are shown: give flashvlm.Frames(frames, fps=...), or with "
                "timestamps."
            )
        return Frames(frames)
    if web.is_address(given):
        return web.fetch(given)
    check_video(given)
    return given


def _of_file(file: Any) -> str | StoredFile:
    """The path of an open file, or what is left to read of it."""
    name = getattr(file, "name", None)
    try:
        if isinstance(name, str) and os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
            check_video(name)
            return name
    except (OSError, AttributeError, ValueError):
        # It is in memory, or has no name any more.
        pass
    content = file.read()
    if not isinstance(content, bytes):
        raise UsageError("A video is read from a file that is opened in binary mode: open(path, 'rb').")
    return StoredFile(content, os.path.basename(name) if isinstance(name, str) else "video")


def _stack(given: Any) -> Any:
    """Several frames, one after the other; one frame alone as a list of it."""
    return given if len(getattr(given, "shape", ())) == 4 else [given]


def _picture(given: Any) -> torch.Tensor:
    """One frame as (H, W, 3) uint8."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from flashvlm.video.pictures import rgb

    if isinstance(given, Image.Image):
        return rgb(ImageOps.exif_transpose(given))
    if not isinstance(given, np.ndarray | torch.Tensor):
        raise UsageError(f"A frame is an array, a tensor or a picture of Pillow, not {given!r:.80}.")
    if isinstance(given, np.ndarray) and not given.flags.writeable:
        # torch has no tensors that cannot be written to.
        given = given.copy()
    frame = torch.as_tensor(given).detach().cpu()
    if frame.ndim == 3 and frame.shape[2] != 3 and frame.shape[0] == 3:
        frame = frame.permute(1, 2, 0)
    if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.numel():
        kind = str(frame.dtype).removeprefix("torch.")
        raise UsageError(f"A frame must be {SHAPES}, not {tuple(given.shape)} {kind}.")
    return frame
