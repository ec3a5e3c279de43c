"""Still pictures, and animations that FFmpeg does not play, read with Pillow."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from flashvlm.errors import VideoError
from flashvlm.video.reader import Reader, Source

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")
# How long a frame of an animation is shown that does not say it, in seconds.
UNTIMED = 0.1
# For each frame of a WebP libwebp counts through those before, so that time grows with the square of their number.
MOST_FRAMES = 10_000
# EXIF orientations in degrees clockwise; 2, 4, 5 and 7 are mirrored left to right before that.
EXIF_ROTATIONS = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}


class Picture(Reader):
    """A still picture."""

    def __init__(self, image: torch.Tensor, rotation: int):
        self.starts, self.rotation = (0.0,), rotation
        self._image = image

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        yield from (self._image for _ in chosen)


class Animation(Reader):
    """An animated PNG or WebP, which FFmpeg does not play: decoded up to the last frame that is asked for."""

    def __init__(self, source: Source, image: ImageFile, rotation: int):
        self._source, self.rotation = source, rotation
        # The picture that a PNG shows where animations are not played is not part of its own.
        self._first = int(bool(image.info.get("default_image")))
        count = image.n_frames - self._first  # type: ignore[attr-defined]
        if count > MOST_FRAMES:
            raise VideoError(f"{source.path}: it has {count} frames, and an animated picture may have {MOST_FRAMES}.")
        lengths = list(_lengths(source, image.format == "WEBP"))[:count]
        if len(lengths) < count:
            raise EOFError("it claims to have more frames than there are")
        *self.starts, self.duration = (round(end, 6) for end in accumulate(lengths, initial=0.0))

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        from PIL import ImageOps

        wanted = set(chosen)
        with _pictures(self._source) as image:
            for number in range(chosen[-1] + 1):
                self._source.seconds_left()
                image.seek(self._first + number)
                image.load()
                if number in wanted:
                    yield rgb(ImageOps.exif_transpose(image))


def open_picture(source: Source) -> Picture | Animation | None:
    """The picture that a file holds; None if it is not one."""
    from PIL import ExifTags, ImageOps, UnidentifiedImageError

    try:
        with _pictures(source) as image:
            rotation = EXIF_ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 0)
            # The second picture of a JPEG is the same in another size.
            if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                return Animation(source, image, rotation)
            return Picture(rgb(ImageOps.exif_transpose(image)), rotation)
    except UnidentifiedImageError:
        return None


def length_of(source: Source) -> float | None:
    """How long a picture lasts, as its head says: 0 for a still one, infinity for an animated one; None if the file is
    none."""
    from PIL import UnidentifiedImageError

    try:
        with _pictures(source) as image:
            return math.inf if image.format != "JPEG" and getattr(image, "n_frames", 1) > 1 else 0.0
    except UnidentifiedImageError:
        return None


@contextlib.contextmanager
def _pictures(source: Source) -> Iterator[ImageFile]:
    """A file opened with Pillow; raises UnidentifiedImageError if it is not a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source.path, formats=PICTURE_FORMATS) as image:
            source.check_size(*image.size)
            yield image
    except UnidentifiedImageError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{source.path}: the picture cannot be read; it is damaged, cut short or too large."
        ) from error


def _lengths(source: Source, is_webp: bool) -> Iterator[float]:
    """How long each frame of an animated WebP or PNG is shown, in seconds.

    https://developers.google.com/speed/webp/docs/riff_container, https://www.w3.org/TR/png-3/#fcTL-chunk
    """
    with open(source.path, "rb") as file:
        file.seek(12 if is_webp else 8)
        while len(header := file.read(8)) == 8:
            source.seconds_left()
            length, kind = struct.unpack("<4sI", header)[::-1] if is_webp else struct.unpack(">I4s", header)
            after = file.tell() + length + (length % 2 if is_webp else 4)
            if is_webp and kind == b"ANMF":
                yield int.from_bytes(file.read(15)[12:], "little") / 1000 or UNTIMED
            elif kind == b"fcTL":
                numerator, denominator = struct.unpack_from(">HH", file.read(24), 20)
                yield numerator / (denominator or 100) or UNTIMED
            file.seek(after)


def rgb(picture: Image) -> torch.Tensor:
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
