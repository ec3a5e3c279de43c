"""The command line as a user meets it: two streams, exit codes, and a summary worth reading.

The library is faked, so that these tests load no model.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import HERE, STAGES, FakeVideoQA, an_answer, child, fake_models, fake_samples

import flashvlm
from flashvlm import units, web
from flashvlm.errors import ModelError, UsageError, VideoError
from flashvlm.report import BeforeAfter, SelectionFacts, VideoFacts
from flashvlm_cli.app import main

# A file that is looked at before the model is loaded.
CLIP = (HERE.parent / "samples" / "one.mp4").read_bytes()
EVERY_BLOCK = "▁▂▃▄▅▆▇█"


@pytest.fixture(autouse=True)
def library(monkeypatch):
    fake = type("FakeVideoQA", (FakeVideoQA,), {})
    monkeypatch.setitem(vars(flashvlm), "VideoQA", fake)
    monkeypatch.setitem(sys.modules, "flashvlm.models", fake_models())
    monkeypatch.setitem(sys.modules, "flashvlm.samples", fake_samples())
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("NO_COLOR", "FORCE_COLOR", "FLASHVLM_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    return fake


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    return str(path)


@pytest.fixture
def flash(capsys):
    """Run the command line here: (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def on_terminal(*arguments, stdout_too=True, no_color=False, code=0, **settings):
    """Run with standard error (and output) on a terminal: what that terminal got, what a piped output got."""
    command, environment = child(*arguments, **settings)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env=environment, stdin=theirs, stderr=theirs, stdout=theirs if stdout_too else subprocess.PIPE
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end was closed
            break
        if not part:
            break
        seen += part
    piped = process.stdout.read().decode() if process.stdout else ""
    assert process.wait(60) == code
    os.close(ours)
    return seen.decode(), piped


# The answer


def test_answer_alone_is_on_standard_output(flash, clip):
    code, out, err = flash("ask", clip, "Where does the dog go?")
    assert (code, out) == (0, "The dog runs to the right.\n")
    assert "qwen2-vl-2b" in err


def test_answer_ends_with_one_newline_and_no_other_space_around_it(flash, clip, library):
    library.pieces = ("\n ", "Two", "\n", "lines. ", "\n\n")
    assert flash("ask", clip, "What?", "--quiet")[1] == "Two\nlines.\n"


def test_answer_that_was_not_streamed_is_printed_whole(flash, clip, library):
    library.pieces = ()
    assert flash("ask", clip, "What?")[1] == "The dog runs to the right.\n"


def test_quiet_leaves_the_answer_only(flash, clip, library):
    library.said = an_answer(warnings=("a word is unknown",))
    assert flash("ask", clip, "What?", "--quiet") == (0, "The dog runs to the right.\n", "")


def test_warnings_come_before_the_summary(flash, clip, library):
    library.said = an_answer(warnings=("The demo model does not know 'zebra'.",))
    err = flash("ask", clip, "What?")[2]
    assert err.startswith("flashvlm: warning: The demo model does not know 'zebra'.\n")


def test_pieces_are_flushed_as_they_come(clip):
    command, environment = child("ask", clip, "What?", pause=0.3)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert os.read(process.stdout.fileno(), 1000) == b"The dog"


# What is handed to the library


def test_options_reach_the_library(flash, clip, library):
    arguments = "--keep 25% --model demo --frames 8 --max-frames 16 --max-pixels 50176 --start 0:01.5 --end 1:00"
    arguments += " --selector uniform --system Short. --max-new-tokens 9 --temperature 0.5 --seed 3"
    arguments += " --device cpu --dtype float32 --revision v2 --metric centered --merge --min-pixels 784"
    assert flash("ask", clip, "  What? ", *arguments.split())[0] == 0
    options = library.asked.pop("options")
    loaded = {"model": "demo", "revision": "v2", "device": "cpu", "dtype": "float32"}
    assert library.asked == {**loaded, "video": clip, "question": "What?"}
    assert options.keep.budget(100) == 25
    assert (options.sampling.frames, options.sampling.max_frames) == (8, 16)
    assert (options.sampling.start, options.sampling.end) == (1.5, 60)
    assert (options.min_pixels, options.max_pixels) == (784, 50176)
    assert (options.selector, options.system) == ("uniform", "Short.")
    assert (options.metric, options.merge) == ("centered", True)
    assert (options.max_new_tokens, options.temperature, options.seed) == (9, 0.5, 3)


@pytest.mark.parametrize(
    ("keep", "budget", "delta", "shown"),
    [("auto", "auto", None, "auto"), ("delta=0.2", None, 0.2, "delta=0.2"), ("delta = .5", None, 0.5, "delta=0.5")],
)
def test_keep_may_leave_the_number_to_the_video(flash, clip, library, keep, budget, delta, shown):
    assert flash("ask", clip, "What?", "--keep", keep)[0] == 0
    kept = library.asked["options"].keep
    assert (kept.budget(100), kept.delta, str(kept), kept.by_content) == (budget, delta, shown, True)


@pytest.mark.parametrize("keep", ["auto", "delta=0.2"])
def test_keep_by_content_is_refused_with_another_selector(flash, clip, keep):
    told = f"flashvlm: --keep {keep} is for --selector flashvlm; paper takes a share or a count.\n"
    assert flash("ask", clip, "What?", "--keep", keep, "--selector", "paper") == (2, "", told)


def test_dash_reads_the_question_from_standard_input(clip):
    command, environment = child("ask", clip, "-", "--json")
    done = subprocess.run(command, env=environment, input="Where is\nthe dog?\n", capture_output=True, text=True)
    assert json.loads(done.stdout)["question"] == "Where is\nthe dog?"


# JSON


def test_json_is_one_object_and_nothing_else(flash, clip, library):
    library.said = an_answer(answer="Ein Bär läuft.", warnings=("a word is unknown",))
    code, out, err = flash("ask", clip, "What?", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(library.said.to_json()))
    assert '"answer": "Ein Bär läuft."' in out
    assert out.endswith("}\n")


def test_json_is_utf8_whatever_the_locale_and_the_file_name(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.mp4"
    # Pillow takes such a name, and FFmpeg does not.
    Path(os.fsdecode(path)).write_bytes((HERE.parent / "samples" / "still.jpg").read_bytes())
    command, environment = child("ask", os.fsdecode(path), "Was läuft?", "--json")
    done = subprocess.run(command, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    told = json.loads(done.stdout.decode("utf-8"))
    assert (done.returncode, told["question"]) == (0, "Was läuft?")
    assert os.fsencode(told["video"]["path"]) == path


@pytest.mark.parametrize(
    "arguments",
    [["ask"], ["ask", "clip.mp4", "What?", "--nonsense"], ["ask", "clip.mp4", "What?", "--frames", "x"], ["nonsense"]],
)
def test_wrong_usage_is_an_object_under_json(flash, arguments):
    code, out, err = flash(*arguments, "--json")
    error = json.loads(out)["error"]
    assert (code, err, error["exit_code"], error["kind"]) == (2, "", 2, "usage")
    assert error["message"].endswith(".")


def test_json_after_double_dash_is_no_option(flash):
    code, out, err = flash("ask", "--", "--json")
    assert (code, out) == (2, "")
    assert "QUESTION" in err


# Failures


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (UsageError("This makes no sense."), 2, "usage"),
        (VideoError("This is no video."), 3, "video"),
        (ModelError("This model is not here."), 4, "model"),
    ],
)
def test_failures_are_one_sentence_and_an_exit_code(flash, clip, library, error, code, kind):
    library.pieces, library.error = (), error
    assert flash("ask", clip, "What?") == (code, "", f"flashvlm: {error}\n")
    assert flash("ask", clip, "What?", "--quiet") == (code, "", f"flashvlm: {error}\n")
    told, out, err = flash("ask", clip, "What?", "--json")
    assert (told, err) == (code, "")
    assert json.loads(out) == {"error": {"message": str(error), "exit_code": code, "kind": kind}}


def test_missing_model_is_told(flash, clip, library):
    library.model_error = ModelError("The model is not here.")
    assert flash("ask", clip, "What?") == (4, "", "flashvlm: The model is not here.\n")


def test_missing_video_is_told_before_a_model_is_loaded(flash, library):
    library.model_error = AssertionError("a model was loaded")
    code, out, err = flash("ask", "nowhere.mp4", "What?")
    assert (code, out, err) == (3, "", "flashvlm: nowhere.mp4: there is no such file.\n")


@pytest.mark.parametrize(
    "video, told", [("", "The name of the video is empty."), ("-", "a video is not read from standard input.")]
)
def test_what_is_no_file_name_is_told(flash, video, told):
    code, out, err = flash("ask", video, "What?")
    assert (code, out) == (3, "") and err.endswith(f"{told}\n")


@pytest.mark.parametrize("command", [["ask", "{}", "What?"], ["inspect", "{}"], ["bench", "speed", "{}"]], ids=str)
def test_an_address_is_no_video(flash, command, monkeypatch):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    extra = ", or let yt-dlp do it: pip install 'flashvlm[web]'"
    for address, instead in (("https://example.org/clip.mp4", extra), ("rtsp://example.org/camera", "")):
        code, out, err = flash(*(part.format(address) for part in command))
        assert (code, out) == (3, "")
        assert err == f"flashvlm: {address}: this is an address; download the video and give the file{instead}.\n"


def test_unexpected_error_is_one_sentence(flash, clip, library):
    library.pieces, library.error = (), KeyError("grid\nof\nthe video")
    code, out, err = flash("ask", clip, "What?")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("flashvlm: unexpected error: KeyError: ")
    assert err.endswith("Set FLASHVLM_DEBUG=1 for the traceback.\n")


def test_debugging_shows_the_traceback(flash, clip, library, monkeypatch):
    monkeypatch.setenv("FLASHVLM_DEBUG", "1")
    library.error = KeyError("grid")
    code, _, err = flash("ask", clip, "What?")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_says_what_to_try(flash, clip, library, error):
    library.error = error
    code, _, err = flash("ask", clip, "What?")
    assert code == 1
    assert "Out of memory" in err
    assert "--max-pixels" in err
    assert "unexpected" not in err


def test_failure_after_half_an_answer_begins_on_its_own_line(flash, clip, library):
    library.error = RuntimeError("broke")
    code, out, err = flash("ask", clip, "What?")
    assert (code, out) == (1, "The dog runs to the right.\n")
    assert err.startswith("flashvlm: ")


def test_interrupt_ends_with_130_and_no_traceback(clip):
    command, environment = child("ask", clip, "What?", pause=20)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert os.read(process.stdout.fileno(), 1000) == b"The dog"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"\n", b"flashvlm: Interrupted.\n")


