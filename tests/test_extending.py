"""What the file of a new selector or model family gets wrong is said at once, and by its name."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import around, load, noise, tiny_qwen3_vl, tiny_video_llava
from torch import Tensor

from flashvlm.backends import FAMILIES, rehearse, served
from flashvlm.backends.video_llava import VideoLlava
from flashvlm.bench.speed import their_encoding
from flashvlm.encode import Features, encode
from flashvlm.errors import ModelError, UsageError
from flashvlm.samples import samples_dir
from flashvlm.selection import select
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection


def keeping(chosen: list[int]) -> Selection:
    """Eight tokens, three to keep, by a selector that keeps these."""

    def mine(inputs: Inputs) -> Selection:
        return Selection.of(inputs, torch.tensor(chosen, dtype=torch.long))

    tokens = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return select(tokens, torch.ones(8), tokens[:0], group_sizes=[4, 4], budget=3, selector=mine)


def test_a_selector_of_ones_own_is_asked_like_any_other() -> None:
    assert keeping([6, 1, 3]).indices.tolist() == [1, 3, 6]


@pytest.mark.parametrize(
    "chosen, given",
    [
        ([], "none"),
        ([1, 2], "2, from 1 to 2"),
        ([1, 2, 3, 4], "4, from 1 to 4"),
        ([1, 1, 2], "3, from 1 to 2"),
        ([-1, 1, 2], "3, from -1 to 2"),
    ],
)
def test_a_selector_that_misses_its_budget_is_told(chosen: list[int], given: str) -> None:
    with pytest.raises(ValueError, match=f"'mine' must keep 3 tokens, each once; it gave {given}"):
        keeping(chosen)


class NoClassTokens(VideoLlava):
    class_tokens = 0


class OtherCells(VideoLlava):
    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return 3, 1


class TwoFrames(VideoLlava):
    frames_per_group = 2


class Flattened(VideoLlava):
    def features(self, frames: Tensor) -> Features:
        tokens, saliency, _ = super().features(frames)
        return Features(tokens, saliency.flatten())


@pytest.mark.parametrize(
    "family, groups, expected",
    [
        (NoClassTokens, 3, "3 groups of 4: 0 class tokens and 2 x 2 cells"),
        (OtherCells, 3, "3 groups of 4: 1 class tokens and 3 x 1 cells"),
        (TwoFrames, 2, "2 groups of 5: 1 class tokens and 2 x 2 cells"),
        (Flattened, 3, r"saliency \(15,\) do not fit 3 groups of 5"),
    ],
)
def test_tokens_that_are_not_those_of_the_grid_are_told(
    family: type[VideoLlava], groups: int, expected: str, tmp_path: Path
) -> None:
    backend = load(tiny_video_llava(tmp_path)).backend
    own = family(backend.model, backend.tokenizer, backend.folder)
    with pytest.raises(ValueError, match=expected):
        encode(own, noise(groups * family.frames_per_group, 28, 28))


class PlainTuple(VideoLlava):
    def features(self, frames: Tensor) -> Features:
        return tuple(super().features(frames))  # type: ignore[return-value]


def test_features_of_another_type_are_told(tmp_path: Path) -> None:
    backend = load(tiny_video_llava(tmp_path)).backend
    with pytest.raises(ValueError, match=r"PlainTuple\.features must return Features, not tuple"):
        encode(PlainTuple(backend.model, backend.tokenizer, backend.folder), noise(3, 28, 28))


def test_visual_tokens_that_nobody_names_are_told(tmp_path: Path) -> None:
    backend = load(tiny_qwen3_vl(tmp_path)).backend
    backend.model = SimpleNamespace(config=SimpleNamespace(image_token_id=3))
    with pytest.raises(ValueError, match=r"Qwen3VL must define visual_tokens: its .* has no video_token_id"):
        rehearse(backend)


def test_a_family_without_the_name_of_its_class_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "mine", "flashvlm.encode:Features")
    with pytest.raises(ValueError, match="Features must set model_class to the name of a class of transformers"):
        served()


class OtherPixels(VideoLlava):
    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        return {"frames": super().pixels(frames)["pixel_values_videos"]}


def test_pixels_that_transformers_does_not_take_are_told(tmp_path: Path) -> None:
    qa = load(tiny_video_llava(tmp_path))
    qa.backend = OtherPixels(qa.backend.model, qa.backend.tokenizer, qa.backend.folder)
    with pytest.raises(UsageError, match=r"OtherPixels\.pixels gives frames, and .* get_video_features needs pixel"):
        their_encoding(qa.backend, qa.decode(samples_dir() / "one.mp4"))


def test_a_chat_template_without_a_place_for_a_video_is_told(tmp_path: Path) -> None:
    qa = load(tiny_video_llava(tmp_path))
    qa.backend.tokenizer.chat_template = "{% for message in messages %}USER: hello {% endfor %}"
    with pytest.raises(ModelError, match="has no place for a video"):
        around(qa, "What happens?")
