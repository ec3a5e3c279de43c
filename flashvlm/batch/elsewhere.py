"""Answering by a server: several videos at once, so that it decodes one while its model works on another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from flashvlm.batch.plan import Group, Item
from flashvlm.journal import Record
from flashvlm.remote import RemoteVideoQA, ServerError

# Videos that are asked about at once: one that is answered, one that is decoded, and one that is being sent.
AT_ONCE = 3


def answered(qa: RemoteVideoQA, groups: Sequence[Group]) -> Iterator[Record]:
    """The records of all groups, each as soon as it is ready.

    Whatever goes wrong with a video or a question becomes its record's error, and the others go on.

    Raises:
        ServerError: the server is gone; what has no record yet can be asked again.
    """
    left: queue.SimpleQueue[Group] = queue.SimpleQueue()
    for group in groups:
        left.put(group)
    # Records, what ended a thread, and None from each thread that has nothing left to do.
    made: queue.SimpleQueue[Record | ServerError | None] = queue.SimpleQueue()
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                for item in left.get_nowait():
                    made.put(_record(qa, item))
                    if ended.is_set():
                        return
        except queue.Empty:
            made.put(None)
        except ServerError as error:
            made.put(error)

    threads = min(AT_ONCE, len(groups))
    for _ in range(threads):
        threading.Thread(target=work, name="ask", daemon=True).start()
    try:
        while threads:
            if isinstance(record := made.get(), ServerError):
                raise record
            if record is None:
                threads -= 1
            else:
                yield record
    finally:
        ended.set()


def _record(qa: RemoteVideoQA, item: Item) -> Record:
    try:
        return {**item.head, **qa.ask(item.video, item.question, item.options).to_json()}
    except ServerError:
        raise
    except Exception as error:
        return item.failed(error)
