"""What a user sets for good, in the environment and in a file, and `flashvlm config`. The library is faked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeVideoQA, fake_models

import flashvlm
from flashvlm.defaults import LASTING, key_of, variable_of
from flashvlm.options import OPTIONS, AskOptions
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

Flash = Callable[..., tuple[int, str, str]]
# A value of every option that is not its default, as one writes it in TOML.
OTHERS = {
    "model": '"demo"', "revision": '"v2"', "device": '"cpu"', "dtype": '"float16"', "keep": '"5%"',
    "selector": '"uniform"', "metric": '"centered"', "merge": "true", "fps": "1", "frames": "8", "max_frames": "16",
    "start": '"0:01"', "end": "5.5", "max_pixels": "50176", "min_pixels": "784", "encode": '"all"', "seek": '"exact"',
    "look": '"twice"', "system": '"Be brief."', "max_new_tokens": "9", "temperature": "0.5", "top_p": "0.9",
    "top_k": "3", "seed": "7", "timeout": "5", "max_source_pixels": "1000", "cache": "true", "memory": "false",
    "check": "true", "subtitles": '"auto"',
}  # fmt: skip


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeVideoQA]:
    fake = type("FakeVideoQA", (FakeVideoQA,), {})
    monkeypatch.setitem(vars(flashvlm), "VideoQA", fake)
    monkeypatch.setitem(sys.modules, "flashvlm.models", fake_models())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.mp4"
    shutil.copy(samples_dir() / "one.mp4", path)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the file of the user's defaults is read from."""
    folder = tmp_path / "config" / "flashvlm"
    folder.mkdir(parents=True)
    return folder / "config.toml"


@pytest.fixture
def flash(capsys: pytest.CaptureFixture[str]) -> Flash:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def asked(flash: Flash, clip: str, library: type[FakeVideoQA]) -> Callable[..., AskOptions]:
    """The options that a question is asked with."""

    def run(*arguments: str) -> AskOptions:
        code, _, err = flash("ask", clip, "What?", "--quiet", *arguments)
        assert (code, err) == (0, "")
        options = library.asked["options"]
        assert isinstance(options, AskOptions)
        return options

    return run


