"""Which moments show what an earlier one showed, told from their pixels: such need no encoding of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Frames are compared by the means of squares of so many pixels a side, in which the noise of a codec, or of a camera,
# goes out and a small thing that moves does not; and so far apart, in grey levels of 255, they may be in any of them.
# On 24 clips in which nothing moves (x264 at a CRF of 20 to 31, key frames every 4 to 60) two moments were at most 10.1
# apart; where one thing moves, one moment was at least 38.7 from the next.
SQUARE = 7
APART = 14.0


def sources(frames: Tensor, frames_per_group: int) -> Tensor:
    """For each group of frames the one whose tokens stand for it: itself, or an earlier one that shows the same.

    A group is compared with all earlier ones that stand for themselves, frame by frame, so that what changes slowly
    counts as soon as it has changed enough.

    Args:
        frames: (F, 3, h, w) uint8; the last one fills up its group.

    Returns:
        (groups,) int64, at most its own place.
    """
    missing = -len(frames) % frames_per_group
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    found: list[int] = []
    own: list[int] = []
    seen: list[Tensor] = []
    for number, group in enumerate(frames.split(frames_per_group)):
        means = F.avg_pool2d(group.float(), SQUARE, ceil_mode=True, count_include_pad=False)
        # The latest first: it is the likeliest.
        same = next((g for g, m in zip(reversed(own), reversed(seen), strict=True) if _alike(m, means)), None)
        if same is None:
            own.append(number)
            seen.append(means)
        found.append(number if same is None else same)
    return torch.tensor(found)


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < APART)
