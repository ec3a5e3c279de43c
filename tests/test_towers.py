"""Families with a vision tower of plain layers: their saliency is attention that transformers' own tower reports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, load, noise
from torch import Tensor
from torch.nn import functional as F

from flashvlm.encode import encode
from flashvlm.errors import ModelError
from flashvlm.options import AskOptions


def received(attention: Tensor) -> Tensor:
    """What each patch receives from the others, from (F, P, P) to (F, 1, side, side)."""
    others = attention.sum(1) - attention.diagonal(dim1=1, dim2=2)
    return square(others / (attention.shape[1] - 1))


def square(patches: Tensor) -> Tensor:
    side = int(patches.shape[1] ** 0.5)
    return patches.view(-1, 1, side, side)


# Each layer's attention, averaged over heads, (F, P, P) -> the saliency of cells.
OF_FAMILY: dict[str, Any] = {
    "smolvlm": lambda layers: F.avg_pool2d(received(layers[-1]), 4),
    "llava_onevision": lambda layers: F.interpolate(received(layers[-1]), (3, 3), mode="bilinear"),
    "internvl": lambda layers: F.avg_pool2d(square(layers[-1][:, 0, 1:]), 2),
    "llava": lambda layers: layers[-2][:, 0, 1:],
}


@pytest.mark.parametrize("family", OF_FAMILY)
def test_saliency_is_the_attention_in_the_layer_that_the_features_come_from(family: str, tmp_path: Path) -> None:
    backend = load(FAMILIES[family](tmp_path)).backend
    frames = noise(3, *backend.frame_size(90, 160, AskOptions()))
    (pixels,) = backend.pixels(frames).values()
    model = backend.model.model
    tower = model.vision_model if family == "smolvlm" else model.vision_tower
    found = encode(backend, frames).saliency
    backend.model.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = tower(pixels.view(3, *pixels.shape[-3:]), output_attentions=True).attentions
    expected = OF_FAMILY[family]([layer.mean(1) for layer in layers])
    torch.testing.assert_close(found, expected.flatten(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "family, file, change, message",
    [
        ("llava", "config.json", {"vision_feature_select_strategy": "full"}, "'full' is not supported"),
        ("llava", "preprocessor_config.json", {"do_pad": True}, "padded to squares"),
        ("internvl", "config.json", {"vision_feature_layer": -2}, "vision layer -2"),
    ],
)
def test_what_would_be_wrong_silently_is_refused(
    family: str, file: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_the_settings_of_a_model_of_pictures_are_found_where_transformers_5_saves_them(tmp_path: Path) -> None:
    folder = FAMILIES["llava"](tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"size": {"shortest_edge": 80}}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load(folder).backend.frame_size(100, 200, AskOptions()) == (80, 160)


def test_smolvlm_is_told_the_time_of_every_frame_in_words(tmp_path: Path) -> None:
    backend = load(FAMILIES["smolvlm"](tmp_path)).backend
    times = [0.0, 59.99, 3599.0 + 60 * 60]
    seen = encode(backend, noise(3, 64, 64), timestamps=times, duration=7262.9)
    text = backend.tokenizer.decode(backend.prompt("Why?", None, [seen]).ids)
    image = "<fake_token_around_image><global-img><image><image><image><image><fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of three frames from a 2:01:02 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{image}\nFrame from 00:59:{image}\nFrame from 119:59:{image}\n\nWhy?<end_of_utterance>\n"
        "Assistant:"
    )
