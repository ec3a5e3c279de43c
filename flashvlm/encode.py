"""Encode: frames or a still picture in, visual tokens out.

Four things keep the vision encoder from work that it need not do. A moment that looks like an earlier one takes over
its tokens, and one in which a part changed has only that part encoded (`repeats`). With `look="twice"`, every moment is
encoded from small frames first, and `second_look` encodes again, at full size, the moments that matter for the
question. And moments go through the encoder a few at a time, as many as the processor's cache holds. Frames are asked
for as they are needed, and dropped: memory holds their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, repeat, tee
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvlm import units
from flashvlm.errors import UsageError
from flashvlm.options import DEFAULT_FPS

if TYPE_CHECKING:
    from flashvlm.backends.base import Backend

# How many cells go through the vision encoder together: on a CPU (True) as many as its cache holds the activations of,
# elsewhere as many as keep the device busy.
CELLS_AT_ONCE = {True: 256, False: 8192}

# Frames are compared by the means of squares of SQUARE x SQUARE pixels, which average out the noise of a codec or a
# camera but not a small moving object. Frames are alike if all means differ by less than APART, in grey levels of 255.
# On 24 clips in which nothing moves (x264 at a CRF of 20 to 31, key frames every 4 to 60), two moments differed by at
# most 10.1; where one object moves, one moment differed by at least 38.7 from the next.
SQUARE = 7
APART = 14.0

# A moment is encoded in part if that means no more than this share of its cells, and after so many such moments whole.
# The cosine of the tokens to those of whole moments is then 0.9997 (docs/results.md, "Encoded in part").
MOST_CHANGED = 0.5
PARTS_IN_A_ROW = 8

# The side of a small frame as a share of the full one's: a small frame takes a quarter of the time.
SMALL = 0.5
# The share of the moments that a second look encodes again. Of 117 needle questions (tuning clips), with a tenth of the
# tokens, 96.6 % were right with three moments of ten at full size, 98.3 % with four, 99.1 % with all.
AGAIN = 0.4
# At least this many: both ends, and one that the question chooses.
FEWEST = 3


class Features(NamedTuple):
    """What the vision encoder makes of G groups of n tokens.

    `tokens` (G, n, D) are in the language model's input space, and `saliency` (G, n) is float32 >= 0. `planes`
    (P, G, n, D) are further features of the same tokens, which the language model adds in its first layers (Qwen3-VL's
    deepstack features); None if the family has none.
    """

    tokens: Tensor
    saliency: Tensor
    planes: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Encoded:
    """A video, or a picture, as N visual tokens, group by group: a group's class tokens, then its cells, row by row."""

    # (N, D), in the language model's input space.
    tokens: Tensor
    # (N,) float32 >= 0: how much attention each token received in the vision encoder.
    saliency: Tensor
    # The (rows, columns) of cells in each group. The groups of a video are its temporal groups, all of one size. A
    # picture is one group; one that is seen in tiles is two: the grid of all its tiles, and the whole picture again.
    grids: tuple[tuple[int, int], ...]
    # How many tokens of each group stand for no place in the picture.
    class_tokens: int = 0
    # The time from one group to the next.
    seconds_per_group: float = 0.0
    # The second at which each frame of the groups appears.
    timestamps: tuple[float, ...] = ()
    # How long the video lasts, in seconds.
    duration: float = 0.0
    # (groups,) int64: the group that each takes its tokens from, itself or an earlier one that shows the same.
    # None if all have their own.
    sources: Tensor | None = None
    # (groups,) bool: the groups whose tokens come from small frames. None if there are none.
    small: Tensor | None = None
    # (P, N, D): further features of the tokens (see `Features`); they are pruned like the tokens.
    planes: Tensor | None = None
    # (E, D): tokens after the N that always stay (LLaVA-OneVision ends a video with one, and each row of a picture).
    # They are not counted in N.
    fixed: Tensor | None = None
    # What a chat template calls it: `video` or `image`.
    kind: str = "video"
    # (N + E,) int64: the token that stands at each of its places in the prompt, those that always stay from N on. None
    # if they stand there one after the other. A prompt has tile after tile, which cuts the rows of the grid in pieces.
    order: Tensor | None = None
    # Whether the grids say where in the picture a token lies; else they are a single row.
    placed: bool = True
    # What else the general backend has to know of the video for its prompt, as JSON.
    notes: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Encoded {self.kind}: {len(self.tokens)} tokens in {units.plural(self.groups, 'group')}>"

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self.grids)

    @property
    def height(self) -> int:
        """The number of rows of cells in the first group, and in every group of a video."""
        return self.grids[0][0]

    @property
    def width(self) -> int:
        """The number of columns of cells in the first group, and in every group of a video."""
        return self.grids[0][1]

    @property
    def group_sizes(self) -> list[int]:
        """The number of tokens in each group."""
        return [self.class_tokens + height * width for height, width in self.grids]


