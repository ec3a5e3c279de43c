"""`flashvlm bench`: data sets, scoring, accuracy runs that go on where they stopped, selectors timed alone."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import load, tiny_qwen3_vl

from flashvlm import VideoQA
from flashvlm.bench import scoring
from flashvlm.bench import selection as selection_bench
from flashvlm.bench.accuracy import Settings, measure, summarise
from flashvlm.bench.clips import Clips, Crowd, Needle
from flashvlm.bench.data import Asked, Lines, content_words
from flashvlm.bench.easy_vqa import EasyVQA
from flashvlm.bench.run import Run
from flashvlm.bench.speed import Settings as Speed
from flashvlm.bench.speed import SpeedRun
from flashvlm.demo.questions import FAMILIES
from flashvlm.errors import UsageError, VideoError
from flashvlm.forcing import force
from flashvlm.generate import answers, generate
from flashvlm.options import OPTIONS, AskOptions
from flashvlm.pipeline import Watched
from flashvlm.report import code_digest
from flashvlm.samples import samples_dir
from flashvlm.selection import select
from flashvlm.selection.result import Selection
from flashvlm_cli.app import main

SAMPLES = samples_dir()
QUICK = ["--device", "cpu", "--workers", "1", "--selectors", "uniform,random", "--keep", "100%,25%"]


def settings(**changes) -> Settings:
    own = {"model": "demo", "selectors": ("uniform", "random"), "keep": ("100%", "25%")}
    asked = {name: changes.pop(name) for name in list(changes) if name in OPTIONS and name not in own}
    return Settings(**{**own, "options": AskOptions(max_new_tokens=32).changed(**asked), **changes})


def lines(folder: Path, *rows: dict) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(name: str, question: str, answer: str, **more) -> dict:
    return {"video": str(SAMPLES / name), "question": question, "answer": answer, **more}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three questions on two sample clips."""
    return lines(
        tmp_path,
        sample("one.mp4", "What animal is in the video?", "A butterfly.", family="kind"),
        sample("hevc.mp4", "What happens?", "?", family="caption"),
        sample("one.mp4", "Where does the butterfly move?", "down", choices=["up", "down"], family="motion"),
    )


def without_times(records: list[dict], *others: str) -> list[dict]:
    left_out = {"seconds", *others}
    return json.loads(
        json.dumps(records), object_hook=lambda value: {k: v for k, v in value.items() if k not in left_out}
    )


# Answers from many selections at once.


@pytest.mark.parametrize("question", ["What happens?", "What is there at the end?"])
def test_answers_in_one_batch_are_the_answers_one_by_one(demo: VideoQA, question: str) -> None:
    encoded = demo.watch(SAMPLES / "sequence.mp4", AskOptions()).encoded
    prompt = demo.backend.prompt(question, None, [encoded])
    chosen = [
        select(encoded.tokens, encoded.saliency, demo.backend.words(question), group_sizes=[64] * 12, budget=40, **how)
        for how in (
            {"selector": "uniform"},
            {"selector": "paper"},
            *({"selector": "random", "seed": n} for n in (1, 2)),
        )
    ]
    together = answers(
        demo.backend,
        prompt,
        torch.stack([one.indices for one in chosen]),
        torch.stack([one.vectors for one in chosen]),
        max_new_tokens=24,
    )
    apart = [generate(demo.backend, prompt, one.indices, one.vectors, max_new_tokens=24).text for one in chosen]
    assert together == apart
    assert len(set(apart)) > 1


# Data sets.


def test_generated_clips_are_the_same_every_time_and_their_families_take_turns() -> None:
    asked = [Clips().questions(number) for number in range(2000, 2024)]
    assert asked == [Clips().questions(number) for number in range(2000, 2024)]
    assert sorted(one.family for (one,) in asked) == sorted(2 * FAMILIES)


def test_more_questions_on_a_clip_leave_the_first_as_it_is() -> None:
    three = Clips(3).questions(2005)
    assert three[0] == Clips().questions(2005)[0]
    assert len({one.family for one in three}) == len(three) == 3


def test_a_needle_is_there_for_two_or_three_moments_of_thirty_two() -> None:
    for seed in range(30):
        scene = Needle().scene(np.random.default_rng(seed))
        lengths = sorted(round((thing.vanishes - thing.appears) * 32) for thing in scene.things)
        assert scene.frames == 64 and len(scene.things) in (3, 4)
        assert lengths[0] in (2, 3) and lengths[1] > 3


def test_in_a_crowd_two_longer_things_are_there_beside_the_needle() -> None:
    for seed in range(4):
        scene = Crowd().scene(np.random.default_rng(seed))
        lengths = sorted(round((thing.vanishes - thing.appears) * 32) for thing in scene.things)
        assert lengths[0] in (2, 3) and lengths[1] > 3
        others = [thing for thing in scene.things if round((thing.vanishes - thing.appears) * 32) > 3]
        counts = [sum(thing.visible((group + 0.5) / 32) for thing in others) for group in range(32)]
        assert max(counts) == 2 and np.mean(counts) > 1.5


