"""Which moments repeat an earlier one, judging by their pixels: these need no encoding of their own."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# Frames are compared by the means of squares of SQUARE x SQUARE pixels, which average out the noise of a codec or a
# camera but not a small moving object. Frames are alike if all means differ by less than APART, in grey levels of 255.
# On 24 clips in which nothing moves (x264 at a CRF of 20 to 31, key frames every 4 to 60), two moments differed by at
# most 10.1; where one object moves, one moment differed by at least 38.7 from the next.
SQUARE = 7
APART = 14.0


class Repeats:
    """Compares each group, frame by frame, with all earlier ones that have their own tokens, so that slow change counts
    as soon as enough of it has added up."""

    def __init__(self) -> None:
        self._count = 0
        self._own: list[tuple[int, Tensor]] = []

    def source(self, group: Tensor) -> int:
        """The number of the group whose tokens stand for the next one: its own, or that of an earlier group.

        Args:
            group: (f, 3, h, w) uint8 frames.
        """
        number = self._count
        self._count += 1
        means = F.avg_pool2d(group.float(), SQUARE, ceil_mode=True, count_include_pad=False)
        # The latest first: it is the most likely.
        same = next((earlier for earlier, seen in reversed(self._own) if _alike(seen, means)), None)
        if same is None:
            self._own.append((number, means))
        return number if same is None else same


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < APART)