@torch.inference_mode()
def encode(
    backend: Backend,
    frames: Tensor | Iterator[Tensor],
    *,
    which: str = "all",
    look: str = "once",
    seconds_per_frame: float = 1 / DEFAULT_FPS,
    timestamps: Sequence[float] | None = None,
    duration: float | None = None,
) -> Encoded:
    """Encode a video as visual tokens with their saliency.

    Args:
        frames: (F, 3, h, w) uint8 frames of the backend's `frame_size`, or an iterator of them; the last one is
            repeated to fill its group.
        which: `all` groups are encoded, or those that `changed`; the others take over an earlier group's tokens.
        look: `once`, or `twice`: from small frames, but on the grid of the full ones, for a `second_look`.
        seconds_per_frame: how long each frame stands for.
        timestamps: the second at which each frame appears; None is evenly from 0 on.
        duration: how long the video lasts, in seconds; None is as long as its frames.

    Raises:
        UsageError: a second look is asked for, and the model cannot look twice.
        ValueError: the family's `features` do not fit its grid.
        VideoError: the iterator could not read a frame.
    """
    check_look(backend, look)
    if timestamps is None:
        frames = together(frames)
        timestamps = [number * seconds_per_frame for number in range(len(frames))]
    shown = tuple(timestamps)
    lasts = len(shown) * seconds_per_frame if duration is None else duration
    if (whole := backend.whole(frames, seconds_per_frame, shown, lasts)) is not None:
        return whole
    features, sources, grid, cells = _by_groups(backend, frames, which, look)
    encoded = Encoded(
        features.tokens.flatten(0, 1),
        features.saliency.flatten(),
        (grid,) * len(sources),
        class_tokens=backend.class_tokens,
        seconds_per_group=seconds_per_frame * backend.frames_per_group,
        timestamps=shown,
        duration=lasts,
        sources=None if _own(sources).all() else sources,
        planes=None if features.planes is None else features.planes.flatten(1, 2),
        fixed=backend.fixed_tokens(),
        kind=backend.part,
    )
    return _on_grid(encoded, *cells) if look == "twice" else encoded


def together(frames: Tensor | Iterator[Tensor]) -> Tensor:
    """(F, 3, h, w) frames, whether they come one by one or not."""
    return frames if isinstance(frames, Tensor) else torch.stack(list(frames))