@pytest.mark.parametrize("data", [Needle(), Crowd()], ids=lambda data: data.name)
def test_needle_questions_are_about_the_needle(data: Needle) -> None:
    rng = np.random.default_rng(0)
    for family in data.families:
        question = None
        while question is None:
            scene = data.scene(rng)
            question = data.ask(scene, family, rng)
        needle = min(scene.things, key=lambda thing: thing.vanishes - thing.appears)
        others = {thing.name for thing in scene.things} - {needle.name}
        assert not others & {*question.text.strip("?.").split(), question.answer}


def test_an_unrelated_question_shares_no_content_word() -> None:
    data = Clips()
    for number in range(2000, 2012):
        (asked,) = data.questions(number)
        assert not content_words(asked.text) & content_words(data.unrelated(number, asked))


def test_the_only_question_of_a_file_is_its_own_unrelated_one(tmp_path: Path) -> None:
    data = Lines(lines(tmp_path, sample("one.mp4", "What happens?", "much")))
    assert data.unrelated(0, data.questions(0)[0]) == "What happens?"


def test_easy_vqa_is_the_whole_test_split_of_the_package(tmp_path: Path) -> None:
    from easy_vqa import get_train_image_paths

    data = EasyVQA()
    asked = {number: data.questions(number) for number in data.numbers()}
    assert len(asked) == 1000 and sum(map(len, asked.values())) == 9673
    trained = {Path(path).parent for path in get_train_image_paths().values()}
    videos = {data.video(number, tmp_path) for number in asked}
    assert len(videos) == 1000 and all(path.is_file() and path.parent not in trained for path in videos)
    # A family says what kind of answer it has.
    answers = {
        family: {one.answer for row in asked.values() for one in row if one.family == family} for family in data.guesses
    }
    assert {family: len(words) for family, words in answers.items()} == dict(data.guesses)


def test_easy_vqa_without_its_package_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert main(["bench", "accuracy", "--data", "easy-vqa"]) == 2
    assert "flashvlm[bench]" in capsys.readouterr().err


def test_lines_on_one_video_are_asked_together(three: Path) -> None:
    data = Lines(three)
    assert data.count == 2
    assert [one.family for one in data.questions(0)] == ["kind", "motion"]


