"""The server: OpenAI's protocol as its own client speaks it, who may ask what, and what happens under load."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from checkpoints import load, tiny_internvl

from flashvlm import VideoQA
from flashvlm.errors import FlashVLMError
from flashvlm.options import AskOptions
from flashvlm.remote import RemoteVideoQA
from flashvlm.samples import samples_dir
from flashvlm.serve import fetching
from flashvlm.serve.run import address_of, listen, serve
from flashvlm.serve.settings import Serving
from flashvlm_cli.app import main

SAMPLES = samples_dir()
LIMIT = 400_000
# Seconds after which something that never comes is given up.
PATIENCE = 60


class Running:
    """A server in a thread of this process."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        self.host, self.port = host, int(port)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """The status, the headers and the content of a response: JSON is parsed."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, content, {name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            given = {name.lower(): value for name, value in response.getheaders()}
            text = response.read().decode()
        return response.status, given, json.loads(text) if given.get("content-type") == "application/json" else text

    def ask(self, video: Any, question: str = "What moves?", **more: Any) -> tuple[int, dict[str, str], Any]:
        return self.send("POST", "/v1/chat/completions", asking(video, question, **more))

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}v1", **{"api_key": "none", "max_retries": 0, **settings})

    def counted(self, name: str) -> float:
        text = self.send("GET", "/metrics")[2]
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)


def part(video: Any) -> dict[str, Any]:
    return video if isinstance(video, dict) else {"type": "video_url", "video_url": {"url": video}}


def asking(video: Any, question: str = "What moves?", **more: Any) -> dict[str, Any]:
    content = [part(video), {"type": "text", "text": question}]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **more}