def test_a_paragraph_of_help_fills_its_lines(flash, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = [line.strip() for line in flash("chat", "--help")[1].splitlines()]
    begin = lines.index(next(line for line in lines if line.startswith("The model is loaded once")))
    paragraph = lines[begin : lines.index("", begin)]
    assert len(paragraph) > 3 and all(len(line) > 45 for line in paragraph[:-1])


def test_interrupt_is_an_object_under_json(flash, clip, library):
    library.error = KeyboardInterrupt()
    code, out, err = flash("ask", clip, "What?", "--json")
    assert (code, err) == (130, "")
    assert json.loads(out)["error"]["exit_code"] == 130


@pytest.mark.parametrize("arguments", [["ask", "CLIP", "What?"], ["ask", "CLIP", "What?", "--json"], ["ask", "--help"]])
def test_reader_that_goes_away_ends_it_cleanly(clip, arguments):
    arguments = [clip if argument == "CLIP" else argument for argument in arguments]
    command, environment = child(*arguments, pause=0.2)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_full_disk_is_told(clip, as_json):
    command, environment = child("ask", clip, "What?", *as_json)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "flashvlm: No space left on device.\n")


@pytest.mark.parametrize("arguments", [["ask", "CLIP", "What?"], ["ask", "CLIP", "What?", "--json"], ["models"]])
def test_closed_standard_output_is_wrong_usage(clip, arguments):
    command, environment = child(*(clip if argument == "CLIP" else argument for argument in arguments))
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], env=environment, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"flashvlm: Standard output is closed.\n")


