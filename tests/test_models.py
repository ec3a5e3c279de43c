"""Which models can be had, and what is said of those that cannot."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
from checkpoints import around
from safetensors.torch import load_file, save_file

from flashvlm import VideoQA
from flashvlm.backends.loading import free_memory, weight_bytes
from flashvlm.errors import FlashVLMError, ModelError, UsageError
from flashvlm.models import ALIASES, DEFAULT_MODEL, fetch, fingerprint, present, revision_of, state
from flashvlm.options import AskOptions
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(fetch("demo"), tmp_path / "model"))


@pytest.mark.parametrize("name", [alias.name for alias in ALIASES.values() if alias.bundled])
def test_the_demos_are_always_here(name: str) -> None:
    assert present(name) and (fetch(name) / "model.safetensors").stat().st_size < 15_000_000


def test_a_model_that_cannot_be_had_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not present(DEFAULT_MODEL)
    with pytest.raises(ModelError) as raised:
        fetch(DEFAULT_MODEL)
    assert all(way in str(raised.value) for way in ("flashvlm fetch", "`model` PATH", "`model` demo"))


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


def test_an_architecture_that_cannot_answer_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2VLModel"]}))
    with pytest.raises(ModelError, match=r"Qwen2VLModel are not supported.* only Qwen2VLForConditionalGeneration"):
        VideoQA.from_pretrained(copy)


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashvlm.backends.loading.free_memory", lambda device: 1_000_000)
    with pytest.raises(ModelError, match=r"do not fit into memory: they take 0\.0 GB in float32"):
        VideoQA.from_pretrained(copy, device="cpu", dtype="float32")


def test_the_size_of_the_weights_is_that_of_the_wanted_dtype() -> None:
    parameters = sum(p.numel() for p in VideoQA.from_pretrained("demo", device="cpu").backend.model.parameters())
    assert weight_bytes(fetch("demo"), torch.float32) == 4 * parameters
    assert weight_bytes(fetch("demo"), torch.bfloat16) == 2 * parameters


def test_memory_that_is_free_is_some_of_what_there_is() -> None:
    assert 1e6 < (free_memory("cpu") or 0) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_weights_cut_short_say_how_much_is_there(copy: Path) -> None:
    path = copy / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f"incomplete: model.safetensors has {size - 1000} of {size} bytes"):
        VideoQA.from_pretrained(copy)


def test_settings_that_transformers_5_nests_are_read(copy: Path) -> None:
    settings = json.loads((copy / "video_preprocessor_config.json").read_text())
    (copy / "processor_config.json").write_text(json.dumps({"video_processor": settings | {"image_mean": [0, 0, 1]}}))
    assert VideoQA.from_pretrained(copy).backend.mean == (0, 0, 1)  # type: ignore[attr-defined]


def test_a_processor_s_chat_template_comes_before_the_tokenizer_s(copy: Path) -> None:
    template = "{{ '<|video_pad|>' }}dog"
    (copy / "chat_template.jinja").rename(copy / "unused.jinja")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "cat"}))
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    qa = VideoQA.from_pretrained(copy)
    assert around(qa, "")[1].tolist() == qa.backend.tokenizer("dog").input_ids


@pytest.mark.parametrize("template", ["{% if", "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"])
def test_a_chat_template_that_is_broken_or_for_texts_only_is_told(copy: Path, template: str) -> None:
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=r"chat template in .* cannot be used"):
        around(VideoQA.from_pretrained(copy), "What?")


def changed_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "visual.merger.ln_q.weight"


def test_weights_of_another_shape_and_missing_ones_are_named(copy: Path) -> None:
    changed_weights(copy, lambda weights: weights.update({NORM: torch.ones(7)}))
    with pytest.raises(ModelError, match=r"merger\.ln_q\.weight has the shape \(7,\), not \(\d+,\)\.$"):
        VideoQA.from_pretrained(copy)
    changed_weights(copy, lambda weights: weights.pop(NORM))
    with pytest.raises(ModelError, match=r"incomplete: .*merger\.ln_q\.weight is missing\.$"):
        VideoQA.from_pretrained(copy)


def test_weights_that_are_no_numbers_are_the_model_s_fault(copy: Path) -> None:
    changed_weights(copy, lambda weights: weights[NORM].fill_(torch.nan))
    with pytest.raises(ModelError, match="not finite numbers"):
        VideoQA.from_pretrained(copy).ask(samples_dir() / "still.jpg", "What is there?")


def test_a_name_that_is_nearly_an_alias_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Did you mean demo\?"):
        fetch("demoo")


def test_only_a_commit_of_the_hub_s_cache_is_known_by_its_name(copy: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "snapshots" / name for name in ("run-1", "a" * 40, "b" * 40)]
    for folder in folders:
        shutil.copytree(copy, folder)
    assert [revision_of(folder) for folder in [copy, *folders]] == [None, None, "a" * 40, "b" * 40]
    assert fingerprint(folders[1]) == "a" * 40
    weights = folders[0] / "model.safetensors"
    before = fingerprint(folders[0])
    weights.write_bytes(weights.read_bytes() + b"more")
    assert fingerprint(folders[0]) not in (before, fingerprint(copy))


def test_a_folder_has_no_revisions() -> None:
    with pytest.raises(UsageError, match="has no revisions"):
        VideoQA.from_pretrained("demo", revision="main")


def changed_settings(folder: Path, name: str, **changes: object) -> None:
    """Changes to one of the folder's JSON files; `a__b` is the entry `b` of `a`."""
    path = folder / name
    settings = json.loads(path.read_text()) if path.exists() else {}
    for entry, value in changes.items():
        *parents, last = entry.split("__")
        inner = settings
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(settings))


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "quantised": (
        lambda folder: changed_settings(folder, "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"Quantised weights \(gptq\) are not supported: use the checkpoint that they were made from",
    ),
    "an adapter": (lambda folder: changed_settings(folder, "adapter_config.json"), "merge it into the weights"),
    "deep JSON": (lambda folder: (folder / "config.json").write_text(f'{{"a": {DEEP}}}'), "not valid JSON"),
    "deep JSON that transformers reads": (
        lambda folder: (folder / "generation_config.json").write_text(f'{{"a": {DEEP}}}'),
        "recursion",
    ),
    "large JSON": (lambda folder: (folder / "config.json").write_text(" " * 3_000_000), "more than 2097152 bytes"),
    "null in the index": (
        lambda folder: changed_settings(folder, "model.safetensors.index.json", weight_map={"a": None}),
        "no readable model.safetensors.index.json",
    ),
    "weights elsewhere": (
        lambda folder: changed_settings(folder, "model.safetensors.index.json", weight_map={"a": "../a.safetensors"}),
        "no readable model.safetensors.index.json",
    ),
    "a pipe": (lambda folder: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")), "config.json"),
    "no heads": (lambda folder: changed_settings(folder, "config.json", text_config__num_attention_heads=0), "by zero"),
    "heads that do not fit": (
        lambda folder: changed_settings(folder, "config.json", vision_config__num_heads=3),
        "3 heads of the vision encoder",
    ),
    "positions that do not fit": (
        lambda folder: changed_settings(folder, "config.json", text_config__rope_parameters__mrope_section=[9, 8, 8]),
        r"\[9, 8, 8\] of positions",
    ),
    "no depth": (lambda folder: changed_settings(folder, "config.json", vision_config__depth=0), "depth is 0"),
    "absurd depth": (lambda folder: changed_settings(folder, "config.json", vision_config__depth=10**5), "100000"),
    "absurd labels": (lambda folder: changed_settings(folder, "config.json", num_labels=10**9), "1000000000"),
    "absurd width": (
        lambda folder: changed_settings(folder, "config.json", text_config__vocab_size=10**10),
        r"it is of a model of \d{13} numbers, and they are \d{7}\.",
    ),
    "absurd tokenizer": (
        lambda folder: changed_settings(
            folder,
            "tokenizer.json",
            added_tokens=[{"id": n, "content": f"<{n}>", "single_word": False} for n in range(60_000)],
        ),
        "adds more than 50000 tokens",
    ),
    "absurd special tokens": (
        lambda folder: changed_settings(folder, "tokenizer_config.json", extra_special_tokens=["a"] * 3000),
        "more than 2000 special tokens",
    ),
    "tokenizer.model alone": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
        "pip install sentencepiece, or add the tokenizer.json",
    ),
    "a penalty in words": (
        lambda folder: changed_settings(folder, "generation_config.json", repetition_penalty="high"),
        "penalty",
    ),
    "no number for the mean": (
        lambda folder: changed_settings(folder, "video_preprocessor_config.json", image_mean=[0.5, {}, 0.5]),
        "must be real number",
    ),
    "no preparation": (
        lambda folder: [path.unlink() for path in folder.glob("*preprocessor_config.json")],
        "no preprocessor_config.json",
    ),
    "a header of gigabytes": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
        "not a safetensors file",
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_whatever_is_wrong_with_a_checkpoint_is_told_as_its_fault(
    copy: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("flashvlm.backends.loading.find_spec", lambda name: None)
    change, told = HOSTILE[how]
    change(copy)
    with pytest.raises(ModelError, match=told):
        VideoQA.from_pretrained(copy, device="cpu")


def test_how_words_are_searched_for_is_not_the_checkpoint_s_to_say(copy: Path) -> None:
    changed_settings(copy, "generation_config.json", num_beams=10_000, num_return_sequences=10_000, max_time=0.001)
    asked = (samples_dir() / "still.jpg", "What is there?")
    assert VideoQA.from_pretrained(copy).ask(*asked).answer == VideoQA.from_pretrained("demo").ask(*asked).answer


def test_weights_that_are_not_used_are_a_warning_once(copy: Path) -> None:
    changed_weights(copy, lambda weights: weights.update({"more.weight": torch.ones(7)}))
    qa = VideoQA.from_pretrained(copy)
    watched = qa.watch(samples_dir() / "still.jpg", AskOptions())
    (told,) = watched.warnings
    assert told == f"The weights in {copy} hold more.weight, which this model does not use."
    assert watched.again().warnings == ()


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (PermissionError(13, "Permission denied"), ModelError, "cannot be read: model.safetensors: Permission denied"),
        (RuntimeError("can't start new thread"), FlashVLMError, "No more threads can be started"),
        (MemoryError("none left"), MemoryError, "none left"),
        (OSError(24, "Too many open files"), OSError, "Too many open files"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_checkpoint_is_not_called_damaged_for_what_the_machine_does_not_give(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception], told: str
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    if isinstance(error, PermissionError):
        monkeypatch.setattr("flashvlm.backends.checks.open", fail, raising=False)
    else:
        monkeypatch.setattr("transformers.Qwen2VLForConditionalGeneration.from_pretrained", fail)
    with pytest.raises(raised, match=told) as caught:
        VideoQA.from_pretrained(copy, device="cpu")
    assert raised is ModelError or not isinstance(caught.value, ModelError)


def test_python_without_docstrings_is_told() -> None:
    command = ["-OO", "-m", "flashvlm_cli", "ask", str(samples_dir() / "still.jpg"), "What?", "--model", "demo"]
    child = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert child.returncode == 1 and "python -OO" in child.stderr and child.stderr.count("\n") == 1


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, `maker/model`, in one revision, `v1`."""

    sha = "0" * 40
    files: ClassVar = {
        **dict.fromkeys(("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"), b"{}"),
        **{"model.safetensors": bytes(300_000), "code.py": b"print()"},
    }

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[1]
        if path in ("/api/models/maker/model/revision/v1", f"/api/models/maker/model/revision/{self.sha}"):
            siblings = [{"rfilename": file, "size": len(held)} for file, held in self.files.items()]
            content = json.dumps({"id": "maker/model", "sha": self.sha, "siblings": siblings}).encode()
        elif path.startswith("/api/models/maker/model/tree/"):
            entries = [
                {"type": "file", "path": file, "size": len(held), "oid": file} for file, held in self.files.items()
            ]
            content = json.dumps(entries).encode()
        elif path == f"/maker/model/resolve/{self.sha}/{name}":
            content = self.files[name]
        else:
            self.send_response(404)
            known = path.startswith("/api/models/maker/model/")
            self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", self.sha)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch_from(hub: str, cache: Path, model: str, revision: str, **variables: str) -> list[str]:
    """What `fetch` says in a process of its own, for huggingface_hub reads its variables once: standard output."""
    script = (
        "import sys\nfrom flashvlm.errors import ModelError\nfrom flashvlm.models import fetch, revision_of\n"
        "seen = []\n"
        "try: folder = fetch(sys.argv[1], sys.argv[2], lambda *bytes: seen.append(bytes))\n"
        "except ModelError as error: print(error)\n"
        "else: print(folder, sorted(p.name for p in folder.iterdir()), revision_of(folder), seen[-1:], sep='\\n')"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-c", script, model, revision]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert child.stderr == ""
    return child.stdout.splitlines()


def test_a_download_counts_its_bytes_and_takes_no_code(hub: str, tmp_path: Path) -> None:
    folder, files, revision, last = fetch_from(hub, tmp_path, "maker/model", "v1")
    assert folder == str(tmp_path / "hub" / "models--maker--model" / "snapshots" / Hub.sha)
    assert (files, revision) == (str(sorted(Hub.files.keys() - {"code.py"})), Hub.sha)
    assert last == "[(300008, 300008)]"
    # From the cache the second time.
    assert fetch_from("http://127.0.0.1:9", tmp_path, "maker/model", "v1") == [folder, files, revision, "[]"]


class Terminal(io.StringIO):
    """A standard stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_hub(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a command with the hub and an empty cache: exit code, what standard error shows.

    It runs on a terminal where `typed` is typed, or without one if that is None.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    url = hub + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)

    def run(typed: str | None, *command: str) -> tuple[int, str]:
        shown = io.StringIO() if typed is None else Terminal()
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        monkeypatch.setattr(sys, "stderr", shown)
        return main([*command, "--revision", "v1"]), shown.getvalue()

    return run


WANTED = "flashvlm: maker/model is not on this machine: 300 kB to download."


@pytest.mark.parametrize(
    "command",
    [
        ["fetch", "maker/model"],
        ["ask", "VIDEO", "What is there?", "-q", "--model", "maker/model"],
        ["inspect", "VIDEO", "--json", "--model", "maker/model"],
        ["chat", "VIDEO", "--model", "maker/model"],
        ["batch", "VIDEO", "--question", "What is there?", "--model", "maker/model"],
        ["bench", "speed", "--model", "maker/model"],
        ["bench", "accuracy", "--limit", "1", "--model", "maker/model"],
    ],
    ids=lambda command: " ".join(part for part in command[:2] if part.isalpha() and part.islower()),
)
def test_a_download_is_asked_about_on_a_terminal(
    at_hub: Callable[..., tuple[int, str]], tmp_path: Path, command: list[str]
) -> None:
    video = str(samples_dir() / "still.jpg")
    command = [video if part == "VIDEO" else part for part in command]
    code, seen = at_hub("\n", *command)
    assert code == 4 and f"{WANTED} Go on? [y/N] " in seen
    assert "--json" in command or seen.endswith("maker/model is not downloaded; --model demo needs no download.\n")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("typed", "options"), [("y\n", []), ("", ["--yes"])], ids=["agreed", "--yes"])
def test_what_is_agreed_to_is_downloaded(
    at_hub: Callable[..., tuple[int, str]], tmp_path: Path, typed: str, options: list[str]
) -> None:
    code, seen = at_hub(typed, "fetch", "maker/model", *options)
    assert code == 0 and seen.startswith(WANTED) and ("[y/N]" in seen) == bool(typed)
    assert list(tmp_path.rglob("model.safetensors"))
    # Nothing is said of a model that is here.
    code, seen = at_hub("", "fetch", "maker/model")
    assert code == 0 and "flashvlm:" not in seen


def test_a_script_is_told_what_is_downloaded_and_not_asked(
    at_hub: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert at_hub(None, "fetch", "maker/model") == (0, WANTED + "\n")
    (weights,) = tmp_path.rglob("snapshots/*/model.safetensors")
    (weights.parent / "tokenizer.json").unlink()
    shutil.rmtree(tmp_path / "models--maker--model" / "trees", ignore_errors=True)
    told = "flashvlm: maker/model is not complete on this machine: 2 B to download.\n"
    assert at_hub(None, "fetch", "maker/model") == (0, told)
    shutil.rmtree(tmp_path / "models--maker--model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, told = at_hub(None, "fetch", "maker/model")
    assert code == 4 and "maker/model is not on this machine and HF_HUB_OFFLINE is set: " in told


@pytest.mark.parametrize("lost", ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_model_of_which_files_are_missing_is_incomplete_until_it_is_fetched(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    folder, *_ = fetch_from(hub, tmp_path, "maker/model", "v1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert state("maker/model", "v1") == "here"
    (Path(folder) / lost).unlink()
    # As other programs leave it, which download file by file.
    shutil.rmtree(tmp_path / "hub" / "models--maker--model" / "trees", ignore_errors=True)
    assert state("maker/model", "v1") == "incomplete"
    (said,) = fetch_from("http://127.0.0.1:9", tmp_path, "maker/model", "v1")
    assert f"has no {lost}" in said and "flashvlm fetch maker/model" in said
    assert fetch_from(hub, tmp_path, "maker/model", "v1")[0] == folder
    assert state("maker/model", "v1") == "here"


def test_a_revision_or_model_that_the_hub_lacks_is_named(hub: str, tmp_path: Path) -> None:
    assert fetch_from(hub, tmp_path, "maker/model", "v2") == ["maker/model has no revision 'v2' on the hub."]
    assert fetch_from(hub, tmp_path, "maker/other", "v1") == [
        "There is no model maker/other on the hub (or it is private)."
    ]


def test_a_cache_that_cannot_be_written_to_is_told(hub: str, tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.write_text("no folder")
    (said,) = fetch_from(hub, there, "maker/model", "v1")
    assert said.startswith(f"maker/model cannot be stored in {there}/hub: ")
    (said,) = fetch_from(hub, Path("~"), "maker/model", "v1", HOME="~no-such-user")
    assert said == "There is no home folder for the Hugging Face cache: set HOME or HF_HOME."


def test_a_hub_that_cannot_be_trusted_is_not_reached(hub: str, tmp_path: Path) -> None:
    # The number of an SSL error is that of a missing permission.
    (said,) = fetch_from(hub.replace("http:", "https:"), tmp_path, "maker/model", "v1")
    assert "the hub cannot be reached" in said


def test_devices_and_dtypes_that_are_not_here_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="dtype"):
        VideoQA.from_pretrained("demo", dtype="int4")
    with pytest.raises(UsageError, match="device"):
        VideoQA.from_pretrained("demo", device="abacus")
