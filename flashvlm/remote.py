"""A server that runs elsewhere (`flashvlm serve`), asked as a loaded model is. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, Unpack
from urllib.parse import urlsplit

from flashvlm import errors, files, web
from flashvlm.errors import FlashVLMError, ModelError, UsageError, VideoError
from flashvlm.options import ANSWER, FRAMES, OPTIONS, TOKENS, Arguments, AskOptions
from flashvlm.report import Answer, VideoFacts, answer_of

if TYPE_CHECKING:
    from http.client import HTTPResponse

    # A video by its path or its web address.
    Named = str | os.PathLike[str]

VARIABLE = "FLASHVLM_SERVER"
KEY_VARIABLE = "FLASHVLM_API_KEY"
# What a request sets: the options that are not the machine's, and lead to none of its files.
SENT = tuple(name for name, one in OPTIONS.items() if one.stage in (FRAMES, TOKENS, ANSWER) and name != "subtitles")
# Seconds without a word from the server, after which it is given up: a busy one lets requests wait.
SILENCE = 3600.0
# Seconds to wait for a server that is busy or being restarted before a request is given up.
BUSY = 120.0
CHUNK = 2**20
ERRORS = {2: UsageError, 3: VideoError, 4: ModelError}


@dataclass(frozen=True)
class RemoteWatched:
    """A video that the server has looked at."""

    path: str
    facts: VideoFacts
    # Its address on the server, by its content.
    url: str
    # The options that it was looked at with.
    options: AskOptions
    warnings: tuple[str, ...] = ()

    def again(self) -> RemoteWatched:
        """The same video for a further question."""
        return self


@dataclass(frozen=True)
class RemoteChoice:
    """A question on a video that the server has looked at."""

    watched: RemoteWatched
    question: str
    options: AskOptions


class RemoteVideoQA:
    """A server in place of `VideoQA`: `ask` and what `chat` calls of it take the same and return the same."""

    def __init__(self, server: str, model: str | None = None) -> None:
        """Ask a server which model it has.

        Args:
            server: its address, such as `http://127.0.0.1:8642`. Its key is in FLASHVLM_API_KEY.
            model: the model that is wanted; None takes any.

        Raises:
            UsageError: this is no address of a server.
            ModelError: the server has another model.
            FlashVLMError: the server does not answer.
        """
        parts = urlsplit(server if "//" in server else f"http://{server}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
            raise UsageError(f"A server is given as http://127.0.0.1:8642, not {server!r}.")
        self.server = f"{parts.scheme}://{parts.netloc}"
        self._secure, self._host, self._port = parts.scheme == "https", host, port
        self._before = parts.path.rstrip("/").removesuffix("/v1")
        self._key = os.environ.get(KEY_VARIABLE)
        # The digest of each file, until it changes.
        self._digests: dict[tuple[Any, ...], str] = {}
        listed = self._json("GET", "/v1/models")
        try:
            self.name = str(listed["data"][0]["id"])
            self.about = dict(listed["data"][0]["flashvlm"])
        except (LookupError, TypeError, ValueError):
            raise FlashVLMError(f"{self.server} is no server of flashvlm.") from None
        if model is not None and model != self.name:
            raise ModelError(f"The server at {self.server} has {self.name}, not {model}.")

    @property
    def single_turn(self) -> bool:
        """Whether the model was trained on single questions, as `VideoQA.single_turn`."""
        return bool(self.about.get("single_turn"))

    def ask(
        self,
        video: Named | Sequence[Named],
        question: str,
        options: AskOptions | None = None,
        *,
        history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> Answer:
        """Answer one question on one video, or on several, as `VideoQA.ask` does.

        Args:
            video: its path, or its web address (with yt-dlp, on this machine); or a list of several.

        Raises:
            FlashVLMError: as there; or the server does not answer.
        """
        options = _options(options, given)
        several: Sequence[Any] = video if isinstance(video, list | tuple) else [video]
        paths = [_path(one) for one in several]
        return self._asked([(one, self._url(one)) for one in paths], question, history, options, on_text, on_stage)

    def watch(
        self,
        video: Named,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> RemoteWatched:
        """Let the server look at a video once, for any number of questions on it (`respond`)."""
        options = _options(options, given)
        on_stage("server")
        name = _path(video)
        status, url = files.check_video(name), self._url(name)
        body = {"video": {"url": url, "name": name}, "selectors": [], **sent(options)}
        seen = self._sending([(name, url)], lambda: self._json("POST", "/inspect", body))
        return RemoteWatched(name, VideoFacts(**seen["video"]).of(name, status), url, options, tuple(seen["warnings"]))

    def choose(
        self,
        watched: RemoteWatched,
        question: str,
        options: AskOptions | None = None,
        *,
        on_stage: Callable[[str], None] = lambda stage: None,
        **given: Unpack[Arguments],
    ) -> RemoteChoice:
        """What `respond` asks the server, which chooses the tokens as it answers."""
        return RemoteChoice(watched, question, _options(options, given, watched))

    def respond(
        self,
        choice: RemoteChoice,
        *,
        history: Sequence[tuple[str, str]] = (),
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Answer:
        """Answer a question on a video that `watch` returned."""
        videos = [(choice.watched.path, choice.watched.url)]
        return self._asked(videos, choice.question, history, choice.options, on_text, on_stage)

    def inspect(self, choice: RemoteChoice) -> NoReturn:
        """Refuse: a server does not say what it based its choice on.

        Raises:
            UsageError: always.
        """
        raise UsageError("A report needs a model that is loaded here; without --server it is written.")

    def _asked(
        self,
        videos: Sequence[tuple[str, str]],
        question: str,
        history: Sequence[tuple[str, str]],
        options: AskOptions,
        on_text: Callable[[str], None],
        on_stage: Callable[[str], None],
    ) -> Answer:
        """Ask about videos by their paths and addresses, and send those that the server does not have."""
        on_stage("server")
        statuses = {path: files.check_video(path) for path, _ in videos}
        parts: list[dict[str, Any]] = [
            {"type": "video_url", "video_url": {"url": url, "name": path}} for path, url in videos
        ]
        messages: list[dict[str, Any]] = []
        for asked, said in history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        body = {"messages": messages, "stream": True, "moments": True, **sent(options)}

        def streamed() -> Answer:
            text = ""
            for event in self._events("/v1/chat/completions", body):
                for choice in event.get("choices", ()):
                    if piece := choice["delta"].get("content"):
                        text += piece
                        on_text(piece)
                if "flashvlm" in event:
                    return answer_of({**event["flashvlm"], "answer": text})
            raise ServerError(f"The server at {self.server} ended in the middle of an answer.")

        answer = self._sending(videos, streamed)

        def here(video: VideoFacts) -> VideoFacts:
            return video.of(video.path, statuses[video.path])

        settings = {**answer.settings, **{name: getattr(options, name) for name in OPTIONS if name not in SENT}}
        return replace(answer, video=here(answer.video), videos=tuple(map(here, answer.videos)), settings=settings)

    def _sending(self, videos: Sequence[tuple[str, str]], request: Callable[[], Any]) -> Any:
        """Make a request; if the server does not have a video, send it and try once more. Wait while it is busy."""
        given_up, sent_all = time.monotonic() + BUSY, False
        while True:
            try:
                return request()
            except _Later as busy:
                if time.monotonic() + busy.seconds > given_up:
                    raise ServerError(str(busy)) from None
                time.sleep(busy.seconds)
            except _Missing as missing:
                if sent_all:
                    raise VideoError(str(missing)) from None
                for path, _ in videos:
                    self._send(path)
                sent_all = True

    def _url(self, path: str) -> str:
        """The address of a video by its content."""
        files.check_video(path)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
                if key not in self._digests:
                    self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VideoError(f"{path}: it cannot be read: {error.strerror}.") from None
        return f"sha256:{self._digests[key]}"

    def _send(self, path: str) -> None:
        """Send a video, so that it can be asked about by its content."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # What the file may grow by meanwhile is not part of it.
            pieces = iter(lambda: file.read(min(CHUNK, max(0, size - file.tell()))), b"")
            self._json("POST", "/videos", pieces, {"Content-Length": str(size), "Content-Type": "video/mp4"})

    def _json(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        with self._response(method, path, body, headers or {}) as response:
            return _parsed(response.read(), self.server)

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed response."""
        with self._response("POST", path, body, {}) as response:
            for line in response:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = _parsed(data, self.server)
                if "error" in event:
                    raise _error_of(event, self.server)
                yield event

    @contextlib.contextmanager
    def _response(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """The response to a request, if it is a good one.

        Raises:
            FlashVLMError: it is an error, or there is none.
        """
        import http.client
        import socket
        import ssl

        content = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Content-Type": "application/json", **headers}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if self._secure:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=SILENCE, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=SILENCE)
        try:
            with contextlib.closing(connection):
                # A server that refuses what is being sent stops reading it, and has said why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, self._before + path, content, headers)
                response = connection.getresponse()
                if response.status != http.client.OK:
                    raise _error_of(_parsed(response.read(), self.server), self.server, response)
                yield response
        except (http.client.HTTPException, OSError) as error:
            if isinstance(error, socket.gaierror | ConnectionRefusedError):
                told = f"There is no server at {self.server}: flashvlm serve starts one."
            else:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                told = f"The server at {self.server} did not answer: {why}."
            raise ServerError(errors.sentence(told)) from None


class ServerError(FlashVLMError):
    """There is no server, it has no time, or it ended in the middle of an answer."""


class _Later(FlashVLMError):
    """The server is busy, or being stopped, and says when to come back."""

    seconds = 1.0


class _Missing(FlashVLMError):
    """The server does not have the video."""


def _path(video: Named) -> str:
    """The path of a video; one that is given by its web address is downloaded, by this machine."""
    if not isinstance(video, str | os.PathLike):
        raise UsageError("A server is asked about files: give the path of the video.")
    name = os.fspath(video)
    return str(web.fetch(name)) if web.is_address(name) else name


def check_options(options: AskOptions) -> AskOptions:
    """Refuse options that a server does not take; returns them.

    Raises:
        UsageError: there are subtitles, or a selector that is a function.
    """
    if options.subtitles is not None:
        raise UsageError("`subtitles` needs a model that is loaded here; a server reads none.")
    if callable(options.selector):
        raise UsageError("A selector of your own needs a model that is loaded here.")
    return options


def _options(options: AskOptions | None, given: Arguments, watched: RemoteWatched | None = None) -> AskOptions:
    """These options, or those that the video was looked at with, or the defaults; with what is `given` besides.

    Raises:
        UsageError: a server does not take them.
    """
    if options is None:
        options = AskOptions() if watched is None else watched.options
    return check_options(options.changed(**given))


def sent(options: AskOptions) -> dict[str, Any]:
    """The options of a request: all of them, so that the server's own defaults change nothing."""
    flat = options.flat()
    return {name: str(flat[name]) if name == "keep" else flat[name] for name in SENT if flat[name] is not None}


def _parsed(content: bytes, server: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FlashVLMError(f"{server} is no server of flashvlm.")
    return value


def _error_of(value: dict[str, Any], server: str, response: HTTPResponse | None = None) -> FlashVLMError:
    """What an error of the server is here."""
    error = value.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return FlashVLMError(f"{server} is no server of flashvlm.")
    message, code = error["message"], error.get("code")
    if code == "video_not_found":
        return _Missing(message)
    wait = "" if response is None else response.getheader("Retry-After", "")
    if code in ("busy", "stopping") and wait.isdecimal():
        later = _Later(f"The server at {server} is busy: {message}")
        later.seconds = float(min(int(wait), 60))
        return later
    if code == "invalid_api_key":
        message = f"{message} It is read from {KEY_VARIABLE}."
    return ERRORS.get(error.get("exit_code", 1), FlashVLMError)(message)
