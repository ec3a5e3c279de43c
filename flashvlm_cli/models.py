"""`flashvlm models`: the aliases of models, and the families that are served."""

from __future__ import annotations

from typing import Annotated

import typer

from flashvlm_cli import output


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")] = False,
    families: Annotated[
        bool, typer.Option("--families", help="The families of models that can be used, and what is checked of each.")
    ] = False,
) -> None:
    """List the model aliases, and which of them are on this machine."""
    if families:
        _families(as_json)
        return
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


def _families(as_json: bool) -> None:
    from flashvlm_cli.running import prepare_libraries

    prepare_libraries()
    from flashvlm.backends import served

    listed = served()
    if as_json:
        output.print_json(listed)
    else:
        from flashvlm_cli.console import print_families

        print_families(listed)
