"""One question on several videos: one budget over all, and whatever is told or drawn says which video it is of."""

import json
from pathlib import Path

import pytest
from PIL import Image
from test_report import data_of

from flashvlm import AskOptions, VideoQA, overlay, page
from flashvlm.errors import UsageError
from flashvlm.report import Answer, Inspection
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

SAMPLES = samples_dir()
ONE, STILL, TWO = (str(SAMPLES / name) for name in ("one.mp4", "still.jpg", "two.mp4"))
QUESTION = "What happens?"
DEMO = ["--model", "demo", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def seen(demo: VideoQA) -> tuple[Inspection, Answer]:
    choice = demo.choose(demo.watch([ONE, STILL, TWO], AskOptions()), QUESTION, AskOptions())
    return demo.inspect(choice), demo.respond(choice)


def test_one_budget_is_spent_on_all_videos(demo: VideoQA, seen: tuple[Inspection, Answer]) -> None:
    answer = seen[1]
    alone = [demo.ask(path, QUESTION) for path in (ONE, STILL, TWO)]
    assert answer.tokens.before == sum(one.tokens.before for one in alone)
    assert answer.tokens.after == answer.tokens.before // 10 == sum(moment.kept_count for moment in answer.moments)
    assert [moment.video for moment in answer.moments] == [0] * 6 + [1] + [2] * 8
    assert all(moment.kept_count for moment in answer.moments)
    assert answer.frames == sum(one.frames for one in alone)
    assert answer.videos == tuple(one.video for one in alone) and answer.video == answer.videos[0]
    assert demo.ask((ONE, STILL, TWO), QUESTION).answer == answer.answer


def test_a_list_of_one_is_one_video(demo: VideoQA) -> None:
    several, one = demo.ask([TWO], QUESTION), demo.ask(TWO, QUESTION)
    assert (several.answer, several.moments, several.videos) == (one.answer, one.moments, ())
    assert several.to_json().keys() == one.to_json().keys()
    with pytest.raises(UsageError, match="There is no video"):
        demo.ask([], QUESTION)


def test_times_are_sums(demo: VideoQA) -> None:
    watched = demo.watch([ONE, TWO], AskOptions())
    seconds = demo.answer(watched, QUESTION, AskOptions()).seconds
    assert seconds.decode == watched[0].decode_seconds + watched[1].decode_seconds
    assert seconds.encode == watched[0].encode_seconds + watched[1].encode_seconds
    answer = demo.answer([watched[0].again(), watched[1]], QUESTION, AskOptions())
    assert answer.seconds.decode == watched[1].decode_seconds and not answer.cached


def test_a_repeated_moment_names_the_one_it_repeats(demo: VideoQA) -> None:
    moments = demo.ask([ONE, SAMPLES / "sequence.mp4"], QUESTION).moments
    like = [(number, moment.like) for number, moment in enumerate(moments) if moment.like is not None]
    assert like and all(moments[source].video == moments[number].video for number, source in like)


def test_each_video_is_seen_in_its_own_area(demo_video_llava: VideoQA) -> None:
    answer = demo_video_llava.ask([ONE, STILL], QUESTION)
    one, still = answer.areas
    # The sides of a wide picture are outside, and the ends of a high one.
    assert (one.left, one.top > 0) == (0, True) and (still.left > 0, still.top) == (True, 0)
    assert answer.area == one


def test_a_sheet_and_a_report_show_all(seen: tuple[Inspection, Answer], tmp_path: Path) -> None:
    inspection, answer = seen
    sizes = []
    for name, one in (("both.png", [inspection, inspection]), ("kept.png", [answer])):
        with Image.open(overlay.write(tmp_path / name, one)) as sheet:
            sizes.append(sheet.height)
    assert sizes[0] > sizes[1]
    with pytest.raises(UsageError, match="a clip shows one video"):
        overlay.write(tmp_path / "kept.webp", [answer])
    html = page.render([inspection], answer)
    data = data_of(html)
    assert ONE in html and TWO in html
    assert [moment["video"] for moment in data["moments"]] == [moment.video for moment in answer.moments]
    assert data["moments"][6]["label"] == "video 2 · 6 × 9 cells"
    assert [data["moments"][number]["grid"] for number in (0, 6, 7)] == [[8, 7], [6, 9], [6, 10]]
    for moment, cells in zip(data["moments"], data["selections"][0]["kept"], strict=True):
        height, width = moment["grid"]
        assert len(cells) == height * width and len(moment["pictures"]) == (1 if moment["video"] == 1 else 2)


def test_the_command_line_takes_them_before_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", ONE, STILL, TWO, QUESTION, *DEMO]) == 0
    told = capsys.readouterr().err
    assert " video 1    one.mp4 · 286 × 358 " in told and " video 3    two.mp4 " in told
    assert "29 frames in 15 moments\n" in told and " of video " in told
    assert f"video 1 {'─' * 15} 2 ─ 3 ───" in told
    assert main(["ask", ONE, TWO, QUESTION, "--json", *DEMO]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [video["path"] for video in answer["videos"]] == [ONE, TWO] and answer["video"]["path"] == ONE
    assert {moment["video"] for moment in answer["moments"]} == {0, 1}
    assert main(["inspect", ONE, TWO, "--json", *DEMO]) == 0
    inspection = json.loads(capsys.readouterr().out)
    assert inspection["question"] is None and len(inspection["videos"]) == 2
    assert main(["inspect", ONE, QUESTION, "--json", *DEMO]) == 0
    inspection = json.loads(capsys.readouterr().out)
    assert inspection["question"] == QUESTION and "videos" not in inspection and "video" not in inspection["moments"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["ask", ONE, TWO], 2, f"The question goes last, and {TWO} is a file."),
        (["ask", ONE, "nowhere.mp4", QUESTION], 3, "nowhere.mp4: there is no such file."),
        (["ask", ONE, TWO, QUESTION, "--overlay", "kept.gif"], 2, "kept.gif: a clip shows one video"),
        (["inspect", ONE, TWO, "--overlay", "kept.mp4"], 2, "kept.mp4: a clip shows one video"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert capsys.readouterr().err.startswith(f"flashvlm: {told}")
