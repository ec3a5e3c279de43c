"""Videos read with decord.

What is known of it (decord2 3.4, checked by the tests) shapes this module:

- It turns frames upright itself, by the container's display matrix, and does not say by how much.
- A seek is exact only if the n-th packet of the file is the n-th frame to be shown. With open groups of pictures
  (x265's default) it is not, and decord then silently returns a wrong frame. So every seek is checked here, and once
  one fails the video is read forward from its first frame.
- It numbers the frames that an edit list hides (a trimmed MP4), but never returns them.
- It fails on HEVC with closed groups of pictures and reordered B-frames, and it cannot rewind MPEG-TS.
- Where frames are missing it repeats another one, unless `fault_tol` forbids it. It does not report damaged ones.
- If FFmpeg pads the lines of a very narrow picture to a multiple of its width, decord sees more colour channels.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from flashvlm.video.plan import TIME_TOLERANCE
from flashvlm.video.reader import InexactError, duration_of

if TYPE_CHECKING:
    import torch

# decord returns a missing timestamp as far more seconds than this, before or after 0.
NO_TIMESTAMP = 1e9
# The strictest setting of decord: not one frame may stand in for another.
NO_REPEATED_FRAMES = "0.000000001"
# decord stops skipping when its decoding thread is slow; without a frame for this long it is stuck.
STALL_SECONDS = 20.0
_SILENCE = threading.RLock()


class DecordReader:
    """A video read with decord.

    Frames have decord's numbers here, which count those that an edit list hides. decord's own position is the number of
    the frame it returns next, less `_behind`: after a start from the beginning, the hidden frames that never came.
    """

    keys: Sequence[int] = ()

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
            raise InexactError from error
        starts, ends = spans.T.astype(float).round(6).tolist()
        if len(starts) == 1:
            starts, ends = [0.0], [ends[0] - starts[0]]
        rising = all(earlier < later for earlier, later in pairwise(starts))
        if not rising or abs(starts[0]) > NO_TIMESTAMP or starts[-1] < 0 or self._keys[:1] != [0]:
            raise InexactError
        self._hidden = bisect_left(starts, -TIME_TOLERANCE)
        self.starts: Sequence[float] = starts[self._hidden :]
        self.duration = duration_of(self.starts, ends[-1])
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
                raise InexactError from error
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
                raise InexactError
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
                raise InexactError
            position = self._position()
        self._last = position + self._behind
        return self._next()

    def _next(self) -> torch.Tensor:
        with self._decord.bridge.use_torch():
            picture = self._video.next()
        if picture.shape[2] != 3:
            # It takes the padding of a very narrow picture's lines for colour channels.
            raise InexactError
        return picture

    def _position(self) -> int:
        return self._decord.video_reader._CAPI_VideoReaderGetCurrentPosition(self._video._handle)


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
