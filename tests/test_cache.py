"""The feature cache: the same answer without decoding and encoding, whatever happens to its folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import features

from flashvlm import VideoQA
from flashvlm.cache import FeatureCache, parse_size
from flashvlm.errors import UsageError
from flashvlm.options import AskOptions, Sampling
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

CLIP = samples_dir() / "still.jpg"
CACHED = AskOptions(cache=True)
ASK = ["--model", "demo", "--device", "cpu", "--dtype", "float32", "--cache"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flashvlm" / "features"


@pytest.fixture
def fresh(demo: VideoQA, folder: Path) -> VideoQA:
    """The demo model with the cache in `folder`."""
    return VideoQA(demo.backend, demo.name)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_a_video_in_the_cache_gives_the_same_tokens_and_answer(fresh: VideoQA, folder: Path) -> None:
    clip = samples_dir() / "sequence.mp4"
    first, again = (fresh.watch(clip, CACHED) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert again.encode_seconds == 0
    assert torch.equal(first.encoded.tokens, again.encoded.tokens)
    assert torch.equal(first.encoded.saliency, again.encoded.saliency)
    assert (first.facts, first.timestamps) == (again.facts, again.timestamps)
    one, other = (fresh.answer(watched, "What happens?", CACHED) for watched in (first, again))
    assert (one.answer, one.moments) == (other.answer, other.moments)
    assert (one.cached, other.cached) == (False, True)


def test_ask_says_what_came_from_the_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert main(["ask", str(CLIP), "What is there?", "--json", *ASK]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert [answer["cached"] for answer in said] == [False, True]
    assert said[1]["seconds"]["encode"] == 0 < said[0]["seconds"]["encode"]
    assert main(["ask", str(CLIP), "What is there?", *ASK]) == 0
    assert "\n cached " in capsys.readouterr().err


def test_without_being_asked_nothing_is_kept(fresh: VideoQA, folder: Path) -> None:
    fresh.watch(CLIP, AskOptions())
    assert not folder.exists()


def test_an_entry_belongs_to_the_content_not_to_the_name(fresh: VideoQA, folder: Path, tmp_path: Path) -> None:
    fresh.watch(CLIP, CACHED)
    copy = tmp_path / "copy.jpg"
    shutil.copyfile(CLIP, copy)
    watched = fresh.watch(copy, CACHED)
    assert watched.cached and watched.facts.path == str(copy)
    shutil.copyfile(samples_dir() / "one.mp4", copy)
    assert not fresh.watch(copy, CACHED).cached


@pytest.mark.parametrize(
    "other",
    [
        {"max_pixels": 28 * 28 * 16},
        {"min_pixels": 28 * 28 * 16},
        {"encode": "all"},
        {"seek": "exact"},
        *({"sampling": Sampling(**part)} for part in ({"frames": 2}, {"start": 1}, {"end": 5}, {"fps": 1})),
    ],
    ids=lambda other: str(other.get("sampling", list(other))),
)
def test_what_changes_the_tokens_has_an_entry_of_its_own(fresh: VideoQA, folder: Path, other: dict[str, Any]) -> None:
    clip = samples_dir() / "one.mp4"
    fresh.watch(clip, CACHED)
    assert not fresh.watch(clip, AskOptions(cache=True, **other)).cached
    assert len(entries(folder)) == 2


def test_another_dtype_has_an_entry_of_its_own(fresh: VideoQA, folder: Path) -> None:
    fresh.watch(CLIP, CACHED)
    half = VideoQA.from_pretrained("demo", device="cpu", dtype="bfloat16")
    assert not half.watch(CLIP, CACHED).cached
    assert len(entries(folder)) == 2


def test_what_comes_after_encoding_shares_an_entry(fresh: VideoQA, folder: Path) -> None:
    fresh.watch(CLIP, CACHED)
    assert fresh.watch(CLIP, AskOptions(cache=True, selector="uniform", merge=True, temperature=1.0, seed=3)).cached


def test_another_model_has_entries_of_its_own(demo: VideoQA, folder: Path, tmp_path: Path) -> None:
    VideoQA(demo.backend, "demo").watch(CLIP, CACHED)
    retrained = tmp_path / "model"
    shutil.copytree(demo.backend.folder, retrained)
    os.utime(retrained / "model.safetensors", (1, 1))
    assert not VideoQA.from_pretrained(retrained, device="cpu", dtype="float32").watch(CLIP, CACHED).cached


def test_what_other_code_made_is_not_taken(fresh: VideoQA, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.watch(CLIP, CACHED)
    monkeypatch.setattr("flashvlm.cache.code_digest", lambda: "other")
    assert not fresh.watch(CLIP, CACHED).cached


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_entry_is_made_anew(fresh: VideoQA, folder: Path, damage: str) -> None:
    whole = fresh.watch(CLIP, CACHED).encoded.tokens
    (entry,) = entries(folder)
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    changed = {"cut": content[:-100], "flipped": content, "empty": b"", "text": b"no tensors in here"}
    entry.write_bytes(changed[damage])
    watched = fresh.watch(CLIP, CACHED)
    assert not watched.cached and torch.equal(watched.encoded.tokens, whole)
    assert fresh.watch(CLIP, CACHED).cached


@pytest.mark.parametrize("there", ["another's entry", "a pipe", "an endless device", "a folder"])
def test_what_is_not_the_entry_of_this_video_is_not_taken(fresh: VideoQA, folder: Path, there: str) -> None:
    whole = fresh.watch(CLIP, CACHED).encoded.tokens
    (entry,) = entries(folder)
    entry.unlink()
    match there:
        case "another's entry":
            fresh.watch(samples_dir() / "one.mp4", CACHED)
            entries(folder)[0].rename(entry)
        case "a pipe":
            os.mkfifo(entry)
        case "an endless device":
            entry.symlink_to("/dev/zero")
        case "a folder":
            entry.mkdir()
    watched = fresh.watch(CLIP, CACHED)
    assert not watched.cached and torch.equal(watched.encoded.tokens, whole)
    # What can be replaced is; what cannot is told.
    assert fresh.watch(CLIP, CACHED).cached == (not watched.warnings) == (there != "a folder")


def test_no_flipped_bit_is_taken(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put("a", features(600))
    (entry,) = entries(tmp_path)
    content = entry.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 2000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        entry.write_bytes(flipped)
        assert cache.get("a", torch.device("cpu")) is None, f"bit {bit} of {content!r}"
    entry.write_bytes(content)
    assert cache.get("a", torch.device("cpu")) is not None


def test_a_folder_that_cannot_be_written_is_a_warning(demo: VideoQA, folder: Path) -> None:
    folder.parent.parent.mkdir(parents=True)
    folder.parent.write_text("a file where the folder should be")
    answer = VideoQA(demo.backend, "demo").ask(CLIP, "What is there?", CACHED)
    assert answer.answer
    assert len(answer.warnings) == 1 and str(folder) in answer.warnings[0]


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the size of files")
def test_a_full_disk_under_the_cache_is_a_warning(folder: Path) -> None:
    # A file that may grow no further fails to be written as one on a full disk does.
    script = """
