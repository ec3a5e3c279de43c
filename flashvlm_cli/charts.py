"""Charts of block characters, as rows of (text, role) cells; console.py gives each role a colour.

They can be read without colour too: different roles are also in different places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flashvlm import units
from flashvlm.report import Moment

Cell = tuple[str, str]
Row = list[Cell]

EIGHTHS_UP = " ▁▂▃▄▅▆▇█"
EIGHTHS_RIGHT = " ▏▎▍▌▋▊▉█"
# Every font has these three of the blocks that hang from above.
HANGING = " ▔▔▀▀▀▀██"

WIDEST_SLOT = 8
TICK_EVERY = 13


@dataclass(frozen=True)
class Columns:
    """Bars that rise from a time axis (kept for the question) and hang from it (kept for coverage).

    Rows are in the order in which they are printed: `above` from the outermost row, `below` from the axis.
    """

    above: list[Row]
    axis: Row
    below: list[Row]
    moments_per_column: int


def columns(moments: Sequence[Moment], distinguishes: bool, width: int, height: int) -> Columns:
    """Draw how many tokens of each moment were kept, in at most `width` characters per row.

    The larger half gets `height` rows, and both halves share its scale. If the selector does not distinguish important
    from diverse tokens, all bars rise. If there are more moments than fit, a column is the mean of several neighbours.
    """
    shown = min(len(moments), width)
    per_column = -(-len(moments) // shown)
    shown = -(-len(moments) // per_column)
    groups = [moments[i * len(moments) // shown : (i + 1) * len(moments) // shown] for i in range(shown)]
    if distinguishes:
        rising = [sum(moment.important_count for moment in group) / len(group) for group in groups]
        kept = [sum(moment.kept_count for moment in group) / len(group) for group in groups]
        hanging = [every - important for every, important in zip(kept, rising, strict=True)]
    else:
        rising = [sum(moment.kept_count for moment in group) / len(group) for group in groups]
        hanging = []
    scale = max(*rising, *hanging, 1e-9) if rising else 1.0
    slot = min(WIDEST_SLOT, width // shown)
    bar = slot - 1 if slot > 1 else 1

    def rows(values: list[float], role: str, glyphs: str) -> list[Row]:
        eighths = [_eighths(value / scale, height) for value in values]
        needed = max(2, -(-max(eighths) // 8))
        drawn = []
        for row in range(needed):
            cells: Row = []
            for level in eighths:
                filled = min(8, max(0, level - 8 * row))
                cells.append((glyphs[filled] * bar + " " * (slot - bar), role))
            drawn.append(cells)
        return drawn

    first = [group[0] for group in groups]
    if moments[-1].video:
        axis = _videos_axis([moment.video for moment in first], slot, bar)
    else:
        axis = _axis([moment.timestamps[0] for moment in first], moments[-1].timestamps[-1], slot, bar)
    return Columns(
        above=rows(rising, "important" if distinguishes else "kept", EIGHTHS_UP)[::-1],
        axis=[(axis, "axis")],
        below=rows(hanging, "diverse", HANGING) if distinguishes else [],
        moments_per_column=per_column,
    )


def share_bar(part: float, whole: float, width: int) -> Row:
    """A bar of `width` characters, filled to the share `part / whole`."""
    filled = bar(_eighths(part / whole if whole else 0, width))
    return [(filled, "kept"), ("░" * (width - len(filled)), "track")]


def waterfall(durations: Sequence[float], total: float, width: int) -> list[Row]:
    """A bar for each duration, beginning where the one before ended; `total` corresponds to `width` characters."""
    drawn: list[Row] = []
    passed = 0.0
    for duration in durations:
        begins = min(width - 1, int(width * passed / total)) if total else 0
        passed += duration
        ends = min(8 * width, round(8 * width * passed / total)) if total else 0
        drawn.append([(" " * begins, ""), (bar(max(1, ends - 8 * begins)), "time")])
    return drawn


def bar(eighths: int) -> str:
    """A bar of this many eighths of a character."""
    return "█" * (eighths // 8) + (EIGHTHS_RIGHT[eighths % 8] if eighths % 8 else "")


def _eighths(share: float, cells: int) -> int:
    """How many eighths of `cells` a share fills: at least one unless the share is 0."""
    return min(8 * cells, max(1 if share > 0 else 0, round(8 * cells * share)))


def _videos_axis(videos: Sequence[int], slot: int, bar: int) -> str:
    """An axis with the number of each video where it begins, if there is room."""
    line = "video 1"
    for column, (before, video) in enumerate(pairwise(videos), 1):
        gap = column * slot - len(line)
        if video != before and gap > 0:
            line += f" {'─' * (gap - 2)} "[:gap] + str(video + 1)
    width = len(videos) * slot - (slot - bar)
    return f"{line} ".ljust(width, "─")[: max(width, len(line))]


def _axis(starts: Sequence[float], end: float, slot: int, bar: int) -> str:
    """The time axis: the times of some columns, each aligned with its column, and of the end."""
    width = len(starts) * slot - (slot - bar)
    last = units.timestamp(end)
    line = units.timestamp(starts[0])
    if len(line) + len(last) + 3 > width:
        return line
    step = -(-TICK_EVERY // slot)
    for column in range(step, len(starts), step):
        label = units.timestamp(starts[column])
        if column * slot + len(label) + TICK_EVERY // 2 + len(last) > width:
            break
        line = f"{line} ".ljust(column * slot - 1, "─") + f" {label}"
    return f"{line} ".ljust(width - len(last) - 1, "─") + f" {last}"
