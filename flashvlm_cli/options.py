"""The options that commands share, as Typer takes them.

A command takes them by naming a parameter after what they build, as in `@takes(options=ask_options())`. With
`ask_options("keep", cache=True)` it takes all but `--keep`, and `--cache` is on.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from flashvlm.defaults import Default, applying
from flashvlm.errors import UsageError
from flashvlm.files import check_overlay, check_report
from flashvlm.libraries import check_device
from flashvlm.options import (
    MODEL,
    OPTIONS,
    AskOptions,
    Loading,
    Option,
    check_fields,
    declared,
    flag_of,
    on_command_line,
    option,
)
from flashvlm.remote import KEY_VARIABLE, VARIABLE

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


def takes(**builders: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace each named parameter of a command by the options of its builder.

    The command is called with what the builder makes of these options. Those that are not on the command line have the
    user's own defaults, except in benchmarks: their figures shall depend on nothing that is not in sight.
    """

    def expand(command: Callable[..., None]) -> Callable[..., None]:
        expanded: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            builder = builders.get(parameter.name)
            added = inspect.signature(builder, eval_str=True).parameters.values() if builder else [parameter]
            expanded += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in added]
        # Typer fills it in.
        expanded.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> None:
            sources = {name: context.get_parameter_source(name) for name in given}
            typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
            benchmark = context.parent is not None and context.parent.info_name == "bench"
            applied = {} if benchmark else {n: one for n, one in applying(typed).items() if n in given}
            given |= {name: default.value for name, default in applied.items()}
            with _telling(applied):
                for name, builder in builders.items():
                    own = {option: given.pop(option) for option in inspect.signature(builder).parameters}
                    given[name] = builder(**own)
                command(**given)

        run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return expand


@contextlib.contextmanager
def _telling(applied: Mapping[str, Default]) -> Iterator[None]:
    """Let an error that names an option say where its value is from, if it is not from the command line."""
    try:
        yield
    except UsageError as error:
        named = re.findall(r"--[a-z-]+", on_command_line(str(error)))
        sources = [f"{flag_of(n)} is from {one.source}" for n, one in applied.items() if flag_of(n) in named]
        if not sources:
            raise
        raise UsageError(f"{str(error).rstrip('.')} ({', '.join(sources)}).") from error


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


# The server that answers, in place of a model that is loaded here.
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        envvar=VARIABLE,
        show_envvar=False,
        help=f"Let this server answer (see 'flashvlm serve'); its key is read from ${KEY_VARIABLE}.",
        show_default=f"${VARIABLE}, or the model is loaded here",
        rich_help_panel=MODEL,
    ),
]

# The videos that a question may be about besides the first one.
More = Annotated[
    list[str],
    typer.Argument(metavar="VIDEO", help="Others that the question is about, too.", show_default=False),
]

# Whether a model that is not on this machine is downloaded without a question.
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Download a model that is not here without asking.", rich_help_panel=MODEL),
]


def _loading(**given: Any) -> dict[str, Any]:
    loading = vars(options_of(Loading)(**given)).copy()
    check_device(loading["device"])
    return loading


# A builder of the arguments of `VideoQA.from_pretrained`.
model_options: Callable[..., dict[str, Any]] = _declared(_loading, declared(Loading), {})


def _beside(*, dtype: str, **given: Any) -> list[dict[str, Any]]:
    return [_loading(**given, dtype=name.strip()) for name in dict.fromkeys(dtype.split(","))]


# The same, for each of several dtypes.
several_options: Callable[..., list[dict[str, Any]]] = _declared(
    _beside,
    declared(Loading)
    | {
        "dtype": replace(
            declared(Loading)["dtype"],
            help="As ask takes it; several are compared with the first: bfloat16,int8.",
            metavar="A,B,...",
        )
    },
    {},
)