import resource, signal, sys
from flashvlm_cli.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(["ask", *sys.argv[1:], "What is there?", "--model", "demo", "--cache"]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(CLIP)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()
    assert f"The feature cache {folder} cannot be written" in " ".join(done.stderr.split())
    assert entries(folder) == []


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, limit=11_000)
    for number, name in enumerate("abc"):
        cache.put(name, features(2400))
        os.utime(tmp_path / f"{name}.safetensors", (number + 1, number + 1))
    assert cache.get("a", torch.device("cpu")) is not None
    cache.put("d", features(2400))
    assert [path.stem for path in entries(tmp_path)] == ["a", "c", "d"]
    assert sum(size for _, size, _ in cache.entries()) <= 11_000


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", limit=1000)
    cache.put("a", features(2400))
    assert cache.entries() == []


def test_what_was_left_half_written_goes_once_it_is_old(tmp_path: Path) -> None:
    old, new = tmp_path / "old.tmp", tmp_path / "new.tmp"
    for path in (old, new):
        path.mkdir()
        (path / "entry").write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    FeatureCache(tmp_path, limit=10_000).put("a", features(2400))
    assert not old.exists() and new.exists()


WRITER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakes import features
from flashvlm.cache import FeatureCache
cache = FeatureCache(Path(sys.argv[2]), limit=100_000)
for round in range(40):
    key = str(round % 7)
    cache.put(key, features(9000 + 400 * (round % 7)))
    found = cache.get(str((round + 3) % 7), torch.device("cpu"))
    assert found is None or not found.encoded.tokens.any()
"""


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    cache = FeatureCache(tmp_path, limit=100_000)
    assert 0 < sum(size for _, size, _ in cache.entries()) <= 100_000
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, 10**10),
        ("", 10**10),
        ("1000", 1000),
        ("10GB", 10**10),
        ("1.5 MB", 1_500_000),
        ("2GiB", 2 << 30),
        ("0", 0),
    ],
)
def test_a_size_is_read(text: str | None, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["much", "-1GB", "10 PB", "GB"])
def test_a_size_that_is_none_is_refused(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        parse_size(text)
    monkeypatch.setenv("FLASHVLM_CACHE_SIZE", text)
    assert main(["ask", str(CLIP), "What is there?", *ASK]) == 2
    assert capsys.readouterr().err.count("\n") == 1
