"""Saliency of the families with a vision tower is attention that transformers' own tower reports; where cells lie."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, load, noise
from torch import Tensor
from torch.nn import functional as F

from flashvlm.encode import encode
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
