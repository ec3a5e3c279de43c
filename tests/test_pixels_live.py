"""Pixels against transformers' own processors, with the settings of the published checkpoints."""

from typing import Any

import pytest
import torch
from oracle import processor

from flashvlm import pixels
from flashvlm.bench.random_weights import ARCHITECTURES, write_processor

# Height and width: landscape, portrait, odd, square, tiny, large, narrow.
SIZES = [(240, 426), (426, 240), (239, 321), (97, 101), (300, 300), (9, 17), (1080, 1920), (40, 1000), (1, 2)]
CASES = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' processor of a published checkpoint."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = processor(write_processor(tmp_path_factory.mktemp(name), ARCHITECTURES[name]))
        return made[name]

    return get


def settings(name: str, file: str = "preprocessor_config.json") -> dict[str, Any]:
    return dict(ARCHITECTURES[name].files[file])


def look(height: int, width: int, count: int = 1) -> torch.Tensor:
    """(count, 3, height, width) uint8 frames with both smooth and sharp parts."""
    generator = torch.Generator().manual_seed(height * width + count)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    sharp = torch.rand(count, 3, height, width, generator=generator)
    return (255 * torch.where(smooth > 0.6, sharp, smooth)).to(torch.uint8)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same grey levels, normalised the same to float32 rounding."""
    assert ours.dtype == theirs.dtype == torch.float32 and ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5


@CASES
@pytest.mark.parametrize("count", [2, 3, 8])
def test_qwen3_vl_video(theirs: Any, size: tuple[int, int], count: int) -> None:
    wanted = settings("qwen3-vl-2b", "video_preprocessor_config.json")
    # A budget for the whole video that long and large videos exceed.
    limits = {"shortest_edge": 4096, "longest_edge": 6 * 256 * 1024}
    frames = look(*size, count)
    given = theirs("qwen3-vl-2b").video_processor(
        frames, size=limits, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt"
    )
    new = pixels.qwen3_vl_size(
        *size, count, factor=32, temporal_patch_size=2, min_pixels=4096, max_pixels=6 * 256 * 1024
    )
    patches, grid = pixels.qwen2_vl_patches(
        torch.stack([pixels.resize(frame, new) for frame in frames]),
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=wanted["image_mean"],
        image_std=wanted["image_std"],
    )
    assert grid.tolist() == given["video_grid_thw"].tolist()
    assert_same(patches, given["pixel_values_videos"])


@CASES
def test_qwen3_vl_image(theirs: Any, size: tuple[int, int]) -> None:
    wanted = settings("qwen3-vl-2b")
    picture = look(*size)
    given = theirs("qwen3-vl-2b").image_processor(picture[0], return_tensors="pt")
    new = pixels.smart_resize(*size, factor=32, min_pixels=65536, max_pixels=16777216)
    patches, grid = pixels.qwen2_vl_patches(
        pixels.resize(picture[0], new)[None],
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=wanted["image_mean"],
        image_std=wanted["image_std"],
    )
    assert grid.tolist() == given["image_grid_thw"].tolist()
    assert_same(patches, given["pixel_values"])


@CASES
@pytest.mark.parametrize("name, side", [("llava-onevision-0.5b", 384), ("internvl3-1b", 448)])
def test_frames_squeezed_into_a_square(theirs: Any, name: str, side: int, size: tuple[int, int]) -> None:
    wanted = settings(name, "video_preprocessor_config.json")
    frames = look(*size, 3)
    given = theirs(name).video_processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][0]
    squares = torch.stack([pixels.resize(frame, (side, side)) for frame in frames])
    assert_same(pixels.normalised(squares, wanted["image_mean"], wanted["image_std"]), given)


@CASES
def test_llava(theirs: Any, size: tuple[int, int]) -> None:
    given = theirs("llava-1.5-7b").image_processor(picture := look(*size)[0], return_tensors="pt")["pixel_values"]
    mean, std = theirs("llava-1.5-7b").image_processor.image_mean, theirs("llava-1.5-7b").image_processor.image_std
    resized = pixels.resize(picture, pixels.shortest_edge_size(*size, 336))
    assert_same(pixels.clip_pixels(resized[None], side=336, image_mean=mean, image_std=std), given)


@CASES
def test_smolvlm_video(theirs: Any, size: tuple[int, int]) -> None:
    wanted = settings("smolvlm2-500m")
    frames = look(*size, 2)
    given = theirs("smolvlm2-500m").video_processor(frames, do_sample_frames=False, return_tensors="pt")
    squares = torch.stack([pixels.smolvlm_frame(frame, longest_edge=2048, side=512) for frame in frames])
    assert_same(pixels.normalised(squares, wanted["image_mean"], wanted["image_std"]), given["pixel_values"][0])
    assert given["pixel_attention_mask"].all()
