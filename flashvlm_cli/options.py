"""The options that commands share: declared, parsed and validated in one place.

A command takes them by naming a parameter after what they build: `@takes(options=ask_options, loading=model_options)`,
or `@takes(options=partial(ask_options, cache=True))` for another default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flashvlm.files import check_overlay, check_report
from flashvlm.models import DEFAULT_MODEL
from flashvlm.options import (
    DEFAULT_ENCODE,
    DEFAULT_FPS,
    DEFAULT_KEEP,
    DEFAULT_LOOK,
    DEFAULT_MAX_FRAMES,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MAX_PIXELS,
    DEFAULT_METRIC,
    DEFAULT_SEEK,
    DEFAULT_SELECTOR,
    ENCODES,
    LOOKS,
    MIN_FRAMES,
    SEEKS,
    AskOptions,
    Keep,
    Sampling,
    parse_time,
)
from flashvlm.selection import METRICS, SELECTORS

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

FRAMES = "Which frames"
TOKENS = "Which tokens"
ANSWER = "The answer"
MODEL = "The model"
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


def suggest_keep(incomplete: str) -> list[tuple[str, str]]:
    hints = {
        "10%": "a tenth of the tokens",
        "5%": "a twentieth of them",
        "100%": "all: no pruning",
        "256": "this many tokens",
        "auto": "the video decides",
        "delta=0.3": "as many as cover all others to this radius",
    }
    return [(value, meaning) for value, meaning in hints.items() if value.startswith(incomplete)]


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completions of one of the names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def some_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completions of the last name in a list with commas."""

    def suggest(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names if name.startswith(last)]

    return suggest


suggest_selectors, suggest_metrics = among(SELECTORS), among(METRICS)


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


def ask_options(
    keep: Annotated[
        str,
        typer.Option(
            metavar="SHARE|COUNT|delta=D|auto",
            help="Visual tokens to keep: 10%, 0.1 or 256; 100% prunes nothing. delta=0.3 covers all tokens "
            "to that radius; auto lets the video decide.",
            rich_help_panel=TOKENS,
            autocompletion=suggest_keep,
        ),
    ] = DEFAULT_KEEP,
    selector: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How tokens are chosen: {', '.join(SELECTORS)}.",
            rich_help_panel=TOKENS,
            autocompletion=suggest_selectors,
        ),
    ] = DEFAULT_SELECTOR,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How distance between tokens is measured: cosine, centered, euclidean.",
            rich_help_panel=TOKENS,
            autocompletion=suggest_metrics,
        ),
    ] = DEFAULT_METRIC,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Average dropped tokens into the kept ones nearest to them.", rich_help_panel=TOKENS
        ),
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help=f"Frames to look at per second, at least {MIN_FRAMES} in all.",
            show_default=f"{DEFAULT_FPS:g}; Video-LLaVA: 8 frames in all",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Exactly this many frames, instead of --fps and --max-frames.",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    max_frames: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="The most frames that --fps may give.", rich_help_panel=FRAMES
        ),
    ] = DEFAULT_MAX_FRAMES,
    max_pixels: Annotated[
        int,
        typer.Option(parser=whole_number, metavar="P", help="The most pixels per frame.", rich_help_panel=FRAMES),
    ] = DEFAULT_MAX_PIXELS,
    encode: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            autocompletion=among(ENCODES),
            help="changed: a moment that looks like an earlier one reuses its tokens; all: every moment is encoded.",
            rich_help_panel=FRAMES,
        ),
    ] = DEFAULT_ENCODE,
    seek: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            autocompletion=among(SEEKS),
            help="fast: key frames instead, if each frame to look at has one nearby; exact: the very frames.",
            rich_help_panel=FRAMES,
        ),
    ] = DEFAULT_SEEK,
    look: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            autocompletion=among(LOOKS),
            help="once: full-size frames; twice: small ones, then the ends and what is asked about at full size.",
            rich_help_panel=FRAMES,
        ),
    ] = DEFAULT_LOOK,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Look at the video from here on: 90, 1:30, 0:01:30.5.",
            show_default="the video's start",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="Look at the video up to here.", show_default="the video's end", rich_help_panel=FRAMES
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="System prompt.", show_default="the checkpoint's own", rich_help_panel=ANSWER
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Longest answer, in tokens.", rich_help_panel=ANSWER)
    ] = DEFAULT_MAX_NEW_TOKENS,
    temperature: Annotated[
        float,
        typer.Option(parser=number, metavar="X", help="0 always takes the likeliest token.", rich_help_panel=ANSWER),
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Random seed of --temperature and --selector random.",
            rich_help_panel=ANSWER,
        ),
    ] = 0,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Store what the encoder makes of the video, and reuse it.",
            rich_help_panel=MODEL,
        ),
    ] = False,
) -> AskOptions:
    """The options for answering a question."""
    if cache:
        from flashvlm.cache import FeatureCache

        # Without a home folder, or with an invalid size, it is refused before anything is loaded.
        FeatureCache.of_user()
    return AskOptions(
        keep=Keep.parse(keep),
        selector=selector,
        metric=metric,
        merge=merge,
        sampling=Sampling(
            fps=fps,
            frames=frames,
            max_frames=max_frames,
            start=None if start is None else parse_time(start, "--start"),
            end=None if end is None else parse_time(end, "--end"),
        ),
        max_pixels=max_pixels,
        encode=encode,
        seek=seek,
        look=look,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        cache=cache,
    )


def without(builder: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """A builder without some of its options, for a command in which they have no meaning."""

    def build(**given: Any) -> Any:
        return builder(**given, **{name: parameters[name].default for name in names})

    parameters = inspect.signature(builder, eval_str=True).parameters
    left = [parameter for name, parameter in parameters.items() if name not in names]
    build.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
    return build


@dataclass(frozen=True)
class Pictures:
    """The files that show what was kept; None for those not asked for."""

    overlay: Path | None = None
    report: Path | None = None

    @property
    def wanted(self) -> bool:
        return self.overlay is not None or self.report is not None

    def check(self, video: str) -> None:
        """Refuse to write over the video.

        Raises:
            UsageError: the overlay is the video.
        """
        if self.overlay is not None:
            check_overlay(self.overlay, video)


def picture_options(
    overlay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw what was kept: the moments (.png), or the clip (.mp4, .webp, .gif).",
            show_default=False,
            rich_help_panel=FILES,
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write a page (.html) to look through what was kept.",
            show_default=False,
            rich_help_panel=FILES,
        ),
    ] = None,
) -> Pictures:
    """Which files show what was kept; those that cannot be written are refused here."""
    return Pictures(
        None if overlay is None else check_overlay(overlay), None if report is None else check_report(report)
    )


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
    return {"model": model, "revision": revision, "device": device, "dtype": dtype}
