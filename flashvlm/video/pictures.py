"""Still pictures, and animations that FFmpeg does not play, read with Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashvlm.errors import VideoError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
# How long a frame of an animation is shown that does not say it, in milliseconds.
UNTIMED = 100
# EXIF orientations without mirroring, in degrees clockwise.
EXIF_ROTATIONS = {3: 180, 6: 90, 8: 270}
# Containers round times, and decord returns them as float32: times closer than this are the same, in seconds.


class Picture:
    """A still picture."""

    keys: Sequence[int] = ()

    def __init__(self, image: torch.Tensor, rotation: int):
        self.starts: Sequence[float] = (0.0,)
        self.duration, self.rotation = 0.0, rotation
        self._image = image

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        yield from (self._image for _ in chosen)


class Animation:
    """An animated PNG or WebP, which FFmpeg does not play, read with Pillow."""

    keys: Sequence[int] = ()

    def __init__(self, path: Path, image: ImageFile, rotation: int):
        self._path, self.rotation = path, rotation
        # The picture that a PNG shows where animations are not played is not part of its own.
        self._first = int(bool(image.info.get("default_image")))
        ends = [0.0]
        for number in range(self._first, image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            # WebP says how long a frame is shown when it is decoded.
            image.load()
            ends.append(round(ends[-1] + (image.info.get("duration") or UNTIMED) / 1000, 6))
        *starts, self.duration = ends
        self.starts: Sequence[float] = starts

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        from PIL import ImageOps

        with _pictures(self._path) as image:
            for number in chosen:
                image.seek(self._first + number)
                yield _rgb(ImageOps.exif_transpose(image))


def open_picture(path: Path) -> Picture | Animation | None:
    """The picture at `path`; None if the file is not one."""
    from PIL import ExifTags, ImageOps, UnidentifiedImageError

    try:
        with _pictures(path) as image:
            rotation = EXIF_ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 0)
            # The second picture of a JPEG is the same in another size.
            if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                return Animation(path, image, rotation)
            return Picture(_rgb(ImageOps.exif_transpose(image)), rotation)
    except UnidentifiedImageError:
        return None


@contextlib.contextmanager
def _pictures(path: Path) -> Iterator[ImageFile]:
    """The file at `path`, opened with Pillow; raises UnidentifiedImageError if it is not a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=PICTURE_FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: the picture cannot be read; it is damaged, cut short or too large.") from error


def _rgb(picture: Image) -> torch.Tensor:
    """A picture of Pillow as (H, W, 3) uint8, on white where it is transparent."""
    import numpy as np
    import torch
    from PIL import Image

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode.startswith("I;16"):
        # Pillow would clip values above 255.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return torch.from_numpy(np.array(picture.convert("RGB")))