def test_what_a_library_makes_of_an_interrupt_is_one(flash, clip, library):
    library.error = ImportError("Could not import module. Are its requirements met?")
    library.error.__cause__ = KeyboardInterrupt()
    assert flash("ask", clip, "What?")[::2] == (130, "flashvlm: Interrupted.\n")


def test_closed_standard_error_leaves_the_answer(clip):
    command, environment = child("ask", clip, "What?")
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], env=environment, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"The dog runs to the right.\n")


def test_a_working_directory_that_is_gone_is_told(tmp_path, clip):
    command, environment = child("ask", clip, "What?")
    there = tmp_path / "gone"
    there.mkdir()
    program = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *command]
    done = subprocess.run(program, env=environment, cwd=there, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "flashvlm: The working directory does not exist any more.\n")


@pytest.mark.parametrize("arguments", [["cache"], ["ask", "CLIP", "What?", "--cache"], ["batch", "CLIP"]])
def test_no_home_folder_is_told_before_anything_is_loaded(flash, clip, monkeypatch, arguments):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "~no-such-user")
    code, out, err = flash(*(clip if argument == "CLIP" else argument for argument in arguments))
    wanted = "flashvlm: There is no home folder for the cache of flashvlm: set HOME or XDG_CACHE_HOME.\n"
    assert (code, out, err) == (2, "", wanted)


