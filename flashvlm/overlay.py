"""Pictures of what was kept: the sampled moments on a sheet or the clip itself, kept cells bright, the rest dimmed.

A cell kept for the question has a frame, one kept for coverage has corners: they differ in shape and in colour, and the
two colours (by Okabe and Ito, https://jfly.uni-koeln.de/color) look different to every kind of colour vision.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from flashvlm import files, units, video
from flashvlm.errors import UsageError, VideoError
from flashvlm.report import Area, Moment, Seen, VideoFacts, by_video, distinguishes

QUESTION, COVERAGE, KEPT, EDGE = "#E69F00", "#56B4E9", "#F2F2F2", "#D0D4DA"
GROUND, PANEL, INK, QUIET = "#14161A", "#22262D", "#F4F5F7", "#A3AAB5"
# What fills a cell in the legend; LIT is for all kinds of kept cells, whatever frames them.
SWATCHES, LIT = {"dropped": "#272B32", "here": "#4A515C", "unseen": "#050607"}, "#6B7482"
DRAWN = (QUESTION, COVERAGE, KEPT, EDGE, GROUND, PANEL, INK, QUIET, *SWATCHES.values(), LIT)
MEANING = {
    "question": "kept for the question",
    "coverage": "kept for coverage",
    "kept": "kept",
    "here": "dropped: the kept cell in the same outline stands for it",
    "dropped": "dropped: a kept one of another moment stands for it",
    "unseen": "outside what the model sees",
    "class": "the token of the whole frame, kept",
}
# How much light is left in what the model never saw, and in dropped cells that a kept token of another moment stands
# for, or one of their own moment.
UNSEEN, ELSEWHERE, HERE = 0.13, 0.36, 0.62

# A sheet's largest width, in pixels; and the sides of squares as large as its smallest and largest pictures.
SHEET_WIDTH = 1680
TILE = (230, 440)
# Up to this many moments are shown at the largest size.
FEW = 3
# The side of a cell in pixels, where the size of the picture allows it.
CELL = 12
# Cells smaller than this have no room for corners.
SMALLEST_MARKED = 6
THICKEST = 5
MARGIN, GAP = 32, 14
# On a sheet, the heights of a video's name, of the time above a moment, and of the counts below it.
TITLE, LABEL, COUNT = 36, 26, 28
NO_QUESTION = "No question asked"
MORE = " ..."

# An animated picture stores every frame, so it is made smaller and slower than a video.
CLIP_SIDE = {".mp4": 960, ".gif": 480, ".webp": 640}
CLIP_LEAST = 480
# Several selections in one clip: how much smaller each is, and how many of the widest fit side by side.
BESIDE, ABREAST = 0.75, 3
BAR = 40
CLIP_FPS = {".mp4": math.inf, ".gif": 10.0, ".webp": 15.0}
# A longer clip is thinned evenly to this many frames; drawing one takes about a tenth of a second.
MOST_FRAMES = {".mp4": 6000, ".gif": 400, ".webp": 400}
# The rest of a GIF's 256 colours is left for the text and the marks.
GIF_COLOURS = 224
# The colours of a GIF are taken from at most this many moments.
MOST_SAMPLED = 16
# How long the only frame of a clip is shown, in seconds.
STILL = 1.0

# Pillow's own font covers English only; on most systems one of these covers more.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "segoeui.ttf", "NotoSansCJK-Regular.ttc",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Arial Unicode.ttf",
)  # fmt: skip


def write(path: str | Path, seen: Sequence[Seen]) -> Path:
    """Draw what one or several selections keep of the same videos; the pictures are read from their files again.

    Args:
        path: `.png` gives a sheet of the sampled moments; `.gif`, `.webp` and `.mp4` give the clip, of one video.
        seen: answers or inspections of the same videos with the same sampling.

    Raises:
        UsageError: the path has another suffix, is a clip of several videos, or a video itself; or `seen` is empty, or
            of different moments.
        OutputError: it cannot be written.
        VideoError: the video cannot be read again, or has changed.
    """
    check_alike(seen)
    path = files.check_overlay(path, *(facts.path for facts in seen[0].videos or [seen[0].video]))
    draw = {".png": _write_sheet, ".mp4": _write_video}.get(path.suffix.lower(), _write_animation)
    with files.whole(path) as temporary:
        draw(temporary, seen)
    return path


def check_alike(seen: Sequence[Seen]) -> None:
    """Refuse what cannot be drawn side by side.

    Raises:
        UsageError: they are none, or of different videos, or of different moments.
    """
    looked = {
        (
            tuple(_which(video) for video in one.videos or [one.video]),
            tuple(moment.timestamps for moment in one.moments),
        )
        for one in seen
    }
    if len(looked) != 1:
        raise UsageError("An overlay or a report shows one video, or the same videos, looked at in one way.")


def _which(facts: VideoFacts) -> tuple[str, int]:
    """Tells a video from others."""
    return facts.path, id(facts.given)


def _check_unchanged(seen: Seen) -> None:
    """Refuse a file whose size or time has changed; one that is gone is refused when it is read."""
    facts = seen.video
    with contextlib.suppress(OSError):
        if facts.modified and facts.of(facts.path, os.stat(facts.path)) != facts:
            raise VideoError(f"{facts.path}: the video has changed since it was looked at.")


def moment_pictures(seen: Seen, frames: int = 1) -> Iterator[list[Image.Image]]:
    """The first `frames` frames of each moment, as displayed."""
    for one in by_video(seen):
        _check_unchanged(one)
        wanted = [moment.timestamps[:frames] for moment in one.moments]
        pictures = video.frames_at(one.video.source, list(chain.from_iterable(wanted)), _limits(one))
        for timestamps in wanted:
            yield [_image(next(pictures)) for _ in timestamps]


def owners(moment: Moment) -> list[int | None]:
    """For each cell of a moment, the cell of the same moment whose kept token stands for it.

    -1 if that is the moment's class token; None if the token nearest to it is of another moment.
    """
    cells = range(moment.first, moment.first + len(moment.nearest))
    own = {-1 - moment.first: -1} | {cell: place for place, cell in enumerate(cells)}
    return [own.get(nearest) for nearest in moment.nearest]


def mark(
    picture: Image.Image,
    moment: Moment,
    area: Area,
    apart: bool = True,
) -> Image.Image:
    """A picture of a moment, of any size, with its kept cells bright and framed and all others dimmed.

    As it is, if nobody knows where the cells lie.
    """
    if not moment.placed:
        return picture
    owner_of = owners(moment)
    across = edges(area.left, area.right, moment.grid_width, picture.width)
    down = edges(area.top, area.bottom, moment.grid_height, picture.height)
    light = Image.new("L", picture.size, round(255 * UNSEEN))
    brush = ImageDraw.Draw(light)
    brush.rectangle(_inside(across[0], down[0], across[-1], down[-1]), round(255 * ELSEWHERE))
    for cell, owner in enumerate(owner_of):
        if owner is not None:
            r, c = divmod(cell, moment.grid_width)
            brush.rectangle(_inside(across[c], down[r], across[c + 1], down[r + 1]), round(255 * HERE))
    boxes = [_inside(across[c], down[r], across[c + 1], down[r + 1]) for r, c in moment.kept]
    for box in boxes:
        brush.rectangle(box, 255)
    lit = Image.new("L", picture.size, 0)
    lit.paste(255, mask=light.point(lambda value: 255 * (value == 255)))
    dimmed = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6)
    dimmed = Image.composite(dimmed, Image.new("RGB", picture.size), light)
    marked = Image.composite(picture, dimmed, lit)
    brush = ImageDraw.Draw(marked)
    for cell, owner in enumerate(owner_of):
        if owner is not None:
            _outline(brush, divmod(cell, moment.grid_width), owner_of, across, down)
    for box, important in zip(boxes, moment.important, strict=True):
        _frame(brush, box, ("question" if important else "coverage") if apart else "kept")
    return marked


def _outline(
    brush: ImageDraw.ImageDraw, at: tuple[int, int], owner_of: Sequence[int | None], across: list[int], down: list[int]
) -> None:
    """Draw the sides of a cell that border on cells with another owner."""
    (row, column), rows, columns = at, len(down) - 1, len(across) - 1
    left, top, right, bottom = across[column], down[row], across[column + 1], down[row + 1]
    sides = {
        (row, column - 1): (left, top, left, bottom),
        (row, column + 1): (right, top, right, bottom),
        (row - 1, column): (left, top, right, top),
        (row + 1, column): (left, bottom, right, bottom),
    }
    for (r, c), side in sides.items():
        if 0 <= r < rows and 0 <= c < columns and owner_of[r * columns + c] != owner_of[row * columns + column]:
            brush.line(side, EDGE)


def edges(start: float, end: float, count: int, pixels: int) -> list[int]:
    """The pixel borders of `count` equal cells from `start` to `end`, which are shares of a side of `pixels` pixels."""
    return [round((start + (end - start) * place / count) * pixels) for place in range(count + 1)]


def caption(seen: Seen) -> str:
    """What was kept, in one line."""
    kept, share = seen.tokens, units.percent(seen.tokens.after, seen.tokens.before)
    return f"{seen.selection.selector} kept {units.count(kept.after)} of {units.count(kept.before)} tokens, {share}"


def marks(seen: Sequence[Seen]) -> list[tuple[str, str]]:
    """The kinds of marks that are used, and what they mean."""
    used = {
        "question": any(one.selection.important and distinguishes(one) for one in seen),
        "coverage": any(one.selection.diverse and distinguishes(one) for one in seen),
        "kept": not all(distinguishes(one) for one in seen),
        "here": any(one.tokens.after < one.tokens.before for one in seen),
        "dropped": any(None in owners(moment) for one in seen for moment in one.moments),
        "unseen": any(one.area != Area() for one in seen),
        "class": any(moment.class_token is not None for one in seen for moment in one.moments),
    }
    return [(kind, MEANING[kind]) for kind in MEANING if used[kind]]


def _frame(brush: ImageDraw.ImageDraw, box: tuple[int, int, int, int], kind: str, thick: int = 0) -> None:
    left, top, right, bottom = box
    side = min(right - left, bottom - top) + 1
    if side < SMALLEST_MARKED and kind != "question":
        return
    thick = thick or min(max(1, round(side / 16)), THICKEST)
    if kind == "question":
        brush.rectangle(box, outline=QUESTION, width=thick)
    elif kind == "kept":
        brush.rectangle(box, outline=KEPT, width=max(1, thick // 2))
    else:
        reach = max(2, round(side * 0.3))
        for x, toward in ((left, 1), (right, -1)):
            for y, down in ((top, 1), (bottom, -1)):
                for wide, high in ((reach, thick), (thick, reach)):
                    far_x, far_y = x + toward * (wide - 1), y + down * (high - 1)
                    brush.rectangle((min(x, far_x), min(y, far_y), max(x, far_x), max(y, far_y)), COVERAGE)


class _Tiles(NamedTuple):
    """How the moments of a video are laid out on a sheet: the size of their pictures, in pixels, and how many fit."""

    width: int
    height: int
    columns: int
    rows: int

    @classmethod
    def of(cls, seen: Seen, most: int, few: bool) -> _Tiles:
        """Cells of `CELL` pixels unless that makes a picture too large or too small.

        Args:
            most: how many pixels there are side by side.
            few: whether there are so few pictures that they are as large as they may be.
        """
        grid, facts = seen.moments[0], seen.video
        across = grid.grid_width / (seen.area.right - seen.area.left)
        down = grid.grid_height / (seen.area.bottom - seen.area.top)
        side = TILE[1] if few else min(max(CELL * math.sqrt(across * down), TILE[0]), TILE[1])
        aspect = min(max(facts.width / facts.height, 1 / 8), 8)
        width, height = (max(1, round(side * length)) for length in (math.sqrt(aspect), 1 / math.sqrt(aspect)))
        rows = -(-len(seen.moments) // max(1, (most + GAP) // (width + GAP)))
        return cls(width, height, -(-len(seen.moments) // rows), rows)

    def block(self, selections: int) -> int:
        """The height of a row of moments with this many selections one below the other."""
        return LABEL + selections * (self.height + COUNT) + GAP


def _write_sheet(path: Path, seen: Sequence[Seen]) -> None:
    """Draw all sampled moments with the times of their frames, video by video."""
    first, several = seen[0], len(seen) > 1
    names = max(_width(one.selection.selector, 20) for one in seen) + GAP if several else 0
    parts = list(zip(*map(by_video, seen), strict=True))
    few = len(first.moments) <= FEW
    tiles = [_Tiles.of(part[0], SHEET_WIDTH - 2 * MARGIN - names, few) for part in parts]
    content = max(560, *(names + tile.columns * (tile.width + GAP) - GAP for tile in tiles))
    head = _head(first, content, caption(first) if not several else None)
    legend = _legend(seen, content)
    title = TITLE if first.videos else 0
    heights = [title + tile.rows * tile.block(len(seen)) for tile in tiles]
    sheet = Image.new(
        "RGB", (content + 2 * MARGIN, 2 * MARGIN + head.height + legend.height + sum(heights) + 4), GROUND
    )
    sheet.paste(head, (MARGIN, MARGIN))
    top = MARGIN + head.height
    for number, (part, tile, height) in enumerate(zip(parts, tiles, heights, strict=True), 1):
        if title:
            name = f"Video {number} · {Path(part[0].video.path).name}"
            _text(ImageDraw.Draw(sheet), (MARGIN, top), _lines(name, 20, content, 1)[0], 20, INK)
        _draw_moments(sheet, top + title, part, names, tile)
        top += height
    sheet.paste(legend, (MARGIN, top + 4))
    sheet.save(path, optimize=True)


def _draw_moments(sheet: Image.Image, top: int, seen: Sequence[Seen], names: int, tile: _Tiles) -> None:
    """Draw the moments of a video from `top` on; several selections one below the other, named in `names` pixels."""
    brush, first = ImageDraw.Draw(sheet), seen[0]
    each, block = tile.height + COUNT, tile.block(len(seen))
    for row in range(tile.rows):
        for place, one in enumerate(seen if names else ()):
            y = top + row * block + LABEL + place * each
            _text(brush, (MARGIN, y), one.selection.selector, 20, INK)
            _text(brush, (MARGIN, y + 28), units.percent(one.tokens.after, one.tokens.before), 16, QUIET)
    for number, (picture,) in enumerate(moment_pictures(first)):
        left = MARGIN + names + number % tile.columns * (tile.width + GAP)
        y = top + number // tile.columns * block
        _text(brush, (left, y), label(first, number), 16, QUIET)
        small = picture.resize((tile.width, tile.height), Image.Resampling.LANCZOS)
        for place, one in enumerate(seen):
            below = y + LABEL + place * each
            marked = mark(small, one.moments[number], one.area, distinguishes(one))
            sheet.paste(marked, (left, below))
            _counts(brush, (left, below + tile.height + 4), one.moments[number], distinguishes(one))


def _head(seen: Seen, width: int, about: str | None) -> Image.Image:
    """The question, and below it the answer and the file."""
    title = seen.question or NO_QUESTION
    lines, said = _lines(title, 30, width, 3), _said(seen, 20, width, 3)
    frames = max(len(moment.timestamps) for moment in seen.moments)
    name = f"{len(seen.videos)} videos" if seen.videos else Path(seen.video.path).name
    shown = f"the first of {frames} frames of each moment" if frames > 1 else None
    facts = " · ".join(filter(None, (name, seen.model.name, about, shown)))
    image = Image.new("RGB", (width, 38 * len(lines) + 28 * len(said) + 52), GROUND)
    brush = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        _text(brush, (0, 38 * row), line, 30, INK)
    for row, line in enumerate(said):
        _text(brush, (0, 38 * len(lines) + 2 + 28 * row), line, 20, INK)
    _text(brush, (0, 38 * len(lines) + 28 * len(said) + 4), _lines(facts, 17, width, 1)[0], 17, QUIET)
    return image


def _said(seen: Seen, size: int, width: int, most: int) -> list[str]:
    """The answer in lines; none if there is no answer."""
    answer = getattr(seen, "answer", None)
    return _lines(f"Answer: {answer}", size, width, most) if answer else []


def _legend(seen: Sequence[Seen], width: int) -> Image.Image:
    """What the marks mean."""
    places, x, y = [], 0, 0
    for kind, text in marks(seen):
        wide = 26 + _width(text, 16) + 26
        if x and x + wide - 26 > width:
            x, y = 0, y + 28
        places.append((x, y, kind, text))
        x += wide
    image = Image.new("RGB", (width, y + 24), GROUND)
    brush = ImageDraw.Draw(image)
    for x, y, kind, text in places:
        _swatch(brush, (x, y + 2), kind)
        _text(brush, (x + 26, y + 2), text, 16, QUIET)
    return image


def _swatch(brush: ImageDraw.ImageDraw, at: tuple[int, int], kind: str, side: int = 17) -> None:
    box = (at[0], at[1], at[0] + side - 1, at[1] + side - 1)
    if kind == "class":
        brush.ellipse(box, outline=INK, width=2)
        brush.ellipse((box[0] + 5, box[1] + 5, box[2] - 5, box[3] - 5), fill=INK)
        return
    brush.rectangle(box, SWATCHES.get(kind, LIT))
    if kind in ("unseen", "here"):
        brush.rectangle(box, outline=EDGE if kind == "here" else SWATCHES["here"])
    if kind not in SWATCHES:
        _frame(brush, box, kind, 2)


def _counts(brush: ImageDraw.ImageDraw, at: tuple[int, int], moment: Moment, apart: bool) -> None:
    """Write how many tokens of a moment were kept, next to their marks."""
    x, y = at
    parts = [("kept", moment.kept_count)]
    if apart:
        parts = [("question", moment.important_count), ("coverage", moment.kept_count - moment.important_count)]
    for kind, number in parts:
        if number:
            _swatch(brush, (x, y + 1), kind, 14)
            x = _text(brush, (x + 20, y), units.count(number), 15, INK) + 14
    if moment.class_token is not None:
        _swatch(brush, (x, y + 1), "class", 14)


def label(seen: Seen, number: int) -> str:
    """When a moment's frames appear, and whether they were seen small; of a still picture, how many cells it has."""
    moment = seen.moments[number]
    if not moment.placed:
        return "where its tokens lie is not known"
    if (seen.videos or [seen.video])[moment.video].still:
        return f"{moment.grid_height} × {moment.grid_width} cells"
    first, last = units.timestamp(moment.timestamps[0]), units.timestamp(moment.timestamps[-1])
    return (first if first == last else f"{first} - {last}") + (" · small" if moment.small else "")


