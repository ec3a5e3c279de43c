"""What the file of a new selector or model family gets wrong is said at once, and by its name."""

import sys
import types
from pathlib import Path

import pytest
import torch
from checkpoints import load, noise, tiny_video_llava
from torch import Tensor

from flashvlm import selection
from flashvlm.backends.base import Backend
from flashvlm.backends.video_llava import VideoLlava
from flashvlm.errors import ModelError
from flashvlm.selection.result import Selection


def keeping(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> Selection:
    """Eight tokens, three to keep, by a selector that has a file and a line of its own, and keeps these."""
    module = types.ModuleType("flashvlm.selection.mine")
    module.mine = lambda inputs: Selection.of(inputs, torch.tensor(chosen, dtype=torch.long))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(selection._REGISTRY, "mine", ("mine", "mine"))
    monkeypatch.setattr(selection, "SELECTORS", (*selection.SELECTORS, "mine"))
    tokens = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    return selection.select(tokens, torch.ones(8), tokens[:0], group_sizes=[4, 4], budget=3, selector="mine")


def test_a_selector_of_ones_own_is_asked_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping([6, 1, 3], monkeypatch).indices.tolist() == [1, 3, 6]


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
def test_a_selector_that_misses_its_budget_is_told(
    chosen: list[int], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"'mine' must keep 3 tokens, each once; it gave {given}"):
        keeping(chosen, monkeypatch)


def test_a_family_says_what_it_is() -> None:
    with pytest.raises(TypeError, match="Nameless must say its family"):
        type("Nameless", (Backend,), {"model_class": "SomeModel"})
    with pytest.raises(TypeError, match="Nameless must say its model_class"):
        type("Nameless", (Backend,), {"family": "some"})


class NoClassTokens(VideoLlava):
    class_tokens = 0


class OtherCells(VideoLlava):
    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        return 3, 1


class TwoFrames(VideoLlava):
    frames_per_group = 2


class Flattened(VideoLlava):
    def see(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        tokens, saliency = super().see(frames)
        return tokens, saliency.flatten()


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
        own.encode(noise(groups * family.frames_per_group, 28, 28))


def test_a_chat_template_without_a_place_for_a_video_is_told(tmp_path: Path) -> None:
    backend = load(tiny_video_llava(tmp_path)).backend
    backend.tokenizer.chat_template = "{% for message in messages %}USER: hello {% endfor %}"
    with pytest.raises(ModelError, match="has no place for a video"):
        backend.prompt("What happens?", None)
