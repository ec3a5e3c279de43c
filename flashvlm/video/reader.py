"""What every reader of a file offers, whatever it reads it with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Reader(Protocol):
    """An opened file.

    `starts`: the second at which each frame appears, ascending.
    `duration`: seconds; 0 for a still picture.
    `rotation`: what the file declares, in degrees clockwise; frames come turned by it.
    `keys`: the indices of the frames that may be looked at in place of others, because they are cheaper.
    """

    starts: Sequence[float]
    duration: float
    rotation: int
    keys: Sequence[int]

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
