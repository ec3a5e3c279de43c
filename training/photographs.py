"""Footage made of photographs, beside the procedural kind: a camera passes over one, or over one behind another.

They are those that come with scikit-image (without its cat, motorcycle, rocket and clock, which are objects of the demo
world) and have nothing to do with the videos of reports. As they are few, they are cut, turned, recoloured and put in
front of each other.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from flashvlm.demo.natural import CANVAS, Footage, layered, look

NAMES = (
    "brick.png", "camera.png", "cell.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "text.png", "color.png",
)  # fmt: skip
# The sides of the cut, as a share of the largest of its shape that the photograph has.
CUT = (0.35, 1.0)
LAYERS_SHARE = 0.3


def photographs(rng: np.random.Generator, size: tuple[int, int]) -> Footage:
    """Generate footage to be seen at about this size (width, height) from one photograph, or from several."""
    size = round(size[0] * CANVAS), round(size[1] * CANVAS)
    if rng.random() < LAYERS_SHARE:
        return layered(rng, size, _canvas)
    canvas = _canvas(rng, size)
    return lambda seconds, window, shown: look(canvas, window, shown)


def are_there() -> bool:
    """Whether scikit-image is installed. It is not imported: only its files are read."""
    return _folder() is not None


def _canvas(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A cut of one photograph, recoloured, enlarged or reduced to this size."""
    picture = _photograph(NAMES[rng.integers(len(NAMES))])
    picture = picture.transpose(Image.Transpose(int(rng.integers(7))))
    scale = float(rng.uniform(*CUT)) * min(picture.width / size[0], picture.height / size[1])
    across, down = size[0] * scale, size[1] * scale
    left, top = float(rng.uniform(0, picture.width - across)), float(rng.uniform(0, picture.height - down))
    cut = picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
    tints = np.asarray(cut)[..., rng.permutation(3)] / np.float32(255)
    return Image.fromarray((tints ** rng.uniform(0.6, 1.6, 3).astype(np.float32) * 255).astype(np.uint8))


@cache
def _photograph(name: str) -> Image.Image:
    folder = _folder()
    assert folder is not None
    return Image.open(folder / name).convert("RGB")


@cache
def _folder() -> Path | None:
    found = find_spec("skimage")
    places = found and found.submodule_search_locations
    return Path(places[0]) / "data" if places else None
