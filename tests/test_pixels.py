import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flashvlm.errors import VideoError
from flashvlm.pixels import clip_pixels, qwen2_vl_patches, resize, shortest_edge_size, smart_resize

GOLDEN = np.load(Path(__file__).parent / "golden" / "preprocess.npz")
META = json.loads(bytes(GOLDEN["meta_json"]))
SETTINGS, CLIP = META["qwen2_vl"], META["video_llava"]
CASES = sorted(name.split("/")[1] for name in GOLDEN.files if name.startswith("qwen2_vl/") and name.endswith("/frames"))
CLIP_CASES = sorted(name.split("/")[1] for name in GOLDEN.files if name.startswith("video_llava/"))
QWEN = {name: SETTINGS[name] for name in ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")}
PIXELS = {"min_pixels": SETTINGS["size"]["shortest_edge"], "max_pixels": SETTINGS["size"]["longest_edge"]}


@pytest.mark.parametrize("case", CASES)
def test_qwen2_vl_pixels_agree_with_transformers(case):
    frames = torch.from_numpy(GOLDEN[f"qwen2_vl/{case}/frames"]).permute(0, 3, 1, 2)
    size = smart_resize(*frames.shape[2:], factor=28, **PIXELS)
    pixel_values, grid_thw = qwen2_vl_patches(torch.stack([resize(frame, size) for frame in frames]), **QWEN)

    expected = torch.from_numpy(GOLDEN[f"qwen2_vl/{case}/pixel_values"]).float()
    assert grid_thw.tolist() == [GOLDEN[f"qwen2_vl/{case}/grid_thw"].tolist()]
    assert pixel_values.dtype == torch.float32 and pixel_values.shape == expected.shape
    grey_level = 1 / 255 / min(SETTINGS["image_std"])
    assert (pixel_values - expected).abs().max() <= grey_level + 2**-10


@pytest.mark.parametrize("case", CLIP_CASES)
def test_video_llava_pixels_agree_with_transformers(case):
    frames = torch.from_numpy(GOLDEN[f"qwen2_vl/{case}/frames"]).permute(0, 3, 1, 2)
    size = shortest_edge_size(*frames.shape[2:], CLIP["size"]["shortest_edge"])
    resized = torch.stack([resize(frame, size) for frame in frames])
    side, mean, std = CLIP["crop_size"]["height"], CLIP["image_mean"], CLIP["image_std"]
    pixel_values = clip_pixels(resized, side=side, image_mean=mean, image_std=std)

    expected = torch.from_numpy(GOLDEN[f"video_llava/{case}/pixel_values"]).float()
    assert pixel_values.dtype == torch.float32 and pixel_values.shape == expected.shape
    grey_level = 1 / 255 / min(CLIP["image_std"])
    assert (pixel_values - expected).abs().max() <= grey_level + 2**-10


def test_the_merged_patches_of_a_token_are_next_to_each_other():
    columns = torch.arange(8).repeat_interleave(2).expand(16, 16)
    rows = columns.T
    numbers = (rows * 8 + columns).to(torch.uint8).expand(2, 3, 16, 16)
    pixel_values, grid_thw = qwen2_vl_patches(
        numbers, patch_size=2, temporal_patch_size=2, merge_size=2, image_mean=(0, 0, 0), image_std=(1, 1, 1)
    )
    assert grid_thw.tolist() == [[1, 8, 8]]
    assert (pixel_values[:, 0] * 255).round().int().tolist()[:8] == [0, 1, 8, 9, 2, 3, 10, 11]


def test_an_odd_last_frame_is_repeated():
    frames = torch.randint(0, 256, (3, 3, 28, 56), dtype=torch.uint8)
    pixel_values, grid_thw = qwen2_vl_patches(frames, **QWEN)
    repeated, _ = qwen2_vl_patches(torch.cat([frames, frames[-1:]]), **QWEN)
    assert grid_thw.tolist() == [[2, 2, 4]]
    assert torch.equal(pixel_values, repeated)


@pytest.mark.parametrize("height, width", [(1080, 1920), (239, 321), (9, 17), (28, 28), (3000, 40), (100, 19999)])
def test_smart_resize_gives_whole_tokens_within_the_limits(height, width):
    new_height, new_width = smart_resize(height, width, factor=28, min_pixels=56 * 56, max_pixels=768 * 28 * 28)
    assert new_height % 28 == new_width % 28 == 0
    assert 56 * 56 <= new_height * new_width <= 768 * 28 * 28


def test_smart_resize_keeps_a_size_that_already_fits():
    assert smart_resize(280, 560, factor=28, min_pixels=56 * 56, max_pixels=768 * 28 * 28) == (280, 560)


def test_a_frame_200_times_longer_than_wide_is_refused():
    with pytest.raises(VideoError, match="3000 x 10 pixels"):
        smart_resize(10, 3000, factor=28, min_pixels=56 * 56, max_pixels=768 * 28 * 28)


def test_resize_stays_uint8_and_does_not_overshoot():
    frame = torch.zeros(3, 40, 40, dtype=torch.uint8)
    frame[:, :, 20:] = 255
    resized = resize(frame, (28, 56))
    assert resized.shape == (3, 28, 56) and resized.dtype == torch.uint8
    assert resized[:, :, :20].max() < 30 and resized[:, :, -20:].min() > 225


def test_resize_to_the_same_size_does_nothing():
    frame = torch.randint(0, 256, (3, 28, 56), dtype=torch.uint8)
    assert resize(frame, (28, 56)) is frame
