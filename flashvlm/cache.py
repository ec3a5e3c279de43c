"""The feature cache: encoder output kept on disk, so that no video is decoded and encoded twice.

An entry is one safetensors file, named by the digest of everything that decides its content (`entry_key`). It is
written to a temporary folder and moved into place, so that a reader finds it whole or not at all. It holds its key and
a checksum of all that is in it: neither a damaged entry is taken nor one that lies in another's place. The size is
bounded: the least recently used entries go first. This module imports torch only when it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvlm.errors import UsageError
from flashvlm.files import user_folder
from flashvlm.options import AskOptions, watching
from flashvlm.report import VideoFacts, code_digest, versions

if TYPE_CHECKING:
    import torch

    from flashvlm.backends.base import Backend
    from flashvlm.encode import Encoded

SIZE_VARIABLE = "FLASHVLM_CACHE_SIZE"
DEFAULT_SIZE = 10 * 10**9
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SUFFIX = ".safetensors"
UNFINISHED = ".tmp"
# What a killed process left half-written is removed after this many seconds.
ABANDONED = 3600.0
# A process lists the folder on its first write, then whenever it has written STEP of the bound. If it finds more than
# FULL of the bound, it removes entries down to FILLED, so that a handful of processes at once stay within it.
STEP, FULL, FILLED = 0.01, 0.95, 0.9


@dataclass(frozen=True)
class CachedVideo:
    """The content of an entry: the video's facts and its tokens."""

    facts: VideoFacts
    encoded: Encoded


class FeatureCache:
    """The entries in one folder, at most `limit` bytes in all."""

    def __init__(self, folder: Path, limit: int = DEFAULT_SIZE) -> None:
        self.folder, self.limit = folder, limit
        self._unlisted: int | None = None

    @classmethod
    def of_user(cls) -> FeatureCache:
        """The cache in the user's cache folder (XDG), bounded by `FLASHVLM_CACHE_SIZE`.

        Raises:
            UsageError: the variable is not a size, or there is no home folder.
        """
        return cls(user_folder("cache") / "features", parse_size(os.environ.get(SIZE_VARIABLE)))

    def get(self, key: str, device: torch.device) -> CachedVideo | None:
        """The entry with this key, its facts those of no file (see `VideoFacts.of`); None if there is none, it is
        damaged, or it was made for another key."""
        import safetensors

        entry = self._entry(key)
        try:
            status = entry.stat()
            # To open a pipe would wait for its writer.
            if not stat.S_ISREG(status.st_mode) or status.st_size > self.limit:
                return None
            with safetensors.safe_open(str(entry), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["checksum"] != _checksum(metadata["flashvlm"], tensors):
                return None
            about = json.loads(metadata["flashvlm"])
            if about["key"] != key:
                return None
            features = _joined(about, {name: tensor.to(device) for name, tensor in tensors.items()})
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)
        return features

    def put(self, key: str, features: CachedVideo) -> None:
        """Write an entry and make room for it, unless it is larger than FILLED of the bound.

        Raises:
            OSError: the folder cannot be written to.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        parted, tensors = _parted(features)
        about = json.dumps({"key": key, **parted})
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit * FILLED:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own, because safetensors also writes beside the file.
        with tempfile.TemporaryDirectory(UNFINISHED, dir=self.folder) as unfinished:
            written = Path(unfinished) / "entry"
            try:
                save_file(tensors, written, {"flashvlm": about, "checksum": _checksum(about, tensors)})
            except SafetensorError as error:
                # A full disk, say.
                raise OSError(str(error)) from error
            written.replace(self._entry(key))
        if self._unlisted is not None:
            self._unlisted += size
        if self._unlisted is None or self._unlisted > self.limit * STEP:
            self._make_room()

    def entries(self) -> list[tuple[float, int, Path]]:
        """When each entry was last used (seconds since 1970), its size in bytes and its path; oldest use first."""
        return sorted(self._files(SUFFIX))

    def clear(self) -> list[int]:
        """Remove every entry; returns the size in bytes of each that was removed.

        Raises:
            OSError: the folder cannot be written to.
        """
        if not self.folder.is_dir():
            return []
        with self._locked():
            removed = [size for _, size, path in self.entries() if _remove(path)]
            for _, _, path in self._files(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
        return removed

    def _make_room(self) -> None:
        with self._locked():
            entries = self.entries()
            total = sum(size for _, size, _ in entries)
            goal = self.limit * FILLED if total > self.limit * FULL else self.limit
            for _, size, path in entries:
                if total <= goal:
                    break
                _remove(path)
                total -= size
            for written, _, path in self._files(UNFINISHED):
                if time.time() - written > ABANDONED:
                    shutil.rmtree(path, ignore_errors=True)
        self._unlisted = 0

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _files(self, suffix: str) -> Iterator[tuple[float, int, Path]]:
        """Files with this suffix; those that other processes remove meanwhile are left out."""
        if self.folder.is_dir():
            for file in os.scandir(self.folder):
                if file.name.endswith(suffix):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat()
                        yield status.st_mtime, status.st_size, Path(file.path)

    def _locked(self) -> contextlib.AbstractContextManager[Any]:
        """Only one process at a time removes entries, so that several do not remove more than they must."""
        from filelock import FileLock

        return FileLock(self.folder / ".lock")


def entry_key(path: str | os.PathLike[str], backend: Backend, model: str, options: AskOptions) -> str | None:
    """The digest of everything that decides what the encoder makes of a video; None if the file cannot be read.

    Args:
        model: what distinguishes the checkpoint from others.
    """
    try:
        if not Path(path).is_file():
            return None
        with open(path, "rb") as file:
            video = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    decided_by = {
        "code": code_digest(),
        "video": video,
        "options": watching(options) | {"sampling": asdict(backend.sampling(options.sampling))},
        "model": model,
        "family": backend.family,
        "pixels": backend.pixels_by,
        "device": backend.device.type,
        "dtype": backend.precision,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()


def parse_size(text: str | None, name: str = SIZE_VARIABLE) -> int:
    """Parse a size in bytes: `10GB`, `500 MB` or `1000000`; powers of 1000, or of 1024 with an `i` (`2GiB`).

    Args:
        name: what errors call it.

    Raises:
        UsageError: anything else.
    """
    if not text or not text.strip():
        return DEFAULT_SIZE
    read = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    if read is None:
        raise UsageError(f"{name} takes a size such as 10GB or 500MB, not {text!r}.")
    return int(Decimal(read[1]) * (1024 if read[3] else 1000) ** UNITS[read[2].lower()])


def _parted(features: CachedVideo) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A video split into what JSON can hold and tensors."""
    import torch

    values = {field.name: getattr(features.encoded, field.name) for field in fields(features.encoded)}
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in values.items() if isinstance(value, torch.Tensor)
    }
    about = {
        "facts": asdict(replace(features.facts, path="", size=0, modified=0, given=None)),
        "encoded": {name: value for name, value in values.items() if name not in tensors},
    }
    return about, tensors


def _joined(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> CachedVideo:
    from flashvlm.encode import Encoded

    values = about["encoded"]
    sequences = {"timestamps": tuple(values["timestamps"]), "grids": tuple(map(tuple, values["grids"]))}
    encoded = Encoded(**{**values, **sequences, **tensors})
    return CachedVideo(VideoFacts(**about["facts"]), encoded)


def _checksum(about: str, tensors: dict[str, torch.Tensor]) -> str:
    """Changes with every bit of what is said about the tensors, and of their names, types, shapes and values."""
    import torch

    total = zlib.crc32(about.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, total)
    return str(total)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
