"""`flashvlm config`: the options that are set for good."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from flashvlm.defaults import LASTING, config_file, defaults, key_of
from flashvlm.remote import VARIABLE
from flashvlm_cli import output

# `cache` has another default in some commands.
ELSEWHERE = {"cache": "off, on in batch and chat"}


def config(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object instead of text.")] = False,
) -> None:
    """Show which options are set for good, and where.

    Every option of a question and of the model can be set by an environment variable (FLASHVLM_KEEP=5%,
    FLASHVLM_MAX_FRAMES=32) or in the file config.toml (keep = "5%", max-frames = 32), which stands in
    $XDG_CONFIG_HOME/flashvlm or ~/.config/flashvlm. The command line comes first, then the environment, then the file.
    They apply to all commands but bench. A server is set in the environment alone (FLASHVLM_SERVER).
    """
    path, found = config_file(), defaults()
    settings: dict[str, dict[str, Any]] = {
        name: {
            "value": found[name].value if name in found else one.default,
            "from": found[name].source if name in found else "default",
        }
        for name, one in LASTING.items()
    }
    # Not in the file: a server that is away must not keep every command from working.
    server = os.environ.get(VARIABLE) or None
    settings["server"] = {"value": server, "from": VARIABLE if server else "default"}
    if as_json:
        plain = {
            key_of(name): one | {"value": one["value"] if isinstance(one["value"], PLAIN) else str(one["value"])}
            for name, one in settings.items()
        }
        there = path is not None and path.exists()
        output.print_json({"file": str(path) if path else None, "exists": there, "settings": plain})
        return
    output.print_text(f"file  {path or 'no home folder'}{'' if path and path.exists() else ' (not there)'}\n")
    shown = {name: _shown(name, one["value"]) for name, one in settings.items()}
    widths = max(map(len, shown)), max(map(len, shown.values()))
    for name, value in shown.items():
        output.print_text(f"{key_of(name):{widths[0]}}  {value:{widths[1]}}  {settings[name]['from']}")


PLAIN = (bool, int, float, str, type(None))


def _shown(name: str, value: Any) -> str:
    one = LASTING.get(name)
    if name in ELSEWHERE and one and value is one.default:
        return ELSEWHERE[name]
    if value is None:
        return (one and one.unset) or "not set"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
