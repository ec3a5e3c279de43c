"""Reads damaged files in worker processes, and notes what becomes of them."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from attack.mutations import damaged
from flashvlm.errors import UsageError, VideoError
from flashvlm.options import Sampling
from flashvlm.video import Limits, decode, frames_at, times

HANG_SECONDS = 60.0


@dataclass
class Findings:
    """What was seen.

    `outcomes`: how often each was met.
    `bad`: the number of a file, and what should not have happened.
    `slowest`: seconds, and the number of the file that took them.
    `memory`: the most that a process had, in MB, and the number of the file that it had read by then.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    memory: tuple[int, int] = (0, -1)


def attack(
    folder: Path,
    seeds: Mapping[str, bytes],
    seconds: float,
    seed: int = 0,
    first: int = 0,
    most: int = 10**9,
    workers=2,
) -> Findings:
    """Attack for so many seconds, or with `most` files, from the `first` one on."""
    findings, end = Findings(), time.monotonic() + seconds
    numbers = iter(range(first, first + most))
    running = {}
    for number in islice(numbers, workers):
        worker = _Worker(folder, seeds, seed)
        running[worker.told] = worker
        worker.give(number)
    while running:
        ready, _, _ = select.select(list(running), [], [], 1.0)
        for told, worker in list(running.items()):
            if told in ready or time.monotonic() - worker.since > HANG_SECONDS:
                number, report = worker.number, worker.report()
                _note(findings, number, report)
                if "dead" in report:
                    del running[told]
                    worker = _Worker(folder, seeds, seed)
                    running[worker.told] = worker
                following = next(numbers, None) if time.monotonic() < end else None
                if following is None:
                    worker.end()
                    del running[worker.told]
                else:
                    worker.give(following)
    return findings


def _note(findings: Findings, number: int, report: dict) -> None:
    for outcome in report.get("outcomes", ["dead"]):
        findings.outcomes[outcome] += 1
    for what in report.get("bad", []):
        findings.bad.append((number, what))
    findings.slowest = max(findings.slowest, (report.get("seconds", 0.0), number))
    findings.memory = max(findings.memory, (report.get("memory", 0), -number))


class _Worker:
    """A forked process that reads one file after the other; standard error goes to a file that must stay empty."""

    def __init__(self, folder: Path, seeds: Mapping[str, bytes], seed: int) -> None:
        asked, self.asking = os.pipe()
        self.told, telling = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self.asking)
                os.close(self.told)
                _work(folder, seeds, seed, asked, telling)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(telling)
        self.number, self.since = -1, time.monotonic()

    def give(self, number: int) -> None:
        self.number, self.since = number, time.monotonic()
        os.write(self.asking, b"%d\n" % number)

    def report(self) -> dict:
        """What it says of its file, or that it died or hung."""
        ready, _, _ = select.select([self.told], [], [], 0)
        line = os.read(self.told, 1 << 16) if ready else None
        if line:
            return json.loads(line)
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.asking)
        os.close(self.told)
        died = f"dead (status {status})" if line is not None else f"no answer in {HANG_SECONDS:g} s"
        return {"dead": True, "bad": [died]}

    def end(self) -> None:
        # Later workers have a copy of this pipe, so that closing it tells nothing.
        os.write(self.asking, b"end\n")
        os.close(self.asking)
        os.close(self.told)
        os.waitpid(self.pid, 0)


def _work(folder: Path, seeds: Mapping[str, bytes], seed: int, asked: int, telling: int) -> None:
    from flashvlm.video.with_decord import _Process

    torch.set_num_threads(1)
    # The command line does so.
    warnings.simplefilter("ignore")
    noise = folder / f"stderr-{os.getpid()}"
    os.dup2(os.open(noise, os.O_CREAT | os.O_RDWR | os.O_APPEND), 2)
    with open(asked) as numbers:
        for line in iter(numbers.readline, "end\n"):
            begin = time.monotonic()
            try:
                name, data = damaged(seed, int(line), seeds)
                path = folder / name
                path.write_bytes(data)
                outcomes, bad = read(path)
                path.unlink()
            except Exception:
                # A fault of the attack itself: without this the worker would end in silence.
                outcomes, bad = ["not tried"], [traceback.format_exc(limit=-4)[-1500:]]
            if noise.stat().st_size:
                bad.append(f"it wrote {noise.read_bytes()[:200]!r}")
                os.ftruncate(2, 0)
            report = {"outcomes": outcomes, "bad": bad, "seconds": time.monotonic() - begin, "memory": _most_memory()}
            os.write(telling, json.dumps(report).encode())
    _Process.kill_all()


def _most_memory() -> int:
    """What this process, or one of its own that has ended, had at most, in MB."""
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(used) // 1024


def read(path: Path) -> tuple[list[str], list[str]]:
    """Read a file in every way: the outcome of each, and what should not have happened."""
    outcomes, bad, clips = [], [], {}
    limits = Limits(timeout=30.0)

    def again():
        clip = clips["fast"]
        shown = times(path, clip.timestamps[0], clip.timestamps[-1], 4.0, limits)
        return list(frames_at(path, [*shown[:2]], limits))

    for way in ("fast", "exact", "again"):
        try:
            if way != "again":
                clips[way] = decode(path, Sampling(), _small, way, limits=limits)
            elif "fast" in clips:
                again()
            else:
                continue
            outcomes.append(f"{way}: read")
        except (VideoError, UsageError):
            outcomes.append(f"{way}: refused")
        except Exception:
            outcomes.append(f"{way}: unexpected")
            bad.append(traceback.format_exc(limit=-4)[-1500:])
    looks = {way: (clip.facts.width, clip.facts.height, clip.facts.rotation) for way, clip in clips.items()}
    if len(set(looks.values())) > 1:
        bad.append(f"width, height and rotation differ: {looks}")
    return outcomes, bad


def _small(frame: torch.Tensor, frames: int) -> torch.Tensor:
    return frame[:, ::8, ::8].clone()
