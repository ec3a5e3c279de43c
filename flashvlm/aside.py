"""Work in a thread of its own, while the model is at work in this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

# Seconds to wait at the end for a video that is being decoded: a thread that is cut off inside the decoder takes the
# whole process down with an abort.
PATIENCE = 5.0

T = TypeVar("T")


def begin(work: Callable[[], T]) -> Future[T]:
    """Begin `work`, and say what came of it. The thread does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=getattr(work, "__name__", None), daemon=True).start()
    return future
