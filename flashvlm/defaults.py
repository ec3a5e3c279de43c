"""The user's own defaults: what environment variables and a file say of options that are not on the command line.

The command line comes first, then `FLASHVLM_KEEP` and its like, then `config.toml`, then the option's own default. This
module imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashvlm.errors import UsageError, closest
from flashvlm.files import user_folder
from flashvlm.options import AskOptions, Loading, Option, Talk, checked, declared

# The options that can be set for good, by their names.
LASTING: dict[str, Option] = {**declared(Loading), **declared(AskOptions), **declared(Talk)}
# What a switch may be set to in an environment variable.
SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Default:
    """A value that the user set for good, and where: the name of an environment variable, or a file."""

    value: Any
    source: str


def variable_of(name: str) -> str:
    """The environment variable that sets an option."""
    return f"FLASHVLM_{name.upper()}"


def key_of(name: str) -> str:
    """The key in the file that sets an option: its name on the command line, without the hyphens before it."""
    return name.replace("_", "-")


def config_file() -> Path | None:
    """The file of the user's defaults, which need not exist; None without a home folder."""
    try:
        return user_folder("config") / "config.toml"
    except UsageError:
        return None


def defaults() -> dict[str, Default]:
    """What the user set for good, by the names of the options.

    Raises:
        UsageError: the file cannot be read, names an option that there is not, or a value makes no sense.
    """
    return applying(())


def applying(given: Collection[str]) -> dict[str, Default]:
    """What applies of it beside the options `given` on the command line.

    An option makes way for one that it cannot be given with, if that is set in a place that comes before its own.

    Raises:
        UsageError: as for `defaults`.
    """
    found: dict[str, Default] = {}
    for stated in (_in_environment(), _in_file()):
        before = {*given, *found}
        found |= {
            name: default
            for name, default in stated.items()
            if name not in before and LASTING[name].instead_of not in before
        }
    return found


def _in_environment() -> dict[str, Default]:
    texts = {name: os.environ.get(variable_of(name), "") for name in LASTING}
    # An empty variable is as good as none.
    return {name: _of_variable(name, text) for name, text in texts.items() if text}


def _of_variable(name: str, text: str) -> Default:
    called = variable_of(name)
    try:
        return Default(_valid(name, _from_text(called, LASTING[name], text), called), called)
    except UsageError as error:
        if called in str(error):
            raise
        raise UsageError(f"{called}: {error}") from None


def _from_text(called: str, one: Option, text: str) -> Any:
    """The value of an environment variable, before it is checked."""
    if one.parse:
        return text
    try:
        if one.kind == "bool":
            return SWITCH[text.lower()]
        return {"int": int, "float": float}.get(one.kind, str)(text)
    except (KeyError, ValueError):
        wanted = {"bool": "on or off", "int": "a whole number", "float": "a number"}[one.kind]
        raise UsageError(f"{called} must be {wanted}, not {text!r}.") from None


def _in_file() -> dict[str, Default]:
    path = config_file()
    if path is None or not path.exists():
        return {}
    names = {key_of(name): name for name in LASTING}
    found = {}
    for key, value in _parsed(path).items():
        if key not in names:
            meant = closest(key, names)
            raise UsageError(f"{path}: there is no option {key!r}{f', did you mean {meant}' * bool(meant)}.")
        try:
            found[names[key]] = Default(_valid(names[key], value, key), str(path))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    for name in found:
        if (other := LASTING[name].instead_of) in found:
            raise UsageError(f"{path}: give {key_of(name)} or {key_of(other)}, not both.")
    return found


def _parsed(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        # No TOML, or no UTF-8.
        raise UsageError(f"{path} is not valid TOML: {error}.") from error


def _valid(name: str, value: Any, called: str) -> Any:
    return checked(value, LASTING[name].kind, LASTING[name], called)
