"""`flashvlm models`: the aliases of models."""

from __future__ import annotations

from typing import Annotated

import typer

from flashvlm_cli import output


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")] = False,
) -> None:
    """List the model aliases, and which of them are on this machine."""
    from flashvlm.models import ALIASES, DEFAULT_MODEL, state

    listed = [
        {
            "alias": alias.name,
            "source": alias.source,
            "description": alias.description,
            "bundled": alias.bundled,
            "present": (there := state(alias.name)) == "here",
            "incomplete": there == "incomplete",
            "default": alias.name == DEFAULT_MODEL,
        }
        for alias in ALIASES.values()
    ]
    if as_json:
        output.print_json(listed)
    else:
        from flashvlm_cli.console import print_models

        print_models(listed)
