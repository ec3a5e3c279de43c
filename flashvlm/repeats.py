"""Which moments show what an earlier one showed, told from their pixels: such need no encoding of their own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# Frames are compared by the means of squares of so many pixels a side, in which the noise of a codec, or of a camera,
# goes out and a small thing that moves does not; and so far apart, in grey levels of 255, they may be in any of them.
# On 24 clips in which nothing moves (x264 at a CRF of 20 to 31, key frames every 4 to 60) two moments were at most 10.1
# apart; where one thing moves, one moment was at least 38.7 from the next.
SQUARE = 7
APART = 14.0


class Repeats:
    """Told group by group: a group is compared with all earlier ones that stand for themselves, frame by frame, so that
    what changes slowly counts as soon as it has changed enough."""

    def __init__(self) -> None:
        self._count = 0
        self._own: list[tuple[int, Tensor]] = []

    def source(self, group: Tensor) -> int:
        """The number of the group whose tokens stand for the next one: its own, or that of an earlier one.

        Args:
            group: (f, 3, h, w) uint8 frames.
        """
        number = self._count
        self._count += 1
        means = F.avg_pool2d(group.float(), SQUARE, ceil_mode=True, count_include_pad=False)
        # The latest first: it is the likeliest.
        same = next((earlier for earlier, seen in reversed(self._own) if _alike(seen, means)), None)
        if same is None:
            self._own.append((number, means))
        return number if same is None else same


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < APART)
