"""`flashvlm fetch`: download a model while there is a network, to use it without one later."""

from __future__ import annotations

from typing import Annotated

import typer

from flashvlm.options import suggest_models
from flashvlm_cli import output
from flashvlm_cli.running import allow_download, prepare_libraries


def fetch(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias or Hugging Face id.", autocompletion=suggest_models)
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="the newest"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
) -> None:
    """Download a model and print the folder it is in."""
    from flashvlm.models import fetch as download
    from flashvlm_cli.console import Progress

    prepare_libraries()
    allow_download(model, revision, yes)
    with Progress() as progress:
        progress.stage("fetch")
        folder = download(model, revision, progress.fetched)
    output.print_text(str(folder))
