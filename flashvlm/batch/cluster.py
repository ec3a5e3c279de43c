"""Answering on a Ray cluster: one model per worker, a video's rows on one worker, a lost worker's rows on another.

Workers read the videos themselves, by the paths in the rows: with several machines, these lie on a shared disk.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashvlm.batch.here import Answering
from flashvlm.batch.plan import Group
from flashvlm.errors import FlashVLMError, UsageError
from flashvlm.journal import Record

# After this many lost workers a video is given up, and its rows get an error. If this many workers in a row are lost
# before they have loaded the model, the cluster is given up.
MOST_LOST = 3
# The size in bytes of Ray's object store on a cluster of our own: only records go through it.
STORE_BYTES = 200 * 2**20


class LostError(FlashVLMError):
    """Workers were lost repeatedly."""


class Worker:
    """What runs on the cluster: one model."""

    def __init__(self, loading: dict[str, Any], folder: str) -> None:
        self._loading = loading
        # Relative paths mean what they mean to the user.
        if os.path.isdir(folder):
            os.chdir(folder)

    def load(self) -> None:
        from flashvlm import VideoQA

        self._answering = Answering(VideoQA.from_pretrained(**self._loading))

    def records(self, group: Group, following: Group | None) -> Iterator[Record]:
        yield from self._answering.records(group, following)


@dataclass
class _Task:
    """A group that a worker is answering, and the one that it decodes ahead and gets next."""

    worker: Any
    group: Group
    following: Group | None
    done: set[str] = field(default_factory=set)

    @property
    def left(self) -> Group:
        return tuple(item for item in self.group if item.key not in self.done)


class Cluster:
    """An engine (see `run`): groups in, records out, in the order in which they are ready."""

    def __init__(self, loading: dict[str, Any], address: str | None = None, workers: int | None = None) -> None:
        """Args:
            loading: the arguments of `VideoQA.from_pretrained`.
            address: of the cluster; None is RAY_ADDRESS or, if that is not set, a cluster on this machine for this run.
            workers: how many models; None is one per GPU or, without GPUs, one per machine.

        Raises:
            UsageError: Ray is not installed, or `workers` is less than 1.
        """  # fmt: skip
        # Ray reports every cluster to its makers, unless told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray: pip install 'flashvlm[ray]'.") from None
        if workers is not None and workers < 1:
            raise UsageError(f"--workers must be at least 1, not {workers}.")
        self._ray, self._loading, self._address, self._workers = ray, loading, address, workers

    def __call__(self, groups: Sequence[Group]) -> Iterator[Record]:
        """Load the models; the iterator that is returned answers.

        Raises:
            ModelError: the model is not available to a worker.
            FlashVLMError: there is no cluster at the address, or its workers are lost before they are ready.
        """
        self._connect()
        try:
            self._share(len(groups))
            self._waiting = deque(groups)
            self._starting: dict[Any, Any] = {}
            self._idle: list[Any] = []
            self._tasks: dict[Any, _Task] = {}
            self._lost: dict[str, int] = {}
            self._lost_starting = 0
            for _ in range(self._count):
                self._start()
            while not self._idle:
                self._started(self._next())
        except BaseException:
            self._ray.shutdown()
            raise
        return self._records()

    def _records(self) -> Iterator[Record]:
        try:
            while self._waiting or self._tasks:
                while self._idle and self._waiting:
                    self._give(self._idle.pop(), self._waiting.popleft())
                ready = self._next()
                if ready in self._starting:
                    self._started(ready)
                else:
                    yield from self._progress(ready)
        finally:
            self._ray.shutdown()

    def _connect(self) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "local"
        own: dict[str, Any] = (
            {"include_dashboard": False, "object_store_memory": STORE_BYTES} if address == "local" else {}
        )
        try:
            self._ray.init(address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True, **own)
        except Exception as error:
            # Ray's errors here have many classes and many lines.
            why = str(error).strip().split("\n")[0].rstrip(".")
            raise FlashVLMError(f"There is no Ray cluster at {address!r} that can be used: {why}.") from error

    def _share(self, groups: int) -> None:
        """Decide how many workers there are, and what each gets of the cluster."""
        there = self._ray.cluster_resources()
        cpus = there.get("CPU", 1.0)
        gpus = 0.0 if self._loading.get("device") == "cpu" else there.get("GPU", 0.0)
        machines = sum(node["Alive"] for node in self._ray.nodes())
        self._count = min(self._workers or int(gpus) or machines, groups)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, int(cpus // self._count)))
        self._options = {
            "num_cpus": min(1.0, cpus / self._count),
            # A GPU is shared by a whole number of workers, so that the last one still finds a large enough share.
            "num_gpus": 1 / math.ceil(self._count / gpus) if gpus else 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        }

    def _start(self) -> None:
        actor: Any = self._ray.remote(Worker)
        worker = actor.options(**self._options).remote(self._loading, os.getcwd())
        self._starting[worker.load.remote()] = worker

    def _next(self) -> Any:
        """Wait for a worker whose loading has ended, or a task that has a record or has ended."""
        return self._ray.wait([*self._starting, *self._tasks], num_returns=1)[0][0]

    def _started(self, loaded: Any) -> None:
        worker = self._starting.pop(loaded)
        try:
            self._ray.get(loaded)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            self._lost_starting += 1
            if self._lost_starting >= MOST_LOST:
                why = str(error).strip().split("\n")[0].rstrip(".")
                raise LostError(f"Ray's workers were lost before they had loaded the model: {why}.") from error
            self._start()
        else:
            self._lost_starting = 0
            self._idle.append(worker)

    def _give(self, worker: Any, group: Group) -> None:
        # Decode ahead only if enough groups wait for the other workers.
        following = self._waiting.popleft() if len(self._waiting) >= self._count else None
        records = worker.records.options(num_returns="streaming").remote(group, following)
        self._tasks[records] = _Task(worker, group, following)

    def _progress(self, records: Any) -> Iterator[Record]:
        """Handle what a task has: its next record, its end, or the loss of its worker."""
        task = self._tasks[records]
        try:
            record = self._ray.get(next(records))
        except StopIteration:
            del self._tasks[records]
            if task.following:
                self._give(task.worker, task.following)
            else:
                self._idle.append(task.worker)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError:
            del self._tasks[records]
            self._ray.kill(task.worker)
            self._start()
            if task.following:
                self._waiting.appendleft(task.following)
            yield from self._again(task.left)
        else:
            task.done.add(record["key"])
            yield record

    def _again(self, left: Group) -> Iterator[Record]:
        """Give the rest of a lost worker's group to another one, or give it up."""
        if not left:
            return
        lost = self._lost[left[0].view] = self._lost.get(left[0].view, 0) + 1
        if lost < MOST_LOST:
            self._waiting.appendleft(left)
            return
        error = LostError(f"{left[0].video}: {lost} workers, one after the other, were lost at this video.")
        yield from (item.failed(error) for item in left)