def at_once(device: torch.device, cells: int) -> int:
    """How many groups of so many cells go through the vision encoder together."""
    return max(1, CELLS_AT_ONCE[device.type == "cpu"] // cells)


def check_look(backend: Backend, look: str) -> None:
    """Refuse a second look where there is none.

    Raises:
        UsageError: the model takes frames of only one size or has class tokens, or is served in the general way.
    """
    if look == "twice" and not backend.looks_twice:
        raise UsageError("`look` twice needs a model that takes frames of any size and has no class tokens (Qwen's).")


def as_picture(tiles: Encoded, rows: int, columns: int) -> Encoded:
    """The tiles of a picture, encoded one by one like the moments of a video, as the picture that they make up.

    Args:
        tiles: `rows` times `columns` of them, row by row; if that is more than one, then the whole picture.
    """
    count, (height, width) = rows * columns, tiles.grids[0]
    number = torch.arange(count * height * width).view(rows, height, columns, width).transpose(1, 2).flatten()
    order = torch.cat([number, torch.arange(len(number), len(tiles.tokens))])
    moved = order.argsort()
    return replace(
        tiles,
        tokens=tiles.tokens[moved],
        saliency=tiles.saliency[moved],
        planes=None if tiles.planes is None else tiles.planes[:, moved],
        grids=((rows * height, columns * width), *tiles.grids[count:]),
        timestamps=(0.0,),
        kind="image",
        order=order if count > 1 else None,
    )


def _by_groups(
    backend: Backend, frames: Iterable[Tensor], which: str, look: str
) -> tuple[Features, Tensor, tuple[int, int], tuple[int, int]]:
    """The features of all groups, the group that each takes them from, (groups,) int64, the grid of cells that was
    encoded, and that of the frames, which is larger if the first look is at small ones."""
    waiting: list[Tensor] = []
    parts: list[Features] = []
    sources: list[int] = []
    groups, compared = tee(_groups_of(frames, backend.frames_per_group))
    # Elsewhere many moments go through the encoder together, as parts, which build on each other, cannot.
    in_part = which == "cells" and look == "once" and backend.encodes_parts and backend.device.type == "cpu"
    kept: list[Tensor] | None = [] if in_part else None
    found = repeats(compared, backend.cells if in_part else None) if which != "all" else zip(count(), repeat(None))
    for group, (source, part) in zip(groups, found, strict=False):
        if not sources:
            size = (group.shape[2], group.shape[3])
            grid = cells = backend.cells(size)
            if look == "twice":
                size = _small_size(group, cells)
                grid = backend.cells(size)
            few = at_once(backend.device, grid[0] * grid[1])
        if waiting and (part is not None or len(waiting) == few):
            parts.append(_features(backend, waiting, grid, kept))
            waiting = []
        if part is not None and kept is not None:
            parts.append(_put_in(parts[-1], part, backend.kept_features(group, kept, part)))
        elif source == len(sources):
            small = look == "twice"
            waiting.append(F.interpolate(group, size=size, mode="bicubic", antialias=True) if small else group)
        sources.append(source)
    if waiting:
        parts.append(_features(backend, waiting, grid, kept))
    return _joined(parts, torch.tensor(sources)), torch.tensor(sources), grid, cells


def _groups_of(frames: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Frames (3, h, w) as temporal groups (size, 3, h, w)."""
    group: list[Tensor] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield torch.stack(group)
            group = []
    if group:
        yield torch.stack(group + [group[-1]] * (size - len(group)))


def _put_in(before: Features, part: Tensor, features: Features) -> Features:
    """The last group of `before`, with the tokens of a part of its cells instead of its own, and its saliency now."""
    tokens = before.tokens[-1:].clone()
    tokens[:, part] = features.tokens
    if before.planes is None or features.planes is None:
        return Features(tokens, features.saliency)
    planes = before.planes[:, -1:].clone()
    planes[:, :, part] = features.planes
    return Features(tokens, features.saliency, planes)


def _features(backend: Backend, groups: Sequence[Tensor], grid: tuple[int, int], kept: list[Tensor] | None) -> Features:
    frames = torch.cat(list(groups))
    features = backend.features(frames) if kept is None else backend.kept_features(frames, kept)
    if not isinstance(features, Features):
        raise ValueError(f"{type(backend).__name__}.features must return Features, not {type(features).__name__}.")
    tokens, saliency, planes = features
    expected = (len(groups), backend.class_tokens + grid[0] * grid[1])
    if not tokens.shape[:2] == saliency.shape == expected or (planes is not None and planes.shape[1:3] != expected):
        raise ValueError(
            f"{backend.family}: tokens {tuple(tokens.shape)} and saliency {tuple(saliency.shape)} do not fit "
            f"{expected[0]} groups of {expected[1]}: {backend.class_tokens} class tokens and "
            f"{grid[0]} x {grid[1]} cells."
        )
    return features


def _joined(parts: list[Features], sources: Tensor) -> Features:
    """The features of all groups, from those of the groups that have their own, in pieces, which are used up.

    Args:
        sources: (groups,) int64, the group that each takes its features from.
    """
    own = _own(sources)
    # Where each group's features are among those of the groups that have their own.
    places = (own.cumsum(0) - 1)[sources].to(parts[0].tokens.device)
    tokens, saliency = torch.cat([part.tokens for part in parts]), torch.cat([part.saliency for part in parts])
    planes = [part.planes for part in parts if part.planes is not None]
    parts.clear()
    further = torch.cat(planes, dim=1) if planes else None
    if own.all():
        return Features(tokens, saliency, further)
    return Features(tokens[places], saliency[places], None if further is None else further[:, places])


def _own(sources: Tensor) -> Tensor:
    """Which groups (groups,) bool have features of their own."""
    return sources == torch.arange(len(sources))


def repeats(
    groups: Iterable[Tensor], cells: Callable[[tuple[int, int]], tuple[int, int]] | None = None
) -> Iterator[tuple[int, Tensor | None]]:
    """For each group, the number of the first one that looks the same, its own or that of an earlier one, and its part.

    A group with its own number is encoded, all of it or a part: (cells,) bool. The other cells look as in the one that
    was encoded before. Each group is compared with what the tokens of all earlier ones show, so that slow change counts
    as soon as enough of it has added up.

    Args:
        groups: (f, 3, h, w) uint8 frames each.
        cells: gives the rows and columns of cells of a frame of (h, w), if groups can be encoded in part.
    """
    own: list[tuple[int, Tensor]] = []
    in_a_row = 0
    for number, group in enumerate(groups):
        means = F.avg_pool2d(group.float(), SQUARE, ceil_mode=True, count_include_pad=False)
        # The latest first: it is the most likely.
        alike = (earlier for earlier, seen in reversed(own) if (seen - means).abs().max() < APART)
        source = next(alike, number)
        part = None
        if source == number:
            if cells is not None and own and in_a_row < PARTS_IN_A_ROW:
                size = (group.shape[2], group.shape[3])
                changed, shown = _changed(own[-1][1], means, size, cells(size))
                if changed.float().mean() <= MOST_CHANGED:
                    part, means = changed, shown
            in_a_row = 0 if part is None else in_a_row + 1
            own.append((number, means))
        yield source, part


def _changed(before: Tensor, means: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The (cells,) bool of a group that are not as `before`, or lie beside one; and the means once they are encoded.

    What a cell's token says depends most on the cells beside it, so these are encoded again, too.

    Args:
        before, means: (f, 3, squares, squares) of frames of this `size`.
        grid: the rows and columns of cells.
    """
    # The cell that the middle of each square lies in.
    row, column = (
        ((torch.arange(squares) + 0.5) * SQUARE / side * count).long().clamp(max=count - 1)
        for squares, side, count in zip(means.shape[2:], size, grid, strict=True)
    )
    cell = row[:, None] * grid[1] + column
    apart = ((before - means).abs() >= APART).flatten(0, 1).any(0)
    cells = torch.zeros(grid[0] * grid[1]).index_fill_(0, cell[apart], 1).view(1, *grid)
    beside = torch.maximum(F.max_pool2d(cells, (3, 1), 1, (1, 0)), F.max_pool2d(cells, (1, 3), 1, (0, 1)))
    encoded = beside.flatten() > 0
    return encoded, means.where(encoded[cell], before)


def _small_size(frames: Tensor, cells: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of the small version of the frames: whole cells of the same size."""
    frame = (frames.shape[2], frames.shape[3])
    height, width = (
        max(1, round(number * SMALL)) * (side // number) for side, number in zip(frame, cells, strict=True)
    )
    return height, width


def _on_grid(small: Encoded, height: int, width: int) -> Encoded:
    """Every group of `small` on a grid of `height` x `width` cells, each with the token that covers its place.

    So a token has the position of its cell, whatever frame it comes from; the selector sees that cells are alike. A
    token's saliency, a share of the attention within its frame, is spread over the cells that it covers.
    """
    rows = ((torch.arange(height) + 0.5) * small.height / height).long()
    columns = ((torch.arange(width) + 0.5) * small.width / width).long()
    cells = (rows[:, None] * small.width + columns).flatten().to(small.tokens.device)
    grid = (small.groups, small.height * small.width)
    return replace(
        small,
        tokens=small.tokens.unflatten(0, grid)[:, cells].flatten(0, 1),
        saliency=small.saliency.unflatten(0, grid)[:, cells].flatten() * (grid[1] / len(cells)),
        planes=None if small.planes is None else small.planes.unflatten(1, grid)[:, :, cells].flatten(1, 2),
        grids=((height, width),) * small.groups,
        small=torch.ones(small.groups, dtype=torch.bool),
    )


def second_look(backend: Backend, encoded: Encoded, frames: Tensor, scores: Tensor) -> Encoded:
    """Encode again, at full size, the moments of a video seen small that matter most: both ends and the highest scores.

    Questions ask about the beginning and the end, and no other moment can show those. Of all moments, AGAIN are looked
    at, at least FEWEST, and only such as have tokens of their own (for an end without, the moment it repeats).

    Args:
        frames: (F, 3, h, w) uint8, those that `encoded` was made from.
        scores: (N,), how much each token matters.
    """
    groups = encoded.groups
    sources = torch.arange(groups) if encoded.sources is None else encoded.sources
    own = _own(sources)
    best = scores.view(groups, -1).amax(1).cpu()
    best[sources[[0, -1]]] = torch.inf
    best[~own] = -torch.inf
    count = min(int(own.sum()), max(FEWEST, round(AGAIN * groups)))
    again = best.topk(count).indices.sort().values
    size = backend.frames_per_group
    places = (again[:, None] * size + torch.arange(size)).flatten().clamp(max=len(frames) - 1)
    full = encode(backend, frames[places])
    # Each group, and all that take over its tokens, get those of the full frame.
    place = torch.full((groups,), -1).index_put((again,), torch.arange(count))[sources]
    taken = place >= 0
    grid = (-1, encoded.height * encoded.width)

    def put_in(small: Tensor, large: Tensor, axis: int) -> Tensor:
        small, large = small.unflatten(axis, grid).movedim(axis, 0).clone(), large.unflatten(axis, grid)
        small[taken] = large.movedim(axis, 0)[place[taken]]
        return small.movedim(0, axis).flatten(axis, axis + 1)

    assert encoded.small is not None
    planes = encoded.planes
    return replace(
        encoded,
        tokens=put_in(encoded.tokens, full.tokens, 0),
        saliency=put_in(encoded.saliency, full.saliency, 0),
        planes=None if planes is None or full.planes is None else put_in(planes, full.planes, 1),
        small=encoded.small & ~taken,
    )
