"""Where the videos of requests come from: allowed folders, what clients sent, the samples, and hosts of the web.

What was sent or fetched is kept in files named by the digest of their content, as long as there is room, so that a
video is sent once for any number of questions.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from flashvlm.errors import FlashVLMError
from flashvlm.samples import samples_dir
from flashvlm.serve.asked import Reference
from flashvlm.serve.fetching import fetch
from flashvlm.serve.refusals import TOO_LARGE, Refused, bad

DIGEST = "sha256:"
SAMPLE = "sample:"
# So many times the largest video fit into the folder of what was sent.
ROOM = 8
# The digests of so many files are remembered.
REMEMBERED = 10_000


@dataclass(frozen=True)
class Source:
    """A video of a request: its file, the SHA-256 of its content, and what the client calls it."""

    path: Path
    digest: str
    name: str


class Media:
    """What may be asked about, and the files that clients sent, at most `limit` bytes each."""

    def __init__(self, folders: Sequence[str | Path], hosts: Collection[str], limit: int) -> None:
        self.folders = [Path(os.path.realpath(folder)) for folder in folders]
        self.hosts, self.limit = {host.lower() for host in hosts}, limit
        self._sent = Sent(limit * ROOM)
        self._digests: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove what was sent."""
        self._sent.close()

    @contextlib.contextmanager
    def found(self, reference: Reference, deadline: float) -> Iterator[Source]:
        """The file that a reference means, which stays there meanwhile.

        Args:
            deadline: when fetching it is given up, on the clock of `time.monotonic`.

        Raises:
            Refused: it is not there, or may not be asked about.
        """
        address = reference.address
        scheme = address.partition(":")[0].lower()
        if scheme == "file":
            yield self._in_folders(reference)
        elif address.startswith(SAMPLE):
            path = sample(address.removeprefix(SAMPLE))
            yield Source(path, self._digest(path), reference.name)
        elif address.startswith(DIGEST):
            with self._sent.held(address.removeprefix(DIGEST)) as path:
                yield Source(path, address.removeprefix(DIGEST), reference.name)
        elif scheme in ("data", "http", "https"):
            digest = self._received(scheme, address, deadline)
            with self._sent.held(digest) as path:
                yield Source(path, digest, reference.name)
        else:
            raise bad("A video is given as file:, data:, http: or https:, or as sha256: of one that was sent before.")

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Receiving]:
        """A new file to be filled by a client (see `Receiving`); it is gone afterwards, unless `done` was called."""
        receiving = Receiving(self._sent, self.limit)
        try:
            yield receiving
        finally:
            receiving.close()

    def _received(self, scheme: str, address: str, deadline: float) -> str:
        """The digest of a `data:` address, or of what a web address leads to."""
        with self.receiving() as receiving:
            if scheme == "data":
                receiving.write(_data(address))
            else:
                fetch(address, self.hosts, self.limit, receiving.write, deadline)
            return receiving.done()

    def _in_folders(self, reference: Reference) -> Source:
        """The file of a `file:` address, if it lies in one of the folders once all links are followed."""
        try:
            parts = urlsplit(reference.address)
            path = unquote(parts.path, errors="surrogateescape")
            foreign = parts.netloc not in ("", "localhost") or "\0" in path
        except ValueError:
            foreign = True
        if foreign or not path.startswith("/"):
            raise bad("A file of this machine is given as file:///path/of/the/video.mp4.")
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(folder) for folder in self.folders):
            # The same for a file that is there and for one that is not: nobody learns what lies elsewhere.
            told = f"{reference.name}: this file is not in a folder that may be asked about."
            raise Refused(HTTPStatus.FORBIDDEN, told, code="file_not_allowed", exit_code=3)
        try:
            status = real.stat()
        except OSError:
            raise bad(f"{reference.name}: there is no such file.", code="video_error") from None
        if not stat.S_ISREG(status.st_mode):
            raise bad(f"{reference.name}: this is not an ordinary file.", code="video_error")
        if status.st_size > self.limit:
            raise too_large(self.limit)
        return Source(real, self._digest(real), reference.name)

    def _digest(self, path: Path) -> str:
        """The SHA-256 of a file, remembered until the file changes."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                key = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                with self._lock:
                    if key in self._digests:
                        self._digests.move_to_end(key)
                        return self._digests[key]
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise bad("This file cannot be read.", code="video_error") from None
        with self._lock:
            self._digests[key] = digest
            while len(self._digests) > REMEMBERED:
                self._digests.popitem(last=False)
        return digest


class Sent:
    """The files that clients sent, in a folder of its own, by their digest: at most `room` bytes, last used ones."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._folder = tempfile.TemporaryDirectory(prefix="flashvlm-serve-", ignore_cleanup_errors=True)
        # The size of each, and how many requests need it; last used last.
        self._files: OrderedDict[str, list[int]] = OrderedDict()
        # Bytes that are being written.
        self._coming = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        self._folder.cleanup()

    def new(self) -> tuple[Any, Path]:
        """A new file, opened for writing, and its path."""
        descriptor, name = tempfile.mkstemp(dir=self._folder.name)
        return os.fdopen(descriptor, "wb"), Path(name)

    def grow(self, size: int) -> None:
        """Make room for so many more bytes that are being written; fewer than 0 give room back.

        Raises:
            Refused: requests need all that is there.
        """
        with self._lock:
            self._coming += size
            for digest in [digest for digest, (_, users) in self._files.items() if not users]:
                if self._size() <= self.room:
                    break
                del self._files[digest]
                self._path(digest).unlink(missing_ok=True)
            if size > 0 and self._size() > self.room:
                self._coming -= size
                told = "There is no room for another video now; try again later."
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, told, headers={"Retry-After": "5"})

    def keep(self, digest: str, written: Path, size: int) -> None:
        """Keep a file that was written (see `grow`)."""
        with self._lock:
            self._coming -= size
            if digest in self._files:
                self._files.move_to_end(digest)
                written.unlink(missing_ok=True)
            else:
                written.replace(self._path(digest))
                self._files[digest] = [size, 0]

    @contextlib.contextmanager
    def held(self, digest: str) -> Iterator[Path]:
        """The file with this digest, which is not removed meanwhile.

        Raises:
            Refused: it is not there (any more).
        """
        with self._lock:
            if digest not in self._files:
                told = "There is no video of this digest: send it, with POST /videos."
                raise Refused(HTTPStatus.NOT_FOUND, told, code="video_not_found", exit_code=3)
            self._files.move_to_end(digest)
            self._files[digest][1] += 1
        try:
            yield self._path(digest)
        finally:
            with self._lock:
                self._files[digest][1] -= 1

    def _size(self) -> int:
        return self._coming + sum(size for size, _ in self._files.values())

    def _path(self, digest: str) -> Path:
        return Path(self._folder.name) / digest