# Wrong usage


@pytest.mark.parametrize(
    "options",
    [
        "--keep -5", "--keep 0", "--keep 150%", "--keep abc", "--keep nan", "--keep 0%", "--keep 1e-3",
        "--fps 0", "--fps -1", "--fps nan", "--fps x", "--frames 0", "--frames 1.5", "--frames 3 --fps 2",
        "--max-frames 0", "--max-pixels 1", "--start 1:75", "--start -5", "--start 5 --end 5", "--end x",
        "--temperature -1", "--temperature inf", "--max-new-tokens 0", "--seed x", "--device tpu", "--dtype int4",
        "--selector nothing", "--metric nonsense", "--keep delta=x", "--keep delta=-1", "--keep delta=nan",
        "--keep delta", "--keep autos", "--nonsense",
        "--fps 1e308", "--temperature 1e-320", f"--seed {2**63}", f"--keep {'9' * 5000}", f"--start {'9' * 400}:00",
        f"--keep delta={'9' * 400}", f"--end {'9' * 400}", "--min-pixels 783", "--min-pixels 1000 --max-pixels 900",
    ],
    ids=lambda options: options[:30],
)  # fmt: skip
def test_odd_values_are_wrong_usage_in_one_sentence(flash, clip, options):
    code, out, err = flash("ask", clip, "What?", *options.split())
    assert (code, out) == (2, "")
    assert err.startswith("flashvlm: ")
    assert err.count("\n") == 1


def test_wrong_usage_that_typer_finds_names_the_help(flash):
    assert flash("ask", "clip.mp4")[2] == "flashvlm: Missing argument 'QUESTION'. Try 'flashvlm ask --help'.\n"


def test_a_question_that_begins_with_a_dash_is_told_where_to_stand(flash, clip, library):
    err = flash("ask", clip, "-what?")[2]
    assert "No such option: -w; a video or a question that begins with - goes last, after --." in err
    assert flash("ask", clip, "--", "-what?")[0] == 0
    # What is like an option was meant as one.
    assert "after --" not in flash("ask", clip, "What?", "--modle", "demo")[2]
    assert "after --" not in flash("models", "--xyz")[2]


