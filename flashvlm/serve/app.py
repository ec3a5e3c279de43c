"""The routes: OpenAI's `/v1/chat/completions` and `/v1/models`, `/health` and `/metrics`, and those of the page."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from flashvlm import models, page
from flashvlm.errors import UsageError
from flashvlm.files import user_folder
from flashvlm.options import DEFAULT_SELECTOR, AskOptions
from flashvlm.pipeline import VideoQA, Watched
from flashvlm.report import Answer
from flashvlm.selection import SELECTORS
from flashvlm.serve import asked as reading
from flashvlm.serve import media
from flashvlm.serve.engine import Engine, as_told
from flashvlm.serve.exchange import Exchange, encoded, ending_now
from flashvlm.serve.front import front
from flashvlm.serve.guard import Guard
from flashvlm.serve.metrics import TYPE, Metrics
from flashvlm.serve.refusals import Refused, bad, refusal
from flashvlm.serve.settings import Serving

LOG = logging.getLogger(__name__)
# Beside a video in base64, so many bytes of a body may be text.
TEXT = 10**6
# A body of so many bytes is parsed sooner than a thread begins.
SHORT = 2**15
# So many selections are drawn side by side.
ABREAST = 3
CHAT = "/v1/chat/completions"


class Service:
    """A loaded model behind the routes."""

    def __init__(
        self, qa: VideoQA, options: AskOptions, settings: Serving, files: media.Media, model: ThreadPoolExecutor
    ) -> None:
        self.options, self.settings, self.media = options, settings, files
        self.engine = Engine(qa, settings.feature_memory, model)
        self.metrics = Metrics(self.engine.memory)
        self.ending = asyncio.Event()
        # What clients call the model: not where it lies on this machine.
        self.model = Path(qa.name).name if Path(qa.name).is_dir() else qa.name
        self.since = int(time.time())
        # What warnings may name, and clients should not know.
        self._hidden: dict[str, str] = {}
        with contextlib.suppress(UsageError):
            self._hidden[f" {user_folder('cache')}/features"] = ""
        self._front, self._headers = front(self.model, options, settings.max_upload)
        self._taken = 0
        # Seconds that a request took of late, on average.
        self._usual = 1.0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for requests.

        Raises:
            Refused: there is none left, or the server ends.
        """
        if self.ending.is_set():
            raise ending_now()
        if self._taken >= self.settings.max_waiting:
            wait = str(min(60, max(1, round(self._usual * self._taken / 2))))
            told = f"{self._taken} requests are waiting already; try again later."
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, told, code="busy", headers={"Retry-After": wait})
        self._taken += 1
        self.metrics.waiting.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.waiting.set(self._taken)

    async def chat(self, exchange: Exchange) -> None:
        """`POST /v1/chat/completions`"""
        body = await self._body(exchange)
        asked = reading.read(body, self.options)
        self._check_model(asked.model)
        await exchange.while_there(self._answer(exchange, asked), self.ending)

    async def video(self, exchange: Exchange) -> None:
        """`POST /videos`: a video as the body; the response has its address."""
        limit = self.settings.max_upload
        with self.media.receiving() as receiving:
            async for chunk in exchange.chunks(limit, media.too_large(limit)):
                receiving.write(chunk)
            digest = receiving.done()
        await exchange.json({"url": media.DIGEST + digest})

    async def inspect(self, exchange: Exchange) -> None:
        """`POST /inspect`: what one or several selectors keep of a video, as the page draws it; no answer."""
        await exchange.while_there(self._inspect(exchange, await self._body(exchange)), self.ending)

    async def models(self, exchange: Exchange) -> None:
        """`GET /v1/models`"""
        backend = self.engine.qa.backend
        weights = await asyncio.to_thread(models.fingerprint, backend.folder)
        about = {
            "family": backend.family,
            "device": backend.device.type,
            "dtype": backend.precision,
            "single_turn": self.engine.qa.single_turn,
            "weights": hashlib.sha256(weights.encode()).hexdigest(),
        }
        served = {"id": self.model, "object": "model", "created": self.since, "owned_by": "flashvlm", "flashvlm": about}
        await exchange.json({"object": "list", "data": [served]})

    async def page(self, exchange: Exchange) -> None:
        """`GET /`"""
        await exchange.whole(self._front, kind="text/html; charset=utf-8", headers=self._headers)

    async def health(self, exchange: Exchange) -> None:
        """`GET /health`"""
        if self.ending.is_set():
            raise ending_now()
        await exchange.json({"status": "ok"})

    async def prometheus(self, exchange: Exchange) -> None:
        """`GET /metrics`"""
        await exchange.whole(self.metrics.text(), kind=TYPE)

    async def _body(self, exchange: Exchange) -> dict[str, Any]:
        # Base64 takes four bytes for three.
        limit = self.settings.max_upload * 4 // 3 + TEXT
        body = await exchange.body(limit, media.too_large(self.settings.max_upload))
        # A video in base64 takes long enough for others to notice.
        return await asyncio.to_thread(reading.parse, body) if len(body) > SHORT else reading.parse(body)

    def _check_model(self, name: str | None) -> None:
        if name not in (None, "", self.model, self.engine.qa.name):
            told = f"There is no model {name!r:.200} here; this server has {self.model}."
            raise Refused(HTTPStatus.NOT_FOUND, told, param="model", code="model_not_found", exit_code=4)

    @contextlib.asynccontextmanager
    async def _watched(
        self, references: tuple[reading.Reference, ...], options: AskOptions
    ) -> AsyncIterator[tuple[list[Watched], dict[str, str]]]:
        """The videos as visual tokens, and their names by their files."""
        deadline = media.soon(self.settings.request_timeout)
        async with contextlib.AsyncExitStack() as stack:
            names, watched = dict(self._hidden), []
            for reference in references:
                source = await stack.enter_async_context(_in_thread(self.media.found(reference, deadline)))
                names[str(source.path)] = source.name
                with _told(names):
                    watched.append(await self.engine.watched(source, options))
            yield watched, names

    async def _answer(self, exchange: Exchange, asked: reading.Asked) -> None:
        """Answer a question: whole, or in events."""
        with _told({}):
            await asyncio.to_thread(self.engine.qa.check, asked.question, asked.options, asked.history)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.model}
        begun = time.monotonic()
        async with self._watched(asked.videos, asked.options) as (watched, names):
            pieces: asyncio.Queue[str | None] = asyncio.Queue()
            loop = asyncio.get_running_loop()

            def began() -> None:
                exchange.began = True

            def said(text: str) -> None:
                loop.call_soon_threadsafe(pieces.put_nowait, text)

            answering = asyncio.ensure_future(self.engine.answer(watched, asked, said, began))
            answering.add_done_callback(lambda _: pieces.put_nowait(None))
            try:
                if asked.stream:
                    await _sent(exchange, head, pieces)
                with _told(names):
                    answer = as_told(await answering, names, self.model)
            finally:
                answering.cancel()
        self.metrics.answered(answer)
        self._usual += 0.1 * (time.monotonic() - begun - self._usual)
        await (_ended if asked.stream else _completed)(exchange, head, answer, asked)

    async def _inspect(self, exchange: Exchange, body: dict[str, Any]) -> None:
        question, selectors = body.get("question") or None, body.get("selectors", [DEFAULT_SELECTOR])
        if not isinstance(question, str | None):
            raise bad("question must be a text.", "question")
        if (
            not isinstance(selectors, list)
            or len(selectors) > ABREAST
            or not all(isinstance(x, str) for x in selectors)
        ):
            raise bad(f"selectors must be a list of at most {ABREAST} of: {', '.join(SELECTORS)}.", "selectors")
        body = {name: value for name, value in body.items() if name != "selector"}
        several = [reading.options_of(body | {"selector": name}, self.options) for name in selectors]
        reference = reading.reference(body.get("video"), "video")
        options = several[0] if several else reading.options_of(body, self.options)
        async with self._watched((reference,), options) as ((watched,), names):
            with _told(names):
                made = await self.engine.inspect(watched, question, several)
                pictures = await self.engine.pictures(made[0]) if made and body.get("pictures") else None
            path = names[watched.facts.path]
        facts = {name: value for name, value in vars(watched.facts).items() if name != "given"}
        drawn: dict[str, Any] = {"video": facts | {"path": path}, "warnings": watched.warnings}
        if made := [as_told(one, names, self.model) for one in made]:
            drawn |= {
                "drawn": page.drawn(made),
                "facts": page.facts(made[0]),
                "figures": page.figures(made[0], None),
                "rows": [page.row(one, made[0]) for one in made],
                "layers": [page.layer(name) for name in page.drawn(made[:1])["layers"]],
                "warnings": made[0].warnings,
            }
        await exchange.json(drawn | ({} if pictures is None else {"pictures": pictures}))


