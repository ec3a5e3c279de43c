"""`flashvlm batch`: every row once, whatever is wrong with some, whenever it is killed, on one process or on Ray."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashvlm import VideoQA
from flashvlm.batch.here import Answering, answered
from flashvlm.batch.plan import Group, Plan, make_plan
from flashvlm.batch.records import Records
from flashvlm.batch.rows import Row
from flashvlm.batch.run import Run
from flashvlm.errors import UsageError
from flashvlm.journal import Record, line_of
from flashvlm.options import AskOptions, Keep, Sampling
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

SAMPLES = samples_dir()
SMALL = ("one.mp4", "still.jpg", "vp9.webm", "mpeg4.mp4", "phone.mp4")
MODEL = ["--model", "demo", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def loaded(demo: VideoQA, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The demo model stands for the one that is asked for; what it was asked for by."""
    asked: list[dict[str, Any]] = []

    def from_pretrained(**loading: Any) -> VideoQA:
        asked.append(loading)
        return VideoQA(demo.backend, demo.name)

    monkeypatch.setattr(VideoQA, "from_pretrained", from_pretrained)
    return asked


def lines(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_rows(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(video: str = "still.jpg", question: str = "What is there?", **columns: Any) -> dict[str, Any]:
    return {"video": str(SAMPLES / video), "question": question, **columns}


def comparable(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in the order of their rows, without what hangs on the time: equal wherever they were made."""
    timed = {"seconds", "cached"}
    kept = [{name: value for name, value in record.items() if name not in timed} for record in records]
    return sorted(kept, key=lambda record: record["key"])


# What comes out


def test_a_row_is_answered_as_ask_answers_it(tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row(id=7, keep="20%"), row("one.mp4", "What happens?", id=8)])
    assert main(["batch", str(rows), *MODEL]) == 0
    records = lines(capsys.readouterr().out)
    assert main(["ask", str(SAMPLES / "still.jpg"), "What is there?", "--json", "--keep", "20%", *MODEL]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [record["row"]["id"] for record in records] == [7, 8]
    for name in ("question", "answer", "tokens", "moments", "selection", "video", "model", "warnings"):
        assert records[0][name] == answer[name], name
    assert answer.keys() <= records[0].keys()
    assert len(loaded) == 2  # one of them is ask's


def test_rows_of_a_video_share_its_decoding_and_encoding(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [row(), row("one.mp4"), row(question="Is there a dog?"), row(question="Is there a cat?", start=0, fps=3)]
    assert main(["batch", str(write_rows(tmp_path / "rows.jsonl", asked)), "--no-cache", *MODEL]) == 0
    records = lines(capsys.readouterr().out)
    assert [record["line"] for record in records] == [1, 3, 2, 4]
    assert [record["cached"] for record in records] == [False, True, False, False]
    assert records[1]["seconds"]["decode"] == records[1]["seconds"]["encode"] == 0


@pytest.mark.parametrize("failing", [10, 11])
def test_of_many_rows_that_fail_the_first_are_told(
    failing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = write_rows(tmp_path / "rows.jsonl", [row("nowhere.mp4", f"Question {n}?") for n in range(failing)])
    assert main(["batch", str(asked), *MODEL]) == 1
    told = capsys.readouterr().err
    assert told.count("there is no such file") == 10 and ("Further failures" in told) == (failing > 10)


def test_every_question_looks_again_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = write_rows(tmp_path / "rows.jsonl", [row("one.mp4", "What happens?"), row("one.mp4", "Is there a dog?")])
    assert main(["batch", str(asked), "--look", "twice", *MODEL]) == 0
    records = lines(capsys.readouterr().out)
    assert [record["cached"] for record in records] == [False, False]
    assert records[1]["seconds"]["decode"] == 0 < records[1]["seconds"]["encode"]
    assert any(moment["small"] for moment in records[1]["moments"])


def test_a_second_run_takes_videos_from_the_cache(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(SAMPLES / "still.jpg"), "--question", "What is there?", *MODEL]
    assert (main(command), main(command)) == (0, 0)
    first, second = lines(capsys.readouterr().out)
    assert (first["cached"], second["cached"]) == (False, True)
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 1
    assert main(["cache", "--clear"]) == 0
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("{", 1)[1].join(["{", ""]))["videos"] == 0


def test_columns_are_options_of_their_row(tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        row("one.mp4", keep=5),
        row("one.mp4", keep=0.2, selector="uniform", start="0:01", end=3),
        row("one.mp4", keep=None, selector="", start=None),
    ]
    asked[0] |= {"fps": 1, "note": "mine"}
    assert main(["batch", str(write_rows(tmp_path / "rows.jsonl", asked)), "--keep", "30%", *MODEL]) == 0
    out, err = capsys.readouterr()
    few, part, plain = sorted(lines(out), key=lambda record: record["line"])
    assert "Nothing is set by the column fps: a row can have its own keep, selector, start, end." in err
    assert few["tokens"]["after"] == 5
    assert part["settings"]["keep"] == "20%" and part["selection"]["selector"] == "uniform"
    assert 1 <= part["moments"][0]["timestamps"][0] <= part["moments"][-1]["timestamps"][-1] <= 3
    assert plain["settings"]["keep"] == "30%" and plain["selection"]["selector"] == "flashvlm"


def test_a_table_with_quotes_line_breaks_and_a_byte_order_mark(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([["id", "video", "question", "keep"], ["a", SAMPLES / "still.jpg", 'What, "please",\nis it?', ""]])
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + table.getvalue().encode())
    assert main(["batch", str(tmp_path / "rows.csv"), *MODEL]) == 0
    (record,) = lines(capsys.readouterr().out)
    assert record["row"]["id"] == "a" and record["question"] == 'What, "please",\nis it?'


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_standard_input_is_json_or_a_table(
    kind: str, loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = str(SAMPLES / "still.jpg")
    text = json.dumps(row()) if kind == "json" else f"video,question\n{video},What is there?\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert main(["batch", "-", *MODEL]) == 0
    (record,) = lines(capsys.readouterr().out)
    assert record["row"] == row()


def test_standard_input_without_anything_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b" \n")))
    assert main(["batch", "-", *MODEL]) == 2
    assert "Standard input is empty." in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["batch", "-"], ["ask", str(SAMPLES / "still.jpg"), "-"]])
def test_standard_input_that_is_closed_is_wrong_usage(
    arguments: list[str], loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main([*arguments, *MODEL]) == 2 and not loaded
    assert capsys.readouterr() == ("", "flashvlm: Standard input is closed.\n")


def test_every_question_goes_to_every_video(loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [str(SAMPLES / "o*.mp4"), str(SAMPLES / "still.jpg")]
    questions = ["--question", "What is there?", "--question", "What happens?"]
    assert main(["batch", *videos, *questions, *MODEL]) == 0
    said = [(Path(record["video"]["path"]).name, record["question"]) for record in lines(capsys.readouterr().out)]
    asked = ["What is there?", "What happens?"]
    assert said == [(name, question) for name in ("one.mp4", "still.jpg") for question in asked]


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.jpg").write_bytes((SAMPLES / "still.jpg").read_bytes())
    rows = write_rows(tmp_path / "rows.jsonl", [{"video": "clip.jpg", "question": "What is there?"}])
    assert main(["batch", str(rows), *MODEL]) == 0
    assert lines(capsys.readouterr().out)[0]["video"]["path"] == str(tmp_path / "clip.jpg")


def read_table(path: Path, separator: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(), newline=""), delimiter=separator))


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_is_written_and_continued(
    suffix: str, separator: str, tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [row(question='Is it, "red"\nor blue?', id=7), row("gone.mp4", id=8), row("one.mp4", "What happens?", id=9)]
    rows, out = write_rows(tmp_path / "rows.jsonl", asked), tmp_path / f"out{suffix}"
    command = ["batch", str(rows), "-o", str(out), "--fields", "id,video,question,answer,tokens.after", *MODEL]
    assert main(command) == 1
    whole = out.read_bytes()
    head, *cells = read_table(out, separator)
    assert head == ["id", "video", "question", "answer", "tokens.after", "error", "key"]
    by_id = {line[0]: line for line in cells}
    assert by_id["7"][1:3] == [asked[0]["video"], asked[0]["question"]] and by_id["7"][3] and by_id["7"][4]
    assert by_id["8"][3] == "" and "there is no such file" in by_id["8"][5]
    # As a killed run leaves it: the last row is not whole.
    out.write_bytes(whole[:-20])
    assert main(command) == 1
    assert sorted(read_table(out, separator)) == sorted([head, *cells])
    assert main([*command, "--retry-failed"]) == 1
    assert sorted(read_table(out, separator)) == sorted([head, *cells])
    capsys.readouterr()
    for changed, said in ((["--keep", "50%"], "other settings"), (["--fields", "id"], "has other fields")):
        assert main([*command, *changed]) == 2
        assert said in capsys.readouterr().err
    assert sorted(read_table(out, separator)) == sorted([head, *cells])


def test_compact_records_have_no_moments(loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["batch", str(SAMPLES / "still.jpg"), "--question", "What is there?", *MODEL]
    assert (main([*command, "-o", "-"]), main([*command, "--compact"])) == (0, 0)
    long, short = lines(capsys.readouterr().out)
    assert set(long) - set(short) == {"moments"} and comparable([short])[0]["answer"] == long["answer"]


def test_a_folder_a_list_of_paths_and_a_file_of_questions(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("What is there?\n\n  Is it red?\n")
    (tmp_path / "a b.jpg").write_bytes((SAMPLES / "still.jpg").read_bytes())
    expected = [(str(tmp_path / "a b.jpg"), question) for question in ("What is there?", "Is it red?")]
    questions = ["--questions", str(tmp_path / "notes.txt")]

    def asked(given: list[str]) -> list[tuple[str, str]]:
        assert main(["batch", *given, *questions, *MODEL]) == 0
        return [(one["row"]["video"], one["question"]) for one in lines(capsys.readouterr().out)]

    assert asked([str(tmp_path)]) == expected
    for ends in (b"\n", b"\0"):
        listed = os.fsencode(tmp_path / "a b.jpg") + ends
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
        assert asked(["-"]) == expected
    for rows in (json.dumps(row()), "id,video,question\n"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(rows.encode())))
        assert main(["batch", "-", *questions, *MODEL]) == 2


def test_failures_of_videos_name_the_video(
    loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"gone.mp4\n")))
    assert main(["batch", "-", "--question", "What?", "--start", "1", *MODEL]) == 1
    assert "flashvlm: gone.mp4: there is no such file.\n" in capsys.readouterr().err


# What is wrong with a row


def test_bad_rows_are_records_and_the_others_go_on(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"no video at all" * 100)
    asked: list[tuple[dict[str, Any] | str, str | None]] = [
        (row(), None),
        (row(str(tmp_path / "gone.mp4")), "video"),
        (row(str(tmp_path / "noise.mp4")), "video"),
        ({"video": "https://example.org/a.mp4", "question": "What?"}, "video"),
        ("{broken", "usage"),
        ("[1, 2]", "usage"),
        ('{"video": NaN}', "usage"),
        ('{"video": "still.jpg", "question": "What is there?", "keep": 1e400}', "usage"),
        ({"video": "x.mp4"}, "usage"),
        ({"question": "What?"}, "usage"),
        (row(question=" "), "usage"),
        (row(question="Is there a \ud800 dog?"), "usage"),
        ({"video": 5, "question": "What?"}, "usage"),
        (row(keep="0%"), "usage"),
        (row(keep=[1]), "usage"),
        (row(keep="auto", selector="uniform"), "usage"),
        (row(selector="best"), "usage"),
        (row("one.mp4", start=3, end=2), "usage"),
        (row("one.mp4", start="1:99"), "usage"),
        (row("one.mp4", start=900), "usage"),
        (row(question="Is there a dog?"), None),
    ]
    rows = write_rows(tmp_path / "rows.jsonl", [given for given, _ in asked])
    assert main(["batch", str(rows), *MODEL]) == 1
    printed = capsys.readouterr()
    records = {record["line"]: record for record in lines(printed.out)}
    assert len(records) == len(asked)
    for number, (given, kind) in enumerate(asked, start=1):
        error = records[number].get("error")
        assert (error and error["kind"]) == kind, given
        if error:
            assert error["exit_code"] == {"usage": 2, "video": 3}[kind] and error["message"].count("\n") == 0
            assert records[number]["row"] == given or isinstance(given, str)
    assert "2 of 21 rows answered, 19 failed (16 usage, 3 video)" in printed.err


def test_lines_of_a_table_that_do_not_fit_are_records(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    video = SAMPLES / "still.jpg"
    (tmp_path / "rows.csv").write_text(f"video,question\n{video},What?,more\n{video}\n{video},What is there?\n")
    assert main(["batch", str(tmp_path / "rows.csv"), *MODEL]) == 1
    records = sorted(lines(capsys.readouterr().out), key=lambda record: record["line"])
    assert [record["line"] for record in records] == [2, 3, 4]
    assert [record.get("error", {}).get("kind") for record in records] == ["usage", "usage", None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b""),
        ("rows.jsonl", b"\n \n"),
        ("rows.csv", b"a,b\n1,2\n"),
        ("rows.csv", b"video,question,video\n1,2,3\n"),
        ("rows.csv", b"video,question\n\xff,x\n"),
        ("rows.csv", b"video,question\n"),
        ("rows.jsonl", b'[\n{"video": "one.mp4",\n"question": "What?"}\n]\n'),
    ],
)
def test_an_input_that_cannot_be_read_is_wrong_usage(
    tmp_path: Path, name: str, content: bytes, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["batch", str(tmp_path / name), *MODEL]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert not loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere.jsonl"],
        ["clips/*.nothing", "--question", "What?"],
        ["samples/one.mp4"],
        ["flashvlm_cli", "--question", "What?"],
        ["samples/questions.jsonl", "-o", "out.txt"],
        ["samples/questions.jsonl", "-o", "out.jsonl", "--fields", "answer"],
        ["samples/questions.jsonl", "-o", "out.csv", "--fields", "answer,sense"],
        ["samples/questions.jsonl", "-o", "out.csv", "--fields", "key"],
        ["samples/one.mp4", "--questions", "nowhere.txt"],
        ["samples/one.mp4", "samples/questions.jsonl", "--question", "What?"],
        ["samples/one.mp4", "--question", ""],
        ["samples/questions.jsonl", "--question", "What?"],
        ["samples/questions.jsonl", "samples/one.mp4"],
        ["samples/questions.jsonl", "--retry-failed"],
        ["samples/questions.jsonl", "--workers", "2"],
        ["samples/questions.jsonl", "-o", "/dev/null"],
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str], loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SAMPLES.parent)
    assert main(["batch", *arguments, *MODEL]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert not loaded


def test_records_that_cannot_be_written_are_told(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    rows, out = str(SAMPLES / "questions.jsonl"), str(tmp_path / "file" / "out.jsonl")
    assert main(["batch", rows, "-o", out, *MODEL]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "out.jsonl cannot be written: " in printed.err and printed.err.count("\n") == 1
    assert not loaded


def test_a_cache_size_that_is_none_is_wrong_usage_and_no_rows_error(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHVLM_CACHE_SIZE", "lots")
    rows, out = write_rows(tmp_path / "rows.jsonl", [row()]), tmp_path / "out.jsonl"
    assert main(["batch", str(rows), "-o", str(out), *MODEL]) == 2
    assert "not 'lots'" in capsys.readouterr().err and not out.exists() and not loaded
    assert main(["batch", str(rows), "-o", str(out), "--no-cache", *MODEL]) == 0


def test_a_model_that_is_not_there_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["{broken", row()])
    assert main(["batch", str(rows), "--model", str(tmp_path / "nothing")]) == 4
    assert capsys.readouterr().out == ""


def test_quiet_says_nothing(tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", str(write_rows(tmp_path / "rows.jsonl", [row(), "{"])), "--quiet", *MODEL]) == 1
    assert capsys.readouterr().err == ""


# Going on


def plan_of(count: int, options: AskOptions | None = None, **columns: Any) -> Plan:
    rows = [Row(number + 1, row(f"v{number % 4}", f"Question {number}?", **columns)) for number in range(count)]
    return make_plan(rows, options or AskOptions(), {"model": "demo", "revision": None}, None)


def faked(groups: Sequence[Group]) -> Iterator[Record]:
    """An engine that answers with the question."""
    for group in groups:
        for item in group:
            yield {**item.head, "answer": item.question, "settings": {}, "model": {"name": "demo"}}


def done(path: Path, plan: Plan, most: int | None = None, **settings: Any) -> list[Record]:
    """Run a plan, or `most` records of it; what the file then holds."""
    with Records(path, plan, **settings) as records:
        for number, _ in enumerate(Run(plan, records).answer(faked), start=1):
            if number == most:
                break
    return lines(path.read_bytes())


def test_a_file_cut_at_any_byte_is_completed(tmp_path: Path) -> None:
    plan, path = plan_of(12), tmp_path / "out.jsonl"
    whole = done(path, plan)
    content = path.read_bytes()
    assert len({record["key"] for record in whole}) == 12
    for cut in range(0, len(content), 37):
        path.write_bytes(content[:cut])
        assert comparable(done(path, plan)) == comparable(whole)
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_rows_with_an_answer_are_skipped(tmp_path: Path) -> None:
    plan, path = plan_of(12), tmp_path / "out.jsonl"
    done(path, plan, most=5)
    begun = path.read_bytes()
    assert len(done(path, plan)) == 12
    assert path.read_bytes().startswith(begun)


def test_rows_alike_are_answered_each(tmp_path: Path) -> None:
    plan = make_plan([Row(1, row()), Row(2, row())], AskOptions(), {"model": "demo"}, None)
    assert len(done(tmp_path / "out.jsonl", plan)) == 2
    assert len(done(tmp_path / "out.jsonl", plan)) == 2


def test_an_edited_row_is_new_and_its_old_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    old, other, new = (Row(1, row(question=text)) for text in ("Old?", "Other?", "New?"))
    settings = (AskOptions(), {"model": "demo"}, None)
    done(path, make_plan([old, other], *settings))
    plan = make_plan([new, other], *settings)
    with Records(path, plan) as records:
        assert records.others == 1 and len(records.answered) == 1
    assert [record["row"]["question"] for record in done(path, plan)] == ["Old?", "Other?", "New?"]


def test_rows_that_failed_are_tried_again_when_asked_for(tmp_path: Path) -> None:
    plan, path = plan_of(4), tmp_path / "out.jsonl"
    whole = done(path, plan)
    failed = {**{name: whole[1][name] for name in ("key", "line", "row")}, "error": {"kind": "video"}}
    path.write_bytes(b"".join(map(line_of, [whole[0], failed, *whole[2:]])))
    assert "error" in done(path, plan)[1]
    assert comparable(done(path, plan, retry_failed=True)) == comparable(whole)


def test_two_runs_on_one_file_refuse_each_other(
    tmp_path: Path, loaded: list, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.jsonl"
    with Records(path, plan_of(2)):
        assert main(["batch", str(SAMPLES / "questions.jsonl"), "-o", str(path), *MODEL]) == 2
        assert "Another run" in capsys.readouterr().err
    assert len(done(path, plan_of(2))) == 2


def test_a_link_to_the_file_of_records_is_that_file(tmp_path: Path) -> None:
    path, link, plan = tmp_path / "out.jsonl", tmp_path / "links" / "other.jsonl", plan_of(2)
    link.parent.mkdir()
    link.symlink_to(path)
    whole = done(link, plan)
    with Records(path, plan), pytest.raises(UsageError, match="Another run"):
        Records(link, plan)
    failed = {**{name: whole[0][name] for name in ("key", "line", "row")}, "error": {"kind": "video"}}
    path.write_bytes(b"".join(map(line_of, [failed, whole[1]])))
    assert comparable(done(link, plan, retry_failed=True)) == comparable(whole)
    assert link.is_symlink() and link.read_bytes() == path.read_bytes()


def test_a_folder_trained_further_is_another_model(tmp_path: Path) -> None:
    folder, rows, path = tmp_path / "model", [Row(1, row())], tmp_path / "out.jsonl"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"before")
    model = {"model": str(folder), "revision": None, "dtype": "auto"}
    before = make_plan(rows, AskOptions(), model, None)
    done(path, before)
    assert done(path, make_plan(rows, AskOptions(), model, None)) == done(path, before)
    with pytest.raises(UsageError, match="made with other settings"):
        Records(path, make_plan(rows, AskOptions(), {**model, "dtype": "bfloat16"}, None))
    # Copied, it is the same; with other weights or another tokenizer it is not.
    os.utime(folder / "model.safetensors", (1, 1))
    Records(path, make_plan(rows, AskOptions(), model, None)).__exit__(None, None, None)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="made with other settings"):
        Records(path, make_plan(rows, AskOptions(), model, None))
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"behind")
    with pytest.raises(UsageError, match="made with other settings"):
        Records(path, make_plan(rows, AskOptions(), model, None))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"keep": Keep.parse("5%")}, "keep is 10% there and 5% here"),
        ({"max_pixels": 40_000}, "max_pixels"),
        ({"min_pixels": 40_000}, "min_pixels is null there and 40000 here"),
        ({"sampling": Sampling(fps=3.0)}, "fps is null there and 3.0 here"),
        ({"system": "Be brief."}, "system"),
        ({"temperature": 0.5}, "temperature"),
        ({"metric": "centered"}, "metric"),
        ({"merge": True}, "merge"),
        ({"look": "twice"}, "look"),
    ],
)
def test_records_of_other_settings_are_refused(
    tmp_path: Path, demo: VideoQA, changed: dict[str, Any], named: str
) -> None:
    path, rows, model = tmp_path / "out.jsonl", [Row(1, row())], {"model": demo.name, "revision": None}
    plan = make_plan(rows, AskOptions(), model, None)
    with Records(path, plan) as records:
        list(Run(plan, records).answer(lambda groups: answered(demo, groups)))
    with pytest.raises(UsageError, match=named):
        Records(path, make_plan(rows, AskOptions(**changed), model, None))
    with pytest.raises(UsageError, match="model is demo there and other here"):
        Records(path, make_plan(rows, AskOptions(), {**model, "model": "other"}, None))
    assert len(lines(path.read_bytes())) == 1


@pytest.mark.parametrize("content", ["notes of mine", "notes of mine\n", '{"answer": 1}\n', "[]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match="not a record"):
        Records(path, plan_of(1))
    assert path.read_text() == content


def wait_for(path: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def child(*arguments: str, before: str = "") -> subprocess.Popen:
    """The command as a process of its own, begun by a shell that does something `before`."""
    command = [sys.executable, "-m", "flashvlm_cli", "batch", *arguments, *MODEL]
    return subprocess.Popen(["sh", "-c", f'{before}\nexec "$@"', "sh", *command], stderr=subprocess.PIPE)


def test_a_killed_run_is_gone_on_with(tmp_path: Path, loaded: list) -> None:
    path, undisturbed = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    asked = [
        row(name, question) for name in SMALL for question in ("What is there?", "What happens?", "Is there a dog?")
    ]
    rows = str(write_rows(tmp_path / "rows.jsonl", asked))
    with child(rows, "-o", str(path)) as process:
        wait_for(path, 4, process)
        process.kill()
    assert 4 <= path.read_bytes().count(b"\n") < len(asked)
    assert main(["batch", rows, "-o", str(path), *MODEL]) == 0
    assert main(["batch", rows, "-o", str(undisturbed), *MODEL]) == 0
    assert comparable(lines(path.read_bytes())) == comparable(lines(undisturbed.read_bytes()))


@pytest.mark.parametrize("ended_by, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_says_so(tmp_path: Path, ended_by: signal.Signals, code: int) -> None:
    path = tmp_path / "out.jsonl"
    with child(str(SAMPLES / "questions.jsonl"), "-o", str(path), "--no-cache") as process:
        wait_for(path, 2, process)
        process.send_signal(ended_by)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code and errors.endswith(b"flashvlm: Interrupted.\n") == (code == 130)
    assert b"Traceback" not in errors
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    rows = write_rows(tmp_path / "rows.jsonl", [row(name, "What happens?") for name in SMALL])
    with child(str(rows), "-o", str(path), "--no-cache", before="trap '' HUP") as process:
        wait_for(path, 1, process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0 and path.read_bytes().count(b"\n") == len(SMALL)


# The engines


BACKEND = SimpleNamespace(device=torch.device("cpu"))


class Seen:
    """A video that was watched."""

    def again(self) -> Seen:
        return self


def test_one_video_is_decoded_ahead_and_no_more() -> None:
    decoded: list[str] = []

    def decode(video: str, options: AskOptions) -> str:
        decoded.append(video)
        return video

    qa: Any = SimpleNamespace(decode=decode, encode=lambda video: Seen(), backend=BACKEND)
    qa.answer = lambda *_: SimpleNamespace(to_json=lambda: {"answer": "yes"})
    seen = []
    for record in answered(qa, plan_of(16).groups(set())):
        time.sleep(0.01)
        seen.append((record["row"]["question"], len(decoded)))
    assert [count for _, count in seen] == [2] * 4 + [3] * 4 + [4] * 8


def test_an_error_that_nobody_expects_is_its_rows_own() -> None:
    def encode(video: str) -> Any:
        if video.endswith("v1"):
            raise RuntimeError("CUDA out of memory")
        return Seen()

    qa: Any = SimpleNamespace(decode=lambda video, options: video, encode=encode, backend=BACKEND)
    qa.answer = lambda *_: SimpleNamespace(to_json=lambda: {"answer": "yes"})
    records = [record for group in plan_of(4).groups(set()) for record in Answering(qa).records(group)]
    errors = [record.get("error", {}).get("message", "") for record in records]
    assert [bool(message) for message in errors] == [False, True, False, False]
    assert errors[1].startswith("Out of memory")


def test_without_ray_the_engine_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", str(SAMPLES / "questions.jsonl"), "--engine", "ray", *MODEL]) == 2
    assert "pip install 'flashvlm[ray]'" in capsys.readouterr().err


def ray_workers(process: subprocess.Popen) -> list[int]:
    """The Ray workers that descend from a process and are at work on records."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])

    def descends(number: int) -> bool:
        while number in parents and number != process.pid:
            number = parents[number]
        return number == process.pid

    return [number for number, title in titles.items() if title.startswith("ray::Worker.rec") and descends(number)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's workers under /proc")
def test_rows_of_a_lost_worker_are_answered_by_another(tmp_path: Path, loaded: list) -> None:
    pytest.importorskip("ray")
    path, undisturbed = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    asked = [row(name, f"What is there{'?' * many}") for name in SMALL for many in range(1, 9)]
    rows = str(write_rows(tmp_path / "rows.jsonl", [row(str(tmp_path / "gone.mp4")), "{", *asked]))
    with child(rows, "-o", str(path), "--engine", "ray", "--workers", "2") as process:
        wait_for(path, 6, process)
        os.kill(ray_workers(process)[0], signal.SIGKILL)
        process.communicate(timeout=240)
    assert process.returncode == 1  # there are bad rows
    assert main(["batch", rows, "-o", str(undisturbed), *MODEL]) == 1
    assert comparable(lines(path.read_bytes())) == comparable(lines(undisturbed.read_bytes()))
