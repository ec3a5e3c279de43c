"""Run work in a thread of its own while the model runs in this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def compute_alone() -> None:
    """Let torch use one core in this thread, beside a model that computes on the CPU.

    OpenMP keeps as many threads as there are cores for each thread that computes. Once there are more of them than
    cores, they sleep between any two steps, and a quick answer of the model takes half as long again.
    """
    import torch

    torch.set_num_threads(1)


def begin(work: Callable[[], T], name: str) -> Future[T]:
    """Begin `work` in a daemon thread of this name; the future gets its result or its error."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(work, future), name=name, daemon=True).start()
    return future


def _run(work: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
    finally:
        # The error's traceback holds this frame, and the future holds the error: break the reference cycle.
        del future
