"""`flashvlm fetch`: download a model where there is a network, to use it where there is none."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from flashvlm_cli.ask import silence_libraries, suggest_models


def fetch(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Alias or Hugging Face id.", autocompletion=suggest_models)
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="the newest"),
    ] = None,
) -> None:
    """Download a model and print the folder it is in."""
    from flashvlm.models import fetch as download

    if sys.stderr.isatty():
        # Gigabytes are on their way: here the hub's own progress bars are worth showing.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    silence_libraries()
    print(download(model, revision=revision))