def _write_animation(path: Path, seen: Sequence[Seen]) -> None:
    kind = path.suffix.lower()
    times = _frame_times(seen[0], kind)
    shots = _shots(seen, CLIP_SIDE[kind], times)
    # A GIF counts in hundredths of a second: times are rounded so that the durations add up.
    ticks = [round(100 * (at - times[0])) for at in (*times, times[-1] + _mean_gap(times))]
    durations = [10 * max(2, later - now) for now, later in pairwise(ticks)]
    how: dict[str, Any] = {"quality": 80, "method": 3}
    if kind == ".gif":
        shots, how = _with_palette(shots, seen[0]), {"optimize": False, "disposal": 1}
    first = next(shots)
    first.save(path, save_all=True, append_images=shots, duration=durations, loop=0, **how)


def _with_palette(frames: Iterator[Image.Image], seen: Seen) -> Iterator[Image.Image]:
    """Frames in one palette, and without dithering, which a GIF cannot compress.

    The palette holds the colours of the first frame, and those of some moments undimmed.
    """
    first = next(frames)
    side = min(first.size) // 3
    every = -(-len(seen.moments) // MOST_SAMPLED)
    bright = [picture.resize((side, side)) for (picture,) in islice(moment_pictures(seen), 0, None, every)]
    shown = Image.new("RGB", (max(first.width, side * len(bright)), first.height + side), GROUND)
    shown.paste(first, (0, 0))
    for place, picture in enumerate(bright):
        shown.paste(picture, (place * side, first.height))
    colours = shown.quantize(GIF_COLOURS, method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chain.from_iterable(map(ImageColor.getrgb, DRAWN)), *colours[: 3 * GIF_COLOURS]])
    for frame in chain([first], frames):
        yield frame.quantize(palette=palette, dither=Image.Dither.NONE)


