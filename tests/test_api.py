"""The library as another program uses it: threads, other people's numbers, mistakes, and what it leaves alone."""

import gc
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import flashvlm
from flashvlm import AskOptions, Frames, VideoQA, overlay, page
from flashvlm.errors import FlashVLMError, ModelError, UsageError, VideoError, sentence_of
from flashvlm.options import OPTIONS, Arguments, Keep, Sampling
from flashvlm.pipeline import Watched
from flashvlm.samples import samples_dir
from flashvlm.selection import SELECTORS, select
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.result import Selection

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


HISTORY = [("Which animal is there?", "butterfly"), ("Is there a dog?", "no")]


def test_earlier_questions_are_read_and_the_tokens_are_those_of_the_newest(demo: VideoQA, one: Watched) -> None:
    alone = demo.answer(one, QUESTION, AskOptions())
    again = demo.answer(one, QUESTION, AskOptions(), history=HISTORY)
    assert again.moments == alone.moments and again.tokens == alone.tokens
    earlier = len(demo.backend.prompt(QUESTION, None, [one.encoded], HISTORY).ids) - alone.prompt_tokens.before
    assert earlier > 0
    assert again.prompt_tokens.before - alone.prompt_tokens.before == earlier
    assert again.prompt_tokens.after - alone.prompt_tokens.after == earlier
    assert again.to_json()["history"] == tuple(HISTORY) and "history" not in alone.to_json()
    assert [warning for warning in again.warnings if "trained on single questions" in warning]
    assert demo.ask(ONE, QUESTION, history=HISTORY).answer == again.answer


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ("Who?", "must be pairs"),
        ([("Who?",)], "must be pairs"),
        ([("Who?", None)], "must be pairs"),
        ([("Who?", "\ud800")], "The history is not valid Unicode"),
        ([("Who?", "<|video_pad|>")], "must not contain the model's own marker"),
        ([("dog " * 20_000, "dog")] * 2, "The history is longer than the 32768 tokens"),
    ],
)
def test_a_history_that_is_none_is_told(demo: VideoQA, one: Watched, history: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        demo.answer(one, QUESTION, AskOptions(), history=history)


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
        lambda: VideoQA.from_pretrained("demo", dtype=torch.int16),
        lambda: overlay.write("kept.png", []),
        lambda: page.write("kept.html", []),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(wrong) -> None:
    with pytest.raises(UsageError):
        wrong()


@pytest.mark.parametrize("path", [None, 3, [ONE, 3], [[ONE]]])
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


def test_arguments_for_type_checkers_are_the_options() -> None:
    assert sorted(Arguments.__annotations__) == sorted([*OPTIONS, "sampling"])


def test_options_are_given_in_one_way_everywhere(demo: VideoQA) -> None:
    options = AskOptions(keep="5%", fps=1, start="0:01")
    assert (options.keep, options.sampling) == (Keep.parse("5%"), Sampling(fps=1, start=1))
    asked = demo.ask(ONE, QUESTION, keep="5%", fps=1, start="0:01")
    watched = demo.watch(ONE, fps=1, start="0:01", keep=0.05)
    assert watched.options == options
    answers = [demo.answer(watched, QUESTION), demo.answer(demo.watch(ONE, options), QUESTION, options), asked]
    assert [answer.moments for answer in answers] == [asked.moments] * 3
    assert demo.answer(watched, QUESTION, keep=3).tokens.after == 3
    assert demo.choose([watched, watched], QUESTION, options, keep=4).options == options.changed(keep=4)


@pytest.mark.parametrize(
    "given, named",
    [
        ({"keep": "150%"}, "`keep` must be more than 0"),
        ({"max_frames": 0}, "`max_frames` must be at least 1"),
        ({"fps": 1, "frames": 2}, "Give `fps` or `frames`, not both"),
        ({"start": 5, "end": 5}, r"`end` \(5 s\) must come after `start` \(5 s\)"),
        ({"seed": "x"}, "`seed` must be a whole number"),
        ({"keep": "auto", "selector": "paper"}, "`keep` auto is for `selector` flashvlm"),
        ({"sampling": 3}, "`sampling` must be a Sampling"),
        ({"max_frame": 3}, "There is no option 'max_frame'; .* Did you mean max_frames"),
    ],
)
def test_messages_name_the_argument_here_and_the_option_on_the_command_line(demo: VideoQA, given, named) -> None:
    for call in (AskOptions, lambda **given: demo.ask(ONE, QUESTION, **given)):
        with pytest.raises(UsageError, match=named) as raised:
            call(**given)
        assert "--" not in str(raised.value)
    names = re.findall("`([a-z_]+)`", str(raised.value))
    assert all(f"--{name.replace('_', '-')}" in sentence_of(raised.value) for name in names if name != "sampling")


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    with av.open(str(ONE)) as file:
        return [frame.to_image() for frame in file.decode(video=0)]


def test_a_video_may_be_bytes_or_an_open_file(demo: VideoQA, tmp_path: Path) -> None:
    expected = demo.ask(ONE, QUESTION).moments
    content = ONE.read_bytes()
    with open(ONE, "rb") as file:
        answers = [demo.ask(given, QUESTION) for given in (content, io.BytesIO(content), file)]
    assert [answer.moments for answer in answers] == [expected] * 3
    stored = Path(answers[0].video.path)
    overlay.write(tmp_path / "kept.png", answers[:1])
    assert stored.is_file() and Path(answers[2].video.path) == ONE
    del answers
    gc.collect()
    assert not stored.exists()


def test_a_video_may_be_frames_with_their_times(demo: VideoQA, frames: list[Image.Image], tmp_path: Path) -> None:
    expected = demo.ask(ONE, QUESTION, seek="exact")
    fps = expected.video.fps
    array = np.stack([np.asarray(frame) for frame in frames])
    times = [3 + place / fps for place in range(len(frames))]
    given = [
        Frames(frames, fps=fps),
        Frames(array, timestamps=times),
        Frames(torch.from_numpy(array).permute(0, 3, 1, 2), fps=fps),
    ]
    answers = [demo.ask(one, QUESTION, seek="exact") for one in given]
    assert [answer.moments for answer in answers] == [expected.moments] * 3
    assert answers[0].video.duration == pytest.approx(expected.video.duration)
    assert set(answers[0].to_json()["video"]) == set(expected.to_json()["video"])
    overlay.write(tmp_path / "frames.png", answers[:1])
    overlay.write(tmp_path / "file.png", [expected])
    drawn = [np.asarray(Image.open(tmp_path / name))[200:] for name in ("frames.png", "file.png")]
    assert np.array_equal(*drawn)


def test_a_picture_may_be_an_array_or_one_of_pillow(demo: VideoQA, frames: list[Image.Image]) -> None:
    array = np.asarray(frames[-1])
    answers = [demo.ask(one, QUESTION) for one in (frames[-1], array, torch.tensor(array).permute(2, 0, 1))]
    assert len({(answer.answer, answer.moments, answer.video.duration) for answer in answers}) == 1
    assert len(demo.ask(frames[:2], QUESTION).videos) == 2


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: VideoQA.watch, "given as a path"),
        (lambda: np.zeros((4, 8, 8, 3), np.uint8), r"4 frames do not say when .* flashvlm.Frames\(frames, fps="),
        (lambda: np.zeros(3), r"A frame must be \(H, W, 3\) or \(3, H, W\) uint8, not \(3,\) float64"),
        (lambda: Frames(np.zeros((2, 8, 8, 3), np.uint8)), "Give the fps of frames or their timestamps"),
        (lambda: Frames([np.zeros((8, 8, 3), np.uint8)] * 2, timestamps=[1.0]), "2 frames need 2 timestamps"),
        (lambda: Frames([np.zeros((8, 8, 3), np.uint8)] * 2, timestamps=[1, 1]), "must be ascending"),
        (lambda: Frames([np.zeros((n, 8, 3), np.uint8) for n in (8, 9)], fps=1), "pictures of one size"),
        (lambda: Frames([], fps=1), "pictures of one size"),
        (lambda: Frames(["one.png"], fps=1), "A frame is an array, a tensor or a picture of Pillow, not 'one.png'"),
        (lambda: io.StringIO("text"), "binary mode"),
    ],
)
def test_what_is_no_video_in_memory_is_wrong_usage(demo: VideoQA, wrong, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        demo.ask(wrong(), QUESTION)


def test_bytes_that_are_no_video_are_told(demo: VideoQA) -> None:
    for content, said in ((b"", "the file is empty"), (b"one.mp4", "not a video or a picture")):
        with pytest.raises(VideoError, match=said):
            demo.ask(content, QUESTION)


def test_results_are_short_in_a_console_and_reports_in_a_notebook(demo: VideoQA, one: Watched) -> None:
    choice = demo.choose(one, QUESTION)
    answer, inspection = demo.respond(choice), demo.inspect(choice)
    shown = [repr(value) for value in (demo, one, choice, answer, inspection, choice.selection, one.encoded)]
    assert all(len(text) < 200 for text in shown)
    assert shown[3].startswith(f"<Answer {answer.answer!r} to 'What happens?' on one.mp4: ")
    for seen in (answer, inspection):
        page = seen._repr_html_()
        assert page.startswith("<iframe srcdoc=") and page.count("<iframe") == 1 and "data:image/webp" in page
        # An answer keeps no signals.
        assert ("data-layer=&quot;distance" in page) == (seen is inspection)
    gone = replace(answer, video=replace(answer.video, path="gone.mp4"))
    assert gone._repr_html_() is None


def test_a_model_that_is_loaded_already_is_wrapped(demo: VideoQA) -> None:
    folder = demo.backend.folder
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.num_beams = 3
    processor = transformers.AutoProcessor.from_pretrained(folder)
    answer = VideoQA(model=model, processor=processor).ask(ONE, QUESTION, cache=True)
    expected = demo.ask(ONE, QUESTION)
    assert (answer.answer, answer.moments, answer.warnings) == (expected.answer, expected.moments, ())
    assert model.generation_config.num_beams == 3


def test_neither_no_question_nor_a_path_is_answered(demo: VideoQA) -> None:
    with pytest.raises(UsageError, match="The question is empty"):
        demo.ask(ONE, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`watched` must be what `watch` returned"):
        demo.answer(str(ONE), QUESTION)  # type: ignore[arg-type]


def test_what_cannot_be_wrapped_is_told(demo: VideoQA) -> None:
    for wrong in ({}, {"model": demo.backend.model}, {"model": "demo", "processor": demo.backend.tokenizer}):
        with pytest.raises(UsageError, match="takes a model of transformers and its processor"):
            VideoQA(**wrong)
    with pytest.raises(UsageError, match="from_pretrained loads a checkpoint"):
        VideoQA("demo")
    with pytest.raises(ModelError, match="Models of type 'bert' are not supported"):
        tiny = transformers.BertConfig(hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=4)
        processor = transformers.AutoProcessor.from_pretrained(demo.backend.folder)
        VideoQA(model=transformers.BertModel(tiny), processor=processor)


def test_a_selector_of_ones_own_is_asked_end_to_end(demo: VideoQA) -> None:
    def first(inputs: Inputs) -> Selection:
        return Selection.of(inputs, torch.arange(inputs.budget))

    answer = demo.ask(ONE, QUESTION, selector=first, keep=5)
    assert answer.tokens.after == 5 and answer.moments[0].kept_count == 5
    assert answer.selection.selector == answer.to_json()["settings"]["selector"] == "first"
    with pytest.raises(UsageError, match="'<lambda>' must keep 5 tokens, each once; it gave 1"):
        demo.ask(ONE, QUESTION, keep=5, selector=lambda inputs: Selection.of(inputs, torch.arange(1)))
