"""What a server bears: `python -m tests.load`.

In turns, `batch`'s own loop and a server that was just started answer 200 questions on 20 generated clips that neither
has seen. All answers of the server, which 32 clients ask at once, are compared with those of `ask`. Then come the time
to the first piece of a streamed answer on a video in memory, `flashvlm ask --server` beside `flashvlm ask`, and the
server's memory over many requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flashvlm import AskOptions, VideoQA
from flashvlm.batch.here import answered
from flashvlm.batch.plan import make_plan
from flashvlm.batch.rows import Row
from flashvlm.demo.clips import write_clip
from flashvlm.demo.world import make_scene

PORT = 8643
QUESTIONS = (
    "Describe the video.", "What happens?", "What animal is in the video?", "How many animals are there?",
    "What moves right?", "What moves left?", "What moves up?", "What moves down?", "Is there a dog?",
    "Is there a guitar?",
)  # fmt: skip
CLIENTS = 32
MODEL = ["--model", "demo", "--dtype", "float32", "--device", "cpu"]


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A server that may read this folder, with an empty cache; gives the number of its process."""
    environment = {**os.environ, "XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    command = [sys.executable, "-m", "flashvlm_cli", "serve", *MODEL, "--media", str(folder), "--port", str(PORT)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", PORT)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def asked(row: dict[str, str], **more: Any) -> http.client.HTTPResponse:
    """The response to a question."""
    video = {"type": "video_url", "video_url": {"url": f"file://{row['video']}"}}
    content = [video, {"type": "text", "text": row["question"]}]
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
    body = json.dumps({"messages": [{"role": "user", "content": content}], **more})
    connection.request("POST", "/v1/chat/completions", body)
    return connection.getresponse()


def answer_of(row: dict[str, str]) -> str | None:
    """The server's answer; None if there is none."""
    response = asked(row)
    told = json.loads(response.read())
    return told["choices"][0]["message"]["content"] if response.status == 200 else None


def memory_of(process: int) -> int:
    """What a process has in memory, in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def against_batch(qa: VideoQA, rows: Sequence[dict[str, str]], folder: Path, rounds: int) -> None:
    """Questions a minute of both, in turns, and whether the answers are those of `ask`."""
    options = AskOptions(cache=False)
    told = {(row["video"], row["question"]): qa.ask(row["video"], row["question"], options).answer for row in rows}
    plan = make_plan(
        [Row(line, dict(row)) for line, row in enumerate(rows, 1)],
        options,
        {"model": "demo", "revision": None, "dtype": "float32"},
        None,
    )
    mixed = random.Random(0).sample(rows, len(rows))
    ratios, wrong = [], 0
    for _ in range(rounds):
        begin = time.perf_counter()
        list(answered(qa, plan.groups(set())))
        batch = time.perf_counter() - begin
        with serving(folder), ThreadPoolExecutor(CLIENTS) as pool:
            begin = time.perf_counter()
            said = list(pool.map(answer_of, mixed))
            server = time.perf_counter() - begin
        wrong += sum(answer != told[row["video"], row["question"]] for row, answer in zip(mixed, said, strict=True))
        ratios.append(batch / server)
        print(
            f"questions a minute: batch {60 * len(rows) / batch:.0f}, server {60 * len(rows) / server:.0f}", flush=True
        )
    print(f"server over batch: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; median {statistics.median(ratios):.2f}")
    print(
        f"answers lost or other than ask's: {wrong} of {rounds * len(rows)} ({len(set(told.values()))} different ones)"
    )


def first_pieces(row: dict[str, str], count: int) -> None:
    """Milliseconds to the first line of a streamed answer on a video in memory."""
    answer_of(row)
    took = []
    for _ in range(count):
        begin = time.perf_counter()
        response = asked(row, stream=True)
        response.readline()
        took.append(1000 * (time.perf_counter() - begin))
        response.read()
    print(
        f"first piece, ms: median {statistics.median(took):.0f}, from {min(took):.0f} to {max(took):.0f} (n = {count})"
    )


def by_command(row: dict[str, str], count: int) -> None:
    """Seconds of `flashvlm ask`, through the server and alone, in turns."""
    command = [sys.executable, "-m", "flashvlm_cli", "ask", row["video"], row["question"], "-q"]
    took: dict[str, list[float]] = {"by the server": [], "alone": []}
    for _ in range(count):
        for name, more in (("by the server", ["--server", f"http://127.0.0.1:{PORT}"]), ("alone", [*MODEL, "--cache"])):
            begin = time.perf_counter()
            subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
            took[name].append(time.perf_counter() - begin)
    for name, seconds in took.items():
        print(f"ask {name}, s: median {statistics.median(seconds):.2f}, from {min(seconds):.2f} to {max(seconds):.2f}")


def memory(process: int, rows: Sequence[dict[str, str]], requests: int) -> None:
    """The server's memory while four clients ask."""
    many = [rows[number % len(rows)] for number in range(requests)]
    with ThreadPoolExecutor(4) as pool:
        for number, answer in enumerate(pool.map(answer_of, many), 1):
            if number in (len(rows), requests // 2, requests):
                print(
                    f"memory after {number} requests: {memory_of(process)} MiB (the last answer: {answer!r})",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        clips = [folder / f"{number}.mp4" for number in range(20)]
        for number, clip in enumerate(clips):
            write_clip(make_scene(np.random.default_rng((2026, 33, number))), clip)
        rows = [{"video": str(clip), "question": question} for clip in clips for question in QUESTIONS]
        against_batch(VideoQA.from_pretrained("demo", device="cpu", dtype="float32"), rows, folder, given.rounds)
        with serving(folder) as process:
            first_pieces(rows[0], 40)
            by_command(rows[0], 5)
            memory(process, rows, given.requests)


if __name__ == "__main__":
    main()