def _write_video(path: Path, seen: Sequence[Seen]) -> None:
    import av

    base = Fraction(1, 90_000)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = None
        times = _frame_times(seen[0], ".mp4")
        for at, image in zip(times, _shots(seen, CLIP_SIDE[".mp4"], times), strict=True):
            if stream is None:
                stream = container.add_stream("libx264", rate=30, options={"crf": "18", "preset": "veryfast"})
                stream.width, stream.height, stream.pix_fmt = image.width, image.height, "yuv420p"
                stream.codec_context.time_base = stream.time_base = base
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = round((at - times[0]) / base), base
            container.mux(stream.encode(frame))
        if stream is not None:
            # The last picture stays as long as the others do on average: a frame alone does not say how long it lasts.
            frame.pts += round(_mean_gap(times) / base)
            container.mux(stream.encode(frame))
            container.mux(stream.encode())


def _mean_gap(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else STILL


def _limits(seen: Seen) -> video.Limits:
    """What reading the video was allowed to cost before."""
    return video.Limits(**{name: seen.settings[name] for name in ("timeout", "max_source_pixels")})


def _frame_times(seen: Seen, kind: str) -> list[float]:
    """The times of the frames that are drawn: from the first that was looked at to the last."""
    _check_unchanged(seen)
    start, end = seen.moments[0].timestamps[0], seen.moments[-1].timestamps[-1]
    fps = min(CLIP_FPS[kind], seen.video.fps or math.inf)
    if end > start:
        fps = min(fps, (MOST_FRAMES[kind] - 1) / (end - start))
    thinned = fps < seen.video.fps
    return video.times(seen.video.source, start, end, fps if thinned else None, _limits(seen))


def _shots(seen: Sequence[Seen], side: int, times: Sequence[float]) -> Iterator[Image.Image]:
    """The clip at these times: each frame shows the overlay of the moment whose sampled frame is nearest in time."""
    first, several = seen[0], len(seen) > 1
    facts = first.video
    if several:
        side = round(side * BESIDE)
    scale = side / max(facts.width, facts.height)
    width, height = (max(2, round(length * scale) // 2 * 2) for length in (facts.width, facts.height))
    fit = max(1, (ABREAST * (side + GAP)) // (width + GAP))
    columns = -(-len(seen) // -(-len(seen) // fit))
    content = max(columns * (width + GAP) - GAP, CLIP_LEAST)
    title, legend = _lines(first.question or NO_QUESTION, 22, content, 2), _legend(seen, content)
    said = _said(first, 18, content, 2)
    top = GAP + (30 if several else 0)
    bar = top + height + 10
    block = bar + BAR + 18
    text = -(-len(seen) // columns) * block
    notes = text + 28 * len(title) + 25 * len(said)
    canvas = Image.new("RGB", (_even(content + 2 * GAP), _even(notes + 40 + legend.height + GAP)), GROUND)
    brush = ImageDraw.Draw(canvas)
    first_left = (canvas.width - columns * (width + GAP) + GAP) // 2
    places = [(first_left + place % columns * (width + GAP), place // columns * block) for place in range(len(seen))]
    for (left, down), one in zip(places, seen if several else (), strict=False):
        _text(brush, (left, down + GAP - 2), _lines(caption(one), 18, width, 1)[0], 18, INK)
    for row, line in enumerate(title):
        _text(brush, (GAP, text + 28 * row), line, 22, INK)
    for row, line in enumerate(said):
        _text(brush, (GAP, text + 28 * len(title) + 25 * row), line, 18, INK)
    canvas.paste(legend, (GAP, notes + 40))
    # All bars share one scale.
    most = max(moment.kept_count for one in seen for moment in one.moments)
    sampled = [(moment, at) for moment in range(len(first.moments)) for at in first.moments[moment].timestamps]
    for at, pixels in zip(times, video.frames_at(facts.source, times, _limits(seen[0])), strict=True):
        # Of the moments of a picture, the one with the most cells.
        moment = min(sampled, key=lambda pair: (abs(pair[1] - at), -first.moments[pair[0]].tokens))[0]
        picture = _image(pixels).resize((width, height), Image.Resampling.LANCZOS)
        shot = canvas.copy()
        brush = ImageDraw.Draw(shot)
        for (left, down), one in zip(places, seen, strict=True):
            marked = mark(picture, one.moments[moment], one.area, distinguishes(one))
            shot.paste(marked, (left, down + top))
            _time_bar(brush, (left, down + bar, left + width, down + bar + BAR), one, moment, most)
        told = [units.timestamp(at), *(["small"] if first.moments[moment].small else [])]
        about = " · ".join(told if several else [*told, caption(first)])
        _text(brush, (GAP, notes), about, 16, QUIET)
        yield shot


def _time_bar(brush: ImageDraw.ImageDraw, box: tuple[int, int, int, int], seen: Seen, now: int, most: int) -> None:
    """Draw how many tokens of each moment were kept, with the current moment marked; `most` fills the height."""
    left, top, right, bottom = box
    places = edges(0, 1, len(seen.moments), right - left)
    apart = distinguishes(seen)
    for number, moment in enumerate(seen.moments):
        x, end = left + places[number], max(left + places[number], left + places[number + 1] - 3)
        if number == now:
            brush.rectangle((x - 1, top - 2, end + 1, bottom + 3), PANEL)
            brush.rectangle((x - 1, bottom + 3, end + 1, bottom + 5), INK)
        parts = (moment.important_count, moment.kept_count - moment.important_count)
        heights = [0, *accumulate(round((bottom - top) * part / most) for part in parts)]
        for low, high, colour in zip(heights, heights[1:], (QUESTION, COVERAGE if apart else KEPT), strict=False):
            if high > low:
                brush.rectangle((x, bottom - high + 1, end, bottom - low), colour)


def _image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _inside(left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
    """The corner pixels, inclusive, of a box from `left` and `top` up to but not including `right` and `bottom`."""
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _even(length: int) -> int:
    return length + length % 2


def _text(brush: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> int:
    """Write a line, and return the x at which it ends."""
    font, text = _typeset(text, size)
    brush.text(at, text, fill=colour, font=font)
    return at[0] + math.ceil(font.getlength(text))


def _width(text: str, size: int) -> int:
    font, text = _typeset(text, size)
    return math.ceil(font.getlength(text))


def _lines(text: str, size: int, width: int, most: int) -> list[str]:
    """The first `most` lines of a text; the last ends in dots if more would follow."""
    lines = _wrapped(text, size, width)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and _width(last + MORE, size) > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + MORE]


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """A text as lines no wider than `width` pixels; at least one."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while len(lines[-1]) > 1 and _width(lines[-1], size) > width:
            fits = max((n for n in range(1, len(lines[-1])) if _width(lines[-1][:n], size) <= width), default=1)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def _typeset(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font that knows most of the text, and the text with a question mark for each letter that it lacks."""
    letters = set(text)
    best: tuple[int, str | None] = (-1, None)
    for name in (None, *FONTS):
        if _font(name, size) is not None:
            best = max(best, (sum(_knows(name, letter) for letter in letters), name), key=lambda pair: pair[0])
        if best[0] == len(letters):
            break
    font = _font(best[1], size)
    assert font is not None
    return font, "".join(letter if _knows(best[1], letter) else "?" for letter in text)


@cache
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    if name is None:
        default = ImageFont.load_default(size)
        return default if isinstance(default, ImageFont.FreeTypeFont) else None
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def _knows(name: str | None, letter: str) -> bool:
    """Whether a font has a letter, and not only the box that stands for missing ones."""
    font = _font(name, 20)
    assert font is not None
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