@contextlib.asynccontextmanager
async def _in_thread(found: contextlib.AbstractContextManager[media.Source]) -> AsyncIterator[media.Source]:
    """Enter a context in a thread of its own, because that may take long."""
    entering = asyncio.ensure_future(asyncio.to_thread(found.__enter__))
    try:
        source = await asyncio.shield(entering)
    except asyncio.CancelledError:
        # The thread goes on, and what it enters must be left.
        entering.add_done_callback(lambda done: done.exception() or found.__exit__(None, None, None))
        raise
    try:
        yield source
    finally:
        found.__exit__(None, None, None)


@contextlib.contextmanager
def _told(names: dict[str, str]) -> Iterator[None]:
    """Errors become what the client is told of them; those that only the log should have stay as they are."""
    try:
        yield
    except Exception as error:
        if (refused := refusal(error, names)) is None:
            raise
        raise refused from error


async def _sent(exchange: Exchange, head: dict[str, Any], pieces: asyncio.Queue[str | None]) -> None:
    """Send the pieces of an answer as they come: joined, they are the whole answer, without white space at its ends."""
    held, started = "", False
    while (piece := await pieces.get()) is not None:
        text = held + piece if started else piece.lstrip()
        said = text.rstrip()
        held = text[len(said) :]
        if said:
            delta = {"content": said} if started else {"role": "assistant", "content": said}
            started = True
            await exchange.event(_chunk(head, delta))