def test_video_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes((SAMPLES / "one.mp4").read_bytes())
    row = {"video": "clips/a.mp4", "question": "What happens?", "answer": "much"}
    assert Lines(lines(tmp_path, row)).video(0, tmp_path) == tmp_path / "clips" / "a.mp4"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: This line is not JSON"),
        ("[1]", "line 2: This line is not a JSON object"),
        ('{"video": "one.mp4", "question": "What?"}', "line 2: 'answer' is missing"),
        ('{"video": "one.mp4", "question": "", "answer": "x"}', "line 2: 'question' must be a non-empty text"),
        ('{"video": "one.mp4", "question": "What?", "answer": 3}', "line 2: 'answer' must be a non-empty text"),
        ('{"video": "one.mp4", "question": "What?", "answer": "x", "choices": "xy"}', "line 2: 'choices' must be"),
        ('{"video": "one.mp4", "question": "What?", "answer": "z", "choices": ["x", "y"]}', "line 2: 'answer' must be"),
        ('{"video": "one.mp4", "question": "What?", "answer": "x", "choices": ["x"]}', "line 2: 'choices' must be at"),
        ('{"video": "one.mp4", "question": "What?", "answer": "x", "choices": ["x", "x"]}', "all different"),
        ('{"video": "one.mp4", "question": "What?", "answer": "A", "choices": ["B", "A"]}', "must not be letters"),
        ('{"video": "nowhere.mp4", "question": "What?", "answer": "x"}', "line 2: there is no video"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    (tmp_path / "one.mp4").write_bytes(b"")
    path = tmp_path / "questions.jsonl"
    path.write_text('{"video": "one.mp4", "question": "What?", "answer": "x"}\n' + line + "\n")
    assert main(["bench", "accuracy", "--data", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and "questions.jsonl" in error and error.count("\n") == 1


def test_a_video_that_cannot_be_read_ends_the_run_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path = lines(tmp_path, {"video": "broken.mp4", "question": "What?", "answer": "x"})
    assert main(["bench", "accuracy", "--data", str(path), *QUICK]) == 3
    assert "broken.mp4" in capsys.readouterr().err


# Scoring.


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("a dog", "The dog.", True),
        ("top left", "Top-left", True),
        ("a dog", "a cat", False),
        ("dog", "a dog and a cat", False),
        ("the", "The", True),
        ("the", "a", False),
        ("3", "3.", True),
        ("-5", "-5", True),
        ("-5", "5", False),
        ("1.5", "1 5", False),
        ("5", "+5", True),
        ("-5", "\N{MINUS SIGN}5", True),
        ("100,200", "100, 200", True),
        ("hello", "hello#", True),
        ("3-4", "3 4", True),
        ("c++", "C", False),
        ("", "the", False),
    ],
)
def test_an_open_answer_is_right_when_its_words_are(answer: str, said: str, right: bool) -> None:
    assert scoring.right(Asked("?", answer, "other"), said) is right


@pytest.mark.parametrize(
    "said",
    [
        "B",
        "(b)",
        "B. a red car",
        "a red car",
        "Red car.",
        "b) whatever",
        "**B**",
        "Answer: B",
        "The answer is (B).",
        "**Answer:** B",
        "Answer:B",
    ],
)
def test_a_choice_is_right_by_its_text_or_its_letter(said: str) -> None:
    assert scoring.right(Asked("?", "a red car", "other", ("a blue car", "a red car")), said)


@pytest.mark.parametrize(
    "said",
    ["A", "a blue car", "a", "both", "", "Z", "A. a red car", "Answer: A", "The answer", "The answer is b", "B* x"],
)
def test_another_choice_or_none_is_wrong(said: str) -> None:
    assert not scoring.right(Asked("?", "a red car", "other", ("a blue car", "a red car")), said)


def test_an_answer_given_as_a_letter_is_the_choice_of_that_letter(tmp_path: Path) -> None:
    data = Lines(lines(tmp_path, sample("one.mp4", "Which?", "B", choices=["up", "down"])))
    (asked,) = data.questions(0)
    assert asked.answer == "down"
    assert scoring.prompt(asked).splitlines()[:3] == ["Which?", "(A) up", "(B) down"]


def test_chance_is_the_likelier_of_the_commonest_answer_and_a_guess() -> None:
    four = [Asked("?", answer, "kind") for answer in ("dog", "dog", "a dog", "cat")]
    assert scoring.chance(four, {"kind": 8}) == 0.75
    assert scoring.chance([Asked("?", str(n), "kind") for n in range(4)], {"kind": 2}) == 0.5
    choices = [Asked("?", str(n), "other", ("0", "1", "2", "3", "4")) for n in range(5)]
    assert scoring.chance(choices, {}) == pytest.approx(0.2)
    assert scoring.chance(four + [Asked("?", "yes", "exist")] * 4, {}) == pytest.approx(0.875)
    assert scoring.too_few(four) and not scoring.too_few(four * 3) and scoring.too_few(four * 3 + choices)


def test_the_bootstrap_is_paired_and_draws_whole_clips() -> None:
    rng = np.random.default_rng(0)
    column = rng.random(400) < 0.7
    samples = scoring.resample(np.stack([column, column, ~column], 1), np.arange(400))
    assert scoring.interval(samples[:, 0] - samples[:, 1]) is None
    low, high = scoring.interval(samples[:, 0])
    assert low < column.mean() < high and high - low == pytest.approx(2 * 1.96 * (0.21 / 400) ** 0.5, rel=0.1)
    # Ten equal questions on a clip tell no more than one.
    repeated = scoring.resample(np.repeat(column[:, None], 10, axis=0), np.repeat(np.arange(400), 10))
    assert np.ptp(scoring.interval(repeated[:, 0])) == pytest.approx(high - low, rel=0.1)


def test_the_table_sets_each_selector_against_the_first_at_its_own_budget() -> None:
    # Of eight clips with a question each: who is right about which.
    everything = "11111110"
    right = {"25%": {"flashvlm": "11110000", "paper": everything}, "50%": {"flashvlm": "11000001", "paper": "11000000"}}
    records = [
        {
            "clip": clip,
            "question": 0,
            "text": "What?",
            "answer": "a",
            "family": "kind",
            "choices": [],
            "tokens": 100,
            "unpruned": {"right": everything[clip] == "1", "nats": -0.5},
            "pruned": {
                budget: {
                    name: {
                        "right": row[clip] == "1",
                        "nats": -2.0 + int(row[clip]),
                        "kept": kept + clip,
                        "seconds": clip / 8,
                        "delta": clip / 10,
                    }
                    for name, row in rows.items()
                }
                for (budget, rows), kept in zip(right.items(), (20, 40), strict=True)
            },
        }
        for clip in range(8)
    ]
    table = summarise(settings(selectors=("flashvlm", "paper"), keep=("25%", "50%")), Clips(), records[::-1])
    (section,) = table["sections"]
    assert (table["questions"], table["clips"], section["family"], section["count"]) == (8, 8, "all", 8)
    unpruned, *rows = section["rows"]
    assert unpruned["accuracy"] == 7 / 8
    assert [(row["keep"], row["selector"]) for row in rows] == [(b, s) for b in right for s in right[b]]
    assert [row["accuracy"] for row in rows] == [4 / 8, 7 / 8, 3 / 8, 2 / 8]
    assert [row["retention"] for row in rows] == pytest.approx([4 / 7, 1, 3 / 7, 2 / 7])
    assert [row.get("difference") for row in rows] == [None, 3 / 8, None, -1 / 8]
    # A right answer to the question that the unpruned model has wrong is not kept, but new.
    assert [row["kept_right"] for row in rows] == pytest.approx([4 / 7, 1, 2 / 7, 2 / 7])
    assert [row["nats"] for row in (unpruned, *rows)] == [-0.5, -12 / 8, -9 / 8, -13 / 8, -14 / 8]
    assert [row.get("nats_difference") for row in rows] == [None, 3 / 8, None, -1 / 8]
    assert [row.get("nats_tie") for row in rows] == [None, False, None, True]
    assert [row.get("tie") for row in rows] == [None, False, None, True]
    assert [row["kept"] for row in rows] == pytest.approx([0.235, 0.235, 0.435, 0.435])
    assert all((row["seconds"], row["delta"]) == (7 / 16, pytest.approx(0.35)) for row in rows)
    # Right where the unpruned model is: drawn together, it retains all of it whatever is drawn, and that has no spread.
    assert rows[1]["retention_interval"] is None
    low, high = rows[1]["difference_interval"]
    assert 0 < low < 3 / 8 < high < 1


def test_a_few_right_answers_are_no_certainty() -> None:
    answered = {"text": "What?", "answer": "a", "family": "kind", "choices": [], "tokens": 9, "question": 0}
    said = {"right": False, "nats": -3.0, "kept": 3, "seconds": 0.1, "delta": 0.1}
    records = [
        {**answered, "clip": clip, "unpruned": {"right": True, "nats": -1.0}, "pruned": {"25%": {"paper": said}}}
        for clip in range(15)
    ]
    table = summarise(settings(selectors=("paper",), keep=("25%",)), Clips(), records)
    intervals = [row["accuracy_interval"] for row in table["sections"][0]["rows"]]
    assert intervals == [(pytest.approx(0.796, abs=1e-3), 1.0), (0.0, pytest.approx(0.204, abs=1e-3))]


# Runs.


def test_a_run_scores_a_file_of_questions(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "accuracy", "--data", str(three), "--json", *QUICK]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["questions"], table["clips"]) == (3, 2)
    assert [section["family"] for section in table["sections"]] == ["all", "caption", "kind", "motion"]
    unpruned, uniform, random = table["sections"][0]["rows"]
    assert (unpruned["selector"], uniform["selector"], random["selector"]) == (None, "uniform", "random")
    assert table["sections"][2]["rows"][0]["accuracy"] == 1.0
    assert uniform["kept"] == pytest.approx(0.25, abs=0.01)
    assert "difference" not in uniform and "tie" in random
    assert table["settings"]["dtype"] == "float32"


