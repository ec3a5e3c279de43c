"""Pixels: frames in, the vision encoder's input out, with torch alone.

The output agrees with transformers' own processors, which need torchvision, to within one grey level. What is called a
tile here is a square of the side that a vision encoder takes: a picture larger than that is seen as several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from flashvlm.errors import VideoError

MAX_SIDE_RATIO = 200
# The longest side that SmolVLM's processor makes.
SMOLVLM_LONGEST = 4096
# Older releases of torch, and its CUDA build, have no Lanczos filter; transformers takes the bicubic one there too.
HAS_LANCZOS = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 12)


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    frames: int = 1,
    temporal_patch_size: int = 1,
) -> tuple[int, int]:
    """The (height, width) that Qwen2-VL gives a frame of `height` x `width` pixels.

    Both sides become multiples of `factor`, the area lies between `min_pixels` and `max_pixels`, and the aspect ratio
    changes as little as that allows. The rule is that of Qwen's image processor (https://github.com/QwenLM/Qwen2-VL).

    Args:
        frames: the limits are for the pixels of so many frames together.
        temporal_patch_size: frames are counted in whole patches of so many.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise VideoError(
            f"A frame of {width} x {height} pixels is too narrow: "
            f"one side may be at most {MAX_SIDE_RATIO} times the other."
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    pixels = round(frames / temporal_patch_size) * temporal_patch_size * new_height * new_width
    if pixels > max_pixels:
        scale = math.sqrt(frames * height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif pixels < min_pixels:
        scale = math.sqrt(min_pixels / (frames * height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def qwen3_vl_size(
    height: int,
    width: int,
    frames: int,
    *,
    factor: int,
    temporal_patch_size: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """The (height, width) that Qwen3-VL gives each of a video's frames: `smart_resize` with limits for the whole video.

    A side shorter than `factor` is first enlarged to it. A video is at least one temporal patch long.

    Raises:
        VideoError: one side is more than 200 times the other.
    """
    scale = max(1.0, factor / height, factor / width)
    return smart_resize(
        int(height * scale),
        int(width * scale),
        factor=factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        frames=max(frames, temporal_patch_size),
        temporal_patch_size=temporal_patch_size,
    )


def within(height: int, width: int, most: int) -> tuple[int, int]:
    """The (height, width) of a frame with at most `most` pixels, its aspect ratio kept; it is not enlarged."""
    scale = min(1.0, math.sqrt(most / (height * width)))
    return max(1, int(height * scale)), max(1, int(width * scale))


def resize(frame: torch.Tensor, size: tuple[int, int], filter: str = "bicubic") -> torch.Tensor:
    """A (3, H, W) uint8 frame resized to `size` (h, w) with antialiasing, as torchvision resizes uint8.

    Args:
        filter: `bicubic` or `lanczos`.
    """
    if frame.shape[1:] == size:
        return frame
    mode = filter if HAS_LANCZOS and frame.device.type == "cpu" else "bicubic"
    return torch.nn.functional.interpolate(frame[None], size=size, mode=mode, antialias=True)[0]


def qwen2_vl_patches(
    frames: torch.Tensor,
    *,
    patch_size: int,
    temporal_patch_size: int,
    merge_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames as Qwen2-VL's vision encoder takes them; the last frame is repeated to fill its temporal patch.

    Args:
        frames: (F, 3, h, w) uint8, h and w multiples of `patch_size * merge_size` (see `smart_resize`).

    Returns:
        `pixel_values` (P, 3 * temporal_patch_size * patch_size**2) float32, one row per patch, with the `merge_size`**2
        patches that become one token next to each other; and `grid_thw` (1, 3) int64, the number of patches in time,
        height and width.
    """
    p, tp, m = patch_size, temporal_patch_size, merge_size
    missing = -len(frames) % tp
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = len(frames) // tp, frames.shape[2] // p, frames.shape[3] // p
    # Written once, in patch order.
    scale, shift = (number.view(3, 1, 1, 1).to(frames.device) for number in _normalisation(image_mean, image_std))
    patches = frames.view(t, tp, 3, h // m, m, p, w // m, m, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    pixel_values = torch.empty(patches.shape, dtype=torch.float32, device=frames.device)
    torch.mul(patches, scale, out=pixel_values).add_(shift)
    return pixel_values.view(t * h * w, -1), torch.tensor([[t, h, w]])


def shortest_edge_size(height: int, width: int, edge: int) -> tuple[int, int]:
    """The (height, width) at which the shorter side of a frame is `edge` pixels and its aspect ratio is kept."""
    if height <= width:
        return edge, edge * width // height
    return edge * height // width, edge


def clip_pixels(
    frames: torch.Tensor, *, side: int, image_mean: Sequence[float], image_std: Sequence[float]
) -> torch.Tensor:
    """Frames as CLIP's vision encoder takes them: their middle `side` x `side` pixels, normalised.

    Args:
        frames: (F, 3, h, w) uint8, h and w at least `side` (see `shortest_edge_size`).

    Returns:
        (F, 3, side, side) float32.
    """
    top, left = (frames.shape[2] - side) // 2, (frames.shape[3] - side) // 2
    return normalised(frames[:, :, top : top + side, left : left + side], image_mean, image_std)


def normalised(frames: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(..., 3, h, w) uint8 frames as float32, (value / 255 - mean) / std for each colour."""
    scale, shift = (number.view(3, 1, 1).to(frames.device) for number in _normalisation(mean, std))
    return frames * scale + shift


def tiles(picture: torch.Tensor, side: int) -> torch.Tensor:
    """A (3, rows * side, columns * side) picture cut into (rows * columns, 3, side, side) squares, row by row."""
    rows, columns = picture.shape[1] // side, picture.shape[2] // side
    return picture.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)


def internvl_grid(height: int, width: int, *, side: int, least: int, most: int) -> tuple[int, int]:
    """The (rows, columns) of tiles in which InternVL sees a picture: the grid nearest to its aspect ratio.

    Of grids that are equally near, a larger one is taken only if the picture has more than half its pixels
    (https://github.com/OpenGVLab/InternVL).

    Args:
        least: the smallest number of tiles; `most`, the largest.
    """
    ratio, best, off = width / height, (1, 1), math.inf
    grids = [(rows, columns) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    for rows, columns in sorted(grids, key=math.prod):
        if rows * columns < least:
            continue
        apart = abs(ratio - columns / rows)
        if apart < off or (apart == off and height * width > 0.5 * side * side * rows * columns):
            best, off = (rows, columns), apart
    return best


def internvl_tiles(picture: torch.Tensor, *, side: int, least: int, most: int) -> tuple[torch.Tensor, int, int]:
    """A (3, h, w) uint8 picture as InternVL sees it: tiles and, if there are several, the whole picture last.

    The aspect ratio is not kept. See `internvl_grid` for `least` and `most`.

    Returns:
        (tiles, 3, side, side), rows and columns.
    """
    rows, columns = internvl_grid(*picture.shape[1:], side=side, least=least, most=most)
    cut = tiles(resize(picture, (rows * side, columns * side)), side)
    whole = [resize(picture, (side, side))[None]] if len(cut) > 1 else []
    return torch.cat([cut, *whole]), rows, columns


def onevision_size(height: int, width: int, sizes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The canvas (height, width), one of `sizes`, in which LLaVA-OneVision sees a picture.

    It is the one in which most of the picture's pixels stay, and of those the smallest (LLaVA-NeXT's anyres,
    https://github.com/LLaVA-VL/LLaVA-NeXT).
    """

    def kept(size: Sequence[int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - size[0] * size[1]

    best = max(sizes, key=kept)
    return best[0], best[1]


def onevision_tiles(picture: torch.Tensor, *, side: int, sizes: Sequence[Sequence[int]]) -> torch.Tensor:
    """A (3, h, w) uint8 picture as LLaVA-OneVision sees it: (1 + tiles, 3, side, side), the whole picture first.

    The whole picture is squeezed into a square. The tiles are those of the picture in the middle of a black canvas
    (`onevision_size`), with its aspect ratio.
    """
    height, width = picture.shape[1:]
    canvas = onevision_size(height, width, sizes)
    across, down = canvas[1] / width, canvas[0] / height
    if across < down:
        size = min(math.ceil(height * across), canvas[0]), canvas[1]
    else:
        size = canvas[0], min(math.ceil(width * down), canvas[1])
    top, left = (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2
    black = torch.zeros(3, *canvas, dtype=torch.uint8, device=picture.device)
    black[:, top : top + size[0], left : left + size[1]] = resize(picture, size)
    return torch.cat([resize(picture, (side, side))[None], tiles(black, side)])


def smolvlm_size(height: int, width: int, *, longest_edge: int) -> tuple[int, int]:
    """The (height, width) at which the longer side of a picture is `longest_edge` pixels and the other side is even."""
    edge, ratio = min(longest_edge, SMOLVLM_LONGEST), width / height
    other = int(edge / ratio) if width >= height else int(edge * ratio)
    other = max(other + other % 2, 1)
    return (other, edge) if width >= height else (edge, other)


def smolvlm_frame(frame: torch.Tensor, *, longest_edge: int, side: int) -> torch.Tensor:
    """A (3, h, w) uint8 frame as SmolVLM sees it, (3, side, side): resized to `smolvlm_size`, then to a square."""
    size = smolvlm_size(*frame.shape[1:], longest_edge=longest_edge)
    return resize(resize(frame, size, "lanczos"), (side, side), "lanczos")


def smolvlm_grid(height: int, width: int, *, longest_edge: int, side: int) -> tuple[int, int]:
    """The (rows, columns) of tiles in which SmolVLM sees a picture."""
    height, width = smolvlm_size(height, width, longest_edge=longest_edge)
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / side)
        return math.ceil(int(columns * side / ratio) / side), columns
    rows = math.ceil(height / side)
    return rows, math.ceil(int(rows * side * ratio) / side)


def smolvlm_tiles(picture: torch.Tensor, *, longest_edge: int, side: int) -> tuple[torch.Tensor, int, int]:
    """A (3, h, w) uint8 picture as SmolVLM sees it: tiles and, if there are several, the whole picture last.

    Returns:
        (tiles, 3, side, side), rows and columns.
    """
    rows, columns = smolvlm_grid(*picture.shape[1:], longest_edge=longest_edge, side=side)
    size = smolvlm_size(*picture.shape[1:], longest_edge=longest_edge)
    canvas = resize(resize(picture, size, "lanczos"), (rows * side, columns * side), "lanczos")
    whole = [resize(canvas, (side, side), "lanczos")[None]] if rows * columns > 1 else []
    return torch.cat([tiles(canvas, side), *whole]), rows, columns


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """(value / 255 - mean) / std as a multiplication and an addition: scale and shift, (3,) float32 each."""
    deviation = torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * deviation)).float(), (-torch.tensor(mean, dtype=torch.float64) / deviation).float()
