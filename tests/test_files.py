"""One run at a time writes to a file, whatever name it has; and it is a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flashvlm.errors import UsageError
from flashvlm.files import held

NAMED_AGAIN: dict[str, Callable[[Path, Path], None]] = {
    "the same": lambda path, other: None,
    "a symbolic link": lambda path, other: other.symlink_to(path),
    "a hard link": lambda path, other: other.hardlink_to(path),
}


@pytest.mark.parametrize("again", NAMED_AGAIN)
def test_a_file_is_held_under_all_its_names(tmp_path: Path, again: str) -> None:
    path, other = tmp_path / "out.jsonl", tmp_path / "elsewhere" / "other.jsonl"
    path.write_bytes(b"a record\n")
    other.parent.mkdir()
    NAMED_AGAIN[again](path, other)
    other = other if other.exists() else path
    with held(path), pytest.raises(UsageError, match="Another run is writing"), held(other):
        pass
    with held(other):
        pass
    assert path.read_bytes() == b"a record\n" and not [*tmp_path.rglob(".*.lock")]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names open pipes")
def test_a_pipe_is_told_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading, writing = os.pipe()
    # As /dev/stdout is one in `flashvlm batch -o /dev/stdout | cat`.
    for path in (tmp_path / "pipe", Path(f"/proc/self/fd/{writing}")):
        with pytest.raises(UsageError, match="not an ordinary file"), held(path):
            pass
    os.close(reading)
    os.close(writing)