def data_url(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


@contextlib.contextmanager
def serving(
    qa: Any,
    folders: tuple[Path, ...] = (),
    hosts: tuple[str, ...] = (),
    options: AskOptions | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """A server with these settings, at a free port."""
    made = Serving(port=0, **settings)
    listening = listen(made)
    ends: list[Any] = []
    ready = threading.Event()

    def started(end: Any) -> None:
        ends.append(end)
        ready.set()

    def run() -> None:
        serve(qa, listening, made, options or AskOptions(), list(map(str, folders)), hosts, on_start=started)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield Running(address_of(listening))
    finally:
        ends[0]()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that may be asked about, beside one that may not."""
    allowed = tmp_path_factory.mktemp("media") / "allowed"
    (allowed / "deep").mkdir(parents=True)
    shutil.copy(SAMPLES / "two.mp4", allowed / "deep" / "two.mp4")
    (secret := allowed.parent / "secret").mkdir()
    shutil.copy(SAMPLES / "one.mp4", secret / "one.mp4")
    (allowed / "link.mp4").symlink_to(secret / "one.mp4")
    (allowed / "way").symlink_to(secret)
    os.mkfifo(allowed / "pipe.mp4")
    return allowed


@pytest.fixture(scope="module")
def server(demo: VideoQA, folder: Path) -> Iterator[Running]:
    with serving(demo, (folder,), max_upload=LIMIT) as running:
        yield running


def test_openais_client_gets_the_answer_of_ask(server: Running, demo: VideoQA, folder: Path) -> None:
    path, question = folder / "deep" / "two.mp4", "What moves down?"
    asked = demo.ask(path, question, keep=0.2)
    given = server.client().chat.completions.create(
        **asking(path.as_uri(), question), extra_body={"keep": 0.2, "moments": True}
    )
    assert given.choices[0].message.content == asked.answer and given.choices[0].finish_reason == "stop"
    assert given.usage.prompt_tokens == asked.prompt_tokens.after
    assert given.usage.completion_tokens == asked.generated_tokens
    figures = given.flashvlm
    assert figures["tokens"] == {"before": asked.tokens.before, "after": asked.tokens.after}
    assert figures["selection"]["delta"] == pytest.approx(asked.selection.delta)
    assert [moment["kept"] for moment in figures["moments"]] == [
        [list(cell) for cell in moment.kept] for moment in asked.moments
    ]
    assert set(figures["seconds"]) == {"load", "decode", "encode", "select", "prefill", "generate", "delta"} | {
        "time_to_first_token",
        "total",
    }
    assert figures["video"]["path"] == path.as_uri() and figures["model"]["source"] == "demo"


def test_openais_client_gets_the_pieces_of_a_streamed_answer(server: Running, demo: VideoQA) -> None:
    asked = demo.ask(SAMPLES / "sequence.mp4", "Describe the video.")
    stream = server.client().chat.completions.create(
        **asking("sample:sequence.mp4", "Describe the video."), stream=True, stream_options={"include_usage": True}
    )
    *chunks, end, usage = list(stream)
    assert len(chunks) > 3 and "".join(chunk.choices[0].delta.content for chunk in chunks) == asked.answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert end.choices[0].finish_reason == "stop" and end.flashvlm["tokens"]["after"] == asked.tokens.after
    assert usage.choices == [] and usage.usage.completion_tokens == asked.generated_tokens


def test_a_stream_ends_with_done(server: Running) -> None:
    status, headers, text = server.ask("sample:one.mp4", stream=True)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert events[-1] == "[DONE]" and all(json.loads(event)["id"] for event in events[:-1])
    assert "usage" not in json.loads(events[-2])


def test_the_models_are_listed(server: Running) -> None:
    assert [model.id for model in server.client().models.list()] == ["demo"]


@pytest.mark.parametrize(
    "video",
    [
        {"type": "video_url", "video_url": "sample:still.jpg"},
        {"type": "image_url", "image_url": {"url": "sample:still.jpg"}},
        {"type": "image_url", "image_url": data_url(SAMPLES / "still.jpg").replace("video/mp4", "image/jpeg")},
        {
            "type": "input_video",
            "input_video": {"data": data_url(SAMPLES / "still.jpg").split(",")[1], "format": "mp4"},
        },
        {"type": "input_video", "video_url": {"url": data_url(SAMPLES / "still.jpg")}},
    ],
)
def test_a_video_is_given_in_many_ways(server: Running, video: dict[str, Any]) -> None:
    status, _, given = server.ask(video, "What is there?", unheard_of={"of": 1})
    assert status == 200 and given["flashvlm"]["frames"] == 1
    # Where the server keeps what was sent is nobody's business.
    assert "/" not in given["flashvlm"]["video"]["path"]


def test_several_videos_share_a_budget(server: Running, demo: VideoQA) -> None:
    asked = demo.ask([SAMPLES / "one.mp4", SAMPLES / "still.jpg"], "What happens?", keep=60)
    content = [part("sample:one.mp4"), part("sample:still.jpg"), {"type": "text", "text": "What happens?"}]
    body = {"messages": [{"role": "user", "content": content}], "keep": 60}
    _, _, given = server.send("POST", "/v1/chat/completions", body)
    assert given["choices"][0]["message"]["content"] == asked.answer
    assert [video["path"] for video in given["flashvlm"]["videos"]] == ["sample:one.mp4", "sample:still.jpg"]


def test_what_was_sent_is_asked_about_by_its_digest(server: Running) -> None:
    status, _, sent = server.send("POST", "/videos", (SAMPLES / "one.mp4").read_bytes())
    assert status == 200
    named = {"type": "video_url", "video_url": {**sent, "name": "mine.mp4"}}
    _, _, given = server.ask(named)
    assert given["flashvlm"]["video"]["path"] == "mine.mp4"
    assert server.ask("sha256:" + 64 * "0")[0] == 404


OUTSIDE = ["../secret/one.mp4", "link.mp4", "way/one.mp4", "../secret/nothing.mp4", "%2e%2e/secret/one.mp4", "../../x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_elsewhere_are_refused_alike_there_or_not(server: Running, folder: Path, name: str) -> None:
    address = f"file://{folder}/{name}"
    status, _, given = server.ask(address)
    assert (status, given["error"]["code"]) == (403, "file_not_allowed")
    assert given["error"]["message"] == f"{address}: this file is not in a folder that may be asked about."


@pytest.mark.parametrize("name", ["nothing.mp4", "deep", "pipe.mp4"])
def test_what_is_no_file_is_refused(server: Running, folder: Path, name: str) -> None:
    status, _, given = server.ask(f"file://{folder}/{name}")
    assert (status, given["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "address", ["file:two.mp4", "file://host/x.mp4", "file:///a%00b", "ftp://x/y", "/etc/passwd", "x"]
)
def test_other_addresses_are_refused(server: Running, address: str) -> None:
    assert server.ask(address)[0] == 400


MALFORMED: list[Any] = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"messages": NaN}',
    b"[" * 100_000,
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [1]},
    {"messages": [{"role": "king", "content": "x"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "video_url"}, {"type": "text", "text": "x"}]}]},
    {"messages": [{"role": "user", "content": "What moves?"}]},
    {"messages": [{"role": "assistant", "content": "a frog"}]},
    {"messages": [*asking("sample:one.mp4")["messages"], {"role": "assistant", "content": "a frog"}]},
    {"messages": [{"role": "system", "content": [part("sample:one.mp4")]}]},
    asking("sample:one.mp4", " "),
    asking("sample:one.mp4", "\ud800"),
    asking("data:video/mp4;base64"),
    asking("data:video/mp4;base64,@@@"),
    asking("data:video/mp4;base64,"),
    asking("data:video/mp4;base64,aGVsbG8="),
    asking("sample:one.mp4", n=2),
    asking("sample:one.mp4", stop=["."]),
    asking("sample:one.mp4", stream="yes"),
    asking("sample:one.mp4", stream_options=[1]),
    asking("sample:one.mp4", keep={"share": 1}),
    asking("sample:one.mp4", keep=0),
    asking("sample:one.mp4", keep=True),
    asking("sample:one.mp4", frames=10**9),
    asking("sample:one.mp4", max_pixels=10**12),
    asking("sample:one.mp4", max_tokens=10**9),
    asking("sample:one.mp4", max_tokens=-1),
    asking("sample:one.mp4", temperature=-1),
    asking("sample:one.mp4", temperature="hot"),
    asking("sample:one.mp4", fps=1, frames=1),
    asking("sample:one.mp4", start=5, end=1),
    asking("sample:one.mp4", start=5000),
    asking("sample:one.mp4", selector="best"),
    asking("sample:one.mp4", selector="own.py:choose"),
    asking("sample:one.mp4", seed=2**70),
]


def test_malformed_bodies_are_refused_and_the_server_lives(server: Running) -> None:
    for body in MALFORMED:
        status, _, given = server.send("POST", "/v1/chat/completions", body)
        assert status == 400, body
        error = given["error"]
        assert error["type"] == "invalid_request_error" and error["message"].endswith("."), body
        assert "/" not in error["message"] and "--" not in error["message"], body
    assert server.ask("sample:one.mp4")[0] == 200


def test_a_request_reaches_no_subtitles(server: Running) -> None:
    status, _, given = server.send(
        "POST", "/v1/chat/completions", asking("sample:one.mp4", subtitles="/nowhere/clip.srt")
    )
    assert status == 200
    assert given["flashvlm"]["subtitles"] == 0 and given["flashvlm"]["settings"]["subtitles"] is None


def test_an_error_names_the_field(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client().chat.completions.create(**asking("sample:one.mp4"), extra_body={"keep": "lots"})
    assert refused.value.param == "keep" and "`keep` takes a share such as 10%" in str(refused.value)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        server.client().chat.completions.create(**{**asking("sample:one.mp4"), "model": "gpt"})


def test_what_is_no_video_is_told_without_a_path(server: Running) -> None:
    _, _, sent = server.send("POST", "/videos", b"this is text" * 1000)
    status, _, given = server.ask(sent["url"])
    assert status == 400
    assert given["error"]["message"] == "the video: this is not a video or a picture that can be read."
    with pytest.raises(openai.BadRequestError, match="not a video"):
        list(server.client().chat.completions.create(**asking(sent["url"]), stream=True))


@pytest.mark.parametrize("path", ["/videos", "/v1/chat/completions"])
def test_an_upload_over_the_limit_is_refused(server: Running, path: str) -> None:
    large = bytes(LIMIT * 2 + 10**6)
    status, _, given = server.send("POST", path, large[:1], Content_Length=str(len(large)))
    assert (status, given["error"]["code"]) == (413, "too_large")
    if path == "/videos":
        with socket.create_connection((server.host, server.port), timeout=PATIENCE) as raw:
            raw.sendall(b"POST /videos HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):
                for _ in range(10):
                    raw.sendall(b"%x\r\n%s\r\n" % (10**5, bytes(10**5)))
            assert b" 413 " in raw.recv(1000)
    assert server.ask(f"data:video/mp4;base64,{base64.b64encode(large[: LIMIT + 1]).decode()}")[0] == 413


def test_paths_and_methods_that_are_not_there(server: Running) -> None:
    assert server.send("GET", "/v1/nothing")[0] == 404
    status, _, given = server.send("GET", "/v1/chat/completions")
    assert status == 405 and given["error"]["type"] == "invalid_request_error"


def test_earlier_questions_and_answers_are_read(server: Running, demo: VideoQA) -> None:
    turns, question = [("What moves down?", "a frog")], "How many animals are there?"
    body = asking("sample:two.mp4", turns[0][0])
    body["messages"] += [{"role": "assistant", "content": turns[0][1]}, {"role": "user", "content": question}]
    status, _, given = server.send("POST", "/v1/chat/completions", body)
    asked = demo.ask(SAMPLES / "two.mp4", question, history=turns)
    assert status == 200 and given["choices"][0]["message"]["content"] == asked.answer
    assert given["usage"]["prompt_tokens"] == asked.prompt_tokens.after
    assert given["flashvlm"]["history"] == [list(turn) for turn in turns]


def test_a_page_of_another_site_may_not_ask(server: Running) -> None:
    assert server.send("GET", "/v1/models", Origin="https://evil.example")[0] == 403
    assert server.send("GET", "/v1/models", Host="evil.example")[0] == 403
    assert server.send("GET", "/v1/models", Origin=server.address.rstrip("/"))[0] == 200


def test_without_the_key_there_is_no_answer(demo: VideoQA) -> None:
    with serving(demo, api_key="Schlüssel") as server:
        assert server.send("GET", "/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic Schl"}):
            for path in ("/v1/models", "/metrics"):
                status, _, given = server.send("GET", path, **headers)
                assert (status, given["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.client(api_key="no").chat.completions.create(**asking("sample:one.mp4"))
    with serving(demo, api_key="key") as server:
        assert server.client(api_key="key").chat.completions.create(**asking("sample:one.mp4")).usage


class Gated(VideoQA):
    """A model that waits at its gate before it answers, and counts what it reads."""

    def __init__(self, qa: VideoQA) -> None:
        super().__init__(qa.backend, qa.name)
        self.gate, self.reached = threading.Event(), threading.Semaphore(0)
        self.decoded = 0

    def decode(self, *arguments: Any, **settings: Any) -> Any:
        self.decoded += 1
        return super().decode(*arguments, **settings)

    def answer(self, *arguments: Any, on_stage: Any, **settings: Any) -> Any:
        self.reached.release()
        begun = time.monotonic()
        while not self.gate.wait(0.01) and time.monotonic() - begun < PATIENCE:
            on_stage("wait")
        return super().answer(*arguments, on_stage=on_stage, **settings)


@pytest.fixture
def gated(demo: VideoQA) -> Gated:
    return Gated(demo)


def until(server: Running, name: str, value: float) -> None:
    begun = time.monotonic()
    while server.counted(name) != value:
        assert time.monotonic() - begun < PATIENCE, name
        time.sleep(0.01)


def leave(server: Running, body: Any) -> socket.socket:
    """A connection that has asked, and does not wait for the answer."""
    raw = socket.create_connection((server.host, server.port), timeout=PATIENCE)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    raw.sendall(head.encode() + content)
    return raw


def test_more_than_may_wait_are_told_to_come_later(gated: Gated) -> None:
    with serving(gated, max_waiting=3) as server, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(server.ask, "sample:one.mp4") for _ in range(3)]
        until(server, "flashvlm_requests_now", 3)
        status, headers, given = server.ask("sample:one.mp4")
        assert (status, given["error"]["code"]) == (503, "busy") and 1 <= int(headers["retry-after"]) <= 60
        gated.gate.set()
        assert [one.result()[0] for one in waiting] == [200, 200, 200]
        # All three looked at the same video.
        assert gated.decoded == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(gated: Gated, stream: bool) -> None:
    with serving(gated, max_waiting=2) as server:
        connections = [leave(server, asking("sample:one.mp4", stream=stream)) for _ in range(2)]
        until(server, "flashvlm_requests_now", 2)
        assert gated.reached.acquire(timeout=PATIENCE)
        for connection in connections:
            connection.close()
        until(server, "flashvlm_requests_now", 0)
        assert server.counted("flashvlm_abandoned_total") == 2
        gated.gate.set()
        assert server.ask("sample:one.mp4")[0] == 200


def test_a_request_has_a_time_limit(gated: Gated) -> None:
    with serving(gated, request_timeout=0.3) as server:
        status, _, given = server.ask("sample:one.mp4")
        assert (status, given["error"]["code"]) == (504, "timeout")
        gated.gate.set()


def test_an_error_that_nobody_foresaw_tells_nothing(demo: VideoQA) -> None:
    class Broken(Gated):
        def answer(self, *arguments: Any, **settings: Any) -> Any:
            raise RuntimeError("/secret/path")

    with serving(Broken(demo)) as server:
        status, _, given = server.ask("sample:one.mp4")
        assert (status, given["error"]["type"]) == (500, "server_error")
        assert given["error"]["message"] == "The server failed at this request; its log says why."


def test_memory_is_bounded(gated: Gated) -> None:
    gated.gate.set()
    with serving(gated, feature_memory=10**6) as server:
        for _ in range(2):
            for name in ("one.mp4", "two.mp4", "sequence.mp4"):
                assert server.ask(f"sample:{name}")[0] == 200
        assert 0 < server.counted("flashvlm_memory_bytes") <= 10**6
        assert gated.decoded > 3
        before = gated.decoded
        _, _, given = server.ask("sample:sequence.mp4", "Describe the video.")
        assert gated.decoded == before and given["flashvlm"]["cached"]


class Site(BaseHTTPRequestHandler):
    """A site with a video, a redirect, and a stream without end."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()
            return
        self.send_response(200 if self.path in ("/one.mp4", "/endless") else 404)
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/one.mp4":
                self.wfile.write((SAMPLES / "one.mp4").read_bytes())
            while self.path == "/endless":
                self.wfile.write(bytes(10**5))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"localhost:{running.server_port}"
    running.shutdown()


def test_videos_come_from_named_hosts_at_public_addresses_only(
    demo: VideoQA, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(demo, hosts=(site, "169.254.169.254"), max_upload=LIMIT) as server:
        assert server.ask("https://elsewhere.example/x.mp4")[2]["error"]["code"] == "host_not_allowed"
        assert server.ask(f"http://localhost:1/{site}")[0] == 403
        assert server.ask(f"http://user@{site}/one.mp4")[0] == 400
        for address in (f"http://{site}/one.mp4", "http://169.254.169.254/latest"):
            status, _, given = server.ask(address)
            assert status == 403 and "not at a public address" in given["error"]["message"]
        # From here on this machine counts as public.
        monkeypatch.setattr(fetching, "public", lambda address: address in ("127.0.0.1", "::1"))
        assert server.ask(f"http://{site}/one.mp4")[0] == 200
        status, _, given = server.ask(f"http://{site}/redirect")
        assert (status, given["error"]["message"]) == (
            400,
            "localhost answered with a redirect, which is not followed.",
        )
        assert server.ask(f"http://{site}/nothing")[0] == 400
        assert server.ask(f"http://{site}/endless")[0] == 413


PRIVATE = "127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 ::1 :: fe80::1%eth0"
DISGUISED = "fc00::1 ff02::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::"


@pytest.mark.parametrize("address", [*PRIVATE.split(), *DISGUISED.split()])
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetching.public(address)


def test_a_public_address() -> None:
    assert fetching.public("1.1.1.1") and fetching.public("2606:4700::1111")


def test_without_what_it_needs_the_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--model", "demo"]) == 2
    assert capsys.readouterr().err == "flashvlm: flashvlm serve needs uvicorn: pip install 'flashvlm[serve]'.\n"


def test_a_port_that_is_taken_is_told(server: Running) -> None:
    with pytest.raises(FlashVLMError, match=f"cannot listen at 127.0.0.1 port {server.port}"):
        listen(Serving(port=server.port))


def test_sigterm_lets_running_answers_finish(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flashvlm_cli", "serve", "--model", "demo", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = process.stderr.readline().split()[-1]
        server = Running(address)
        body = asking("sample:sequence.mp4", "Describe the video.", stream=True)
        raw = leave(server, body)
        # The answer has begun.
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
        process.send_signal(signal.SIGTERM)
        text = b"".join(iter(lambda: raw.recv(65536), b""))
        assert b"[DONE]" in text
        assert process.wait(PATIENCE) == 143
        with pytest.raises(OSError):
            server.ask("sample:one.mp4")
    finally:
        process.kill()
        process.stderr.close()


def commanded(server: Running, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in a process in which torch cannot be imported."""
    code = "import sys; sys.modules['torch'] = None; from flashvlm_cli.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "FLASHVLM_SERVER": server.address, **settings}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=PATIENCE
    )


def test_ask_by_the_server_says_what_ask_says(server: Running, demo: VideoQA) -> None:
    path = str(SAMPLES / "two.mp4")
    done = commanded(server, "ask", path, "What moves down?", "--json", "--keep", "20%", "--check")
    given, asked = json.loads(done.stdout), demo.ask(path, "What moves down?", keep=0.2, check=True).to_json()
    for answer in (given, asked):
        del answer["seconds"], answer["cached"], answer["check"]["seconds"]
        del answer["model"]["source"]
    assert given == json.loads(json.dumps(asked))
    shown = commanded(server, "ask", path, "What moves down?")
    assert shown.stdout == "frog\n" and "480 → 48" in shown.stderr


def test_a_picture_in_tiles_is_answered_and_drawn(tmp_path: Path) -> None:
    with serving(load(tiny_internvl(tmp_path))) as server:
        answer = RemoteVideoQA(server.address).ask(SAMPLES / "still.jpg", "What is there?", keep=0.5, max_new_tokens=4)
        asked = {"video": "sample:still.jpg", "question": "What is there?", "keep": 0.5, "pictures": True}
        status, _, seen = server.send("POST", "/inspect", asked)
    assert [(moment.grid_height, moment.grid_width) for moment in answer.moments] == [(4, 6), (2, 2)]
    assert answer.frames == 1 and answer.tokens.after == 14
    assert status == 200 and [moment["grid"] for moment in seen["drawn"]["moments"]] == [[4, 6], [2, 2]]
    assert len(seen["pictures"]) == 2 and "given" not in seen["video"]


def test_ask_by_the_server_fails_as_ask_fails(server: Running, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is text")
    done = commanded(server, "ask", str(text), "What?")
    assert done.returncode == 3
    assert done.stderr == f"flashvlm: {text}: this is not a video or a picture that can be read.\n"
    clip, lines = str(SAMPLES / "one.mp4"), tmp_path / "clip.srt"
    assert commanded(server, "ask", clip, "What?", "--model", "demo-video-llava").returncode == 4
    assert commanded(server, "ask", clip, "What?", "--device", "cpu").returncode == 2
    lines.write_text("1\n00:00:00,000 --> 00:00:09,000\nHello.\n")
    said = commanded(server, "ask", clip, "What?", "--subtitles", str(lines))
    assert (said.returncode, said.stderr) == (
        2,
        "flashvlm: --subtitles needs a model that is loaded here; a server reads none.\n",
    )
    gone = commanded(server, "ask", clip, "What?", FLASHVLM_SERVER="http://127.0.0.1:1")
    assert (gone.returncode, gone.stderr) == (
        1,
        "flashvlm: There is no server at http://127.0.0.1:1: flashvlm serve starts one.\n",
    )


def test_batch_by_the_server_goes_on_where_it_stopped(demo: VideoQA, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = [
        {"video": str(SAMPLES / name), "question": "What happens?"} for name in ("one.mp4", "two.mp4", "nothing.mp4")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("batch", str(tmp_path / "rows.jsonl"), "-o", str(out), "-q")
    with serving(demo) as server:
        assert commanded(server, *command).returncode == 1
        records = [json.loads(line) for line in out.read_text().splitlines()]
        answers = {record["row"]["video"]: record["answer"] for record in records if "answer" in record}
        assert answers == {row["video"]: demo.ask(row["video"], row["question"]).answer for row in rows[:2]}
        before = out.read_text().splitlines()
        out.write_text(before[0] + "\n")
    gone = commanded(server, *command)
    assert gone.returncode == 1 and "There is no server" in gone.stderr
    with serving(demo) as server:
        commanded(server, *command)
        assert len(out.read_text().splitlines()) == 3


def test_chat_by_the_server(server: Running) -> None:
    code = "import sys; sys.modules['torch'] = None; from flashvlm_cli.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", str(SAMPLES / "two.mp4"), "--server", server.address, "-q"],
        input=f"What moves down?\n/keep 20%\n/video {SAMPLES / 'one.mp4'}\nWhat animal is in the video?\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "frog\nbutterfly\n"), done.stderr
