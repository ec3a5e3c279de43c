"""The plugin for lmms-eval: with lmms-eval where it is installed, else with what stands for its interface, since its
pins rule out those of constraints.txt. `python tests/lmms` compares whole runs of lmms-eval with `bench accuracy`.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import HERE
from lmms import stand_in
from PIL import Image

import flashvlm
from flashvlm.errors import UsageError, VideoError
from flashvlm.samples import samples_dir
from flashvlm_cli import lmms_table

ONE, TWO, PHONE, STILL = (str(samples_dir() / name) for name in ("one.mp4", "two.mp4", "phone.mp4", "still.jpg"))
TASK = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "num_beams": 1, "top_p": 1.0}
RESULTS = HERE / "golden" / "lmms-eval"
INSTALLED = find_spec("lmms_eval") is not None


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not INSTALLED:
        stand_in.install(monkeypatch)
    # It is made of what lmms-eval has, or of what stands for that in this test.
    monkeypatch.delitem(sys.modules, "flashvlm_cli.lmms_plugin", raising=False)
    return importlib.import_module("flashvlm_cli.lmms_plugin")


@pytest.fixture
def watched(demo: flashvlm.VideoQA, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The videos that were looked at by what is loaded as `demo`, which is the model of the tests."""
    seen: list[Any] = []

    class Loaded(flashvlm.VideoQA):
        @classmethod
        def from_pretrained(cls, name: str, **settings: Any) -> flashvlm.VideoQA:
            return cls(demo.backend, name)

        def watch(self, video: Any, *arguments: Any, **settings: Any) -> Any:
            seen.append(video)
            return super().watch(video, *arguments, **settings)

    monkeypatch.setitem(vars(flashvlm), "VideoQA", Loaded)
    return seen


def turn(role: str, *parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content}


def video(source: Any, **more: float) -> dict[str, Any]:
    return {"type": "video", "url": source, **more}


