"""What runs in the process that decord has for itself (see `with_decord`): nothing else is imported, so that it starts
at once.

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

import json
import math
import mmap
import os
import signal
import sys
import time
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# The strictest setting of decord: not one frame may stand in for another.
NO_REPEATED_FRAMES = "0.000000001"
# decord stops skipping when its decoding thread is slow; without a frame for this long it is stuck.
STALL_SECONDS = 20.0
# What this process may allocate.
MOST_BYTES = 2 << 30


class _InexactError(Exception):
    """decord has not returned, or would not return, the frame that it was asked for."""


def serve() -> None:
    """Answer the requests that come in on descriptor 0, a socket, until the other side is gone.

    Requests and answers are lines of JSON: `[seconds, "open", path]` is answered by `[starts, ends, keys]` (when each
    frame appears and disappears, in seconds, and the indices of key frames); `[seconds, "frame", number, hidden]` by
    `[height, width]` once the picture lies in the file of descriptor 1, which both sides map; `[seconds, "close"]` by
    true. What decord cannot do exactly is answered by null.
    """
    # Libraries may print.
    memory = os.dup(1)
    os.dup2(2, 1)
    _limit()
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    of_decord = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, StopIteration)
    failures = (*of_decord, AssertionError, IndexError, UnicodeError, _InexactError)
    video: _Video | None = None
    with open(0, "rb") as requests, open(0, "wb", closefd=False) as answers:
        for line in requests:
            seconds, what, *about = json.loads(line)
            # Nobody is left to end a process that outlives its parent and hangs.
            signal.alarm(math.ceil(seconds) + 1)
            answer: Any = None
            try:
                if what == "open":
                    video = _Video(*about)
                    answer = [*video.spans, video.keys]
                elif what == "frame" and video is not None:
                    picture = video.frame(*about)
                    _share(picture, memory)
                    answer = picture.shape[:2]
                elif what == "close":
                    video, answer = None, True
            except failures:
                pass
            signal.alarm(0)
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def _limit() -> None:
    """Bound what a damaged file can do here; a process that ends for it is replaced."""
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for kind, most in ((resource.RLIMIT_DATA, MOST_BYTES), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _share(picture: np.ndarray, memory: int) -> None:
    if os.fstat(memory).st_size < picture.nbytes:
        os.ftruncate(memory, picture.nbytes)
    with mmap.mmap(memory, picture.nbytes) as shared:
        shared.write(picture)  # type: ignore[arg-type]


class _Video:
    """A video opened with decord.

    decord numbers the frames that an edit list hides too. Its own position is the number of the frame that it returns
    next, less `_behind`: after a start from the beginning, the hidden frames that never came.
    """

    def __init__(self, path: str):
        import decord

        self._api = decord.video_reader
        # The prefix keeps FFmpeg from taking a colon in the name for a protocol.
        self._video = decord.VideoReader(f"file:{path}", num_threads=0, fault_tol=NO_REPEATED_FRAMES)
        self._count = len(self._video)
        self.spans = self._video.get_frame_timestamp(list(range(self._count))).T.astype(float).round(6).tolist()
        self.keys = self._video.get_key_indices()
        self._seekable = True
        self._last = -1
        self._behind = 0

    def frame(self, number: int, hidden: int) -> np.ndarray:
        """Frame `number`, which comes after those returned so far: (H, W, 3) uint8.

        Args:
            hidden: how many frames an edit list hides.
        """
        key = self.keys[bisect_right(self.keys, number) - 1]
        picture = None
        if self._last < 0 or (self._seekable and key > self._last + 1):
            picture = self._land(key, hidden)
            if picture is None and key > 0:
                self._seekable = False
                picture = self._land(0, hidden)
            if picture is None:
                raise _InexactError
        while picture is None or self._last < number:
            picture = self._step(number)
        return picture

    def _land(self, key: int, hidden: int) -> np.ndarray | None:
        """Seek to key frame `key` and return it; None if decord landed elsewhere."""
        if self._position() == key:
            # decord treats a seek to its current position as done, and checks nothing.
            self._next()
        self._video.seek_accurate(key)
        # decord looks at the timestamp of what it landed on, and only counts that frame as read if it is the key frame.
        exact = self._position() == key + 1
        if not exact and (key > 0 or not hidden):
            return None
        self._behind = 0 if exact else hidden
        self._last = key + self._behind
        return self._next()

    def _step(self, number: int) -> np.ndarray:
        """Skip to frame `number` or the last one before a key frame, whichever is first, without a seek; return it."""
        position = self._position()
        after = bisect_right(self.keys, position)
        # Within a group of pictures decord's seek only skips.
        stop = min(number - self._behind, self.keys[after] - 1 if after < len(self.keys) else self._count)
        deadline = time.monotonic() + STALL_SECONDS
        while position < stop:
            self._video.seek_accurate(stop)
            if self._position() > position:
                deadline = time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise _InexactError
            position = self._position()
        self._last = position + self._behind
        return self._next()

    def _next(self) -> np.ndarray:
        picture = self._video.next().asnumpy()
        if picture.shape[2] != 3:
            # It takes the padding of a very narrow picture's lines for colour channels.
            raise _InexactError
        return picture

    def _position(self) -> int:
        return self._api._CAPI_VideoReaderGetCurrentPosition(self._video._handle)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    serve()
