"""Teacher forcing, `--check` and `flashvlm bench fidelity`: what pruning changes, with no right answers needed."""

import json
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, load, noise, tiny_video_llava
from fakes import FakeVideoQA, an_answer

from flashvlm import VideoQA
from flashvlm.bench.data import Asked, Lines, Videos
from flashvlm.bench.fidelity import QUESTIONS, Settings, summarise
from flashvlm.bench.run import Run
from flashvlm.encode import Encoded, encode
from flashvlm.errors import ModelError, UsageError
from flashvlm.forcing import answer_ids, everything, force
from flashvlm.generate import answers, generate
from flashvlm.options import AskOptions
from flashvlm.pixels import clip_pixels
from flashvlm.report import Check, Difference
from flashvlm.samples import samples_dir
from flashvlm.selection import select
from flashvlm_cli.app import main

SAMPLES = samples_dir()
QUESTION = "What happens?"
ANSWER = [70, 71, 72, 73, 74]
QUICK = ["--device", "cpu", "--selectors", "uniform,random", "--keep", "100%,25%"]


def settings(**changes) -> Settings:
    own = {"model": "demo", "selectors": ("uniform", "random"), "keep": ("100%", "25%", "2")}
    return Settings(**{**own, "options": AskOptions(max_new_tokens=32), **changes})


def watched(qa: VideoQA, name: str = "two.mp4") -> Encoded:
    return qa.watch(SAMPLES / name, AskOptions()).encoded


def questions(folder: Path, *rows: dict) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": QUESTION} | row) + "\n" for row in rows))
    return path


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three questions on two sample clips, without answers."""
    one, two = (str(SAMPLES / name) for name in ("one.mp4", "two.mp4"))
    return questions(tmp_path, {"video": one}, {"video": two}, {"video": one, "question": "Which animal do you see?"})


@pytest.fixture
def demo_for_all(demo: VideoQA, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model stands for the one that is asked for."""
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda *given, **loading: VideoQA(demo.backend, demo.name))


# Teacher forcing.