def test_unknown_selector_is_told_the_close_one(flash, clip):
    err = flash("ask", clip, "What?", "--selector", "unifrom")[2]
    assert "'unifrom'" in err
    assert "paper, " in err
    assert "Did you mean uniform?" in err


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question_is_wrong_usage(flash, clip, question, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(question))
    assert flash("ask", clip, question) == (2, "", "flashvlm: The question is empty.\n")
    assert flash("ask", clip, "-") == (2, "", "flashvlm: The question is empty.\n")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ask", "--help"], ["ask", "clip.mp4"], ["ask", __file__, "?", "--keep", "0"],
     ["ask", __file__, "?", "--selector", "x"], ["ask", "nowhere.mp4", "?"]],
)  # fmt: skip
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    program = (
        "import sys\nfrom flashvlm_cli.app import main\nmain(sys.argv[1:])\n"
        "print([name for name in ('torch', 'transformers', 'decord', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=HERE.parent)
    assert done.stdout.splitlines()[-1] == "[]"


# The summary


@pytest.fixture
def summary(flash, clip, library, monkeypatch):
    """What standard error shows of an answer."""

    def show(answer=None, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        library.said = answer or an_answer()
        return flash("ask", clip, "What?")[2]

    return show


@pytest.mark.parametrize("columns", [0, 1, 11, 30])
def test_a_narrow_terminal_gets_a_summary_too(summary, columns):
    assert "first token" in summary(columns=columns)


def test_summary_holds_every_figure(summary):
    text = summary()
    for figure in (
        "qwen2-vl-2b", "qwen2_vl · cpu · bfloat16",
        "clip.mp4 · 640 × 360 · 0:04 · 29.97 fps", "8 frames in 4 moments · 0:00 to 0:03.5",
        "256 → 30", "11.7%", "8.5× less",
        "88.1 MB → 9.21 MB", "9.6× less", "12.3 TFLOP → 981 GFLOP", "12.5× less",
        "by paper", "18 of 64 tokens at 0:02", "δ 0.312",
        "first token 1.98 s", "all 7 tokens 2.79 s", "model load 4.20 s",
    ):  # fmt: skip
        assert figure in text
    for stage, took in zip(STAGES, ("410 ms", "930 ms", "4.20 ms", "620 ms", "810 ms"), strict=True):
        assert re.search(rf"^ {stage} +{took} +[█▏▎▍▌▋▊▉]", text, re.M)


@pytest.mark.parametrize("columns", [40, 46, 50, 56, 60, 80])
def test_a_saving_is_told_in_full_at_any_width(summary, columns):
    text = summary(columns=columns)
    assert re.findall(r"[\d.]+(?:%|× less)", text) == ["11.7%", "8.5× less", "10.5%", "9.6× less", "8.0%", "12.5× less"]
    assert "…" not in text.split("video", 1)[1] and "farthest any token is from a kept one" in " ".join(text.split())


def test_summary_shows_where_in_time_the_kept_tokens_lie(summary):
    lines = summary().splitlines()
    axis = next(index for index, line in enumerate(lines) if re.search(r"0:00 ─+ 0:0", line))
    assert lines[axis].endswith("0:03.5")
    bars = [[line[12 + 8 * column : 19 + 8 * column] for column in range(4)] for line in lines[axis - 4 : axis]]
    heights = [sum("█" in row[column] for row in bars) for column in range(4)]
    assert heights == [0, 0, 4, 1]
    assert bars[3][0] == "▂" * 7
    assert lines[axis - 2].split()[0] == "important"
    assert lines[axis - 1].split()[0] == "22"
    assert lines[axis + 1].split() == ["diverse", *["▀" * 7] * 4]
    assert lines[axis + 2].split()[0] == "8"


def test_summary_says_kept_where_the_selector_does_not_tell_them_apart(summary):
    answer = an_answer(selection=SelectionFacts("uniform", 30, 0, 0, 0.2))
    text = summary(answer)
    assert "by uniform" in text
    assert "diverse" not in text
    assert "important" not in text
    assert re.search(r"^ 30 .*[▁▂▃▄▅▆▇█]", text, re.M)


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 33, 64, 200])
def test_summary_fits_the_terminal_for_any_number_of_moments(summary, columns, count):
    answer = an_answer([(1 + index % 5, index % 3) for index in range(count)])
    lines = summary(answer, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert any(set(line) & set(EVERY_BLOCK) for line in lines)


def test_summary_says_how_many_moments_share_a_bar(summary):
    answer = an_answer([(2, 1)] * 200)
    assert "a bar is 3 moments" in summary(answer)


def test_summary_of_a_still_has_no_times_of_a_video(summary):
    answer = an_answer([(3, 3)], video=VideoFacts("dog.png", 320, 240, 1, 0.0, 0.0), frames=1)
    text = summary(answer)
    assert "dog.png · 320 × 240 · still\n" in text
    assert "1 frame in 1 moment\n" in text
    assert "fps" not in text


def test_summary_of_everything_kept_claims_no_savings(summary):
    same = BeforeAfter(1000, 1000)
    answer = an_answer([(32, 32)] * 3, kv_cache_bytes=same, prefill_flops=same)
    text = summary(answer)
    assert "100%" in text
    assert "less" not in text
    assert "64 of 64 tokens at every moment" in text


def test_long_names_and_rotation_fit(summary):
    answer = an_answer(
        model=replace(an_answer().model, name="/models/" + "m" * 90 + "/the-end"),
        video=VideoFacts("/videos/[bold]" + "v" * 90 + ".mp4", 1920, 1080, 9, 25.0, 3725.0, rotation=90),
    )
    lines = summary(answer).splitlines()
    assert max(map(len, lines)) <= 80
    assert "/the-end ── qwen2_vl" in lines[1]
    assert any("[bold]vvv" in line for line in lines)
    assert any("1:02:05 · 25 fps · turned 90°" in line for line in lines)


def test_summary_is_plain_where_standard_error_is_no_terminal(summary, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in summary()


def test_summary_is_ascii_where_the_encoding_has_no_blocks(clip):
    command, environment = child("ask", clip, "What?")
    done = subprocess.run(command, env={**environment, "PYTHONIOENCODING": "ascii"}, capture_output=True)
    text = done.stderr.decode("ascii")
    assert "256 -> 30" in text
    assert "####" in text
    assert "\\u" not in text


def test_terminal_gets_colours_and_a_spinner_that_gives_way_to_the_answer(clip):
    seen, _ = on_terminal("ask", clip, "What?", pause=0.2)
    spinner, answer = seen.index("\x1b[?25l"), seen.index("The dog")
    assert spinner < seen.index("\x1b[?25h") < answer
    assert "\x1b[?25l" not in seen[answer:]
    assert "The dog runs to the right.\r\n" in seen
    assert "\x1b[36m" in seen[answer:]


def test_spinner_leaves_a_piped_answer_alone(clip):
    seen, piped = on_terminal("ask", clip, "What?", stdout_too=False, pause=0.1)
    assert piped == "The dog runs to the right.\n"
    assert "The dog" not in seen
    assert "answering" in seen


@pytest.mark.parametrize(("model", "told"), [("demo", "loading the model"), ("qwen2-vl-2b", "fetching the model")])
def test_spinner_says_when_the_model_has_to_be_fetched(clip, model, told):
    assert told in on_terminal("ask", clip, "What?", "--model", model, loading=0.3)[0]


@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]])
def test_nothing_that_is_read_speaks_to_the_terminal(tmp_path, options):
    speaking = "a\x1b]0;title\x07\x1b[2Jb\x9b2J\u202ec\x7f"
    quiet = r"a\u001b]0;title\u0007\u001b[2Jb\u009b2J\u202ec\u007f"
    video = tmp_path / f"{speaking}.mp4"
    video.write_bytes(CLIP)
    settings = {"pieces": [f"{speaking}\nnext"]}
    seen, _ = on_terminal("ask", str(video), speaking, *options, no_color=True, **settings)
    own = re.sub(r"\x1b\[(\?25[lh]|[0-9;]*[mKA])|\r", "", seen)
    assert quiet in own and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", own)
    # Into a pipe, the answer goes as it is.
    assert on_terminal("ask", str(video), "What?", "--quiet", stdout_too=False, **settings)[1] == f"{speaking}\nnext\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_error_does_not_speak_to_the_terminal_either(options):
    seen, _ = on_terminal("ask", "\x1b[2Jnone\u202e.mp4", "What?", *options, code=3)
    assert r"\u001b[2Jnone\u202e.mp4: there is no such file." in seen and not re.search("[\x1b\u202e]", seen)


