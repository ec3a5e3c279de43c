"""The settings that can be changed between questions of `flashvlm chat`, with lines such as `/keep 5%`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flashvlm import units
from flashvlm.errors import UsageError
from flashvlm.options import ENCODES, LOOKS, SEEKS, AskOptions, Keep, parse_time
from flashvlm_cli.options import (
    among,
    number,
    suggest_keep,
    suggest_metrics,
    suggest_selectors,
    whole_number,
)

# The value that resets a setting to what it was when the chat began.
DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One field of `AskOptions`, or of its sampling: how it is parsed and shown, and what values it takes.

    `instead_of` is the field that cannot be set at the same time.
    """

    values: str
    help: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str
    suggest: Callable[[str], Sequence[str]] = lambda incomplete: ()
    sampling: bool = False
    instead_of: str = ""


def _on_or_off(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise UsageError(f"Give on or off, not {text!r}.")
    return text.lower() == "on"


def _names(suggest: Callable[[str], Sequence[tuple[str, str]]]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name, _ in suggest(incomplete)]


SETTINGS = {
    "keep": Setting("5%|0.05|256|auto|delta=0.3", "visual tokens to keep", Keep.parse, suggest=_names(suggest_keep)),
    "selector": Setting("NAME", "how tokens are chosen", str, suggest=suggest_selectors),
    "metric": Setting("NAME", "how distance between tokens is measured", str, suggest=suggest_metrics),
    "merge": Setting(
        "on|off",
        "average dropped tokens into kept ones",
        _on_or_off,
        lambda value: "on" if value else "off",
        among(("on", "off")),
    ),
    "start": Setting(
        "1:30", "look from here on", parse_time, lambda at: "the video's start" if at is None else units.timestamp(at),
        sampling=True,
    ),
    "end": Setting(
        "2:00", "look up to here", parse_time, lambda at: "the video's end" if at is None else units.timestamp(at),
        sampling=True,
    ),
    "fps": Setting(
        "F", "frames to look at per second", number, lambda value: "the model's" if value is None else f"{value:g}",
        sampling=True, instead_of="frames",
    ),
    "frames": Setting(
        "N", "exactly this many frames", whole_number, lambda value: "as /fps says" if value is None else str(value),
        sampling=True, instead_of="fps",
    ),
    "max-frames": Setting("N", "the most frames to look at", whole_number, sampling=True),
    "max-pixels": Setting("P", "the most pixels per frame", whole_number),
    "encode": Setting("|".join(ENCODES), "which moments are encoded", str, suggest=among(ENCODES)),
    "seek": Setting("|".join(SEEKS), "nearby key frames, or the very frames", str, suggest=among(SEEKS)),
    "look": Setting("|".join(LOOKS), "twice: small frames first, then full ones", str, suggest=among(LOOKS)),
    "system": Setting(
        "TEXT", "system prompt", str, lambda text: "the checkpoint's own" if text is None else text
    ),
    "max-new-tokens": Setting("N", "longest answer, in tokens", whole_number),
    "temperature": Setting("X", "0 always takes the likeliest token", number, "{:g}".format),
    "seed": Setting("N", "makes a temperature above 0 repeatable", whole_number),
}  # fmt: skip


def shown(options: AskOptions, name: str) -> str:
    """The value of a setting, as shown to the user."""
    setting = SETTINGS[name]
    return setting.show(getattr(options.sampling if setting.sampling else options, _field(name)))


def changed(options: AskOptions, name: str, text: str, first: AskOptions) -> AskOptions:
    """The options with one setting parsed from `text`; `default` resets it to its value in `first`.

    Raises:
        UsageError: a value that makes no sense, alone or with the others.
        typer.BadParameter: a value that should be a number is not one.
    """
    setting = SETTINGS[name]
    values: dict[str, Any] = {}
    if text == DEFAULT:
        origin = first.sampling if setting.sampling else first
        values = {field: getattr(origin, field) for field in (_field(name), setting.instead_of) if field}
    else:
        values[_field(name)] = setting.parse(text)
        if setting.instead_of:
            values[setting.instead_of] = None
    return (
        replace(options, sampling=replace(options.sampling, **values))
        if setting.sampling
        else replace(options, **values)
    )


def _field(name: str) -> str:
    return name.replace("-", "_")
