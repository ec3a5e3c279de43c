"""Videos read with decord, in a process of its own: some damaged files end the process that decord reads them in."""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, ClassVar

from flashvlm.video import decord_process
from flashvlm.video.containers import Orientation
from flashvlm.video.plan import TIME_TOLERANCE
from flashvlm.video.reader import InexactError, Reader, Source, duration_of
from flashvlm.video.with_pyav import opened, orientation_of

if TYPE_CHECKING:
    import torch

# decord returns a missing timestamp as far more seconds than this, before or after 0.
NO_TIMESTAMP = 1e9
# How long a process may take to let go of a video, in seconds.
CLOSE_SECONDS = 5.0


class DecordReader(Reader):
    """A video read with decord, which seeks.

    decord turns frames by the container's display matrix, but neither by one that mirrors or by other angles, nor by
    what the frames themselves say. So frames that are not stored upright are left to other readers.
    """

    def __init__(self, source: Source):
        self._source = source
        with opened(source) as (container, stream):
            if container.format.name == "image2":
                # It would look for a pattern in the name.
                raise InexactError
            first = next(container.decode(stream), None)
            if first is None or first.rotation or orientation_of(first) != Orientation():
                raise InexactError
        self._process = _Process.idle()
        weakref.finalize(self, self._process.release).atexit = False
        starts, ends, keys = self._ask("open", os.path.abspath(source.path))
        if len(starts) == 1:
            starts, ends = [0.0], [ends[0] - starts[0]]
        rising = all(earlier < later for earlier, later in pairwise(starts))
        if not rising or abs(starts[0]) > NO_TIMESTAMP or starts[-1] < 0 or keys[:1] != [0]:
            raise InexactError
        # Frames that an edit list hides are numbered like the others.
        self._hidden = bisect_left(starts, -TIME_TOLERANCE)
        self.starts = starts[self._hidden :]
        self.duration = duration_of(self.starts, ends[-1])

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        for index in chosen:
            height, width = self._ask("frame", index + self._hidden, self._hidden)
            self._source.check_size(width, height)
            picture = self._process.picture(height, width)
            if picture is None:
                raise InexactError
            yield picture

    def _ask(self, *request: Any) -> Any:
        answer = self._process.ask(self._source.seconds_left(), *request)
        if answer is None:
            # It may have been ended because it took too long.
            self._source.seconds_left()
            raise InexactError
        return answer


class _Process:
    """A process that reads one video at a time with decord (see `decord_process`).

    It is started when none is idle, and killed when it does not answer.
    """

    _idle: ClassVar[list[_Process]] = []
    _running: ClassVar[set[_Process]] = set()

    @classmethod
    def idle(cls) -> _Process:
        """A process that no other reader uses.

        Raises:
            InexactError: there is none, and none can be started.
        """
        with contextlib.suppress(IndexError):
            return cls._idle.pop()
        return cls()

    @classmethod
    def kill_all(cls) -> None:
        for process in list(cls._running):
            process.kill()

    @classmethod
    def forget_all(cls) -> None:
        """Leave the processes to the parent: this one has just been forked from it."""
        cls._idle.clear()
        cls._running.clear()

    def __init__(self) -> None:
        # Both sides map this file, which has no name.
        if sys.platform == "linux":
            self._memory = os.memfd_create("frame")
        else:
            with TemporaryFile() as file:
                self._memory = os.dup(file.fileno())
        self._socket, other = socket.socketpair()
        self._answers = self._socket.makefile("rb")
        # decord reads PATH without asking whether it is set.
        environment = {"PATH": os.defpath, **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._popen = subprocess.Popen(
                # It imports what this process would, and runs none of its start-up files.
                [sys.executable, "-I", "-S", decord_process.__file__, json.dumps(sys.path)],
                stdin=other.fileno(),
                stdout=self._memory,
                stderr=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C is for this process alone.
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._close()
            raise InexactError from error
        finally:
            other.close()
        self._running.add(self)

    def ask(self, seconds: float, *request: Any) -> Any:
        """Its answer to a request; None if it cannot answer, or has not within these seconds and is killed."""
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps([seconds, *request]).encode() + b"\n")
            if line := self._answers.readline():
                return json.loads(line)
        except (OSError, ValueError):
            # It has ended, it is late, or it is being killed.
            pass
        except BaseException:
            # An answer that nobody waited for would be taken for the next one.
            self.kill()
            raise
        return self.kill()

    def picture(self, height: int, width: int) -> torch.Tensor | None:
        """A copy of the frame that it has answered with, (H, W, 3) uint8; None if it is not there."""
        import torch

        size = height * width * 3
        if os.fstat(self._memory).st_size < size:
            return None
        with mmap.mmap(self._memory, size, access=mmap.ACCESS_READ) as shared:
            return torch.frombuffer(bytearray(shared), dtype=torch.uint8).view(height, width, 3)

    def release(self) -> None:
        """Leave it to the next video."""
        if self in self._running and self.ask(CLOSE_SECONDS, "close") is not None:
            os.ftruncate(self._memory, 0)
            self._idle.append(self)

    def kill(self) -> None:
        if self in self._running:
            self._running.discard(self)
            self._popen.kill()
            self._popen.wait()
            self._close()

    def _close(self) -> None:
        self._answers.close()
        self._socket.close()
        os.close(self._memory)


atexit.register(_Process.kill_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.forget_all)
