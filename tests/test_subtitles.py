"""Subtitles: the lines of the part that is looked at reach the model, and are counted."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest

from flashvlm import VideoQA, subtitles
from flashvlm.errors import UsageError
from flashvlm.samples import samples_dir
from flashvlm.subtitles import Line
from flashvlm_cli.app import main

ONE = samples_dir() / "one.mp4"
SRT = """\ufeff1
00:00:00,500 --> 00:00:01,500
<i>Look,</i>
a {\\an8}dog!

2
00:00:02,000 --> 00:01:03,250
It runs.
"""
VTT = "WEBVTT\n\n00:00.500 --> 00:01.500 align:start\nLook, a dog!\n\n00:02.000 --> 01:03.250\nIt runs.\n"
LINES = [Line(0.5, 1.5, "Look, a dog!"), Line(2.0, 63.25, "It runs.")]


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.srt", SRT.replace("\n", "\r\n")), ("a.vtt", VTT)])
def test_lines_and_times_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert subtitles.read(tmp_path / name) == LINES


def test_only_lines_within_the_part_count() -> None:
    for start, end, count in ((None, None, 2), (1.6, None, 1), (None, 1.9, 1), (0, 0.4, 0), (64, None, 0)):
        assert len(subtitles.within(LINES, start, end)) == count
    assert subtitles.joined("What?", [LINES]) == "Subtitles:\n0:00.5 Look, a dog!\n0:02 It runs.\n\nWhat?"
    assert subtitles.joined("What?", [[], LINES[:1]]) == "Subtitles of video 2:\n0:00.5 Look, a dog!\n\nWhat?"
    assert subtitles.joined("What?", [[]]) == "What?"


def test_a_track_in_the_video_is_found(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(ONE)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        track = target.add_mux_stream("subrip")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        for line in LINES:
            packet = av.Packet(line.text.encode())
            packet.time_base, packet.stream = Fraction(1, 1000), track
            packet.pts = packet.dts = round(1000 * line.start)
            packet.duration = round(1000 * (line.end - line.start))
            target.mux(packet)
    assert subtitles.of_video(path) == LINES


def test_a_file_beside_the_video_is_found(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(ONE.read_bytes())
    assert subtitles.of_video(video) == []
    (tmp_path / "clip.en.srt").write_text(SRT)
    assert subtitles.of_video(video) == LINES
    (tmp_path / "clip.vtt").write_text(VTT.replace("dog", "cat"))
    assert subtitles.of_video(str(video))[0].text == "Look, a cat!"


def test_the_lines_reach_the_model_and_the_summary(
    demo: VideoQA, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda **loading: demo)
    path = tmp_path / "a.srt"
    path.write_text(SRT)
    command = ["ask", str(ONE), "What happens?", "--model", "demo", "--subtitles", str(path)]
    prompts = []
    prompt = demo.backend.prompt
    monkeypatch.setattr(demo.backend, "prompt", lambda *given: prompts.append(given[0]) or prompt(*given))
    assert main(command) == 0
    assert " subtitles  2 lines with the question" in capsys.readouterr().err
    assert prompts == [subtitles.joined("What happens?", [LINES])]
    assert main([*command, "--end", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["subtitles"], said["question"]) == (1, "What happens?")
    answer = demo.ask(ONE, "What happens?", subtitles="auto")
    assert answer.subtitles == 0 and any("no subtitles" in warning for warning in answer.warnings)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"text", "holds no"), (b"\xff", "not UTF-8")])
def test_a_file_that_is_none_is_told_before_the_model_is_loaded(
    tmp_path: Path, content: bytes | None, said: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda **loading: pytest.fail("a model is loaded"))
    path = tmp_path / "a.srt"
    if content is not None:
        path.write_bytes(content)
    assert main(["ask", str(ONE), "What?", "--model", "demo", "--subtitles", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_one_file_is_for_one_video(demo: VideoQA, tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT)
    with pytest.raises(UsageError, match="`subtitles` takes a file for one video"):
        demo.ask([ONE, ONE], "What happens?", subtitles=str(tmp_path / "a.srt"))
