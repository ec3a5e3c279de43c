"""Which frames of a video to look at: pure functions of the times at which its frames appear."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from flashvlm.errors import UsageError
from flashvlm.options import DEFAULT_FPS, MIN_FRAMES, Sampling

# Containers round times, and decord returns them as float32: times closer than this are the same, in seconds.
TIME_TOLERANCE = 5e-4


def choose_frames(starts: Sequence[float], duration: float, sampling: Sampling) -> list[int]:
    """The indices, ascending and distinct, of the frames to look at.

    Candidates: the frames that appear from `sampling.start` to `sampling.end`, inclusive; if there are none, the one
    that is on screen at `start`. How many: `fps` times the seconds asked for, at least MIN_FRAMES, at most
    `max_frames`, and from MIN_FRAMES on an even number (rounded down), because Qwen2-VL joins two frames; or `frames`
    of them; never more than there are candidates. Which ones: those nearest to that many evenly spaced times, from the
    first candidate's to the last one's, inclusive; a single one is taken from the middle. At a constant frame rate this
    is Qwen's linspace over frame indices (https://github.com/QwenLM/Qwen2-VL, qwen-vl-utils).

    Args:
        starts: the second at which each frame appears, ascending.
        duration: of the video, in seconds; 0 for a still picture.

    Raises:
        UsageError: `sampling.start` is at or past the end of the video.
    """
    start = sampling.start or 0.0
    end = duration if sampling.end is None else min(sampling.end, duration)
    check_start(start, duration)
    last = max(bisect_right(starts, end + TIME_TOLERANCE) - 1, 0)
    first = min(bisect_left(starts, start - TIME_TOLERANCE), last)
    available = last - first + 1
    if sampling.frames is not None:
        count = min(sampling.frames, available)
    else:
        wanted = int((sampling.fps or DEFAULT_FPS) * (end - start + TIME_TOLERANCE))
        count = min(max(wanted, MIN_FRAMES), sampling.max_frames, available)
        count -= count % 2 if count >= MIN_FRAMES else 0
    if count == 1:
        return [nearest(starts, (starts[first] + starts[last]) / 2)]
    step = (starts[last] - starts[first]) / (count - 1)
    chosen = [nearest(starts, starts[first] + step * number) for number in range(count)]
    # If the frame rate varies, one frame may be the nearest to several times: its neighbours step in.
    for number in range(count):
        lowest = chosen[number - 1] + 1 if number else first
        chosen[number] = min(max(chosen[number], lowest), last - (count - 1 - number))
    return chosen


def check_start(start: float, duration: float) -> None:
    """Refuse a start that is not before the end of a video of this length, in seconds; 0 for a still picture.

    Raises:
        UsageError: it is not.
    """
    if start > 0 and start >= duration:
        what = f"the video, which lasts {duration:.2f} s" if duration else "a still picture, which has no duration"
        raise UsageError(f"`start` ({start:g} s) is not before the end of {what}.")


def near_keys(starts: Sequence[float], keys: Sequence[int], chosen: Sequence[int]) -> list[int] | None:
    """The key frames nearest to the chosen frames; None if one of these has none that is near enough.

    Near enough means within the mean time from one chosen frame to the next; no key frame may serve two.

    Args:
        starts: the second at which each frame appears, ascending.
        keys, chosen: indices of frames, ascending.
    """
    if len(chosen) < 2 or len(keys) < len(chosen):
        return None
    reach = (starts[chosen[-1]] - starts[chosen[0]]) / (len(chosen) - 1)
    times = [starts[key] for key in keys]
    found = [keys[nearest(times, starts[index])] for index in chosen]
    near = all(abs(starts[key] - starts[index]) <= reach for key, index in zip(found, chosen, strict=True))
    return found if near and len(set(found)) == len(found) else None


def nearest(starts: Sequence[float], moment: float) -> int:
    """The index of the frame that appears nearest to `moment`; the earlier one of two that are equally near."""
    after = min(bisect_right(starts, moment), len(starts) - 1)
    return after - 1 if after and moment - starts[after - 1] <= starts[after] - moment else after
