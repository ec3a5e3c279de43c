"""`flashvlm serve`: the model is loaded once and answers everybody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flashvlm.errors import UsageError
from flashvlm.options import AskOptions
from flashvlm.serve.settings import ACCESS, KEY_VARIABLE, Serving
from flashvlm_cli import output
from flashvlm_cli.options import Yes, ask_options, model_options, options_of, takes
from flashvlm_cli.running import allow_download, prepare_libraries, show_loading


@takes(own=options_of(Serving), options=ask_options("subtitles", cache=True), loading=model_options)
def serve(
    own: Serving,
    options: AskOptions,
    loading: dict[str, Any],
    media: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Requests may name the files in this folder; may be given several times.",
            show_default="none",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    media_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PORT]",
            help="Videos may be fetched from this host, if its address is public; may be given several times.",
            show_default="none",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Load the model once and answer everybody: OpenAI's protocol for programs, a page for people.

    The options of a question are what applies unless a request says otherwise. SIGTERM and Ctrl-C let running answers
    finish.
    """
    from flashvlm.serve.run import address_of, check_installed, listen, with_key

    check_installed()
    for folder in media or []:
        if not Path(folder).is_dir():
            raise UsageError(f"--media takes a folder, and {folder} is none.")
    settings = with_key(own, os.environ.get(KEY_VARIABLE))
    listening = listen(settings)
    prepare_libraries()
    allow_download(loading["model"], loading["revision"], yes)
    from flashvlm import VideoQA
    from flashvlm.models import fetch
    from flashvlm.serve.engine import model_thread
    from flashvlm.serve.run import serve as run
    from flashvlm_cli.console import Progress

    thread = model_thread()
    with listening:
        with Progress() as progress:
            show_loading(progress, loading)
            # Not in the thread, which an interrupt would have to wait for.
            fetch(loading["model"], loading["revision"], loading["on_download"])
            loaded = thread.submit(VideoQA.from_pretrained, **loading).result()
        address = address_of(listening)
        if settings.api_key is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
            output.warn("Whoever reaches this machine may ask: there is no --api-key.")
        run(
            loaded,
            listening,
            settings,
            options,
            media or [],
            media_host or [],
            model=thread,
            on_start=lambda end: output.say(f"{loaded.name} answers at {address}"),
        )
