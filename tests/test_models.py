"""Which models can be had, and what is said of those that cannot."""

import json
import shutil
from pathlib import Path

import pytest

from flashvlm import VideoQA
from flashvlm.errors import ModelError, UsageError
from flashvlm.models import DEFAULT_MODEL, fetch, present


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(fetch("demo"), tmp_path / "model"))


def test_the_demo_is_always_here() -> None:
    assert present("demo") and (fetch("demo") / "model.safetensors").stat().st_size < 15_000_000


def test_a_model_that_cannot_be_had_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not present(DEFAULT_MODEL)
    with pytest.raises(ModelError) as raised:
        fetch(DEFAULT_MODEL)
    assert all(way in str(raised.value) for way in ("flashvlm fetch", "--model PATH", "--model demo"))


@pytest.mark.parametrize("name", ["nothing", "./nowhere", "/nowhere/at/all", "a b/c", ""])
def test_names_that_are_no_model_are_refused(name: str) -> None:
    with pytest.raises(ModelError):
        fetch(name)


def test_an_unsupported_family_names_the_supported_ones(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"'llama' are not supported.*qwen2_vl"):
        VideoQA.from_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        VideoQA.from_pretrained(copy)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        VideoQA.from_pretrained(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_damaged_file_is_an_error_of_the_model(copy: Path, name: str) -> None:
    if name == "preprocessor_config.json":
        (copy / "video_preprocessor_config.json").unlink()
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(ModelError):
        VideoQA.from_pretrained(copy)


def test_missing_weights_are_an_error(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"]["layer_types"].append("full_attention")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="incomplete"):
        VideoQA.from_pretrained(copy)


def test_a_checkpoint_without_a_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat template"):
        VideoQA.from_pretrained(copy)


def test_devices_and_dtypes_that_are_not_here_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="dtype"):
        VideoQA.from_pretrained("demo", dtype="int8")
    with pytest.raises(UsageError, match="device"):
        VideoQA.from_pretrained("demo", device="abacus")
