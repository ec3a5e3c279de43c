"""Files that a user names: refused early if they cannot be used, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from flashvlm.errors import OutputError, UsageError, VideoError

OVERLAYS = (".png", ".gif", ".webp", ".mp4")
REPORTS = (".html", ".htm")
RECORDS = (".jsonl", ".ndjson", ".csv", ".tsv")
# What the names of videos and pictures end in, most of them.
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp", ".png", ".jpg", ".jpeg"}
PLOTS = (".png", ".svg", ".pdf")
# The variables that name a user's folders, and what these are in the home folder otherwise:
# https://specifications.freedesktop.org/basedir-spec/latest/
FOLDERS = {
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "config": ("XDG_CONFIG_HOME", ".config"),
    "state": ("XDG_STATE_HOME", ".local/state"),
}


def user_folder(kind: str) -> Path:
    """flashvlm's folder in the user's `cache`, `config` or `state` folder; it need not exist.

    Raises:
        UsageError: there is no home folder.
    """
    variable, default = FOLDERS[kind]
    # A relative path is to be ignored.
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():
        return named / "flashvlm"
    try:
        return Path.home() / default / "flashvlm"
    except RuntimeError:
        raise UsageError(f"There is no home folder for the {kind} of flashvlm: set HOME or {variable}.") from None


def check_video(path: str | os.PathLike[str]) -> os.stat_result:
    """Refuse what cannot be a video, before anything is loaded for it or read; returns the status of its file.

    Raises:
        UsageError: it is not a path at all.
        VideoError: there is no such file, its name is empty, its folder may not be entered, it is a web address or a
            folder, or not an ordinary file but a device or a pipe, say.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"A video is given as a path, not as {path!r:.80}.")
    refuse_address(path)
    try:
        status = os.stat(path)
    except PermissionError:
        raise VideoError(f"{path}: there is no permission to read it.") from None
    except (OSError, ValueError):
        if not str(path).strip():
            raise VideoError("The name of the video is empty.") from None
        # Reading a container jumps back and forth, which a pipe does not allow.
        only = "; a video is not read from standard input" if str(path) == "-" else ""
        raise VideoError(f"{path}: there is no such file{only}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path}: this is a folder, not a video.")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path}: this is not an ordinary file.")
    return status


def refuse_address(path: str | os.PathLike[str]) -> None:
    """Refuse a web address in place of a video.

    Raises:
        VideoError: it is one, and there is no file of this name.
    """
    # A `Path` drops one of the two slashes.
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not os.path.exists(path):
        instead = "give its path" if str(path).startswith("file:") else "download the video and give the file"
        if str(path).startswith("http"):
            instead += ", or let yt-dlp do it: pip install 'flashvlm[web]'"
        raise VideoError(f"{path}: this is an address; {instead}.")


def check_overlay(path: str | Path, *videos: str | Path) -> Path:
    """Check and return the path of an overlay of these videos that is to be written (see `_check`).

    Raises:
        UsageError: it is one of the videos itself, or a clip of several.
    """
    path = _check(path, OVERLAYS, "`overlay`")
    if len(videos) > 1 and path.suffix.lower() != ".png":
        raise UsageError(f"{path}: a clip shows one video; of several there is a sheet, in a file that ends in .png.")
    if path.exists() and any(os.path.exists(video) and os.path.samefile(path, video) for video in videos):
        raise UsageError(f"{path}: an overlay would write over the video itself.")
    return path


def check_report(path: str | Path) -> Path:
    """Check and return the path of a report that is to be written (see `_check`)."""
    return _check(path, REPORTS, "`report`")


def check_plot(path: str | Path) -> Path:
    """Check and return the path of a plot that is to be written (see `_check`)."""
    return _check(path, PLOTS, "`plot`")


def _check(path: str | Path, suffixes: Sequence[str], what: str) -> Path:
    """Check that a file can be written; returns its path.

    Args:
        suffixes: the suffixes that its name may have, with the dot.
        what: what messages call it.

    Raises:
        UsageError: it has another suffix.
        OutputError: its folder does not exist or may not be written to, or it is a folder itself.
    """
    asked, path = str(path), Path(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{what} takes a file that ends in {', '.join(suffixes)}; not {asked!r}.")
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; it cannot be written as a file.")
    if not folder.is_dir():
        raise OutputError(f"{path}: it cannot be written: there is no folder {str(folder)!r}.")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"{path}: it cannot be written: no permission, or a read-only file system.")
    return path


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs from writing to `path`; its folder is created if it does not exist.

    Raises:
        UsageError: another run holds it, or it is not an ordinary file.
        OutputError: its folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    # The lock lies beside the real file, whatever link names it.
    real = Path(os.path.realpath(path))
    lock = real.with_name(f".{real.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            # Not the real path: the pipe that /dev/stdout leads to has none.
            if path.exists() and not path.is_file():
                raise UsageError(f"{path} is not an ordinary file; without -o there is standard output.")
            real.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock, blocking=False).acquire())
            # Before the lock is released, so that nothing is left beside the file.
            stack.callback(lock.unlink, missing_ok=True)
            if real.exists() and real.stat().st_nlink > 1:
                stack.enter_context(_itself_locked(real))
        except (Timeout, BlockingIOError):
            raise UsageError(f"Another run is writing to {path}; wait for it, or give another file.") from None
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
        yield


@contextlib.contextmanager
def _itself_locked(path: Path) -> Iterator[None]:
    """Lock the file, which all its names share: a lock beside one of them is not beside the others."""
    try:
        import fcntl
    except ImportError:
        # Windows.
        yield
        return
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with the same suffix, that replaces it once everything is written.

    If `path` is a link, the file that it leads to is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    temporary: Path | None = None
    real = Path(os.path.realpath(path))
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=real.parent)
        temporary = Path(name)
        mask = os.umask(0)
        os.umask(mask)
        os.close(descriptor)
        temporary.chmod(0o666 & ~mask)
        yield temporary
        os.replace(temporary, real)
    except OSError as error:
        raise OutputError(f"{path}: it cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