def _chunk(head: dict[str, Any], delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return encoded(head | {"object": "chat.completion.chunk", "choices": choices} | more)


async def _ended(exchange: Exchange, head: dict[str, Any], answer: Answer, asked: reading.Asked) -> None:
    """The last events of an answer."""
    if exchange.status is None:
        # The model said nothing.
        await exchange.event(_chunk(head, {"role": "assistant", "content": answer.answer}))
    await exchange.event(_chunk(head, {}, _finish(answer, asked), flashvlm=_figures(answer, asked)))
    if asked.usage:
        last = {"object": "chat.completion.chunk", "choices": [], "usage": _usage(answer)}
        await exchange.event(encoded(head | last))
    await exchange.event(b"[DONE]")
    await exchange.end()


async def _completed(exchange: Exchange, head: dict[str, Any], answer: Answer, asked: reading.Asked) -> None:
    """A whole answer."""
    message = {"role": "assistant", "content": answer.answer, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer, asked)}
    more = {"object": "chat.completion", "choices": [choice], "usage": _usage(answer)}
    await exchange.json(head | more | {"flashvlm": _figures(answer, asked)})


def _finish(answer: Answer, asked: reading.Asked) -> str:
    return "length" if answer.generated_tokens >= asked.options.max_new_tokens else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    """The tokens that the language model got and made."""
    prompt, said = answer.prompt_tokens.after, answer.generated_tokens
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _figures(answer: Answer, asked: reading.Asked) -> dict[str, Any]:
    """What OpenAI's form has no place for: the figures of `ask --json`, with the kept cells only if asked for."""
    # Most of the work would be in what is not sent.
    plain = (answer if asked.moments else replace(answer, moments=())).to_json()
    for name in ("answer",) if asked.moments else ("answer", "moments"):
        del plain[name]
    return plain


class Endpoint:
    """A route of the service: whatever goes wrong in it becomes an error in OpenAI's form, and is counted."""

    def __init__(
        self, service: Service, handle: Callable[[Exchange], Coroutine[Any, Any, None]], costly: bool = False
    ) -> None:
        self._service, self._handle, self._costly = service, handle, costly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            with self._service.place() if self._costly else contextlib.nullcontext():
                async with asyncio.timeout(self._service.settings.request_timeout):
                    await self._handle(exchange)
        except ClientDisconnect:
            self._service.metrics.abandoned.inc()
            return
        except TimeoutError:
            limit = self._service.settings.request_timeout
            told = f"The request took longer than {limit:g} s."
            await _refuse(exchange, Refused(HTTPStatus.GATEWAY_TIMEOUT, told, code="timeout"))
        except Exception as error:
            refused = refusal(error, {})
            if refused is None:
                LOG.exception("A request failed.")
                told = "The server failed at this request; its log says why."
                refused = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, told)
            await _refuse(exchange, refused)
        self._service.metrics.requests.labels(scope["path"], exchange.status).inc()


async def _refuse(exchange: Exchange, refused: Refused) -> None:
    """Tell the client, in the middle of a stream if it has begun."""
    if exchange.status is None:
        await exchange.json(refused.to_json(), refused.status, refused.headers)
        return
    await exchange.event(encoded(refused.to_json()))
    await exchange.end()


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    told = {404: "There is no such path.", 405: "This path does not take this method."}
    refused = Refused(error.status_code, told.get(error.status_code, "This request makes no sense."))
    content = encoded(refused.to_json())
    return Response(content, refused.status, error.headers, "application/json")


def make_app(service: Service) -> ASGIApp:
    """The application that a web server runs."""
    routes = [
        Route(CHAT, Endpoint(service, service.chat, costly=True), methods=["POST"]),
        Route("/videos", Endpoint(service, service.video, costly=True), methods=["POST"]),
        Route("/inspect", Endpoint(service, service.inspect, costly=True), methods=["POST"]),
        Route("/v1/models", Endpoint(service, service.models), methods=["GET"]),
        Route("/", Endpoint(service, service.page), methods=["GET"]),
        Route("/health", Endpoint(service, service.health), methods=["GET"]),
        Route("/metrics", Endpoint(service, service.prometheus), methods=["GET"]),
    ]
    guard = Middleware(Guard, key=service.settings.api_key, host=service.settings.host)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _unknown})
