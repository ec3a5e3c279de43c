"""What the encoder made of the last videos, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashvlm.pipeline import Watched


class Memory:
    """Videos by a key that says what they are and how they were looked at: at most `limit` bytes of them, those that
    were not asked about for longest going first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._videos: OrderedDict[str, Watched] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._videos)

    def get(self, key: str) -> Watched | None:
        """The video of this key, as one that was neither decoded nor encoded for this question."""
        with self._lock:
            if key not in self._videos:
                return None
            self._videos.move_to_end(key)
            return self._videos[key]

    def put(self, key: str, watched: Watched) -> None:
        """Keep a video, unless it is larger than the whole memory."""
        size = size_of(watched)
        with self._lock:
            if size > self.limit or key in self._videos:
                return
            self._videos[key] = watched.again()
            self.size += size
            while self.size > self.limit:
                _, oldest = self._videos.popitem(last=False)
                self.size -= size_of(oldest)


def size_of(watched: Watched) -> int:
    """The bytes of a video's tensors."""
    import torch

    encoded = watched.encoded
    tensors = [watched.frames, *(getattr(encoded, one.name) for one in fields(encoded))]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
