"""`flashvlm chat`: lines piped in with the demo model, and lines typed at a terminal with a faked one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import HERE, child

import flashvlm
from flashvlm.errors import ModelError, VideoError
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

CLIP = str(samples_dir() / "one.mp4")
OTHER = str(samples_dir() / "still.jpg")
ASK = "What happens?"
# What the faked model says.
PIECES = ("One", " two three.")

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def library(demo: flashvlm.VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[flashvlm.VideoQA]:
    """The demo model as the command line loads it; `watched` are the videos that it looked at."""

    class Loaded(flashvlm.VideoQA):
        watched: list[str] = []  # noqa: RUF012
        remembered: list[list[tuple[str, str]]] = []  # noqa: RUF012

        @classmethod
        def from_pretrained(cls, *arguments: Any, **settings: Any) -> flashvlm.VideoQA:
            return cls(demo.backend, "demo")

        def watch(self, path: Any, options: Any, **callbacks: Any) -> Any:
            self.watched.append(str(path))
            return super().watch(path, options, **callbacks)

        def respond(self, *arguments: Any, **settings: Any) -> Any:
            self.remembered.append(list(settings["history"]))
            return super().respond(*arguments, **settings)

    monkeypatch.setitem(vars(flashvlm), "VideoQA", Loaded)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Loaded


@pytest.fixture
def chat(library: type[flashvlm.VideoQA], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Pipe lines into a chat: (exit code, standard output, standard error)."""

    def run(lines: str | bytes, *arguments: str, video: str = CLIP) -> tuple[int, str, str]:
        given = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        code = main(["chat", video, "--model", "demo", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Lines piped in


def test_each_question_is_answered_on_a_line_of_its_own(chat: Chat) -> None:
    code, out, err = chat(f"{ASK}\n\n# not a question\n  \nIs there a butterfly?\n", "--keep", "100%")
    assert (code, out) == (0, "a butterfly moves down\nyes\n")
    assert [line.split(" · ")[0] for line in err.splitlines()] == ["336 of 336 tokens"] * 2
    assert ">" not in err


def test_quiet_leaves_the_answers_only(chat: Chat) -> None:
    code, out, err = chat(f"/keep 100%\n{ASK}", "--quiet")
    assert (code, out, err) == (0, "a butterfly moves down\n", "")


def test_no_lines_are_no_failure(chat: Chat) -> None:
    assert chat("") == (0, "", "")


def test_the_video_is_looked_at_once_for_all_questions(chat: Chat, library: Any) -> None:
    chat(f"{ASK}\n/keep 5%\n/selector uniform\n{ASK}\n/temperature 0.5\n{ASK}\n")
    assert library.watched == [CLIP]


def test_another_sampling_is_looked_at_with_the_next_question(chat: Chat, library: Any) -> None:
    _, out, _ = chat(f"/start 1\n/frames 4\n/end 0:03\n{ASK}\n{ASK}\n", "--json")
    assert library.watched == [CLIP, CLIP]
    asked = [answer["settings"]["sampling"] for answer in objects(out)]
    assert [(one["start"], one["end"], one["frames"]) for one in asked] == [(1, 3, 4)] * 2
    first, second = objects(out)
    assert first["seconds"]["encode"] > 0
    assert (second["seconds"]["decode"], second["seconds"]["encode"], second["cached"]) == (0, 0, True)


def test_a_chat_uses_the_feature_cache_unless_told_not_to(chat: Chat) -> None:
    cached = [objects(chat(ASK, "--json", *more)[1])[0]["cached"] for more in ([], [], ["--no-cache"])]
    assert cached == [False, True, False]


def test_earlier_questions_are_remembered_until_they_are_forgotten(chat: Chat, library: Any) -> None:
    there, turn = "Is there a butterfly?", (ASK, "a butterfly moves down")
    lines = f"{ASK}\n{there}\n/forget\n{ASK}\n/video {CLIP}\n{ASK}\n/max-new-tokens 0\n{there}\n"
    code, _, err = chat(lines, "--memory", "--keep", "100%")
    assert code == 2 and "The next question stands alone." in err
    assert library.remembered == [[], [turn], [], [], [turn]]
    assert err.count("trained on single questions") == 2


@pytest.mark.parametrize("single_turn", [True, False])
def test_a_model_that_knows_single_questions_only_is_asked_each_alone(
    chat: Chat, library: Any, monkeypatch: pytest.MonkeyPatch, single_turn: bool
) -> None:
    monkeypatch.setattr(library, "single_turn", single_turn)
    for more, remembers in (((), not single_turn), (("--memory",), True), (("--no-memory",), False)):
        library.remembered.clear()
        err = chat(f"{ASK}\n{ASK}\n/help\n", "--keep", "100%", *more)[2]
        assert [len(turns) for turns in library.remembered] == [0, int(remembers)]
        assert ("each stands alone" in err) is not remembers


def test_settings_hold_for_the_questions_after_them(chat: Chat) -> None:
    lines = (
        f"{ASK}\n/keep 5%\n/selector uniform\n/metric centered\n/merge on\n/max-new-tokens 1\n/seed 3\n{ASK}\n"
        f"/system Be brief.\n/selector flashvlm\n/keep auto\n{ASK}\n/keep default\n/system default\n{ASK}\n"
    )
    answers = objects(chat(lines, "--json", "--keep", "20%")[1])
    assert [answer["settings"]["keep"] for answer in answers] == ["20%", "5%", "auto", "20%"]
    assert [answer["settings"]["system"] for answer in answers] == [None, None, "Be brief.", None]
    set_ = answers[1]["settings"]
    assert (set_["selector"], set_["metric"], set_["merge"], set_["seed"]) == ("uniform", "centered", True, 3)
    assert answers[1]["generated_tokens"] == 1


def test_how_the_video_is_looked_at_can_change_between_questions(chat: Chat) -> None:
    lines = f"{ASK}\n/look twice\n/encode all\n/seek exact\n{ASK}\n/look default\n/min-pixels 784\n{ASK}\n"
    answers = objects(chat(lines, "--json", "--frames", "12")[1])
    looked = [[answer["settings"][name] for name in ("look", "encode", "seek")] for answer in answers]
    assert looked == [["once", "changed", "fast"], ["twice", "all", "exact"], ["once", "all", "exact"]]
    assert [answer["settings"]["min_pixels"] for answer in answers] == [None, None, 784]
    small = [any(moment["small"] for moment in answer["moments"]) for answer in answers]
    repeated = [any(moment["like"] is not None for moment in answer["moments"]) for answer in answers]
    assert (small, repeated[1:]) == ([False, True, False], [False, False])


def test_a_second_look_is_there_for_every_question(chat: Chat) -> None:
    first, second = (one["moments"] for one in objects(chat(f"{ASK}\n{ASK}\n", "--json", "--look", "twice")[1]))
    assert first == second and not all(moment["small"] for moment in second)


@pytest.mark.parametrize("named", ["/fps", "/frames"])
def test_frames_and_fps_take_each_others_place_and_default_brings_both_back(chat: Chat, named: str) -> None:
    answers = objects(chat(f"/fps 1\n/frames 4\n{ASK}\n{named} default\n{ASK}\n", "--json", "--fps", "3")[1])
    sampled = [answer["settings"]["sampling"] for answer in answers]
    assert [(one["fps"], one["frames"]) for one in sampled] == [(None, 4), (3, None)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/keep 0", "/keep must leave at least one token; 0 keeps none."),
        ("/keep many", "/keep takes a share such as 10% or 0.1, a count such as 256, delta=0.3 or auto; not 'many'."),
        ("/merge maybe", "Give on or off, not 'maybe'."),
        ("/look thrice", "/look is one of once, twice, not 'thrice'."),
        ("/fps x", "Invalid value: 'x' is not a number."),
        ("/frames 0", "/frames must be at least 1, not 0."),
        ("/min-pixels 700000", "/min-pixels (700000) must not be more than /max-pixels (602112)."),
        ("/start 9:00", "/start (540 s) is not before the end of the video, which lasts 6.00 s."),
        ("/end 1 o'clock", 'A time is given as 90, 1:30 or 0:01:30.5, not "1 o\'clock".'),
        ("/temperature -1", "/temperature must be 0, or 0.0001 or more, not -1."),
        ("/kep 5%", "There is no command /kep; did you mean /keep? /help lists what there is."),
        ("/zzz", "There is no command /zzz; /help lists what there is."),
        ("/summary", "There is no answer yet."),
    ],
)
def test_what_makes_no_sense_is_one_sentence_and_the_old_setting_stays(chat: Chat, line: str, told: str) -> None:
    code, out, err = chat(f"{line}\n/settings\n{ASK}", "--keep", "100%")
    first, *rest = err.splitlines()
    assert (code, out, first) == (2, "a butterfly moves down\n", f"flashvlm: {told}")
    settings = dict(row.split(maxsplit=1) for row in rest[:-1])
    assert (settings["keep"], settings["start"], settings["merge"]) == ("100%", "the video's start", "off")


def test_settings_that_exclude_each_other_are_told_with_the_names_of_the_chat(chat: Chat) -> None:
    code, _, err = chat("/keep auto\n/selector paper\n/selector\n")
    refused = "flashvlm: /keep auto is for /selector flashvlm; paper takes a share or a count."
    assert (code, err.splitlines()[1:]) == (2, [refused, "selector is flashvlm."])


def test_another_video_and_one_that_is_none(chat: Chat, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    lines = f"/video {OTHER}\n{ASK}\n/video {broken}\n/video nowhere.mp4\n/video\n{ASK}\n/video {CLIP}\n{ASK}\n"
    code, out, err = chat(lines, "--json")
    videos = [answer["video"]["path"] for answer in objects(out) if "video" in answer]
    errors = [answer for answer in objects(out) if "error" in answer]
    # Nothing after a video that is none is told of the one before it.
    assert (code, videos) == (3, [OTHER, CLIP])
    failed = [error.get("command", error.get("question")) for error in errors]
    assert failed == [f"/video {broken}", "/video nowhere.mp4", ASK]
    assert {error["error"]["kind"] for error in errors} == {"video"}
    assert "'nowhere.mp4' could not be looked at." in err and OTHER not in err
    # one.mp4 lasts six seconds.
    assert chat("/video nowhere.mp4\n/start 0:20\n/settings\n")[0] == 3


def test_what_there_is_to_say_of_a_video_is_said_once(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    said = "flashvlm: warning: The feature cache "
    assert [chat(f"{ASK}\n{ASK}\n", "--cache", *shown)[2].count(said) for shown in ((), ("--quiet",))] == [1, 0]
    first, second = objects(chat(f"{ASK}\n{ASK}\n", "--cache", "--json")[1])
    assert [len(answer["warnings"]) for answer in (first, second)] == [1, 0]


def test_a_failed_question_leaves_an_empty_line_and_the_chat_goes_on(
    chat: Chat, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = library.choose

    def sometimes(self: Any, watched: Any, question: str, options: Any, **callbacks: Any) -> Any:
        if question == "fail":
            raise VideoError("It is gone.")
        if question == "oom":
            raise RuntimeError("CUDA out of memory")
        return choose(self, watched, question, options, **callbacks)

    monkeypatch.setattr(library, "choose", sometimes)
    lines = "fail\nIs there a butterfly?\noom\nIs there a butterfly?\n"
    code, out, err = chat(lines, "--quiet", "--keep", "100%")
    assert (code, out) == (1, "\nyes\n\nyes\n")
    gone, memory = err.splitlines()
    assert gone == "flashvlm: It is gone."
    assert memory.startswith("flashvlm: Out of memory: try a smaller /max-pixels, /max-frames or /keep")


def test_a_model_that_is_gone_ends_the_chat(chat: Chat, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: Any, **settings: Any) -> Any:
        raise ModelError("The model is gone.")

    monkeypatch.setattr(library, "choose", gone)
    code, out, err = chat(f"{ASK}\n{ASK}\n")
    assert (code, out, err) == (4, "\n", "flashvlm: The model is gone.\n")


def test_what_is_wrong_at_the_start_ends_it_there(
    chat: Chat, library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert chat(ASK, video=str(broken))[:2] == (3, "")
    assert chat(ASK, "--start", "9:00")[:2] == (2, "")

    def missing(*arguments: Any, **settings: Any) -> Any:
        raise ModelError("There is no such model.")

    monkeypatch.setattr(library, "from_pretrained", missing)
    assert chat(ASK) == (4, "", "flashvlm: There is no such model.\n")
    assert chat(ASK, video="nowhere.mp4") == (3, "", "flashvlm: nowhere.mp4: there is no such file.\n")
    assert objects(chat(ASK, "--json")[1])[0]["error"]["exit_code"] == 4


def test_a_line_that_is_no_text_is_told_and_the_next_one_answered(chat: Chat) -> None:
    code, out, err = chat(b"\xff\xfe?\nIs there a butterfly?\n", "--quiet", "--keep", "100%")
    assert (code, out, err) == (2, "\nyes\n", "flashvlm: This line is not text.\n")


def test_json_is_an_object_a_line_errors_too(chat: Chat) -> None:
    code, out, err = chat(f"{ASK}\n/keep 0\nIs there a butterfly?\n", "--json", "--keep", "100%")
    first, failed, second = objects(out)
    assert (code, err) == (2, "")
    assert (first["question"], first["answer"], second["answer"]) == (ASK, "a butterfly moves down", "yes")
    assert (failed["command"], failed["error"]["exit_code"]) == ("/keep 0", 2)


def test_quit_ends_it(chat: Chat, library: Any) -> None:
    assert chat(f"/quit\n{ASK}\n")[:2] == (0, "")


def test_help_and_summary_go_to_standard_error(chat: Chat) -> None:
    code, out, err = chat(f"/help\n{ASK}\n/summary\n", "--keep", "100%")
    assert (code, out) == (0, "a butterfly moves down\n")
    assert all(command in err for command in ("/keep", "/selector", "/start", "/video", "/summary", "/quit"))
    assert "coverage" in err and "KV cache" in err


def test_overlay_draws_the_last_answer(chat: Chat, tmp_path: Path) -> None:
    picture = tmp_path / "kept tokens.png"
    code, _, err = chat(f"/overlay {picture}\n{ASK}\n/overlay {picture}\n/overlay {tmp_path}/kept.xyz\n")
    assert code == 2
    early, _, drawn, refused = err.splitlines()
    assert early == "flashvlm: There is no answer yet."
    assert drawn == f"What was kept is drawn in {picture}."
    assert refused.startswith("flashvlm: /overlay takes a file that ends in .png, ")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_report_shows_what_the_last_answer_kept(chat: Chat, tmp_path: Path) -> None:
    page = tmp_path / "kept tokens.html"
    lines = f"/report {page}\n{ASK}\nIs there a butterfly?\n/report {page}\n/report {tmp_path}/kept.pdf\n/report\n"
    code, _, err = chat(lines)
    assert code == 2
    early, _, _, written, refused, alone = err.splitlines()
    assert early == "flashvlm: There is no answer yet."
    assert written == f"What was kept can be looked through in {page}."
    assert ".html" in refused and "/report" in refused
    assert alone == "flashvlm: /report takes a file that ends in .html, .htm."
    html = page.read_text()
    assert "<title>Is there a butterfly?</title>" in html and "</span> yes</p>" in html


# At a terminal, with a faked library


class Terminal:
    """A chat on a terminal of its own: what is on it, and keys pressed at it."""

    def __init__(self, state: Path, *arguments: str, output: Path | None = None, pause: float = 0.0) -> None:
        command, environment = child("chat", CLIP, *arguments, pieces=PIECES, pause=pause)
        environment |= {"XDG_STATE_HOME": str(state), "TERM": "xterm", "INPUTRC": os.devnull, "NO_COLOR": "1"}
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            if output:
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
            os.execve(sys.executable, command, environment)
        self.seen = ""
        self._read = 0

    def expect(self, text: str) -> str:
        """Wait for `text`, after what was expected before; what came up to it."""
        while text not in self.seen[self._read :]:
            assert self._more(), f"no {text!r} in {self.seen!r}"
        begin, self._read = self._read, self.seen.index(text, self._read) + len(text)
        return self.seen[begin : self._read]

    def press(self, keys: str) -> None:
        if keys == CTRL_C:
            self._wait()
        os.write(self._terminal, keys.encode())

    def leave(self) -> int:
        """Press Ctrl-D at the next prompt; the exit code."""
        # A terminal that no line is read from keeps no Ctrl-D for later.
        self.expect("> ")
        self.press(CTRL_D)
        return self.end()

    def end(self) -> int:
        """Wait for the end: the exit code."""
        while self._more():
            pass
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def _wait(self) -> None:
        """Wait until it waits too, as far as the system tells (Linux): Python's readline takes no note of a signal that
        comes just before it waits for a key."""
        waiting, deadline = 0, time.monotonic() + 60
        while waiting < 3 and (state := Path(f"/proc/{self.process}/stat")).exists():
            waiting = 0 if state.read_text().rpartition(")")[2].split()[0] == "R" else waiting + 1
            assert time.monotonic() < deadline, f"it is at work after {self.seen!r}"
            time.sleep(0.01)

    def _more(self) -> bool:
        """Whether anything else was shown."""
        if not select.select([self._terminal], [], [], 60)[0]:
            os.kill(self.process, signal.SIGKILL)
            raise AssertionError(f"it hangs after {self.seen!r}")
        try:
            part = os.read(self._terminal, 65536).decode()
        except OSError:  # how Linux says that the other end was closed
            part = ""
        self.seen += part
        return bool(part)


UP, TAB, CTRL_A, CTRL_C, CTRL_D = "\x1b[A", "\t", "\x01", "\x03", "\x04"


def test_ctrl_d_ends_the_chat_cleanly(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    assert "clip.mp4 · 640 × 360" in terminal.expect("> ")
    terminal.press("What?\r")
    assert "One two three.\r\n30 of 256 tokens" in terminal.expect("> ")
    terminal.press(CTRL_D)
    assert terminal.end() == 0
    assert terminal.seen.endswith("\r\n")
    assert "Traceback" not in terminal.seen


def test_a_question_may_fail_without_an_exit_code_at_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press("/keep 0\r")
    terminal.expect("/keep must leave at least one token; 0 keeps none.")
    assert terminal.leave() == 0


def test_a_video_that_is_none_leaves_the_one_before_at_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press("/video nowhere.mp4\r")
    terminal.expect("nowhere.mp4: there is no such file.")
    terminal.press("What?\r")
    terminal.expect("One two three.")
    assert terminal.leave() == 0


@pytest.mark.parametrize("columns", ["40", "60"])
def test_help_is_told_in_full_at_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press("/help\r")
    terminal.expect("/help")
    told = terminal.expect("anything else")
    assert "…" not in told and "when the chat began" in " ".join(told.split())
    lines = re.sub(r"\x1b\[\??[0-9;]*[a-zA-Z]", "", told).splitlines()
    assert [line for line in lines if len(line) > int(columns)] == []
    assert terminal.leave() == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, pause=30)
    terminal.expect("> ")
    terminal.press("What?\r")
    terminal.expect("One")
    terminal.press(CTRL_C)
    terminal.expect("Stopped.")
    terminal.expect("> ")
    terminal.press("/keep 5%\r")
    terminal.expect("keep is 5%.")
    assert terminal.leave() == 0
    assert "two" not in terminal.seen


def test_ctrl_c_clears_the_line_and_a_second_one_ends_the_chat(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press("abandoned")
    terminal.expect("abandoned")
    terminal.press(CTRL_C)
    terminal.expect("> ")
    terminal.press("once more")
    terminal.expect("once more")
    terminal.press(CTRL_C)
    terminal.expect("> ")
    terminal.press(CTRL_C)
    assert terminal.end() == 0
    assert "One" not in terminal.seen


def test_lines_are_edited_completed_and_remembered_by_the_next_chat(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press(f"eep 5%{CTRL_A}/k\r")
    terminal.expect("keep is 5%.")
    terminal.expect("> ")
    terminal.press(f"/selec{TAB}unif{TAB}\r")
    terminal.expect("selector is uniform.")
    terminal.expect("> ")
    terminal.press(f"/met{TAB}c{TAB}")
    assert {"centered", "cosine"} <= set(terminal.expect("cosine").split())
    terminal.expect("> /metric c")
    # One at a time: a terminal drops what else is typed around Ctrl-C.
    terminal.press(CTRL_C)
    assert terminal.leave() == 0
    history = tmp_path / "flashvlm" / "history"
    assert history.read_text() == "/keep 5%\n/selector uniform\n"
    assert history.stat().st_mode & 0o077 == 0
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press(f"{UP}{UP}\r")
    terminal.expect("keep is 5%.")
    assert terminal.leave() == 0


def test_files_are_completed(tmp_path: Path) -> None:
    shutil.copy(CLIP, tmp_path / "a clip.mp4")
    # What would speak to the terminal is not offered.
    (tmp_path / "a c\x9b2J.mp4").touch()
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press(f"/video {tmp_path}/a{TAB}\r")
    terminal.expect(f"/video {tmp_path}/a clip.mp4")
    terminal.expect("> ")
    terminal.press("/video\r")
    terminal.expect("a clip.mp4.")
    assert terminal.leave() == 0


def test_the_prompt_never_reaches_a_piped_output(tmp_path: Path) -> None:
    answers = tmp_path / "answers.txt"
    terminal = Terminal(tmp_path, output=answers)
    terminal.expect("> ")
    terminal.press(f"hat?{CTRL_A}W\r")
    terminal.expect("30 of 256 tokens")
    assert terminal.leave() == 0
    assert answers.read_text() == "One two three.\n"
    assert "One" not in terminal.seen


@pytest.mark.parametrize("there", ["a file for its folder", "a pipe"])
def test_a_history_that_cannot_be_kept_is_a_warning(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "flashvlm"
    if there == "a pipe":
        folder.mkdir()
        os.mkfifo(folder / "history")
    else:
        folder.touch()
    terminal = Terminal(tmp_path)
    assert "warning: The history cannot be kept in" in terminal.expect("> ")
    terminal.press("What?\r")
    terminal.expect("One two three.")
    assert terminal.leave() == 0


def test_a_history_that_others_could_read_is_private_from_now_on(tmp_path: Path) -> None:
    history = tmp_path / "flashvlm" / "history"
    history.parent.mkdir()
    history.write_text("Earlier?\n")
    history.chmod(0o644)
    terminal = Terminal(tmp_path)
    terminal.expect("> ")
    terminal.press("What?\r")
    terminal.expect("One two three.")
    assert terminal.leave() == 0
    assert (history.stat().st_mode & 0o777, history.read_text()) == (0o600, "Earlier?\nWhat?\n")


def test_an_interrupt_ends_a_chat_that_is_piped_in(tmp_path: Path) -> None:
    command, environment = child("chat", CLIP, pieces=PIECES, pause=30)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("What?\nWhat?\n")
        process.stdin.flush()
        assert process.stdout.read(3) == "One"
        process.send_signal(2)
        assert process.wait(60) == 130
        assert process.stdout.read() == "\n"
        assert process.stderr.read() == "flashvlm: Interrupted.\n"


# Shell completion

SHELLS = {
    "bash": lambda words: {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": words},
    "fish": lambda words: {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.fixture
def completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """What `flashvlm` tells a shell that completes these words."""

    def run(shell: str, words: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        for name, value in {"_FLASHVLM_COMPLETE": f"complete_{shell}", **SHELLS[shell](words)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("flashvlm ", ("ask", "chat", "models", "bench")),
        ("flashvlm chat clip.mp4 --sel", ("--selector",)),
        ("flashvlm chat clip.mp4 --model ", ("demo", "qwen2.5-vl-3b", "video-llava-7b")),
        ("flashvlm fetch qwen2.5", ("qwen2.5-vl-3b",)),
        ("flashvlm ask --selector ", ("flashvlm", "uniform", "paper")),
        ("flashvlm chat --metric c", ("cosine", "centered")),
        ("flashvlm chat --keep ", ("10%", "auto", "delta=0.3")),
    ],
)
def test_shells_complete_commands_options_and_their_values(
    completed: Callable[[str, str], str], shell: str, words: str, offered: tuple[str, ...]
) -> None:
    lines = completed(shell, words).splitlines()
    # zsh gets "value":"meaning" in a call of _arguments, fish the two with a tab between them, bash the value.
    values = {re.findall(r'"(.+?)"', line)[0] if shell == "zsh" else line.split("\t")[0] for line in lines}
    assert values >= set(offered)


def test_every_line_is_something_to_complete_to(completed: Callable[[str, str], str]) -> None:
    lines = completed("fish", "flashvlm chat clip.mp4 --").splitlines()
    assert len(lines) > 20 and all(re.match(r"--[a-z-]+\t", line) for line in lines)


@pytest.mark.parametrize(("shell", "said"), [("bash", ""), ("zsh", "_files"), ("fish", "")])
def test_files_are_left_to_the_shell_where_a_video_goes(
    completed: Callable[[str, str], str], shell: str, said: str
) -> None:
    assert completed(shell, "flashvlm chat sam").strip() == said


def test_completion_imports_nothing_heavy() -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(HERE.parent), "_FLASHVLM_COMPLETE": "complete_bash",
        **SHELLS["bash"]("flashvlm chat --selector "),
    }  # fmt: skip
    command = [sys.executable, "-X", "importtime", "-m", "flashvlm_cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "uniform" in done.stdout.split()
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "decord", "numpy", "safetensors", "huggingface_hub"}
