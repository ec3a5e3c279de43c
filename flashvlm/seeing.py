"""Encode: frames in, one by one, and visual tokens out: a moment's own, an earlier one's, or those of small frames."""

from __future__ import annotations

import torch

from flashvlm import glimpse
from flashvlm.backends.base import Backend, Encoded, Encoding, groups_of
from flashvlm.errors import UsageError
from flashvlm.repeats import Repeats


class Seeing:
    """Turns the frames of a video into tokens, one by one, in order."""

    def __init__(self, backend: Backend, encode: str, look: str) -> None:
        self._backend, self._twice = backend, look == "twice"
        self._encoding = Encoding(backend)
        self._repeats = Repeats() if encode == "changed" else None
        self._frames: list[torch.Tensor] = []
        self._cells = (0, 0)

    def add(self, frame: torch.Tensor) -> None:
        """Add the next frame, (3, h, w) uint8 of `frame_size`.

        Raises:
            UsageError: a second look is asked for, and the model takes frames of only one size or has class tokens.
        """
        self._frames.append(frame)
        if len(self._frames) == self._backend.frames_per_group:
            self._add_group()

    def end(self, seconds_per_frame: float) -> Encoded:
        """The tokens of all frames; when looking twice, from small frames but on the grid of the full ones."""
        if self._frames:
            self._add_group()
        encoded = self._encoding.end(seconds_per_frame)
        return glimpse.lay_out(encoded, *self._cells) if self._twice else encoded

    def _add_group(self) -> None:
        (group,) = groups_of(torch.stack(self._frames), self._backend.frames_per_group)
        self._frames = []
        source = None if self._repeats is None else self._repeats.source(group)
        self._encoding.add(self._small(group) if self._twice else group, source)

    def _small(self, frames: torch.Tensor) -> torch.Tensor:
        frame = (frames.shape[2], frames.shape[3])
        self._cells = self._backend.cells(frame)
        size = glimpse.small_size(frame, self._cells)
        if self._backend.class_tokens or self._backend.cells(size) == self._cells != (1, 1):
            raise UsageError(
                "--look twice needs a model that takes frames of any size and has no class tokens; this one does not."
            )
        return glimpse.shrink(frames, size)
