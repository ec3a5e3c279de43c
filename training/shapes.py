"""The training split of easy-vqa (https://pypi.org/project/easy-vqa), labelled: one plain coloured shape per image.

The shape and colour of an image are inferred from the questions and answers of the package, the location from the
pixels. The package's test split is never read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from flashvlm.demo.questions import Question
from flashvlm.demo.world import NAMES
from flashvlm.errors import UsageError
from training.labels import CellLabels

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
# The words of easy-vqa's questions and answers that the demo world does not have.
SHAPE_WORDS = ("image", "shape", "not", "present", "color", "contain", *SHAPES, *COLOURS)
# A pixel belongs to the shape if it differs from the paper by more than this, of 256 levels; the paper's noise is below
# 10.
APART = 24


@dataclass(frozen=True)
class ShapeImage:
    """One image, (64, 64, 3) uint8, the indices of its `shape` in `SHAPES` and `colour` in `COLOURS`, its questions."""

    pixels: np.ndarray
    shape: int
    colour: int
    questions: tuple[Question, ...]


@lru_cache(maxsize=1)
def shape_images() -> tuple[ShapeImage, ...]:
    """The images of the training split whose shape and colour follow from their questions.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        from easy_vqa import get_train_image_paths, get_train_questions
    except ImportError as error:
        raise UsageError("Training needs easy-vqa: install it with pip install -e '.[train]'.") from error
    asked: dict[int, list[Question]] = {}
    for text, answer, number in zip(*get_train_questions(), strict=True):
        asked.setdefault(number, []).append(Question("shapes", text, answer))
    images = []
    for number, path in sorted(get_train_image_paths().items()):
        # What a question presupposes is true: "what is the blue shape?"
        granted = [question for question in asked.get(number, ()) if question.text.startswith("what")]
        told = {word for question in granted for word in [*question.text.strip("?").split(), question.answer]}
        shapes = [SHAPES.index(word) for word in SHAPES if word in told]
        colours = [COLOURS.index(word) for word in COLOURS if word in told]
        if len(shapes) == len(colours) == 1:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            images.append(ShapeImage(pixels, shapes[0], colours[0], tuple(asked[number])))
    return tuple(images)


def shape_labels(image: ShapeImage, rows: int, columns: int) -> CellLabels:
    """What each cell of the image shows, as one group; in `thing`, the indices of shapes follow those of `NAMES`."""
    paper = np.median(np.concatenate([image.pixels[0], image.pixels[-1]]), axis=0)
    inked = np.abs(image.pixels.astype(int) - paper).max(-1) > APART
    ys, xs = (np.arange(64) * cells // 64 for cells in (rows, columns))
    cover = np.zeros((rows, columns))
    np.add.at(cover, (ys[:, None], xs[None]), inked / (64 * 64 / rows / columns))
    own = cover >= min(0.3, 0.9 * cover.max())
    thing = np.where(own, len(NAMES) + image.shape, np.where(cover > 0.06, -2, -1))
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    down, across = (at.mean() / 64 for at in inked.nonzero())
    return CellLabels(
        thing=thing[None],
        motion=np.full((1, rows, columns), 4),
        x=np.where(own, across, x)[None],
        y=np.where(own, down, y)[None],
        colour=np.where(own, image.colour, -1)[None],
    )
