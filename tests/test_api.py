"""The library as another program uses it: threads, other people's numbers, mistakes, and what it leaves alone."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import flashvlm
from flashvlm import AskOptions, VideoQA, overlay, page
from flashvlm.errors import FlashVLMError, ModelError, UsageError, VideoError
from flashvlm.options import Keep, Sampling
from flashvlm.pipeline import Watched
from flashvlm.samples import samples_dir
from flashvlm.selection import SELECTORS, select
from flashvlm.selection.inputs import Inputs

ONE, TWO = samples_dir() / "one.mp4", samples_dir() / "two.mp4"
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def one(demo: VideoQA) -> Watched:
    return demo.watch(ONE, AskOptions())


def test_the_package_tells_what_it_has() -> None:
    assert {"AskOptions", "VideoQA", "__version__", "errors", "selection", "overlay"} <= set(dir(flashvlm))


def test_modules_need_no_import_of_their_own() -> None:
    named = "[flashvlm.errors.UsageError, flashvlm.selection.select, flashvlm.overlay.write, flashvlm.page.write]"
    program = f"import sys, flashvlm; print({{'torch', 'numpy', 'PIL'}} & set(sys.modules)); print(len({named}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n4\n", "")


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_threads_get_the_answers_of_one_after_another(demo: VideoQA, one: Watched, temperature: float) -> None:
    def said(seed: int) -> str:
        options = AskOptions(temperature=temperature, seed=seed, max_new_tokens=12)
        return demo.answer(one, QUESTION, options).answer

    alone = [said(seed) for seed in range(6)]
    assert len(set(alone)) == (1 if temperature == 0 else 6)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(said, range(6))) == alone


def test_what_is_not_sampled_leaves_the_random_state_alone(demo: VideoQA, one: Watched, monkeypatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeded"))
    assert demo.answer(one, QUESTION, AskOptions()).answer


def test_numbers_of_other_libraries_become_json() -> None:
    options = AskOptions(
        seed=np.int64(3),
        temperature=np.float32(0.5),
        max_pixels=np.int32(100_000),
        sampling=Sampling(fps=Fraction(1, 2), start=np.float64(1)),
    )
    given = [options.seed, options.temperature, options.max_pixels, options.sampling.fps, options.sampling.start]
    assert json.loads(json.dumps(given)) == [3, 0.5, 100_000, 0.5, 1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Keep(share=Decimal(2)),
        lambda: Keep(share=0.1),
        lambda: Keep(count=0),
        lambda: Keep(count="5"),
        lambda: Keep(count=5, delta=0.3),
        lambda: Keep(delta=float("nan")),
        lambda: Sampling(end=float("nan")),
        lambda: Sampling(end=float("inf")),
        lambda: Sampling(start=float("inf")),
        lambda: VideoQA.from_pretrained("demo", device="cpu:x"),
        lambda: VideoQA.from_pretrained("demo", device=0),
        lambda: VideoQA.from_pretrained("demo", dtype=torch.int8),
        lambda: overlay.write("kept.png", []),
        lambda: page.write("kept.html", []),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(wrong) -> None:
    with pytest.raises(UsageError):
        wrong()


@pytest.mark.parametrize("path", [None, b"one.mp4", 3, [ONE, 3], [[ONE]], np.zeros(3)])
def test_what_is_no_path_is_wrong_usage(demo: VideoQA, path) -> None:
    with pytest.raises(UsageError, match="given as a path"):
        demo.ask(path, QUESTION)


@pytest.mark.parametrize("options", [{}, {"keep": 0.1}, 0.1, "10%"])
def test_options_of_another_type_are_wrong_usage(demo: VideoQA, one: Watched, options) -> None:
    for ask in (demo.ask, demo.watch):
        with pytest.raises(UsageError, match="options must be AskOptions"):
            ask(ONE, *([QUESTION] if ask == demo.ask else []), options)
    with pytest.raises(UsageError, match="options must be AskOptions"):
        demo.answer(one, QUESTION, options)


def test_a_device_and_a_dtype_may_be_torch_s_own(demo: VideoQA) -> None:
    qa = VideoQA.from_pretrained("demo", device=torch.device("cpu"), dtype=torch.float32)
    assert qa.ask(ONE, QUESTION).model.dtype == "float32"


def test_no_name_of_a_video_or_a_model_breaks_it(demo: VideoQA) -> None:
    with pytest.raises(VideoError, match="name of the video is empty"):
        demo.ask("", QUESTION)
    with pytest.raises(ModelError, match="There is no model"):
        VideoQA.from_pretrained("x" * 3000)


def test_pictures_of_two_videos_at_once_are_refused(demo: VideoQA, one: Watched, tmp_path: Path) -> None:
    two = demo.watch(TWO, AskOptions())
    both = [demo.inspect(demo.choose(watched, QUESTION, AskOptions())) for watched in (one, two)]
    for write, name in ((overlay.write, "kept.png"), (overlay.write, "kept.webp"), (page.write, "kept.html")):
        with pytest.raises(UsageError, match="shows one video"):
            write(tmp_path / name, both)
    assert not list(tmp_path.iterdir())


def test_a_further_question_costs_no_decoding(demo: VideoQA, one: Watched) -> None:
    first, second = (demo.answer(seen, QUESTION, AskOptions()) for seen in (one, one.again()))
    assert first.seconds.decode > 0 and not first.cached
    assert second.seconds.decode == second.seconds.encode == 0 and second.cached
    assert second.moments == first.moments


def test_an_answer_tells_how_its_video_was_looked_at(demo: VideoQA, one: Watched) -> None:
    other = AskOptions(keep=0.2, sampling=Sampling(frames=4), encode="all")
    settings = demo.answer(one, QUESTION, other).settings
    assert (settings["keep"], settings["encode"], settings["sampling"]["frames"]) == ("20%", "changed", None)


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_default_dtype_is_the_caller_s(selector: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, words = (torch.randn(count, 32, generator=generator) for count in (300, 3))
    saliency = torch.rand(300, generator=generator)

    def selected():
        return select(tokens, saliency, words, group_sizes=[100] * 3, budget=30, selector=selector)

    usual = selected()
    torch.set_default_dtype(torch.float64)
    try:
        other = selected()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(other.indices, usual.indices) and other.delta == usual.delta
    assert other.scores.dtype == torch.float32


def test_a_selector_that_returns_none_is_named(one: Watched) -> None:
    def nothing(inputs: Inputs):
        return None

    tokens = one.encoded.tokens
    with pytest.raises(ValueError, match="'nothing' must return a Selection, not NoneType"):
        select(tokens, one.encoded.saliency, tokens[:0], group_sizes=[len(tokens)], budget=3, selector=nothing)


def test_every_error_has_an_exit_code() -> None:
    assert {kind.exit_code for kind in (FlashVLMError, UsageError, VideoError, ModelError)} == {1, 2, 3, 4}
