"""`flashvlm ask` from the file to the answer, with the demo model on the samples."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flashvlm import AskOptions, VideoQA
from flashvlm.errors import UsageError, VideoError
from flashvlm.generate import prefill_flops
from flashvlm.options import Keep, Sampling
from flashvlm.report import BeforeAfter
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

SAMPLES = samples_dir()
LINES = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
ASK = ["--model", "demo", "--device", "cpu", "--dtype", "float32"]


def share_right(demo: VideoQA, keep: str) -> float:
    right = 0
    for name in dict.fromkeys(line["video"] for line in LINES):
        options = AskOptions(keep=Keep.parse(keep))
        watched = demo.watch(SAMPLES / name, options)
        for line in (line for line in LINES if line["video"] == name):
            right += demo.answer(watched, line["question"], options).answer == line["answer"]
    return right / len(LINES)


def test_the_demo_model_answers_the_samples(demo: VideoQA) -> None:
    assert share_right(demo, "100%") >= 0.8


def test_a_tenth_of_the_tokens_answers_most_of_the_samples(demo: VideoQA) -> None:
    assert share_right(demo, "10%") >= 0.7


def test_the_answer_hangs_on_the_video(demo: VideoQA) -> None:
    said = [demo.ask(SAMPLES / name, "What happens?", keep="100%").answer for name in ("one.mp4", "hevc.mp4")]
    assert said[0] != said[1]


def test_the_object_of_json_holds_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(SAMPLES / "sequence.mp4"), "What comes first?", "--json", "--keep", "10%", *ASK]) == 0
    answer = json.loads(capsys.readouterr().out)
    moments = answer["moments"]
    kept = [len(moment["kept"]) for moment in moments]
    assert answer["frames"] == sum(len(moment["timestamps"]) for moment in moments) == 24
    assert answer["tokens"]["before"] == sum(moment["tokens"] for moment in moments)
    assert answer["tokens"]["after"] == sum(kept) == answer["selection"]["budget"]
    assert answer["selection"]["important"] == sum(sum(moment["important"]) for moment in moments)
    assert answer["selection"]["important"] + answer["selection"]["diverse"] == answer["tokens"]["after"]
    assert all(
        0 <= row < moment["grid_height"] and 0 <= column < moment["grid_width"]
        for moment in moments
        for row, column in moment["kept"]
    )
    times = [second for moment in moments for second in moment["timestamps"]]
    assert times == sorted(times) and times[0] == 0 and times[-1] <= answer["video"]["duration"]
    seconds = answer["seconds"]
    stages = sum(seconds[stage] for stage in ("decode", "encode", "select", "prefill"))
    assert seconds["time_to_first_token"] == pytest.approx(stages)
    assert answer["prompt_tokens"]["before"] - answer["prompt_tokens"]["after"] == sum(
        m["tokens"] for m in moments
    ) - sum(kept)
    # Keys and values of 4 layers, 2 heads of 64, in fp32.
    assert answer["kv_cache_bytes"]["after"] == answer["prompt_tokens"]["after"] * 2 * 4 * 2 * 64 * 4
    assert answer["settings"]["keep"] == "10%"
    assert answer["versions"]["transformers"]


@pytest.mark.parametrize("model", ["demo", "demo_video_llava"])
def test_operations_are_as_many_as_torch_counts(model: str, request: pytest.FixtureRequest) -> None:
    backend, count = request.getfixturevalue(model).backend, 300
    config = backend.text_config
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        hidden = backend.model.get_decoder()(inputs_embeds=torch.zeros(1, count, config.hidden_size), use_cache=False)
        backend.model.lm_head(hidden.last_hidden_state[:, -1:])
    # It does not count attention here: scores and weighted values, half of each masked.
    attention = 2 * config.num_hidden_layers * config.hidden_size * count**2
    computed = prefill_flops(backend, BeforeAfter(count, 2 * count))
    assert computed.before == counter.get_total_flops() + attention
    assert computed.after > 2 * computed.before


def test_streamed_pieces_are_the_answer(demo: VideoQA) -> None:
    pieces: list[str] = []
    stages: list[str] = []
    answer = demo.ask(SAMPLES / "one.mp4", "What happens?", on_text=pieces.append, on_stage=stages.append)
    assert "".join(pieces).strip() == answer.answer
    assert stages == ["decode", "encode", "select", "prefill", "generate"]


@pytest.mark.parametrize("selector", ["flashvlm", "paper", "uniform", "random"])
@pytest.mark.parametrize("keep", ["1", "5%", "100%"])
def test_a_budget_is_kept_to_the_token(demo: VideoQA, selector: str, keep: str) -> None:
    answer = demo.ask(SAMPLES / "still.jpg", "How many objects are there?", keep=keep, selector=selector)
    assert answer.tokens.after == Keep.parse(keep).budget(answer.tokens.before)
    assert (answer.selection.delta < 1e-6) == (keep == "100%")
    distinguishes = selector == "flashvlm" or (selector == "paper" and keep != "100%")
    split = answer.selection.important + answer.selection.diverse
    assert split == (answer.tokens.after if distinguishes else 0)


@pytest.mark.parametrize("metric", ["cosine", "centered", "euclidean"])
def test_a_radius_is_kept_to(demo: VideoQA, metric: str) -> None:
    near, far = (
        demo.ask(SAMPLES / "still.jpg", "What is there?", keep=f"delta={radius}", metric=metric)
        for radius in (0.1, 0.3)
    )
    assert near.selection.delta <= 0.1 and far.selection.delta <= 0.3
    assert far.tokens.after < near.tokens.after < near.tokens.before
    assert near.selection.metric == metric


def test_auto_keeps_some_of_every_moment(demo: VideoQA) -> None:
    answer = demo.ask(SAMPLES / "two.mp4", "What moves down?", keep="auto")
    assert len(answer.moments) <= answer.tokens.after < answer.tokens.before
    assert all(moment.kept for moment in answer.moments)


def test_merging_changes_no_count_and_no_place(demo: VideoQA) -> None:
    plain, merged = (demo.ask(SAMPLES / "one.mp4", "What happens?", merge=merge) for merge in (False, True))
    assert merged.moments == plain.moments
    assert merged.selection.merged and not plain.selection.merged
    whole, same = (demo.ask(SAMPLES / "one.mp4", "What happens?", keep="100%", merge=merge) for merge in (False, True))
    assert whole.answer == same.answer


def test_the_same_question_gets_the_same_answer_and_tokens(demo: VideoQA) -> None:
    one, other = (demo.ask(SAMPLES / "two.mp4", "What moves down?", keep=0.05) for _ in range(2))
    assert one.answer == other.answer and one.moments == other.moments


def test_a_seed_makes_sampling_repeatable(demo: VideoQA) -> None:
    def say(seed: int) -> str:
        return demo.ask(SAMPLES / "one.mp4", "What happens?", temperature=5.0, seed=seed, max_new_tokens=12).answer

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(4)}) > 1


def test_a_part_of_a_video_is_looked_at_alone(demo: VideoQA) -> None:
    answer = demo.ask(SAMPLES / "long.mp4", "What do you see?", start=60.0, end=90.0, frames=6)
    times = [second for moment in answer.moments for second in moment.timestamps]
    assert len(times) == 6 and min(times) >= 60 and max(times) <= 90


def test_max_pixels_makes_frames_smaller(demo: VideoQA) -> None:
    answer = demo.ask(SAMPLES / "still.jpg", "Where is the car?", max_pixels=28 * 28 * 30)
    assert answer.tokens.before <= 30


def test_a_question_with_words_that_the_model_cannot_read_gets_no_answer(demo: VideoQA) -> None:
    stages: list[str] = []
    with pytest.raises(UsageError, match=r"does not know the words now, zebra, 🦓: ask as questions.jsonl"):
        demo.ask(SAMPLES / "one.mp4", "Is there – “now” – a zebra\u200b, or a …🦓?", on_stage=stages.append)
    assert stages == []
    with pytest.raises(UsageError, match=r"the words a0, a1, a2, a3, a4 and 35 more"):
        demo.ask(SAMPLES / "one.mp4", " ".join(f"a{number}" for number in range(40)))


def test_what_is_kept_for_words_that_the_model_cannot_read_is_shown_with_a_warning(demo: VideoQA) -> None:
    watched = demo.watch(SAMPLES / "still.jpg", AskOptions())
    choice = demo.choose(watched, "Is there a zebra?", AskOptions())
    assert demo.inspect(choice).warnings == ("This model does not know: zebra. Its answer may be off.",)
    with pytest.raises(UsageError, match="zebra"):
        demo.respond(choice)
    answer = demo.answer(watched, "Is there a car?", AskOptions(system="zebra"))
    assert answer.answer == "yes" and "zebra" in answer.warnings[0]


def test_a_question_is_refused_on_standard_error_also_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(SAMPLES / "still.jpg"), "Is there a unicorn?", "-q", *ASK]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("flashvlm: This model does not know the word unicorn: ask as ")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ask", "no-such.mp4", "What happens?"], 3),
        (["ask", str(Path(__file__)), "What happens?"], 3),
        (["ask", str(SAMPLES), "What happens?"], 3),
        (["ask", str(SAMPLES / "one.mp4"), "What happens?", "--start", "1:00"], 2),
        (["ask", str(SAMPLES / "one.mp4"), "What is <|video_pad|>?"], 2),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, *ASK]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("flashvlm: ") and len(printed.err.splitlines()) == 1


def test_options_by_name_are_checked(demo: VideoQA) -> None:
    with pytest.raises(UsageError, match="no option"):
        demo.ask(SAMPLES / "one.mp4", "What happens?", kep=0.1)
    with pytest.raises(UsageError, match="selector"):
        demo.ask(SAMPLES / "one.mp4", "What happens?", selector="best")
    with pytest.raises(VideoError):
        demo.ask("nowhere.mp4", "What happens?")


@pytest.mark.parametrize(
    ("text", "tokens", "budget"),
    [
        ("10%", 512, 51),
        ("10%", 515, 52),  # 51.5, half up
        ("0.1", 5, 1),  # 0.5, half up
        ("0.01%", 100, 1),  # at least one
        ("1.0", 512, 512),
        ("100%", 512, 512),
        ("1", 512, 1),
        ("256", 512, 256),
        ("256", 100, 100),
        ("22.2%", 1000, 222),
    ],
)
def test_keep_is_a_share_or_a_count(text: str, tokens: int, budget: int) -> None:
    assert Keep.parse(text).budget(tokens) == budget


@pytest.mark.parametrize(
    "text", ["0", "0%", "0.0", "-1", "-5%", "101%", "1.5", "ten", "", "%", ".", "nan", "1e3", "10 %%"]
)
def test_other_budgets_are_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError):
        Keep.parse(text)


def test_a_python_fraction_means_what_its_text_does() -> None:
    assert Keep.parse(0.1) == Keep.parse("0.1")
    assert Keep.parse(1.0).budget(10) == 10
    assert Keep.parse(1).budget(10) == 1


def test_sampling_refuses_what_contradicts_itself() -> None:
    with pytest.raises(UsageError, match="not both"):
        Sampling(fps=1, frames=4)
    with pytest.raises(UsageError, match="after"):
        replace(Sampling(), start=5.0, end=5.0)


@pytest.mark.parametrize("end, frames", [(21.0, 2), (61.0, 3)])
def test_only_the_part_asked_for_is_looked_at(demo: VideoQA, end: float, frames: int) -> None:
    # Key frames are 30 s apart: those nearest to these frames lie outside of the part.
    answer = demo.ask(SAMPLES / "long.mp4", "What do you see?", start=1.0, end=end, frames=frames)
    assert all(1.0 <= at <= end for moment in answer.moments for at in moment.timestamps)


def test_a_second_look_is_encoding(demo: VideoQA) -> None:
    options = AskOptions(look="twice")
    watched = demo.watch(SAMPLES / "sequence.mp4", options).again()
    answer = demo.answer(watched, "Is there a bicycle?", options)
    assert answer.seconds.encode > 0
    assert not answer.cached


def test_options_take_a_budget_as_it_is_written() -> None:
    assert AskOptions(keep="5%") == AskOptions(keep=Keep.parse("5%"))  # type: ignore[arg-type]


def test_options_take_times_as_they_are_written() -> None:
    assert Sampling(start="1:30", end="0:02:00") == Sampling(start=90.0, end=120.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"merge": "no"},
            {"cache": 1},
            {"max_new_tokens": 2.5},
            {"max_pixels": 900.5},
            {"seed": True},
        ),
        *({"temperature": "0"}, {"system": 5}, {"sampling": None}, {"fps": "3"}, {"frames": 2.5}),
        *({"max_frames": None}, {"selector": 5}, {"metric": None}, {"encode": 5}),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused_by_name(demo: VideoQA, wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        demo.ask(SAMPLES / "still.jpg", "What is there?", **wrong)


def test_a_question_that_is_no_text_is_refused(demo: VideoQA) -> None:
    with pytest.raises(UsageError, match="question must be a text"):
        demo.ask(SAMPLES / "still.jpg", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["car " * 33_000, "x" * 3_000_000, "What?"])
def test_what_is_longer_than_the_model_reads_is_refused_before_anything_is_looked_at(
    demo: VideoQA, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(demo, "watch", None)
    system = "A car. " * 33_000 if asked == "What?" else None
    name = "system prompt" if system else "question"
    with pytest.raises(UsageError, match=f"The {name} is longer than the 32768 tokens that this model reads"):
        demo.ask(SAMPLES / "still.jpg", asked, system=system)


def test_a_question_without_end_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/zero", encoding="utf-8"))  # noqa: SIM115
    assert main(["ask", str(SAMPLES / "still.jpg"), "-", *ASK]) == 2
    assert "has more than 10000000 characters" in capsys.readouterr().err
