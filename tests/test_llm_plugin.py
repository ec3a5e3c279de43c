"""The plugin for llm, with the real llm and the demo model."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import HERE

import flashvlm
from flashvlm.samples import samples_dir

llm = pytest.importorskip("llm")
CLIP, STILL = str(samples_dir() / "one.mp4"), samples_dir() / "still.jpg"
ASK, THERE, SAID = "What happens?", "Is there a butterfly?", "a butterfly moves down"
DEMO = ["-o", "model", "demo"]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def library(demo: flashvlm.VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo model as the plugin loads it; what it was loaded with, the videos it looked at, what it remembered."""

    class Loaded(flashvlm.VideoQA):
        loaded: list[dict[str, Any]] = []  # noqa: RUF012
        watched: list[Any] = []  # noqa: RUF012
        asked: list[tuple[str, str, list[tuple[str, str]]]] = []  # noqa: RUF012

        @classmethod
        def from_pretrained(cls, **settings: Any) -> flashvlm.VideoQA:
            cls.loaded.append(settings)
            return cls(demo.backend, "demo")

        def watch(self, path: Any, options: Any, **callbacks: Any) -> Any:
            self.watched.append(path)
            return super().watch(path, options, **callbacks)

        def answer(self, watched: Any, question: str, options: Any, **settings: Any) -> Any:
            self.asked.append((question, str(options.keep), list(settings["history"])))
            return super().answer(watched, question, options, **settings)

    monkeypatch.setitem(vars(flashvlm), "VideoQA", Loaded)
    for folder in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LLM_USER_PATH"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    return Loaded


@pytest.fixture
def plugin() -> Any:
    """The plugin, registered even where the installed package is another one."""
    from llm.plugins import load_plugins, pm

    from flashvlm_cli import llm_plugin

    load_plugins()
    if not pm.is_registered(llm_plugin):
        pm.set_blocked("flashvlm")
        pm.register(llm_plugin, "flashvlm of these sources")
    return llm_plugin


@pytest.fixture
def run(library: Any, plugin: Any) -> Run:
    """llm's command line: its exit code and what it prints."""
    from click.testing import CliRunner
    from llm.cli import cli

    def invoke(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        return done.exit_code, done.output

    return invoke


def test_the_package_has_the_entry_point() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["llm"] == {"flashvlm": "flashvlm_cli.llm_plugin"}


def test_a_question_on_an_attached_video_is_answered_and_logged(run: Run, library: Any) -> None:
    assert run("-m", "flashvlm", "-a", CLIP, ASK, "-o", "keep", "100%", *DEMO) == (0, f"{SAID}\n")
    assert library.asked == [(ASK, "100%", [])] and library.loaded[0]["model"] == "demo"
    log = run("logs", "-n", "1", "--json")[1]
    assert '"resolved_model": "demo"' in log and '"output_tokens": 5' in log and '"after": 336' in log


@pytest.mark.parametrize(("more", "remembered"), [([], []), (["-o", "memory", "1"], [(ASK, SAID)])])
def test_a_conversation_goes_on_about_the_same_video(
    run: Run, library: Any, more: list[str], remembered: list[tuple[str, str]]
) -> None:
    run("-m", "flashvlm", "-a", CLIP, ASK, "-o", "keep", "100%", *DEMO)
    assert run("-c", THERE, *DEMO, *more)[0] == 0
    assert library.asked[1] == (THERE, "10%", remembered)
    assert library.watched == [[Path(CLIP)]] * 2


def test_in_one_process_it_is_loaded_and_looked_at_once(library: Any, plugin: Any) -> None:
    conversation = plugin.FlashVLM().conversation()
    first = conversation.prompt(ASK, attachments=[llm.Attachment(path=CLIP)], model="demo", keep=1.0)
    # It comes in pieces.
    assert len(pieces := list(first)) > 1 and "".join(pieces) == SAID
    assert conversation.prompt(THERE, options={"model": "demo"}, system="Be brief.").text() == "yes"
    assert (len(library.loaded), len(library.watched)) == (1, 1)


def test_a_picture_may_come_without_a_file(demo: flashvlm.VideoQA, library: Any, plugin: Any) -> None:
    attached = llm.Attachment(content=STILL.read_bytes())
    response = plugin.FlashVLM().prompt("What do you see?", attachments=[attached], model="demo", keep="100%")
    assert response.text() == demo.ask(STILL, "What do you see?", keep="100%").answer
    assert not any(path.exists() for path in library.watched[0])


def test_what_is_set_for_good_applies(run: Run, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHVLM_KEEP", "50%")
    monkeypatch.setenv("FLASHVLM_MODEL", "qwen2-vl-7b")
    run("-m", "flashvlm", "-a", CLIP, ASK)
    run("-m", "flashvlm", "-a", CLIP, ASK, "-o", "keep", "5%")
    assert [keep for _, keep, _ in library.asked] == ["50%", "5%"]
    assert {one["model"] for one in library.loaded} == {"qwen2-vl-7b"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([ASK], "Attach a video or a picture: -a clip.mp4."),
        ([ASK, "-a", CLIP, "-o", "keep", "0"], "keep must leave at least one token; 0 keeps none."),
        ([ASK, "-a", CLIP, "-o", "fps", "x"], "fps"),
        ([ASK, "-a", CLIP, "-o", "kep", "1"], "Extra inputs are not permitted"),
        ([ASK, "-a", CLIP, "-o", "keep", "auto", "-o", "selector", "paper"], "`keep` auto is for `selector` flashvlm"),
        ([ASK, "-a", CLIP, "-o", "start", "9:00"], "`start` (540 s) is not before the end of the video"),
        ([ASK, "-a", str(HERE / "fakes.py")], "does not support attachments of type"),
    ],
)
def test_what_makes_no_sense_is_told(run: Run, library: Any, arguments: list[str], told: str) -> None:
    code, printed = run("-m", "flashvlm", *arguments)
    assert code == 1 and printed.startswith("Error: ") and told in printed and "Traceback" not in printed


def test_nothing_heavy_is_imported_before_a_question() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import flashvlm_cli.llm_plugin"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "flashvlm.options" in imported and not imported & {"torch", "transformers", "numpy", "decord", "av"}
