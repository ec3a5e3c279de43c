"""Running the server until it is told to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from flashvlm.errors import FlashVLMError, UsageError
from flashvlm.options import AskOptions
from flashvlm.serve.settings import Serving

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from flashvlm.pipeline import VideoQA

# Connections that the system holds while the server is busy.
BACKLOG = 512


def check_installed() -> None:
    """Refuse to go on without what the server needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        told = f"flashvlm serve needs {error.name}: pip install 'flashvlm[serve]'."
        raise UsageError(told) from None


def listen(settings: Serving) -> socket.socket:
    """A socket that takes connections, before a model is loaded for it.

    Raises:
        FlashVLMError: the address is not this machine's, or its port is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise FlashVLMError(f"The server cannot listen at {settings.host} port {settings.port}: {why}.") from None


def address_of(listening: socket.socket) -> str:
    """The address of the page."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(
    qa: VideoQA,
    listening: socket.socket,
    settings: Serving,
    options: AskOptions,
    folders: Sequence[str] = (),
    hosts: Sequence[str] = (),
    *,
    model: ThreadPoolExecutor | None = None,
    on_start: Callable[[Callable[[], None]], None] = lambda end: None,
) -> None:
    """Answer requests until SIGTERM or an interrupt; answers that the model has begun are finished.

    Args:
        listening: see `listen`.
        options: what applies to a request unless it says otherwise.
        folders: whose files may be asked about.
        hosts: from which videos may be fetched.
        model: the thread in which the model was loaded, and is to work (`engine.model_thread`).
        on_start: called once requests are taken, with what ends the server, from any thread, as SIGTERM does.
    """
    from flashvlm.serve.app import Service, make_app
    from flashvlm.serve.engine import model_thread
    from flashvlm.serve.media import Media

    files = Media(folders, hosts, settings.max_upload)

    async def run() -> None:
        service = Service(qa, options, settings, files, model or model_thread())
        try:
            await _server(make_app(service), service.ending, settings, on_start).serve(sockets=[listening])
        finally:
            service.engine.close()

    try:
        asyncio.run(run())
    finally:
        files.close()


def _server(
    app: ASGIApp, ending: asyncio.Event, settings: Serving, on_start: Callable[[Callable[[], None]], None]
) -> uvicorn.Server:
    """uvicorn's server, which sets `ending` as soon as it is told to end."""
    import uvicorn

    loop = asyncio.get_running_loop()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(ending.set)
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_start(self.end)

        def end(self) -> None:
            loop.call_soon_threadsafe(ending.set)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http="h11",
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.request_timeout) + 1,
    )
    return Server(config)


def with_key(settings: Serving, key: str | None) -> Serving:
    """The settings with this key, unless they have one."""
    return settings if settings.api_key or not key else replace(settings, api_key=key)
