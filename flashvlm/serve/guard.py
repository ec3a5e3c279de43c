"""Who may ask: the key, the host name that the request is for, and no page of another site."""

from __future__ import annotations

import ipaddress
import secrets
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from flashvlm.serve.exchange import Exchange
from flashvlm.serve.refusals import Refused

# What anybody may read: whether the server lives, and the page, which asks for the key itself.
OPEN = ("/health", "/")
LOCAL = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Refuses requests before anything else sees them."""

    def __init__(self, app: ASGIApp, key: str | None, host: str) -> None:
        self.app, self._key = app, key
        # A page elsewhere may have a name of its own lead to this machine (DNS rebinding): without a key, a server of
        # this machine alone answers to this machine's names alone.
        self._names = {*LOCAL, host} if key is None and _is_local(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refusal(Request(scope))) is not None:
            await Exchange(scope, receive, send).json(refused.to_json(), refused.status, refused.headers)
            return
        await self.app(scope, receive, send)

    def _refusal(self, request: Request) -> Refused | None:
        host = request.headers.get("host", "")
        if self._names is not None and urlsplit(f"//{host}").hostname not in self._names:
            return Refused(HTTPStatus.FORBIDDEN, "This server answers to the names of its own machine only.")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return Refused(HTTPStatus.FORBIDDEN, "Pages of other sites may not use this server.")
        if self._key is None or request.url.path in OPEN:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        told = "This server needs its API key." if not given else "This is not the API key of this server."
        headers = {"WWW-Authenticate": "Bearer"}
        return Refused(HTTPStatus.UNAUTHORIZED, told, code="invalid_api_key", exit_code=2, headers=headers)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
