"""`flashvlm ask`: one question to one video."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flashvlm.errors import UsageError, VideoError
from flashvlm.models import DEFAULT_MODEL
from flashvlm.options import (
    DEFAULT_FPS,
    DEFAULT_KEEP,
    DEFAULT_MAX_FRAMES,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_MAX_PIXELS,
    DEFAULT_METRIC,
    DEFAULT_SELECTOR,
    MIN_FRAMES,
    AskOptions,
    Keep,
    Sampling,
    parse_time,
)
from flashvlm_cli import output

if TYPE_CHECKING:
    from flashvlm.report import Answer

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

FRAMES = "Which frames"
TOKENS = "Which tokens"
ANSWER = "The answer"
MODEL = "The model"
OUTPUT = "What is printed"


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no whole number.") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.") from None


def suggest_models(incomplete: str) -> list[tuple[str, str]]:
    from flashvlm.models import ALIASES

    return [(alias.name, alias.description) for alias in ALIASES.values() if alias.name.startswith(incomplete)]


def suggest_selectors(incomplete: str) -> list[str]:
    from flashvlm.selection import SELECTORS

    return [name for name in SELECTORS if name.startswith(incomplete)]


def suggest_metrics(incomplete: str) -> list[str]:
    from flashvlm.selection import METRICS

    return [name for name in METRICS if name.startswith(incomplete)]


def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or a still image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask; - reads it from standard input.")],
    keep: Annotated[
        str,
        typer.Option(
            metavar="SHARE|COUNT|auto",
            help="Visual tokens to keep: 10%, 0.1 or 256; 100% prunes nothing; delta=0.3 covers all to a radius; "
            "auto lets the video decide.",
            rich_help_panel=TOKENS,
        ),
    ] = DEFAULT_KEEP,
    selector: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How tokens are chosen.", rich_help_panel=TOKENS, autocompletion=suggest_selectors
        ),
    ] = DEFAULT_SELECTOR,
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What distance between tokens means: cosine, centered, euclidean.",
            rich_help_panel=TOKENS,
            autocompletion=suggest_metrics,
        ),
    ] = DEFAULT_METRIC,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Average kept tokens with the dropped ones that they stand for.", rich_help_panel=TOKENS
        ),
    ] = False,
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
    device: Annotated[Device, typer.Option(help="Where it runs.", rich_help_panel=MODEL)] = "auto",
    dtype: Annotated[
        Dtype,
        typer.Option(metavar="DTYPE", help="auto, float32, bfloat16 or float16.", rich_help_panel=MODEL),
    ] = "auto",
    fps: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="F",
            help=f"Frames looked at per second, at least {MIN_FRAMES} in all.",
            show_default=f"{DEFAULT_FPS:g}; Video-LLaVA: 8 frames in all",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            parser=whole_number, metavar="N", help="Exactly so many frames, instead of --fps.", rich_help_panel=FRAMES
        ),
    ] = None,
    max_frames: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="At most so many frames.", rich_help_panel=FRAMES)
    ] = DEFAULT_MAX_FRAMES,
    max_pixels: Annotated[
        int,
        typer.Option(parser=whole_number, metavar="P", help="At most so many pixels a frame.", rich_help_panel=FRAMES),
    ] = DEFAULT_MAX_PIXELS,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Look from here on: 90, 1:30, 0:01:30.5.",
            show_default="the video's start",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option(metavar="T", help="Look up to here.", show_default="the video's end", rich_help_panel=FRAMES),
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
            parser=whole_number, metavar="N", help="Makes a --temperature above 0 repeatable.", rich_help_panel=ANSWER
        ),
    ] = 0,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Keep what the encoder makes of the video, and use it again.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of text, errors too.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="The answer only: no summary.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Ask a video a question.

    The answer goes to standard output, as it is generated; a summary of what was kept and saved goes to standard error.
    """
    options = AskOptions(
        keep=Keep.parse(keep),
        selector=known_selector(selector),
        metric=known_metric(metric),
        merge=merge,
        sampling=Sampling(
            fps=fps,
            frames=frames,
            max_frames=max_frames,
            start=None if start is None else parse_time(start),
            end=None if end is None else parse_time(end),
        ),
        max_pixels=max_pixels,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        cache=cache,
    )
    # The library says so too, but only once the model is loaded.
    if not os.path.exists(video):
        raise VideoError(f"There is no file {video!r}.")
    asked = read_question(question)
    silence_libraries()
    loading: dict[str, Any] = {"model": model, "revision": revision, "device": device, "dtype": dtype}
    if as_json:
        output.print_json(answer_of(loading, video, asked, options).to_json())
    elif quiet or sys.stderr is None:
        stream_answer(lambda on_text: answer_of(loading, video, asked, options, on_text))
    else:
        from flashvlm.models import present
        from flashvlm_cli.console import Progress, print_summary

        with Progress() as progress:
            progress.stage("load")
            if not present(model, revision):
                progress.stage("fetch")
            loading["on_download"] = lambda done, total: (
                progress.fetched(done, total) if done < total else progress.stage("load")
            )
            answer = stream_answer(
                lambda on_text: answer_of(loading, video, asked, options, on_text, progress.stage),
                before_first=progress.give_way,
            )
        for warning in answer.warnings:
            output.warn(warning)
        print_summary(answer)


def answer_of(
    loading: dict[str, Any],
    video: str,
    question: str,
    options: AskOptions,
    on_text: Callable[[str], None] = lambda text: None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Answer:
    from flashvlm import VideoQA

    loaded = VideoQA.from_pretrained(**loading)
    return loaded.ask(video, question, options, on_text=on_text, on_stage=on_stage)


def stream_answer(
    answer_with: Callable[[Callable[[str], None]], Answer], before_first: Callable[[], None] = lambda: None
) -> Answer:
    """Print an answer while it is generated; a broken-off one still ends its line."""
    stream = output.AnswerStream(before_first)
    try:
        answer = answer_with(stream.write)
    except BaseException:
        if stream.started:
            with contextlib.suppress(OSError):
                stream.finish()
        raise
    if not stream.started:
        stream.write(answer.answer)
    stream.finish()
    return answer


def known_selector(name: str) -> str:
    from flashvlm.selection import SELECTORS

    return known("selector", name, SELECTORS)


def known_metric(name: str) -> str:
    from flashvlm.selection import METRICS

    return known("metric", name, METRICS)


def known(kind: str, name: str, names: Sequence[str]) -> str:
    """The name itself, where there is one.

    Raises:
        UsageError: there is none; the message names what there is.
    """
    if name in names:
        return name
    from difflib import get_close_matches

    close = get_close_matches(name, names, n=1)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"There is no {kind} {name!r}; there are {', '.join(names)}.{suggestion}")


def read_question(text: str) -> str:
    """The question itself, or standard input where it is `-`."""
    if text == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError:
            raise UsageError("The question on standard input is no text.") from None
    question = text.strip()
    if not question:
        raise UsageError("The question is empty.")
    return question


def silence_libraries() -> None:
    """Keep standard error ours: what the libraries underneath would print there is for their developers."""
    if output.debugging():
        return
    warnings.simplefilter("ignore")
    for variable, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(variable, value)
