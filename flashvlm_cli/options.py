"""The options that commands share, as Typer takes them.

A command takes them by naming a parameter after what they build, as in `@takes(options=ask_options())`. With
`ask_options("keep", cache=True)` it takes all but `--keep`, and `--cache` is on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from flashvlm.files import check_overlay, check_report
from flashvlm.libraries import check_device
from flashvlm.models import DEFAULT_MODEL
from flashvlm.options import MODEL, OPTIONS, AskOptions, Option, check_fields, declared, flag_of, option

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

T = TypeVar("T")

OUTPUT = "What is printed"
FILES = "What is written"


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number.") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number.") from None


def suggest_models(incomplete: str) -> list[tuple[str, str]]:
    from flashvlm.models import ALIASES

    return [(alias.name, alias.description) for alias in ALIASES.values() if alias.name.startswith(incomplete)]


def takes(**builders: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace each named parameter of a command by the options of its builder.

    The command is called with what the builder makes of these options.
    """

    def expand(command: Callable[..., None]) -> Callable[..., None]:
        expanded: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            builder = builders.get(parameter.name)
            added = inspect.signature(builder, eval_str=True).parameters.values() if builder else [parameter]
            expanded += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in added]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, builder in builders.items():
                own = {option: given.pop(option) for option in inspect.signature(builder).parameters}
                given[name] = builder(**own)
            command(**given)

        run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return expand


# What Typer is told of an option of each kind: the type of its values, and what makes one of a text. The others are
# texts.
TYPES: dict[str, tuple[type, Callable[[str], Any] | None]] = {
    "int": (int, whole_number),
    "float": (float, number),
    "bool": (bool, None),
    "Path": (Path, None),
}


def ask_options(*without: str, **defaults: Any) -> Callable[..., AskOptions]:
    """A builder of the options of a question: all but those `without`, some with other `defaults`."""

    def build(**given: Any) -> AskOptions:
        if given.get("cache"):
            from flashvlm.cache import FeatureCache

            # Without a home folder, or with an invalid size, it is refused before anything is loaded.
            FeatureCache.of_user()
        return AskOptions().changed(**given)

    return _declared(build, {name: option for name, option in OPTIONS.items() if name not in without}, defaults)


def options_of(owner: type[T]) -> Callable[..., T]:
    """A builder of a dataclass whose fields are options, which checks them."""

    def build(**given: Any) -> T:
        built = owner(**given)
        check_fields(built, flag_of)
        return built

    return _declared(build, declared(owner), {})


def _declared(build: Callable[..., T], options: Mapping[str, Option], defaults: Mapping[str, Any]) -> Callable[..., T]:
    """`build` with a parameter for each option, as Typer reads it."""
    parameters = []
    for name, one in options.items():
        kind, parser = (str, None) if one.parse else TYPES.get(one.kind, (str, None))
        # Without a name of its own, Typer would give every switch a second one that turns it off.
        flags = one.flags or ((flag_of(name),) if kind is bool else ())
        shown = typer.Option(
            *flags,
            parser=parser,
            metavar=one.metavar,
            help=one.help,
            show_default=one.unset or True,
            rich_help_panel=one.stage,
            autocompletion=one.suggest,
        )
        default = defaults.get(name, one.default)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=str(default) if one.parse and default is not None else default,
                annotation=Annotated[kind | None, shown],
            )
        )
    build.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return build


@dataclass(frozen=True)
class Pictures:
    """The files that show what was kept; None for those not asked for."""

    overlay: Path | None = option(
        None,
        "Draw what was kept: the moments (.png), or the clip (.mp4, .webp, .gif).",
        FILES,
        metavar="FILE",
        parse=lambda file, name: check_overlay(file),
    )
    report: Path | None = option(
        None,
        "Write a page (.html) to look through what was kept.",
        FILES,
        metavar="FILE",
        parse=lambda file, name: check_report(file),
    )

    @property
    def wanted(self) -> bool:
        return self.overlay is not None or self.report is not None

    def check(self, videos: Sequence[str]) -> None:
        """Refuse to write over a video.

        Raises:
            UsageError: the overlay is a video itself, or a clip of several.
        """
        if self.overlay is not None:
            check_overlay(self.overlay, *videos)


# The videos that a question may be about besides the first one.
More = Annotated[
    list[str],
    typer.Argument(metavar="VIDEO", help="Others that the question is about, too.", show_default=False),
]


def model_options(
    model: Annotated[
        str,
        typer.Option(
            metavar="ID|PATH|ALIAS",
            help="Hub id, folder or alias (see 'flashvlm models').",
            rich_help_panel=MODEL,
            autocompletion=suggest_models,
        ),
    ] = DEFAULT_MODEL,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV", help="Branch, tag or commit on the hub.", show_default="the newest", rich_help_panel=MODEL
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.", rich_help_panel=MODEL)] = "auto",
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="DTYPE",
            help="auto (bfloat16 if the device computes in it at full speed), float32, bfloat16 or float16.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
) -> dict[str, Any]:
    """The arguments of `VideoQA.from_pretrained`."""
    check_device(device)
    return {"model": model, "revision": revision, "device": device, "dtype": dtype}