def test_frames_grow_while_the_number_of_tokens_stays(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = ["--frames", "2,8", "--keep", "40", "--selectors", "uniform", "--workers", "1", "--device", "cpu"]
    command = ["bench", "accuracy", "--data", str(three), *several, "-o", str(tmp_path / "results.jsonl")]
    assert main([*command, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    few, few_kept, many, many_kept = table["rows"]
    assert [row["frames"] for row in table["rows"]] == [2, 2, 8, 8] and table["settings"]["frames"] == [2, 8]
    assert many["tokens"] == 4 * few["tokens"] and few_kept["tokens"] == many_kept["tokens"] == 40
    # That is nearer to the tokens of two frames than to those of eight.
    assert few_kept["reference"] == many_kept["reference"] == 2
    assert many_kept["difference"] == pytest.approx(many_kept["accuracy"] - few["accuracy"])
    # As each number of frames by itself.
    one = ["--frames", "8", *several[2:]]
    assert main(["bench", "accuracy", "--data", str(three), *one, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["sections"][0]["rows"]
    assert [row["accuracy"] for row in alone] == [many["accuracy"], many_kept["accuracy"]]

    plot = tmp_path / "frames.png"
    assert main([*command, "--plot", str(plot)]) == 0
    assert "all of 2 frames" in capsys.readouterr().out and plot.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--frames", "8,x"], "--frames takes numbers of frames such as 8 or 8,16,32, not '8,x'."),
        (["--frames", "8,8"], "--frames takes several numbers of frames, each once"),
        (["--frames", "8,16", "--fps", "1"], "Give --fps or --frames, not both."),
        (["--frames", "8", "--fps", "1"], "Give --fps or --frames, not both."),
        (["--frames", "8,16", "--keep", "100%"], "--keep takes budgets that prune"),
    ],
)
def test_numbers_of_frames_that_make_no_sense_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "accuracy", "--selectors", "uniform", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    rows = [
        {"video": str(SAMPLES / "one.mp4"), "question": f"What\u2028is\x85number {number}?", "answer": "?"}
        for number in range(2)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert [Lines(path).questions(0)[n].text for n in range(2)] == [row["question"] for row in rows]


def test_the_table_goes_to_standard_output_and_nothing_else(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "accuracy", "--data", str(three), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "3 questions" in out and "all tokens" in out and "25% kept" in out
    assert "by chance is not known: that takes 10 questions of each family." in out and "100.0% by chance" not in out
    told = " ".join(out.split())
    assert re.search(r"3 questions tell these accuracies to \d+ points; to 5 points, it takes about \d{3}\.", told)
    assert max(map(len, out.splitlines())) <= 80


def test_an_interrupted_run_goes_on_where_it_stopped(three: Path, tmp_path: Path) -> None:
    data, results = Lines(three), tmp_path / "results.jsonl"
    whole = Run(settings(), data, data.numbers())
    assert len(list(whole.answer())) == 2

    with Run(settings(), data, data.numbers(), results) as stopped:
        answering = stopped.answer()
        next(answering)
        answering.close()
        with pytest.raises(UsageError, match="Another run is writing"):
            Run(settings(), data, data.numbers(), results)
    with results.open("ab") as file:
        file.write(b'{"clip": 1, "ques')

    with Run(settings(), data, data.numbers(), results) as resumed:
        assert resumed.done == 1
        assert len(list(resumed.answer())) == 1
    assert without_times(resumed.records) == without_times(whole.records)
    assert without_times(resumed.table()["sections"]) == without_times(whole.table()["sections"])
    assert len(results.read_text().splitlines()) == 4

    with results.open("ab") as file:
        file.write(results.read_bytes().splitlines(keepends=True)[-1])
    with Run(settings(), data, data.numbers(), results) as finished:
        assert finished.done == 2 and list(finished.answer()) == []
        assert len(finished.records) == 3

    with results.open("ab") as file:
        file.write(b'{"clip": 1}\n')
    with pytest.raises(UsageError, match="line 6: this is not a result"):
        Run(settings(), data, data.numbers(), results)


def test_who_interrupts_it_reads_how_much_is_there(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_the_second(qa: VideoQA, settings: Settings, data: Lines, number: int, places: list[int]) -> list[dict]:
        if number == 1:
            raise KeyboardInterrupt
        return measure(qa, settings, data, number, places)

    monkeypatch.setattr("flashvlm.bench.accuracy.measure", until_the_second)
    rows = ["--selectors", "uniform", "--keep", "10%", "--workers", "1", "-o", str(tmp_path / "results.jsonl")]
    assert main(["bench", "accuracy", "--data", str(three), *rows]) == 130
    told, interrupted = capsys.readouterr().err.splitlines()
    assert "1 of 2 videos are in" in told and "results.jsonl" in told and "Interrupted" in interrupted


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_video_that_cannot_be_read_is_left_out_and_told(
    workers: str, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, results = three.read_text(), tmp_path / "results.jsonl"
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = {"video": "broken.mp4", "answer": "?"}
    three = lines(tmp_path, broken | {"question": "What happens?"}, broken | {"question": "Is there a dog?"})
    command = ["bench", "accuracy", "--data", str(three), *QUICK, "--workers", workers]
    assert main(command) == 3
    error = capsys.readouterr().err
    assert "broken.mp4" in error and error.count("\n") == 1

    three.write_text(three.read_text() + whole)
    for _ in range(2):
        assert main([*command, "-o", str(results)]) == 1
        out, error = capsys.readouterr()
        assert "3 questions" in out and "without 2 questions about 1 unreadable video" in " ".join(out.split())
        assert "warning: " in error and "broken.mp4" in error
    assert main([*command, "-o", str(results), "--json"]) == 1
    (left_out,) = json.loads(capsys.readouterr().out)["unreadable"]
    assert (left_out["clip"], left_out["questions"]) == (0, 2) and "broken.mp4" in left_out["message"]
    assert len(results.read_text().splitlines()) == 4


def test_a_video_that_cannot_be_read_any_more_lacks_only_what_is_left(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results = Lines(three), tmp_path / "results.jsonl"
    with Run(settings(), data, data.numbers(), results) as whole:
        assert len(list(whole.answer())) == 2
    kept = [line for line in results.read_text().splitlines(keepends=True) if "Where does" not in line]
    results.write_text("".join(kept))

    def unreadable(*job) -> list[dict]:
        raise VideoError("It is gone.")

    monkeypatch.setattr("flashvlm.bench.accuracy.measure", unreadable)
    with Run(settings(), data, data.numbers(), results) as resumed:
        assert len(list(resumed.answer())) == 1 and resumed.done == 1
    assert resumed.table()["unreadable"] == [{"clip": 0, "questions": 1, "message": "It is gone."}]


def test_worker_processes_give_the_same_records(three: Path) -> None:
    data = Lines(three)
    alone, together = (Run(settings(), data, data.numbers()) for _ in range(2))
    assert len(list(alone.answer(1))) == len(list(together.answer(2))) == 2
    key = lambda record: (record["clip"], record["question"])  # noqa: E731
    theirs, ours = (sorted(run.records, key=key) for run in (together, alone))
    # The processes compute in fewer threads, and sums in another order round differently.
    assert without_times(theirs, "nats") == without_times(ours, "nats")
    likely = [[record["unpruned"]["nats"] for record in records] for records in (theirs, ours)]
    assert likely[0] == pytest.approx(likely[1], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"keep": ("50%",)}, "keep is 100%,25% there"),
        ({"noise": 0.1}, "noise is 0.0 there"),
        ({"merge": True}, "merge"),
    ],
)
def test_results_with_other_settings_are_refused_by_name(three: Path, tmp_path: Path, change: dict, named: str) -> None:
    data = Lines(three)
    with Run(settings(), data, data.numbers(), tmp_path / "results.jsonl"):
        pass
    with pytest.raises(UsageError, match=named):
        Run(settings(**change), data, data.numbers(), tmp_path / "results.jsonl")


def test_results_on_a_video_that_another_one_has_replaced_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes((SAMPLES / "one.mp4").read_bytes())
    path = lines(tmp_path, {"video": "clip.mp4", "question": "What happens?", "answer": "a butterfly moves down"})
    for _ in range(2):
        data = Lines(path)
        with Run(settings(), data, data.numbers(), tmp_path / "results.jsonl"):
            pass
    (tmp_path / "clip.mp4").write_bytes((SAMPLES / "two.mp4").read_bytes())
    with pytest.raises(UsageError, match="videos is"):
        Run(settings(), Lines(path), data.numbers(), tmp_path / "results.jsonl")


def test_results_of_other_code_or_libraries_are_refused(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results, package = Lines(three), tmp_path / "results.jsonl", tmp_path / "flashvlm"
    package.mkdir()
    for name in ("__init__.py", "selector.py"):
        (package / name).write_text("VALUE = 1")
    monkeypatch.setattr("flashvlm.__file__", str(package / "__init__.py"))
    code_digest.cache_clear()
    for _ in range(2):
        with Run(settings(), data, data.numbers(), results):
            pass
    (package / "selector.py").write_text("VALUE = 2")
    # Another process, that is: the code of this one does not change.
    code_digest.cache_clear()
    with pytest.raises(UsageError, match="code is"):
        Run(settings(), data, data.numbers(), results)
    monkeypatch.setattr("flashvlm.bench.run.versions", lambda: {"flashvlm": "0.1.0", "torch": "1.0"})
    with pytest.raises(UsageError, match=r"torch is .* and 1\.0 here"):
        Run(settings(), data, data.numbers(), results)
    code_digest.cache_clear()


def test_a_file_that_holds_something_else_is_refused_and_left_alone(three: Path) -> None:
    before, data = three.read_bytes(), Lines(three)
    with pytest.raises(UsageError, match="line 1"):
        Run(settings(), data, data.numbers(), three)
    assert three.read_bytes() == before


def test_a_budget_is_measured_once_however_it_is_written() -> None:
    assert settings(keep=("100%", "10%", "0.1", "5%", "10.0%")).budgets == ("10%", "5%")


def test_everything_kept_says_what_the_unpruned_model_says(demo: VideoQA, three: Path) -> None:
    for record in measure(demo, settings(keep=("100000",)), Lines(three), 0, [0, 1]):
        assert {one["said"] for one in record["pruned"]["100000"].values()} == {record["unpruned"]["said"]}


@pytest.mark.parametrize("change", [{"look": "twice"}, {"encode": "all"}, {"seek": "exact"}, {"min_pixels": 784}])
def test_clips_are_looked_at_as_ask_looks_at_them(
    demo: VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    data = Lines(lines(tmp_path, sample("sequence.mp4", "What happens?", "?")))
    watched = []

    def watching(path: Path, options: AskOptions, **stage) -> Watched:
        watched.append(options)
        return VideoQA.watch(demo, path, options, **stage)

    monkeypatch.setattr(demo, "watch", watching)
    (record,) = measure(demo, settings(selectors=("flashvlm",), **change), data, 0, [0])
    assert {name: getattr(watched[0], name) for name in change} == change
    for keep, said in (("100%", record["unpruned"]["said"]), ("25%", record["pruned"]["25%"]["flashvlm"]["said"])):
        assert demo.ask(SAMPLES / "sequence.mp4", "What happens?", keep=keep, **change).answer == said


@pytest.mark.parametrize("change", [{"noise": 0.5}, {"words": "unrelated"}, {"metric": "centered"}])
def test_what_is_made_harder_reaches_the_selectors_only(demo: VideoQA, three: Path, change: dict) -> None:
    # These two selectors look at nothing, so nothing may change but the distances by another metric.
    data = Lines(three)
    plain, harder = (measure(demo, settings(**some), data, 0, [0, 1]) for some in ({}, change))
    assert {kept["same"] for record in harder for row in record["pruned"].values() for kept in row.values()} == {1.0}
    assert without_times(harder, "delta", "same") == without_times(plain, "delta")


def test_how_much_of_the_kept_set_noise_leaves(demo: VideoQA, three: Path) -> None:
    data, shares = Lines(three), []
    for change in ({"noise": 1e-6}, {"noise": 0.05}, {"noise": 2.0}, {"metric": "centered"}, {"words": "unrelated"}):
        (record,) = measure(demo, settings(selectors=("flashvlm",), keep=("10%",), **change), data, 0, [1])
        shares.append(record["pruned"]["10%"]["flashvlm"]["same"])
    least, some, most, *others = shares
    assert least > 0.9 and least >= some > most and most < 0.5
    assert all(0 < share < 1 for share in others)


def test_the_table_shows_how_much_noise_leaves_only_where_there_is_noise(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for noise in ([], ["--noise", "5%"]):
        rows = ["--selectors", "flashvlm,uniform", "--keep", "10%", "--limit", "1", "--workers", "1", *noise]
        assert main(["bench", "accuracy", "--data", str(three), *rows]) == 0
        tables.append(capsys.readouterr().out.splitlines())
    plain, noisy = tables
    (place,) = [number for number, line in enumerate(noisy) if "same" in line.split()]
    heads, unpruned, ours, evenly = noisy[place : place + 4]
    assert heads.split()[-1] == "same" and not any("same" in line.split() for line in plain)
    assert 0 < float(ours.split()[-1].rstrip("%")) < 100
    assert evenly.endswith("100.0%") and len(evenly) == len(heads) > len(unpruned.rstrip())


def test_selectors_see_the_noise_and_the_other_words(
    demo: VideoQA, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watching(tokens: torch.Tensor, saliency: torch.Tensor, words: torch.Tensor, **options) -> Selection:
        seen.append((tokens, words))
        return select(tokens, saliency, words, **options)

    monkeypatch.setattr("flashvlm.bench.selected.select", watching)
    data = Lines(three)
    for change in ({}, {"noise": 0.1}, {"words": "unrelated"}):
        measure(demo, settings(selectors=("uniform",), **change), data, 0, [1])
    # Where something is harder, what would be kept otherwise is looked up, too.
    (tokens, words), (noisy, same_words), clean, (same_tokens, other_words), clean_again = seen
    assert all(torch.equal(tokens, one) and torch.equal(words, own) for one, own in (clean, clean_again))
    assert torch.equal(words, same_words) and torch.equal(tokens, same_tokens)
    lengths = (noisy - tokens).norm(dim=1) / tokens.norm(dim=1)
    assert lengths.mean() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(other_words, demo.backend.words("What happens?"))


@pytest.mark.parametrize("selector", ["flashvlm", "tome"])
def test_the_model_gets_clean_tokens_whatever_the_selectors_see(
    demo: VideoQA, three: Path, monkeypatch: pytest.MonkeyPatch, selector: str
) -> None:
    remade, chosen, got = Selection.remade, [], []
    encoded = demo.watch(Lines(three).video(0, three), AskOptions()).encoded

    def choosing(selection: Selection, tokens: torch.Tensor) -> Selection:
        chosen.append(selection)
        return remade(selection, tokens)

    def watching(backend, prompt, ids, kept, vectors, planes=None):
        for indices, given in zip(kept, vectors, strict=True):
            expected = encoded.tokens[indices]
            for selection in chosen:
                if torch.equal(selection.indices, indices) and selection.merged_into is not None:
                    parts = [encoded.tokens[selection.merged_into == place] for place in range(len(indices))]
                    expected = torch.stack([part.mean(0) for part in parts])
            got.append(torch.allclose(given, expected, atol=1e-5))
        return force(backend, prompt, ids, kept, vectors)

    monkeypatch.setattr(Selection, "remade", choosing)
    monkeypatch.setattr("flashvlm.forcing.force", watching)
    measure(demo, settings(selectors=(selector,), noise=0.3), Lines(three), 0, [0])
    assert len(got) > 1 and all(got) and len(chosen) == len(got) - 1


def test_a_model_with_deepstack_features_is_measured_too(three: Path, tmp_path: Path) -> None:
    qa = load(tiny_qwen3_vl(tmp_path / "model"))
    (record,) = measure(qa, settings(selectors=("flashvlm", "tome"), keep=("20%",)), Lines(three), 0, [0])
    assert record["unpruned"]["said"] and set(record["pruned"]["20%"]) == {"flashvlm", "tome"}
    table = SpeedRun(qa, Speed(options=AskOptions(max_new_tokens=2), repeats=1), samples_dir() / "one.mp4", False)
    list(table.measure())
    assert [row["encoder"] for row in table.table()["rows"]] == ["transformers", "flashvlm", "flashvlm"]


def test_merging_changes_what_the_model_gets_and_not_which_tokens(demo: VideoQA, three: Path) -> None:
    got = {}
    for merge in (False, True):
        with pytest.MonkeyPatch.context() as patch:

            def watching(backend, prompt, ids, kept, vectors, planes=None, *, merge=merge):
                got.setdefault(merge, (kept, vectors))
                return force(backend, prompt, ids, kept, vectors)

            patch.setattr("flashvlm.forcing.force", watching)
            measure(demo, settings(merge=merge), Lines(three), 0, [0])
    assert torch.equal(got[False][0], got[True][0])
    assert not torch.equal(got[False][1], got[True][1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--selectors", "nothing"], "There is no selector 'nothing'"),
        (["--selectors", "uniform,uniform"], "each once"),
        (["--keep", "0%"], "--keep"),
        (["--keep", "5%,auto"], "--keep auto is for --selectors flashvlm; paper takes shares and counts."),
        (["--keep", "delta=0.3", "--selectors", "flashvlm,ablations"], "--keep delta=0.3 is for --selectors flashvlm"),
        (
            ["--data", "nothing"],
            "--data takes clips, eight-looks, needle, crowd, natural, natural-eight-looks, easy-vqa or a",
        ),
        (["--data", "nothing.jsonl"], "nothing.jsonl: there is no such file"),
        (["--noise", "much"], "--noise takes a share"),
        (["--noise", "5"], "--noise takes a share"),
        (["--noise", "much%"], "--noise takes a share"),
        (["--noise", "-5%"], "--noise"),
        (["--metric", "taxi"], "There is no metric 'taxi'"),
        (["--max-pixels", "9"], "--max-pixels must be at least"),
        (["--min-pixels", "9"], "--min-pixels must be at least 784 (one token), not 9"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--keep", ""], "--keep takes budgets"),
        (["--limit", "1" + "0" * 35], "clips makes at most 100,000 videos a run"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--begin", "-1"], "no video number -1"),
        (["--plot", "curve.txt"], "--plot takes a file that ends in .png"),
        (["--seed", "9" * 30], "--seed must fit into 64 bits"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    ],
)
def test_wrong_usage_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["bench", "accuracy", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# The plot.


def test_the_plot_is_written(three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curve.svg"
    assert main(["bench", "accuracy", "--data", str(three), "--plot", str(path), *QUICK]) == 0
    assert path.read_text().rstrip().endswith("</svg>")


def test_a_plot_without_matplotlib_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "accuracy", "--plot", str(tmp_path / "curve.png")]) == 2
    assert "flashvlm[bench]" in capsys.readouterr().err


# The selectors alone.


def test_made_up_tokens_are_the_same_every_time() -> None:
    one, other = (selection_bench.clustered(300, 16, 64) for _ in range(2))
    assert one["group_sizes"] == [64, 64, 64, 64, 44]
    assert all(torch.equal(one[name], other[name]) for name in ("tokens", "saliency", "words"))


def test_the_selectors_are_timed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--tokens", "64,257", "--width", "16", "--groups-of", "32", "--repeat", "2", "--no-memory"]
    assert main(["bench", "selection", "--selectors", "paper,uniform", *sizes, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [(row["tokens"], row["selector"], row["kept"]) for row in table["rows"]] == [
        (64, "paper", 6), (64, "uniform", 6), (257, "paper", 26), (257, "uniform", 26),
    ]  # fmt: skip
    for row in table["rows"]:
        assert row["fastest"] <= row["seconds"] <= row["slowest"] and row["delta"] > 0
        assert (row["growth"] is None) == (row["tokens"] == 64)
    assert table["rows"][0]["against_paper"] == 1.0


def test_a_selector_that_would_take_too_long_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(selection_bench, "LONGEST", 0.0)
    sizes = ["--tokens", "64,128", "--width", "16", "--groups-of", "32", "--repeat", "1", "--no-memory"]
    assert main(["bench", "selection", "--selectors", "uniform", *sizes]) == 0
    assert "left out" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_peak_memory_is_measured_on_top_of_the_input() -> None:
    chosen = selection_bench.Settings(selectors=("uniform",), tokens=(8192,), width=1024, keep="50%", repeats=1)
    run = selection_bench.SelectionRun(chosen)
    assert len(list(run.measure())) == run.steps
    (row,) = run.table()["rows"]
    # The kept half of 32 MiB of tokens.
    assert row["peak_bytes"] == pytest.approx(16 * 2**20, rel=0.3)


@pytest.mark.parametrize("arguments", [["--tokens", "8,x"], ["--tokens", "64,32"], ["--repeat", "0"], ["--keep", "0"]])
def test_wrong_sizes_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["bench", "selection", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