def test_no_color_has_no_colours_on_a_terminal(clip):
    seen, _ = on_terminal("ask", clip, "What?", no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*m", seen)
    assert "256 → 30" in seen


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_quiet_and_json_show_no_spinner(clip, option):
    seen, _ = on_terminal("ask", clip, "What?", option)
    assert "\x1b" not in seen


# The other commands


def test_models_lists_aliases_and_what_is_here(flash):
    code, out, err = flash("models")
    assert (code, err) == (0, "")
    demo, qwen = out.splitlines()
    assert re.match(r"demo +✓ here +built in +a small world of emoji$", demo)
    assert re.match(r"qwen2-vl-2b +Qwen/Qwen2-VL-2B-Instruct +real videos$", qwen)


def test_models_as_json(flash):
    listed = json.loads(flash("models", "--json")[1])
    assert [(model["alias"], model["present"], model["default"]) for model in listed] == [
        ("demo", True, False),
        ("qwen2-vl-2b", False, True),
    ]


def test_fetch_prints_the_folder(flash):
    assert flash("fetch", "demo") == (0, "/models/demo/main\n", "")
    assert flash("fetch", "demo", "--revision", "v1") == (0, "/models/demo/v1\n", "")
    assert flash("fetch", "nowhere") == (4, "", "flashvlm: The hub cannot be reached.\n")


def test_samples_prints_the_folder_only(flash):
    assert flash("samples") == (0, "/somewhere/samples\n", "")


def test_version(flash):
    assert flash("--version") == (0, f"flashvlm {flashvlm.__version__}\n", "")


def test_alone_it_prints_its_help(flash):
    code, out, err = flash()
    assert (code, err) == (0, "")
    assert "Usage: flashvlm" in out


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"]])
def test_help_documents_the_exit_codes(flash, arguments):
    code, out, _ = flash(*arguments)
    assert code == 0
    for line in ("0  answered", "3  the video cannot be read", "130  interrupted"):
        assert line in out


def test_help_shows_the_defaults(flash):
    out = " ".join(flash("ask", "--help")[1].split())
    for default in ("10%", "flashvlm", "cosine", "qwen2-vl-2b", "64", "128"):
        assert f"[default: {default}]" in out


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "flashvlm_cli", "--version"], capture_output=True, text=True, cwd=HERE.parent
    )
    assert done.stdout == f"flashvlm {flashvlm.__version__}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [("flashvlm mod", "models"), ("flashvlm ask --sel", "--selector"), ("flashvlm ask --model de", "demo"),
     ("flashvlm ask --selector uni", "uniform"), ("flashvlm ask --device cu", "cuda")],
)  # fmt: skip
def test_shell_completion_offers_names(words, offered):
    command, environment = child()
    environment |= {
        "_FLASHVLM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert offered in done.stdout.split()


def test_completion_script_can_be_installed():
    command, environment = child()
    environment["_FLASHVLM_COMPLETE"] = "source_bash"
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "complete -o default -F _flashvlm_completion flashvlm" in done.stdout


# Figures


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.scaled(0, "B"), "0 B"), (units.scaled(999, "B"), "999 B"), (units.scaled(999_600, "B"), "1.00 MB"),
        (units.scaled(12_340, "B"), "12.3 kB"), (units.scaled(9.99e14, "FLOP"), "999 TFLOP"),
        (units.seconds(0.00004), "0.0 ms"), (units.seconds(0.0042), "4.20 ms"), (units.seconds(0.9996), "1.00 s"),
        (units.seconds(75.24), "75.2 s"), (units.timestamp(7.46), "0:07.5"), (units.timestamp(59.97), "1:00"),
        (units.timestamp(3725.4), "1:02:05"), (units.percent(1, 1000), "0.1%"), (units.percent(1, 9999), "0.01%"),
        (units.percent(9999, 10000), "99.9%"), (units.percent(5, 5), "100%"), (units.factor(96, 10), "9.6×"),
        (units.factor(1000, 5), "200×"), (units.factor(100, 99), ""), (units.factor(5, 5), ""),
        (units.in_words(12), "twelve"), (units.in_words(30), "thirty"),
        (units.in_words(768), "seven hundred and sixty-eight"), (units.in_words(1021), "one thousand and twenty-one"),
    ],
)  # fmt: skip
def test_figures_are_three_digits_and_a_unit(text, wanted):
    assert text == wanted


