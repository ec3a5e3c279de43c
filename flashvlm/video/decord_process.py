"""What runs in the process that decord has for itself: see `with_decord`.

What is known of decord (decord2 3.4, checked by the tests) shapes this module:

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
import json
import math
import mmap
import os
import signal
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from flashvlm.video.plan import TIME_TOLERANCE
from flashvlm.video.reader import InexactError, duration_of

if TYPE_CHECKING:
    import numpy as np

# decord returns a missing timestamp as far more seconds than this, before or after 0.
NO_TIMESTAMP = 1e9
# The strictest setting of decord: not one frame may stand in for another.
NO_REPEATED_FRAMES = "0.000000001"
# decord stops skipping when its decoding thread is slow; without a frame for this long it is stuck.
STALL_SECONDS = 20.0
# What this process may allocate.
MOST_BYTES = 2 << 30


def serve() -> None:
    """Answer the requests that come in on descriptor 0, a socket, until the other side is gone.

    A request is JSON: `[seconds, "open", path]`, answered by `[starts, duration]`; `[seconds, "frame", index]`,
    answered by `[height, width]` once the picture lies in the file of descriptor 1, which both sides map; or
    `[seconds, "close"]`. What decord cannot do exactly is answered by null.
    """
    # Libraries may print.
    memory = os.dup(1)
    os.dup2(2, 1)
    _limit()
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    asked, video = Connection(0), None
    asked.send_bytes(b"true")
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            seconds, what, *about = json.loads(asked.recv_bytes())
            # Nobody is left to end a process that outlives its parent and hangs.
            signal.alarm(math.ceil(seconds) + 1)
            answer: Any = None
            with contextlib.suppress(InexactError):
                if what == "open":
                    video = _Video(*about)
                    answer = [video.starts, video.duration]
                elif what == "frame" and video is not None:
                    picture = video.frame(*about)
                    _share(picture, memory)
                    answer = picture.shape[:2]
                elif what == "close":
                    video, answer = None, True
            signal.alarm(0)
            asked.send_bytes(json.dumps(answer).encode())


def _limit() -> None:
    """Bound what a damaged file can do here; a process that ends for it is replaced."""
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for kind, most in ((resource.RLIMIT_DATA, MOST_BYTES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def _share(picture: np.ndarray, memory: int) -> None:
    if os.fstat(memory).st_size < picture.nbytes:
        os.ftruncate(memory, picture.nbytes)
    with mmap.mmap(memory, picture.nbytes) as shared:
        shared.write(picture)  # type: ignore[arg-type]


class _Video:
    """A video opened with decord.

    `starts` and `duration` are those of a `Reader`. Other frames have decord's numbers here, which count those that an
    edit list hides. decord's own position is the number of the frame it returns next, less `_behind`: after a start
    from the beginning, the hidden frames that never came.
    """

    def __init__(self, path: str):
        import decord

        self._decord = decord
        self._errors = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration)
        try:
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
        self._count = len(starts)
        self._seekable = True
        self._last = -1
        self._behind = 0

    def frame(self, index: int) -> np.ndarray:
        """The frame at `index`, which comes after those returned so far: (H, W, 3) uint8."""
        try:
            return self._frame(index + self._hidden)
        except self._errors as error:
            raise InexactError from error

    def _frame(self, number: int) -> np.ndarray:
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

    def _land(self, key: int) -> np.ndarray | None:
        """Seek to key frame `key` and return it; None if decord landed elsewhere."""
        if self._position() == key:
            # decord treats a seek to its current position as done, and checks nothing.
            self._next()
        self._video.seek_accurate(key)
        # decord looks at the timestamp of what it landed on, and only counts that frame as read if it is the key frame.
        exact = self._position() == key + 1
        if not exact and (key > 0 or not self._hidden):
            return None
        self._behind = 0 if exact else self._hidden
        self._last = key + self._behind
        return self._next()

    def _step(self, number: int) -> np.ndarray:
        """Skip to frame `number` or the last one before a key frame, whichever is first, without a seek; return it."""
        position = self._position()
        after = bisect_right(self._keys, position)
        # Within a group of pictures decord's seek only skips.
        stop = min(number - self._behind, self._keys[after] - 1 if after < len(self._keys) else self._count)
        deadline = time.monotonic() + STALL_SECONDS
        while position < stop:
            self._video.seek_accurate(stop)
            if self._position() > position:
                deadline = time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise InexactError
            position = self._position()
        self._last = position + self._behind
        return self._next()

    def _next(self) -> np.ndarray:
        picture = self._video.next().asnumpy()
        if picture.shape[2] != 3:
            # It takes the padding of a very narrow picture's lines for colour channels.
            raise InexactError
        return picture

    def _position(self) -> int:
        return self._decord.video_reader._CAPI_VideoReaderGetCurrentPosition(self._video._handle)
