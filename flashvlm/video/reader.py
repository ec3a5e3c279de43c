"""What every reader of a file offers, and what reading it may cost."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flashvlm.errors import VideoError
from flashvlm.options import AskOptions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Limits:
    """What reading a video may cost.

    `timeout`: how long decoding may go on without a frame that was asked for, in seconds.
    `max_source_pixels`: how many pixels a frame may have as it is stored: by default 8K x 8K.
    """

    timeout: float = AskOptions.timeout
    max_source_pixels: int = AskOptions.max_source_pixels


DEFAULT_LIMITS = Limits()


@dataclass
class Source:
    """A file that has been checked, and that readers are given; or frames in memory (`reader`) under a name (`path`).

    `status`: of the file, from before it was read.
    """

    path: Path
    status: os.stat_result
    limits: Limits
    # What is read in its place, if there is no file.
    reader: Reader | None = None
    _deadline: float = math.inf

    def restart(self) -> None:
        """Begin to wait for the next frame."""
        self._deadline = time.monotonic() + self.limits.timeout

    def seconds_left(self) -> float:
        """How long the next frame may still take.

        Raises:
            VideoError: it has taken too long.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise VideoError(
                f"{self.path}: no frame came within {self.limits.timeout:g} s of decoding (`timeout` allows more)."
            )
        return left

    def check_size(self, width: int, height: int) -> None:
        """Refuse frames of this size if they are too large.

        Raises:
            VideoError: they are.
        """
        if width * height > self.limits.max_source_pixels:
            raise VideoError(
                f"{self.path}: its frames have {width} x {height} pixels, more than {self.limits.max_source_pixels} "
                "(`max_source_pixels` allows more)."
            )


class Reader(Protocol):
    """An opened file. Readers inherit from it.

    `starts`: the second at which each frame appears, ascending.
    `duration`: seconds; 0 for a still picture.
    `rotation`: how far the frame that was read last had to be turned, in degrees clockwise.
    `keys`: the indices of the frames that may be looked at in place of others, because they are cheaper.
    """

    starts: Sequence[float]
    duration: float = 0.0
    rotation: int = 0
    keys: Sequence[int] = ()

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        """The frames at these ascending indices, one by one, upright, (H, W, 3) uint8."""
        ...


class InexactError(Exception):
    """A reader cannot read this file, or cannot be trusted to return the frames that are asked for."""


def duration_of(starts: Sequence[float], end: float) -> float:
    """When the last frame leaves the screen; if the file does not say, it stays as long as the others on average."""
    if end > starts[-1] or len(starts) == 1:
        return max(end, 0.0)
    return starts[-1] + (starts[-1] - starts[0]) / (len(starts) - 1)
