"""Videos from the web: downloaded with yt-dlp, an optional extra, into the user's cache folder, which is bounded.

A download is one file, named by the digest of its address. The least recently used go first, as in the feature cache,
and `FLASHVLM_CACHE_SIZE` bounds them, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flashvlm.cache import SIZE_VARIABLE, parse_size
from flashvlm.errors import VideoError
from flashvlm.files import refuse_address, user_folder

# How much of the digest of an address is part of a name.
DIGITS = 16
# No sound is needed, and frames are made smaller than this anyway.
FORMAT = "bestvideo[height<=720]/best[height<=720]/bestvideo/best"
# How long a server may keep silent, in seconds.
SILENCE = 30
UNFINISHED = ".tmp"

OnDownload = Callable[[int, int], None]


def is_address(video: object) -> bool:
    """Whether a video is given as a web address, and not as a file of this name."""
    return isinstance(video, str) and bool(re.match("https?://", video, re.IGNORECASE)) and not os.path.exists(video)


def available() -> bool:
    """Whether yt-dlp is installed."""
    return find_spec("yt_dlp") is not None


class Downloads:
    """The downloaded videos in one folder, at most `limit` bytes in all."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    @classmethod
    def of_user(cls) -> Downloads:
        """Those in the user's cache folder (XDG), bounded by `FLASHVLM_CACHE_SIZE`.

        Raises:
            UsageError: the variable is not a size, or there is no home folder.
        """
        return cls(user_folder("cache") / "videos", parse_size(os.environ.get(SIZE_VARIABLE)))

    def get(self, address: str, on_download: OnDownload = lambda done, total: None) -> Path:
        """The file of the video at this address, downloaded unless it is there.

        Args:
            on_download: gets the bytes downloaded so far and the bytes wanted, as far as these are known.

        Raises:
            VideoError: it cannot be downloaded, is larger than the limit, or does not end (a live stream).
        """
        digest = hashlib.sha256(address.encode("utf-8", "backslashreplace")).hexdigest()[:DIGITS]
        for path in self.folder.glob(f"{digest}-*"):
            os.utime(path)
            return path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(UNFINISHED, dir=self.folder) as folder:
                _download(address, Path(folder), self.limit, on_download)
                found = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size, default=None)
                if found is None or found.suffix == ".part":
                    most = f"larger than the {self.limit} bytes of {SIZE_VARIABLE}"
                    raise VideoError(f"{address}: there is no video, or it is {most}, or it is live.")
                path = self.folder / f"{digest}-{found.name}"
                found.replace(path)
        except OSError as error:
            raise VideoError(f"{address}: it cannot be stored in {self.folder}: {error.strerror or error}.") from error
        self._make_room(path)
        return path

    def entries(self) -> list[tuple[float, int, Path]]:
        """When each file was last used (seconds since 1970), its size in bytes and its path; oldest use first."""
        found = []
        for path in self.folder.glob("*-*"):
            with contextlib.suppress(OSError):
                if path.is_file():
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        return sorted(found)

    def clear(self) -> list[int]:
        """Remove every file; returns the size in bytes of each.

        Raises:
            OSError: the folder cannot be written to.
        """
        entries = self.entries()
        for _, _, path in entries:
            path.unlink(missing_ok=True)
        return [size for _, size, _ in entries]

    def _make_room(self, newest: Path) -> None:
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


def fetch(address: str, on_download: OnDownload = lambda done, total: None) -> Path:
    """The file of the video at an address (`Downloads.get`).

    Raises:
        VideoError: it cannot be downloaded, or yt-dlp is not installed.
        UsageError: there is no home folder, or the size of the cache is invalid.
    """
    if not available():
        refuse_address(address)
    return Downloads.of_user().get(address, on_download)


def _download(address: str, folder: Path, limit: int, on_download: OnDownload) -> None:
    import yt_dlp

    def told(state: dict[str, Any]) -> None:
        total = state.get("total_bytes") or state.get("total_bytes_estimate") or 0
        on_download(int(state.get("downloaded_bytes") or 0), int(total))

    settings = {
        "format": FORMAT,
        "outtmpl": str(folder / "%(title).60B.%(ext)s"),
        "restrictfilenames": True,
        "max_filesize": limit,
        "match_filter": yt_dlp.utils.match_filter_func("!is_live"),
        "playlist_items": "1",
        "noplaylist": True,
        "socket_timeout": SILENCE,
        "cachedir": False,
        "logger": _Silent(),
        "noprogress": True,
        "progress_hooks": [told],
        # That would need FFmpeg's program.
        "fixup": "never",
    }
    try:
        with yt_dlp.YoutubeDL(settings) as downloader:
            downloader.extract_info(address)
    except yt_dlp.utils.YoutubeDLError as error:
        first = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[:1]
        why = first[0].removeprefix("ERROR: ").partition(" (caused by")[0] if first else type(error).__name__
        raise VideoError(f"{address}: it cannot be downloaded: {why.rstrip('.')}.") from error


class _Silent:
    """What yt-dlp says while it works; it raises what goes wrong."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...
