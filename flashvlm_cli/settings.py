"""The settings that can be changed between questions of `flashvlm chat`, with lines such as `/keep 5%`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashvlm import units
from flashvlm.errors import UsageError
from flashvlm.options import MODEL, OPTIONS, AskOptions, among, parse_time
from flashvlm_cli.options import number, whole_number

# The value that resets a setting to what it was when the chat began.
DEFAULT = "default"
# The model is there once and for all.
SETTINGS = {name.replace("_", "-"): option for name, option in OPTIONS.items() if option.stage != MODEL}


def _on_or_off(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise UsageError(f"Give on or off, not {text!r}.")
    return text.lower() == "on"


PARSERS: dict[str, Callable[[str], Any]] = {"int": whole_number, "float": number, "bool": _on_or_off}


def suggested(name: str, text: str) -> list[str]:
    """The values of a setting that begin with `text`."""
    suggest = among({"on": "", "off": ""}) if SETTINGS[name].kind == "bool" else SETTINGS[name].suggest
    return [value for value, _ in suggest(text)] if suggest else []


def shown(options: AskOptions, name: str) -> str:
    """The value of a setting, as shown to the user."""
    value, setting = options.flat()[_field(name)], SETTINGS[name]
    if value is None:
        return setting.unset or "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if setting.parse is parse_time:
        return units.timestamp(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def changed(options: AskOptions, name: str, text: str, first: AskOptions) -> AskOptions:
    """The options with one setting parsed from `text`; `default` resets it to its value in `first`.

    Raises:
        UsageError: a value that makes no sense, alone or with the others.
        typer.BadParameter: a value that should be a number is not one.
    """
    setting, field = SETTINGS[name], _field(name)
    # What cannot be given with it makes way for it.
    values: dict[str, Any] = {setting.instead_of: None} if setting.instead_of else {}
    if text == DEFAULT:
        values = {field: first.flat()[field] for field in (field, *values)}
    else:
        values[field] = (setting.parse or PARSERS.get(setting.kind, str))(text)
    return options.changed(**values)


def _field(name: str) -> str:
    return name.replace("-", "_")
