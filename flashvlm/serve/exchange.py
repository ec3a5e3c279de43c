"""One request and its response over ASGI: the body within bounds, a whole response or one of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from flashvlm.serve.refusals import Refused, bad

# Seconds without a byte of the body, after which a client is given up.
SILENCE = 30.0
JSON = "application/json"


class Exchange:
    """A request, and how far its response is."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request = Request(scope, receive)
        self._receive, self._send = receive, send
        # The status that the client was told; None before that.
        self.status: int | None = None
        # Whether the model has begun to answer it.
        self.began = False

    async def chunks(self, limit: int, otherwise: Refused) -> AsyncIterator[bytes]:
        """The body, piece by piece.

        Raises:
            Refused: it is `otherwise` if the body has more than `limit` bytes; or the client stops sending.
            ClientDisconnect: the client went away.
        """
        length = self.request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise otherwise
        size, stream = 0, self.request.stream().__aiter__()
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "The body of the request did not arrive.") from None
            size += len(chunk)
            if size > limit:
                raise otherwise
            yield chunk

    async def body(self, limit: int, otherwise: Refused) -> bytes:
        """The whole body (see `chunks`)."""
        if self.request.headers.get("content-encoding", "identity").lower() != "identity":
            raise bad("The body must not be compressed.")
        return b"".join([chunk async for chunk in self.chunks(limit, otherwise)])

    async def while_there(self, work: Coroutine[Any, Any, None], ending: asyncio.Event) -> None:
        """Do work whose body was read, as long as the client is there.

        Raises:
            ClientDisconnect: the client went away; the work was cancelled.
            Refused: the server ends (`ending`) before the model began.
        """
        task = asyncio.ensure_future(work)
        gone, ended = asyncio.ensure_future(self._gone()), asyncio.ensure_future(ending.wait())
        try:
            await asyncio.wait({task, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not (task.done() or gone.done()):
                if not self.began:
                    raise ending_now()
                await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            await task
        finally:
            for one in (task, gone, ended):
                one.cancel()
            await asyncio.gather(task, gone, ended, return_exceptions=True)

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, kind: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Send the status and the headers."""
        self.status = status
        named = {"content-type": kind, "cache-control": "no-store", "x-content-type-options": "nosniff", **headers}
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": int(status), "headers": pairs})

    async def whole(
        self, content: bytes, status: int = 200, kind: str = JSON, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Send a whole response."""
        await self.begin(status, kind, {"content-length": str(len(content)), **headers})
        await self._send({"type": "http.response.body", "body": content})

    async def json(self, value: Any, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Send a value as JSON."""
        await self.whole(encoded(value), status, headers=headers)

    async def event(self, data: bytes) -> None:
        """Send a server-sent event, after the headers if it is the first one."""
        if self.status is None:
            # A proxy in between must not gather events.
            await self.begin(200, "text/event-stream; charset=utf-8", {"x-accel-buffering": "no"})
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        """End a response of events."""
        await self._send({"type": "http.response.body", "body": b""})


def encoded(value: Any) -> bytes:
    """A value as JSON in UTF-8; what is no Unicode becomes an escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def ending_now() -> Refused:
    """The refusal of a server that is about to end."""
    told = "The server is being stopped; ask again when it is back."
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, told, code="stopping", headers={"Retry-After": "5"})