def ask(model: Any, *documents: list[Any], **generation: Any) -> list[str]:
    """The answers to documents, each of which is its messages."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"task": {"test": documents}}
    about = {"task": "task", "doc_id": 0, "repeats": 1}
    given = [("", lambda doc: doc, {**TASK, **generation}, number, "task", "test") for number in range(len(documents))]
    requests = [Instance("generate_until", arguments, 0, about) for arguments in given]
    return [result.text for result in model.generate_until(requests)]


def test_the_package_has_the_entry_point(plugin: Any) -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"flashvlm": "flashvlm_cli.lmms_plugin:MANIFEST"}
    assert plugin.MANIFEST.model_id == "flashvlm" and plugin.FlashVLM.is_simple is False
    assert plugin.MANIFEST.chat_class_path == "flashvlm_cli.lmms_plugin.FlashVLM"


def test_answers_come_in_order_and_a_video_is_looked_at_once(plugin: Any, watched: list, demo: Any) -> None:
    asked = [
        (ONE, "What happens?"),
        (TWO, "What moves down?"),
        (ONE, "Is there a dog?"),
        (TWO, "What animal is there?"),
    ]
    model = plugin.FlashVLM(pretrained="demo", keep="1%", selector="uniform")
    said = ask(model, *([turn("user", video(path), question)] for path, question in asked))
    assert watched == [ONE, TWO]
    assert said == [demo.ask(path, question, keep="1%", selector="uniform").answer for path, question in asked]


def test_a_part_of_a_video_and_pictures_in_memory(plugin: Any, watched: list, demo: Any) -> None:
    model = plugin.FlashVLM(pretrained="demo", keep=1.0, fps=1)
    clip, question = str(samples_dir() / "sequence.mp4"), "What appears first?"
    part, picture = {"video_start": 5.0, "video_end": 12.0, "path": clip}, Image.open(STILL).convert("RGB")
    said = ask(
        model,
        [turn("user", video(clip), question)],
        [turn("user", video(part), question)],
        [turn("user", video(clip, start_time=5.0, end_time=12.0), question)],
        [turn("user", {"type": "image", "url": picture}, "Where is the car?")],
    )
    later = demo.ask(clip, question, keep=1.0, fps=1, start=5, end=12).answer
    assert said == ["guitar", later, later, demo.ask(picture, "Where is the car?", keep=1.0).answer]
    # Both ways to name the part are one.
    assert later != "guitar" and len(watched) == 3


def test_earlier_messages_are_history_and_the_task_says_how_to_generate(plugin: Any, watched: list, demo: Any) -> None:
    model = plugin.FlashVLM(pretrained="demo", keep="100%", temperature=0.7)
    talk = [turn("user", video(ONE), "Is there a dog?"), turn("assistant", "no"), turn("user", "What happens?")]
    assert ask(model, talk) == [demo.ask(ONE, "What happens?", keep=1.0, history=[("Is there a dog?", "no")]).answer]
    plain = [turn("user", video(ONE), "What happens?")]
    assert ask(model, plain) == ["a butterfly moves down"]
    assert ask(model, plain, max_new_tokens=2) == ["a butterfly"]
    assert ask(model, plain, until=["moves"]) == ["a butterfly "]


def test_the_task_makes_each_round_from_the_answers_before(plugin: Any, watched: list) -> None:
    from lmms_eval.api.instance import Instance

    told: list[Any] = []

    def messages(doc: str, round_idx: int = 0, previous_output: Any = None, previous_round_info: Any = None) -> Any:
        told.append((round_idx, previous_output, previous_round_info))
        asked = [turn("user", video(doc), "What happens?" if round_idx == 0 else "Is there a butterfly?")]
        return (asked, round_idx == 2, previous_output, round_idx) if round_idx else asked

    model = plugin.FlashVLM(pretrained="demo", keep="100%")
    model.task_dict = {"task": {"test": [ONE]}}
    about = {"task": "task", "doc_id": 0, "repeats": 1}
    request = Instance("generate_until_multi_round", ("", messages, TASK, 0, "task", "test"), 0, about)
    first, second = "a butterfly moves down", "yes"
    assert model.generate_until_multi_round([request]) == [[first, second]]
    assert told == [(0, None, None), (1, [first], None), (2, [first, second], 1)]
    assert watched == [ONE]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"keeps": "10%"}, "no option 'keeps'.*mean keep"),
        ({"keep": 0}, "at least one token"),
        ({"batch_size": "4"}, "`batch_size` must be 1"),
        ({"fps": 1, "frames": 8}, "not both"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(plugin: Any, watched: list, given: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plugin.FlashVLM(pretrained="demo", **given)


def test_what_cannot_be_answered_ends_the_run(plugin: Any, watched: list) -> None:
    model = plugin.FlashVLM(pretrained="demo")
    asked = [turn("user", video(ONE), "What happens?")]
    sound = {"type": "audio", "url": {"array": [0.0], "sampling_rate": 16000}}
    for document, generation, error, told in (
        ([turn("user", "What happens?")], {}, UsageError, "this document has none"),
        ([turn("user", sound, "What happens?")], {}, UsageError, "cannot use audio"),
        ([turn("user", video("missing.mp4"), "What happens?")], {}, VideoError, "missing.mp4"),
        (asked, {"num_beams": 3}, UsageError, "beam search"),
    ):
        with pytest.raises(error, match=told):
            ask(model, asked, document, **generation)
    with pytest.raises(UsageError, match="no log-likelihoods"):
        model.loglikelihood([])


def test_results_of_lmms_eval_become_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = "| dtype=float32,pretrained=demo |"
    assert lmms_table.main([str(RESULTS)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| model | selector | task | metric | documents | 100% | 10% | 1% |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"{demo} flashvlm | flashvlm_samples | right | 33 | 0.9091 | 0.9091 (100.0 %) | 0.8182 (90.0 %) |",
        f"{demo} uniform | flashvlm_samples | right | 33 | 0.9091 |  | 0.303 (33.3 %) |",
    ]
    (tmp_path / "1_results.json").write_text("[]")
    assert lmms_table.main([str(tmp_path)]) == 2 and "no file of results" in capsys.readouterr().err
    (tmp_path / "1_results.json").unlink()
    shutil.copy(next(RESULTS.rglob("*.json")), tmp_path / "1_results.json")
    text = (tmp_path / "1_results.json").read_text().replace('"model": "flashvlm"', '"model": "qwen2_vl"')
    (tmp_path / "1_results.json").write_text(text)
    assert lmms_table.main([str(tmp_path)]) == 2 and "results of qwen2_vl" in capsys.readouterr().err
    (tmp_path / "1_results.json").unlink()
    assert lmms_table.main([str(tmp_path)]) == 2 and "left no scores" in capsys.readouterr().err