@pytest.mark.parametrize(
    "content, arguments, code, said",
    [
        (b"no video", (), 3, "this is not a video or a picture that can be read"),
        (b"", (), 3, "the file is empty"),
        (CLIP[:5000], (), 3, "the file is cut short"),
        (CLIP, ("--start", "1:00"), 2, "--start (60 s) is not before the end of the video, which lasts "),
        (CLIP, ("--device", "mps"), 2, "There is no device 'mps' on this machine"),
        (CLIP, ("--device", "cuda:1"), 2, "There is no device 'cuda:1' on this machine"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="has mps")
def test_what_needs_no_model_is_told_before_one_is_loaded(
    flash, library, clip, monkeypatch, content, arguments, code, said
):
    monkeypatch.setattr(library, "from_pretrained", lambda *given, **named: pytest.fail("a model is loaded"))
    Path(clip).write_bytes(content)
    for command in (("ask", clip, "What?"), ("inspect", clip), ("chat", clip), ("bench", "speed", clip)):
        assert flash(*command, *arguments)[0] == code
    assert said in flash("ask", clip, "What?", *arguments)[2]


def test_looking_ahead_imports_no_torch(clip):
    program = (
        "import sys; from flashvlm import video; from flashvlm.options import Sampling; "
        f"video.glance({clip!r}, Sampling()); print({{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