class Receiving:
    """A video that is coming in: `write` takes its bytes, `done` keeps it and returns its digest."""

    def __init__(self, sent: Sent, limit: int) -> None:
        self._sent, self._limit, self._size = sent, limit, 0
        self._file, self._path = sent.new()
        self._digest = hashlib.sha256()
        self._kept = False

    def write(self, content: bytes) -> None:
        """Take the next bytes.

        Raises:
            Refused: it is too large, or there is no room.
        """
        if self._size + len(content) > self._limit:
            raise too_large(self._limit)
        self._sent.grow(len(content))
        self._size += len(content)
        self._digest.update(content)
        try:
            self._file.write(content)
        except OSError:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, "The server cannot store the video.") from None

    def done(self) -> str:
        """Keep it.

        Raises:
            Refused: there was nothing.
        """
        if not self._size:
            raise bad("The video is empty.", code="video_error")
        try:
            self._file.close()
        except OSError:
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, "The server cannot store the video.") from None
        self._sent.keep(self._digest.hexdigest(), self._path, self._size)
        self._kept = True
        return self._digest.hexdigest()

    def close(self) -> None:
        """Remove it, unless it is kept."""
        if not self._kept:
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)
            self._sent.grow(-self._size)


def sample(name: str) -> Path:
    """The file of a sample clip.

    Raises:
        Refused: there is none of this name.
    """
    if name not in samples():
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such sample.", code="video_not_found", exit_code=3)
    return samples_dir() / name


def samples() -> list[str]:
    """The names of the sample clips; none if they are not installed."""
    try:
        return sorted(path.name for path in samples_dir().iterdir() if path.suffix not in (".jsonl", ""))
    except FlashVLMError:
        return []


def too_large(limit: int) -> Refused:
    """The refusal of a video of more bytes than `limit`."""
    told = f"The video is larger than the {limit} bytes that this server takes."
    return Refused(TOO_LARGE, told, code="too_large", exit_code=3)


def _data(address: str) -> bytes:
    """The content of a `data:` address (RFC 2397)."""
    head, comma, content = address.partition(",")
    if not comma:
        raise bad("A data address has a comma before its content.")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return base64.b64decode(content.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise bad("The content of this data address is not base64.") from None


def soon(seconds: float) -> float:
    """A deadline in so many seconds (see `Media.found`)."""
    return time.monotonic() + seconds