def test_log_probabilities_are_those_of_transformers_own_forward(tmp_path: Path) -> None:
    qa = load(tiny_video_llava(tmp_path))
    backend, video = qa.backend, noise(4, 28, 28)
    encoded = encode(backend, video)
    prompt = backend.prompt("Why is this video funny?", None, [encoded])
    kept, vectors, _ = everything([encoded])
    (forced,) = force(backend, prompt, ANSWER, kept[None], vectors[None])
    pixels = clip_pixels(video, side=28, image_mean=backend.mean, image_std=backend.std)
    ids = torch.cat([prompt.ids, torch.tensor(ANSWER)])[None]
    with torch.inference_mode():
        logits = backend.model(input_ids=ids, pixel_values_videos=pixels[None]).logits[0]
    # Each token is expected at the place before it.
    expected = logits[len(prompt.ids) - 1 : -1].log_softmax(dim=1)
    torch.testing.assert_close(forced.expected, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(forced.log_probabilities, expected[range(5), ANSWER], atol=1e-5, rtol=0)
    assert torch.equal(forced.choices, expected.argmax(dim=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_generated_is_what_is_expected_at_each_place(family: str, tmp_path: Path) -> None:
    backend = load(FAMILIES[family](tmp_path)).backend
    encoded = encode(backend, noise(6, *backend.frame_size(120, 170, AskOptions())))
    prompt = backend.prompt("Why is this video funny?", None, [encoded])
    kept = torch.arange(1, len(encoded.tokens), 3)
    vectors, planes = encoded.tokens[kept], None if encoded.planes is None else encoded.planes[:, kept]
    said = generate(backend, prompt, kept, vectors, planes, max_new_tokens=5)
    assert said.tokens == len(said.ids) > 0
    # Up to a placeholder of visual tokens, which random weights may generate.
    ids = list(takewhile(lambda token: token not in backend.visual_tokens, said.ids))
    (forced,) = force(backend, prompt, ids, kept[None], vectors[None], None if planes is None else planes[:, None])
    assert forced.choices.tolist() == ids


def test_selections_in_one_batch_are_forced_as_one_by_one(demo: VideoQA) -> None:
    encoded = watched(demo)
    prompt, ids = demo.backend.prompt(QUESTION, None, [encoded]), answer_ids(demo.backend, "a frog moves down")
    kept = torch.stack([torch.arange(start, 400, 10) for start in range(3)])
    together = force(demo.backend, prompt, ids, kept, encoded.tokens[kept])
    for row, forced in zip(kept, together, strict=True):
        (alone,) = force(demo.backend, prompt, ids, row[None], encoded.tokens[row][None])
        torch.testing.assert_close(forced.expected, alone.expected, atol=1e-4, rtol=0)


def test_an_answer_that_is_right_is_forced_as_it_was_generated(demo: VideoQA, demo_video_llava: VideoQA) -> None:
    for qa in (demo, demo_video_llava):
        encoded = watched(qa, "one.mp4")
        prompt = qa.backend.prompt("Where does the butterfly move?", None, [encoded])
        said = generate(qa.backend, prompt, *everything([encoded]), max_new_tokens=8)
        assert said.text == "down" and answer_ids(qa.backend, "down") == said.ids


def test_choices_are_made_after_the_penalties_of_the_checkpoint(demo: VideoQA, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = watched(demo)
    prompt, (kept, vectors, _) = demo.backend.prompt(QUESTION, None, [encoded]), everything([encoded])
    plain = generate(demo.backend, prompt, kept, vectors, max_new_tokens=12)
    monkeypatch.setattr(demo.backend.model.generation_config, "repetition_penalty", 30.0)
    said = generate(demo.backend, prompt, kept, vectors, max_new_tokens=12)
    (forced,) = force(demo.backend, prompt, said.ids, kept[None], vectors[None])
    assert said.ids != plain.ids and forced.choices.tolist() == list(said.ids)


def test_the_divergence_is_that_of_the_formula() -> None:
    from flashvlm.forcing import Forced

    ids = torch.tensor([0, 1])
    here, there = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([[0.25, 0.5, 0.25], [0.9, 0.1, 0.0]])
    one, other = Forced(ids, here.log(), ids), Forced(ids, there.log(), ids)
    assert one.divergence(other).tolist() == pytest.approx([0.5 * np.log(2), 0.0], abs=1e-6)
    assert one.divergence(one).tolist() == [0.0, 0.0]


def test_an_answer_with_a_marker_of_the_video_is_refused(demo: VideoQA) -> None:
    encoded = watched(demo)
    kept, vectors, _ = everything([encoded])
    with pytest.raises(ModelError, match="marker"):
        prompt = demo.backend.prompt(QUESTION, None, [encoded])
        force(demo.backend, prompt, [*demo.backend.visual_tokens], kept[None], vectors[None])


# ask --check.


def test_a_check_of_everything_kept_finds_no_difference(demo: VideoQA) -> None:
    check = demo.ask(SAMPLES / "two.mp4", QUESTION, keep="100%", check=True).check
    assert (check.same, check.kl, check.first_difference) == (True, 0.0, None) and check.seconds > 0


@pytest.mark.parametrize("keep", ["10%", "1"])
def test_a_check_says_what_the_unpruned_model_says(demo: VideoQA, keep: str) -> None:
    unpruned = demo.ask(SAMPLES / "two.mp4", QUESTION, keep="100%").answer
    answer = demo.ask(SAMPLES / "two.mp4", QUESTION, keep=keep, check=True)
    assert answer.check.same == (answer.answer == unpruned)
    assert answer.check.kl > 0
    # Nobody asked for it.
    assert "check" not in demo.ask(SAMPLES / "two.mp4", QUESTION, keep=keep).to_json()
    if keep == "1":
        place = answer.check.first_difference
        assert answer.answer.split()[: place.token] == unpruned.split()[: place.token]
        assert (place.said, place.unpruned) == (answer.answer.split()[place.token], unpruned.split()[place.token])
        assert answer.to_json()["check"]["first_difference"]["token"] == place.token


def test_a_check_of_a_question_on_several_videos_and_of_merged_tokens(demo: VideoQA) -> None:
    videos = [SAMPLES / "one.mp4", SAMPLES / "two.mp4"]
    answer = demo.ask(videos, QUESTION, keep="20%", selector="tome", check=True)
    assert answer.check.kl > 0 and answer.tokens.before > answer.tokens.after


def test_a_check_that_cannot_be_made_is_refused_before_there_is_an_answer(tmp_path: Path) -> None:
    qa, said = load(tiny_video_llava(tmp_path)), []
    with pytest.raises(UsageError, match="`check` needs the unpruned prompt"):
        qa.ask(SAMPLES / "sequence.mp4", "Why?", keep="2", frames=24, check=True, on_text=said.append)
    assert said == []


def test_batch_adds_a_check_to_its_records(demo_for_all: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--question", QUESTION, "--model", "demo", "--no-cache", "--quiet"]
    assert main(["batch", str(SAMPLES / "two.mp4"), *asked, "--check"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["check"].keys() == {"same", "kl", "first_difference", "seconds"} and record["settings"]["check"]


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (Check(True, 0.00123, None, 1.4), "the unpruned model says the same · KL 0.0012 nats a token"),
        (Check(False, 2.5, Difference(2, " left", " right"), 1.4), "from token 3 on 'right' instead of 'left'"),
        (Check(False, 2.5, Difference(0, "up", ""), 1.4), "from token 1 on the end instead of 'up'"),
    ],
)
def test_the_summary_says_what_the_check_found_and_what_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: Check, said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(FakeVideoQA, "said", an_answer(check=check))
    monkeypatch.setattr("flashvlm.VideoQA", FakeVideoQA)
    assert main(["ask", str(SAMPLES / "one.mp4"), "What?", "--model", "demo", "--check"]) == 0
    told = " ".join(capsys.readouterr().err.split("check", 1)[1].replace("·\n", "").split())
    assert said in told.replace(" · ", " ") or said in told
    assert "one unpruned prefill (12.3 TFLOP), 1.40 s more" in told


# What is measured.


def test_the_figures_are_those_of_answers_one_by_one(demo: VideoQA, three: Path) -> None:
    data = Lines(three, answered=False)
    (record,) = settings().measure(demo, data, 1)
    encoded = watched(demo)
    prompt = demo.backend.prompt(QUESTION, None, [encoded])
    said = generate(demo.backend, prompt, *everything([encoded]), max_new_tokens=32)
    assert (record["answer"], record["length"], record["tokens"]) == (said.text, said.tokens, len(encoded.tokens))
    (unpruned,) = force(demo.backend, prompt, said.ids, *(one[None] for one in everything([encoded])[:2]))
    for budget, count in (("25%", len(encoded.tokens) // 4), ("2", 2)):
        for selector in ("uniform", "random"):
            words = demo.backend.words(QUESTION)
            sizes = encoded.group_sizes
            kept = select(
                encoded.tokens, encoded.saliency, words, group_sizes=sizes, budget=count, selector=selector
            ).indices[None]
            (forced,) = force(demo.backend, prompt, said.ids, kept, encoded.tokens[kept])
            figures = record["pruned"][budget][selector]
            ratio = unpruned.log_probabilities.mean() - forced.log_probabilities.mean()
            assert figures["kl"] == pytest.approx(unpruned.divergence(forced).mean().item(), abs=1e-4)
            assert figures["surprise"] == pytest.approx(ratio.item(), abs=1e-4)
            # A whole answer is the same where every token is: nothing has to be generated for that.
            (own,) = answers(demo.backend, prompt, kept, encoded.tokens[kept], max_new_tokens=32)
            assert figures["same"] == (own == said.text)
    assert {one["same"] for row in record["pruned"].values() for one in row.values()} == {True, False}


def test_everything_kept_changes_nothing(demo: VideoQA, three: Path) -> None:
    for record in settings(keep=("100000",)).measure(demo, Lines(three, answered=False), 0):
        for one in record["pruned"]["100000"].values():
            assert one["kl"] == pytest.approx(0, abs=1e-6) and one["surprise"] == pytest.approx(0, abs=1e-6)
            assert one["agreement"] == 1 and one["same"]


def made(kl: dict[str, dict[str, list[float]]]) -> list[dict]:
    """Records of a question a video, with these divergences by budget and selector."""
    count = len(next(iter(next(iter(kl.values())).values())))
    kept = {"50%": 50, "25%": 25, "10%": 10}
    figures = {"seconds": 0.5, "delta": 0.25, "agreement": 0.75, "same": False}
    return [
        {
            "clip": clip,
            "question": 0,
            "tokens": 100,
            "length": 4,
            "pruned": {
                budget: {
                    name: {"kl": values[clip], "surprise": np.log(1 + clip), "kept": kept[budget], **figures}
                    for name, values in row.items()
                }
                for budget, row in kl.items()
            },
        }
        for clip in range(count)
    ]


def test_the_table_compares_with_the_first_selector_and_says_what_to_keep() -> None:
    records = made(
        {
            "50%": {"uniform": [0.0, 0.02], "random": [0.3, 0.5]},
            "25%": {"uniform": [0.0, 0.02], "random": [0.3, 0.5]},
            "10%": {"uniform": [0.05, 0.13], "random": [0.3, 0.5]},
        }
    )
    table = summarise(settings(keep=("50%", "10%", "25%")), records[::-1])
    assert (table["questions"], table["clips"], table["answer_tokens"], table["within"]) == (2, 2, 4.0, 0.05)
    rows = {(row["keep"], row["selector"]): row for row in table["rows"]}
    first, other = rows["10%", "uniform"], rows["10%", "random"]
    assert (first["kl"], first["kept"], first["seconds"]) == (pytest.approx(0.09), 0.1, 0.5)
    assert first["kl_interval"] == (0.05, 0.13) and first["agreement"] == 0.75 and first["same"] == 0
    # The geometric mean of 1 and 2.
    assert first["perplexity"] == pytest.approx(2**0.5)
    assert other["difference"] == pytest.approx(0.31) and other["tie"] is False and "difference" not in first
    uniform, random = table["shares"]
    # Halfway from 0.01 at 25 % to 0.09 at 10 %, over the logarithm of the share.
    assert uniform["share"] == pytest.approx((0.25 * 0.1) ** 0.5) and not uniform["at_most"]
    # An eighth of the way from 0 at 100 % to 0.4 at 50 %.
    assert random["share"] == pytest.approx(0.5**0.125)
    (least, _) = summarise(settings(keep=("50%", "25%", "10%"), within=0.1), records)["shares"]
    assert least["share"] == pytest.approx(0.1) and least["at_most"]


# Runs.


def test_a_run_on_videos_asks_four_questions(
    demo_for_all: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curve.svg"
    command = ["bench", "fidelity", str(SAMPLES / "one.mp4"), str(SAMPLES / "vp9*"), *QUICK, "--plot", str(plot)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == "" and plot.read_text().rstrip().endswith("</svg>")
    for part in ("8 questions, unpruned answers of", "compared with uniform", "share to keep for a KL of at most 0.05"):
        assert part in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("demo on"))


def test_a_run_on_a_file_needs_no_answers(demo_for_all: None, three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "fidelity", str(three), "--json", *QUICK]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["questions"], table["clips"], table["settings"]["bench"]) == (3, 2, "fidelity")
    assert [row["selector"] for row in table["rows"]] == ["uniform", "random"]
    assert {"kl", "kl_interval", "agreement", "same", "perplexity", "kept", "seconds"} <= table["rows"][0].keys()


def test_an_interrupted_run_goes_on_where_it_stopped(demo_for_all: None, three: Path, tmp_path: Path) -> None:
    data, results = Lines(three, answered=False), tmp_path / "results.jsonl"
    whole = Run(settings(), data, data.numbers())
    assert len(list(whole.answer())) == 2
    with Run(settings(), data, data.numbers(), results) as stopped:
        answering = stopped.answer()
        next(answering)
        answering.close()
    # What is looked for in the results may change.
    with Run(settings(within=0.2), data, data.numbers(), results) as resumed:
        assert resumed.done == 1 and len(list(resumed.answer())) == 1
    for name in ("kl", "agreement", "same", "perplexity"):
        assert [row[name] for row in resumed.table()["rows"]] == [row[name] for row in whole.table()["rows"]]
    with pytest.raises(UsageError, match="keep is"):
        Run(settings(keep=("50%",)), data, data.numbers(), results)


def test_a_video_that_cannot_be_read_is_left_out_and_told(
    demo_for_all: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    command = ["bench", "fidelity", str(broken), *QUICK, "--question", QUESTION]
    assert main(command) == 3
    assert "broken.mp4" in capsys.readouterr().err
    assert main([*command, str(SAMPLES / "one.mp4")]) == 1
    out, err = capsys.readouterr()
    assert "without 1 question about 1 unreadable video" in out and "broken.mp4" in err


def test_choices_go_with_the_question_and_need_no_answer(tmp_path: Path) -> None:
    data = Lines(questions(tmp_path, {"video": str(SAMPLES / "one.mp4"), "choices": ["up", "down"]}), answered=False)
    assert data.questions(0) == (Asked(QUESTION, "", "other", ("up", "down")),)


def test_every_video_gets_the_same_questions() -> None:
    data = Videos([str(SAMPLES / "*.mp4")], QUESTIONS)
    assert data.count == len(list(SAMPLES.glob("*.mp4")))
    assert [one.text for one in data.questions(3)] == list(QUESTIONS)
    assert data.identity != Videos([str(SAMPLES / "*.mp4")], QUESTIONS[:2]).identity


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one.mp4", "--data", "clips"], "Give videos or --data, not both."),
        (["--question", "What?"], "--question is for videos"),
        (["nowhere*.mp4"], "No file matches 'nowhere*.mp4'"),
        (["nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["nowhere.jsonl", "one.mp4"], "Rows come from one file"),
        (["VIDEO", "--question", " "], "The question is empty."),
        (["VIDEO", "--question", "What?", "--question", "What?"], "each question once"),
        (["VIDEO", "--keep", "100%"], "--keep takes budgets that prune"),
        (["VIDEO", "--keep", "auto"], "--keep auto is for --selectors flashvlm; paper"),
        (["VIDEO", "--within", "0"], "--within must be more than 0, not 0"),
        (["VIDEO", "--selectors", "nothing"], "There is no selector 'nothing'"),
        (["VIDEO", "--plot", "curve.txt"], "--plot takes a file that ends in .png"),
    ],
)
def test_wrong_usage_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    given = [str(SAMPLES / "one.mp4") if argument == "VIDEO" else argument for argument in arguments]
    assert main(["bench", "fidelity", "--device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_results_of_another_benchmark_are_not_continued(
    demo_for_all: None, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    assert main(["bench", "fidelity", str(three), *QUICK, "-o", str(results), "--limit", "1"]) == 0
    rows = [{**json.loads(line), "answer": "?"} for line in three.read_text().splitlines()]
    answered = questions(tmp_path, *rows)
    assert main(["bench", "accuracy", "--data", str(answered), *QUICK, "-o", str(results)]) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_model_with_further_features_is_compared_too(tmp_path: Path, three: Path) -> None:
    qa = load(FAMILIES["qwen3_vl"](tmp_path / "model"))
    (record,) = replace(settings(), keep=("20%",)).measure(qa, Lines(three, answered=False), 1)
    assert all(one["kl"] > 0 for one in record["pruned"]["20%"].values())
