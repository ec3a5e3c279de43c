"""What each visual token of a clip shows: the labels that the encoder of a demo model is trained with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashvlm.demo.world import DIRECTIONS, NAMES, Scene


@dataclass(frozen=True)
class CellLabels:
    """What each visual token of a clip shows; arrays of shape (groups, rows, columns).

    `thing` is the index in `NAMES` of what fills the cell, -1 for background, -2 if it is not clearly either. `motion`
    is the index of its direction in `DIRECTIONS`, 4 for none, -1 if the group does not show it. `x` and `y` are the
    centre of the object, or of the cell otherwise, as fractions of the picture. `colour` is the index of a shape's
    colour in `shapes.COLOURS`, -1 for everything else.
    """

    thing: np.ndarray
    motion: np.ndarray
    x: np.ndarray
    y: np.ndarray
    colour: np.ndarray | None = None


def cell_labels(scene: Scene, times: np.ndarray, rows: int, columns: int, frames_per_group: int = 2) -> CellLabels:
    """Label the cells of each group of frames (the last group may have fewer; a still counts as a whole one)."""
    groups = -(-len(times) // frames_per_group)
    shape = (groups, rows, columns)
    thing = np.full(shape, -1)
    motion = np.full(shape, 4)
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    xs, ys = np.broadcast_to(x, shape).copy(), np.broadcast_to(y, shape).copy()
    width, height = scene.extent

    def share(centre: float, length: float, cells: int) -> np.ndarray:
        """How much of each row or column the span around `centre` covers; sprites fill about 0.88 of their square."""
        edges = np.arange(cells + 1) / cells
        half = length * 0.44
        low, high = np.maximum(edges[:-1], centre - half), np.minimum(edges[1:], centre + half)
        return np.maximum(0, high - low) * cells

    for group in range(groups):
        pair = times[frames_per_group * group : frames_per_group * (group + 1)]
        for one in scene.things:
            seen = [when for when in pair.tolist() if one.visible(when)]
            if not seen:
                continue
            centres = [one.centre(when) for when in seen]
            covers = [
                np.outer(share(cy, one.size / height, rows), share(cx, one.size / width, columns)) for cx, cy in centres
            ]
            cover = np.sum(covers, axis=0) / len(pair)
            own = cover >= min(0.3, 0.9 * cover.max())
            thing[group][(cover > 0.06) & ~own & (thing[group] == -1)] = -2
            thing[group][own] = NAMES.index(one.name)
            xs[group][own] = np.mean([c[0] for c in centres])
            ys[group][own] = np.mean([c[1] for c in centres])
            if one.direction is not None:
                motion[group][own] = tuple(DIRECTIONS).index(one.direction) if len(seen) == 2 else -1
    return CellLabels(thing, motion, xs, ys)