def test_the_command_line_comes_first_then_the_environment_then_the_file(
    asked: Callable[..., AskOptions], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(asked().keep) == "10%"
    file.write_text('keep = "5%"\nseed = 3\nmerge = true\nstart = "0:01"\n')
    monkeypatch.setenv("FLASHVLM_KEEP", "20%")
    monkeypatch.setenv("FLASHVLM_METRIC", "")
    options = asked()
    assert (str(options.keep), options.seed, options.merge, options.sampling.start) == ("20%", 3, True, 1)
    options = asked("--keep", "30%", "--seed", "4", "--no-merge")
    assert (str(options.keep), options.seed, options.merge) == ("30%", 4, False)
    # What is given is given, even if it is the option's own default.
    assert str(asked("--keep", "10%").keep) == "10%"


@pytest.mark.parametrize("name", LASTING)
def test_every_option_of_a_question_and_of_the_model_can_be_set_for_good(
    flash: Flash, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def told() -> tuple[str, str]:
        code, out, err = flash("config", "--json")
        assert (code, err) == (0, "")
        setting = json.loads(out)["settings"][key_of(name)]
        return setting["value"], setting["from"]

    value, where = told()
    assert where == "default"
    file.write_text(f"{key_of(name)} = {OTHERS[name]}")
    set_, where = told()
    assert where == str(file) and set_ != value
    file.unlink()
    monkeypatch.setenv(variable_of(name), OTHERS[name].strip('"'))
    assert told() == (set_, variable_of(name))


def test_there_is_a_value_of_every_option_in_these_tests() -> None:
    assert OTHERS.keys() == LASTING.keys() >= OPTIONS.keys()


def test_the_model_is_one_of_them(flash: Flash, clip: str, library: type[FakeVideoQA], file: Path) -> None:
    file.write_text('model = "demo"\ndevice = "cpu"\n')
    flash("ask", clip, "What?", "--device", "auto")
    assert (library.asked["model"], library.asked["device"], library.asked["dtype"]) == ("demo", "auto", "auto")


@pytest.mark.parametrize(
    ("of_file", "variables", "arguments", "expected"),
    [
        ("fps = 1", {}, ["--frames", "8"], (None, 8)),
        ("frames = 4", {}, ["--fps", "3"], (3, None)),
        ("fps = 1", {"FLASHVLM_FRAMES": "8"}, [], (None, 8)),
        ("fps = 1", {"FLASHVLM_FRAMES": "8"}, ["--fps", "3"], (3, None)),
    ],
)
def test_what_cannot_be_given_together_makes_way_for_what_comes_first(
    asked: Callable[..., AskOptions],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_file: str,
    variables: dict[str, str],
    arguments: list[str],
    expected: tuple[float | None, int | None],
) -> None:
    file.write_text(of_file)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sampling = asked(*arguments).sampling
    assert (sampling.fps, sampling.frames) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kep = 1", "{}: there is no option 'kep', did you mean keep."),
        ("zzz = 1", "{}: there is no option 'zzz'."),
        ("max_frames = 1", "{}: there is no option 'max_frames', did you mean max-frames."),
        ("[chat]\nkeep = 1", "{}: there is no option 'chat'."),
        ("keep = 0", "{}: keep must leave at least one token; 0 keeps none."),
        ("keep = [1]", "{}: keep takes a share such as 10% or 0.1, a count such as 256, delta=0.3 or auto; not '[1]'."),
        ('fps = "two"', "{}: fps must be a number, not 'two'."),
        ("seed = 1.5", "{}: seed must be a whole number, not 1.5."),
        ('merge = "yes"', "{}: merge must be True or False, not 'yes'."),
        ('device = "tpu"', "{}: device is one of auto, cpu, cuda, mps, not 'tpu'."),
        ("start = 00:01:30", "{}: start must be a number, not datetime.time(0, 1, 30)."),
        ("fps = 1\nframes = 2", "{}: give fps or frames, not both."),
        ("keep = ", "{} is not valid TOML: Invalid value (at end of document)."),
        (
            "system = '\udcff'",
            "{} is not valid TOML: 'utf-8' codec can't decode byte 0xff in position 10: invalid start byte.",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_a_sentence_that_names_it(
    flash: Flash, clip: str, file: Path, text: str, told: str
) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))
    expected = f"flashvlm: {told.format(file)}\n"
    assert flash("ask", clip, "What?") == (2, "", expected)
    assert flash("config") == (2, "", expected)
    # Help is there to mend it.
    assert flash("ask", "--help")[0] == 0


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLASHVLM_KEEP", "many", "FLASHVLM_KEEP takes a share such as 10% or 0.1"),
        ("FLASHVLM_FRAMES", "x", "FLASHVLM_FRAMES must be a whole number, not 'x'."),
        ("FLASHVLM_CACHE", "maybe", "FLASHVLM_CACHE must be on or off, not 'maybe'."),
        ("FLASHVLM_SELECTOR", "uniforn", "FLASHVLM_SELECTOR: There is no selector 'uniforn'"),
        ("FLASHVLM_TEMPERATURE", "-1", "FLASHVLM_TEMPERATURE must be 0, or 0.0001 or more, not -1."),
    ],
)
def test_what_is_wrong_in_the_environment_is_a_sentence_that_names_it(
    flash: Flash, clip: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, out, err = flash("ask", clip, "What?")
    assert (code, out) == (2, "") and err.startswith(f"flashvlm: {told}")
    assert json.loads(flash("ask", clip, "What?", "--json")[1])["error"]["exit_code"] == 2


def test_an_error_of_several_options_says_where_those_are_from_that_were_not_typed(
    flash: Flash, clip: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('keep = "auto"')
    assert flash("ask", clip, "What?", "--selector", "paper")[2] == (
        f"flashvlm: --keep auto is for --selector flashvlm; paper takes a share or a count (--keep is from {file}).\n"
    )
    monkeypatch.setenv("FLASHVLM_START", "9")
    assert "(--start is from FLASHVLM_START)" in flash("ask", clip, "What?", "--end", "5")[2]


def test_a_file_that_cannot_be_read_is_told(flash: Flash, file: Path) -> None:
    file.mkdir()
    assert flash("config") == (2, "", f"flashvlm: {file} cannot be read: Is a directory.\n")


def test_a_benchmark_depends_on_its_command_line_alone(flash: Flash, file: Path) -> None:
    file.write_text("kep = 1")
    code, _, err = flash("bench", "selection", "--keep", "many")
    assert code == 2 and str(file) not in err


def test_config_shows_all_that_applies_and_where_it_is_from(
    flash: Flash, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flash("config")[1].startswith(f"file  {file} (not there)\n\nmodel ")
    file.write_text('keep = "5%"\nsystem = "Be brief."\n')
    monkeypatch.setenv("FLASHVLM_KEEP", "256")
    monkeypatch.setenv("FLASHVLM_SERVER", "http://localhost:8642")
    code, out, err = flash("config")
    rows = [line.split("  ") for line in out.splitlines()[2:]]
    shown = {row[0]: (row[-1].strip(), "  ".join(row[1:-1]).strip()) for row in rows}
    assert (code, err, out.splitlines()[0]) == (0, "", f"file  {file}")
    assert list(shown) == [*(key_of(name) for name in LASTING), "server"]
    assert shown["server"] == ("FLASHVLM_SERVER", "http://localhost:8642")
    assert shown["keep"] == ("FLASHVLM_KEEP", "256") and shown["system"] == (str(file), "Be brief.")
    assert shown["model"] == ("default", "qwen2-vl-2b") and shown["merge"] == ("default", "off")
