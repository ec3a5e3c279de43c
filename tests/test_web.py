"""Videos by their address: downloaded once, within bounds, and refused in one sentence. The server is a local one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flashvlm import VideoQA, web
from flashvlm.errors import VideoError
from flashvlm.samples import samples_dir
from flashvlm_cli.app import main

pytest.importorskip("yt_dlp")
QUESTION = "What happens?"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The address of the samples on a server, and what it was asked for."""
    asked: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *about: object) -> None:
            asked.append(f"{self.command} {self.path}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(samples_dir())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_video_is_downloaded_once(demo: VideoQA, served: tuple[str, list[str]], capsys) -> None:
    address, asked = served
    answers = [demo.ask(f"{address}/one.mp4", QUESTION) for _ in range(2)]
    assert answers[0].moments == answers[1].moments == demo.ask(samples_dir() / "one.mp4", QUESTION).moments
    assert answers[0].video.path.endswith("-one.mp4") and len(asked) <= 2
    assert main(["cache", "--json"]) == 0
    size = (samples_dir() / "one.mp4").stat().st_size
    downloads = json.loads(capsys.readouterr().out)["downloads"]
    assert (downloads["videos"], downloads["bytes"]) == (1, size)
    assert main(["cache", "--clear"]) == 0 and not web.Downloads.of_user().entries()


def test_a_batch_takes_addresses(
    demo: VideoQA, served: tuple[str, list[str]], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda **loading: demo)
    rows = [{"video": f"{served[0]}/{name}", "question": QUESTION} for name in ("still.jpg", "gone.mp4")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["batch", str(tmp_path / "rows.jsonl"), "--model", "demo"]) == 1
    answered, failed = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda record: record["line"])
    assert answered["answer"] and "404" in failed["error"]["message"]


def test_downloads_are_bounded(served: tuple[str, list[str]], tmp_path: Path) -> None:
    sizes = {name: (samples_dir() / name).stat().st_size for name in ("one.mp4", "two.mp4")}
    downloads = web.Downloads(tmp_path / "videos", max(sizes.values()) + 1000)
    for name in sizes:
        downloads.get(f"{served[0]}/{name}")
    assert [path.name[web.DIGITS :] for _, _, path in downloads.entries()] == ["-two.mp4"]
    with pytest.raises(VideoError, match="larger than the 1000 bytes"):
        web.Downloads(tmp_path / "others", 1000).get(f"{served[0]}/one.mp4")


def test_what_cannot_be_downloaded_is_one_sentence_before_a_model_is_loaded(
    served: tuple[str, list[str]], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "from_pretrained", lambda **loading: pytest.fail("a model is loaded"))
    command = ["ask", f"{served[0]}/gone.mp4", QUESTION, "--model", "demo"]
    assert main(command) == 3
    assert "gone.mp4: it cannot be downloaded: " in capsys.readouterr().err
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert main(command) == 3
    said = "this is an address; download the video and give the file, or let yt-dlp do it: pip install 'flashvlm[web]'."
    assert said in capsys.readouterr().err
