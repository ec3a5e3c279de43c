"""`flashvlm bench`: what a budget costs in accuracy and fidelity, what it saves, and what selection costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashvlm.errors import UsageError
from flashvlm.options import FRAMES, AskOptions, allowed, among, at_least, declared, one_of, option, some_of
from flashvlm.selection import SELECTORS
from flashvlm_cli import output
from flashvlm_cli.options import (
    OUTPUT,
    Yes,
    ask_options,
    model_options,
    options_of,
    several_options,
    takes,
    whole_number,
)
from flashvlm_cli.running import allow_download, look_ahead, prepare_libraries

if TYPE_CHECKING:
    from flashvlm.bench.data import DataSet
    from flashvlm.bench.run import Settings

MEASURED = "What is measured"
STRESS = "Made harder"
RUN = "How it runs"
DEFAULT_DATA = "clips"


def suggest_data(incomplete: str) -> list[tuple[str, str]]:
    from flashvlm.bench.data_sets import NAMES

    return among(dict.fromkeys(NAMES, ""))(incomplete)


def split(text: str, name: str = "") -> tuple[str, ...]:
    """The parts of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def share(text: str, name: str) -> float:
    """Parse a share such as `5%` or `0.05`; above 1 it needs its percent sign, because `5` hardly means 500 %."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if math.isnan(value) or (value > 1 and not text.endswith("%")):
        raise UsageError(f"{name} takes a share such as 5% or 0.05, not {text!r}.")
    return value / 100 if text.endswith("%") else value


def frame_counts(text: str, name: str) -> tuple[int, ...]:
    """The numbers of frames in a comma-separated list."""
    parts = split(text)
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"{name} takes numbers of frames such as 8 or 8,16,32, not {text!r}.")
    return tuple(map(int, parts))


def sides(text: str, name: str) -> tuple[int, int]:
    """Width and height of `448x448`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{name} takes width and height such as 1280x720, not {text!r}.")
    return int(parts[0]), int(parts[1])


def changed(owner: type, name: str, **changes: Any) -> Any:
    """A field for an option that `owner` has, too, with other values for some of what there is to say of it."""
    about = replace(declared(owner)[name], **changes)
    return field(default=about.default, metadata={"option": about})


@dataclass(frozen=True)
class Compared:
    """What the benchmarks take that compare selectors at budgets on videos, besides options of `ask`."""

    data: str | None = option(
        None,
        "clips, eight-looks, needle, crowd, natural, natural-eight-looks, easy-vqa, or a .jsonl file of questions.",
        MEASURED,
        metavar="NAME|FILE",
        unset=DEFAULT_DATA,
        suggest=suggest_data,
    )
    selectors: tuple[str, ...] = option(
        "",
        "Selectors; the others are compared with the first. ablations: flashvlm's parts, one by one; ./FILE.py:NAME: a "
        "function of your own.",
        MEASURED,
        metavar="A,B,...",
        unset="all",
        suggest=some_of((*SELECTORS, "ablations")),
        parse=split,
    )
    keep: tuple[str, ...] = option(
        "100%,22.2%,11.1%,5.6%,2.8%", "Budgets, as ask takes them.", MEASURED, metavar="A,B,...", parse=split
    )
    limit: int | None = option(
        None, "Number of videos.", MEASURED, metavar="N", unset="300; all of easy-vqa or a file", check=at_least(1)
    )
    begin: int | None = option(
        None,
        "Number of the first video. Clips below 2000 are for tuning, not for reports.",
        MEASURED,
        metavar="N",
        unset="2000; 0 of easy-vqa or a file",
    )
    workers: int = option(2, "Processes, each with a model of its own.", RUN, metavar="N", check=at_least(1))
    results: Path | None = option(
        None,
        "Write results here as they come; the same command continues where it stopped.",
        RUN,
        metavar="FILE",
        flags=("--output", "-o"),
    )
    plot: Path | None = option(
        None, "Draw the first figure against budget: .png, .svg or .pdf (needs matplotlib).", OUTPUT, metavar="FILE"
    )
    as_json: bool = option(False, "The table as a JSON object.", OUTPUT, flags=("--json",))


@dataclass(frozen=True)
class Accuracy(Compared):
    """What `bench accuracy` takes, besides options of `ask`."""

    questions: int = option(1, "Questions per generated clip.", MEASURED, metavar="N", check=at_least(1))
    frames: tuple[int, ...] = option(
        "",
        "Exactly this many frames, instead of --fps and --max-frames. Of several numbers, each is measured at each "
        "budget, and compared with few frames unpruned.",
        FRAMES,
        metavar="N,M,...",
        unset="as --fps says",
        parse=frame_counts,
    )
    words: str = option(
        "question",
        "unrelated: the selectors get the words of another question; the model does not.",
        STRESS,
        metavar="WHICH",
        **one_of("question", "unrelated"),
    )
    noise: float = option(
        "0%",
        "Noise on the tokens that selectors see, as a share of their length; the model gets clean ones.",
        STRESS,
        metavar="SHARE",
        check=allowed(lambda share: 0 <= share < math.inf, "must be a share of 0 or more, not {}"),
        parse=share,
    )


@dataclass(frozen=True)
class Fidelity(Compared):
    """What `bench fidelity` takes, besides options of `ask`."""

    selectors: tuple[str, ...] = changed(Compared, "selectors", default="flashvlm,paper,uniform", unset="")
    keep: tuple[str, ...] = changed(Compared, "keep", default="50%,25%,10%,5%")
    workers: int = changed(Compared, "workers", default=1)
    within: float = option(
        0.05,
        "Say what share to keep for a KL divergence of at most this (nats a token).",
        MEASURED,
        metavar="KL",
        check=allowed(lambda kl: 0 < kl < math.inf, "must be more than 0, not {:g}"),
    )


@dataclass(frozen=True)
class Selection:
    """What `bench selection` takes."""

    selectors: tuple[str, ...] = option(
        "", "The selectors.", MEASURED, metavar="A,B,...", unset="all", suggest=some_of(SELECTORS), parse=split
    )
    tokens: tuple[str, ...] = option(
        "1024,4096,16384", "How many visual tokens, rising.", MEASURED, metavar="N,M,...", parse=split
    )
    width: int = option(1536, "Width of a token.", MEASURED, metavar="D")
    keep: str = option("10%", "The budget, as ask takes it.", MEASURED, metavar="SHARE|COUNT")
    group: int = option(256, "Tokens per moment.", MEASURED, metavar="N", flags=("--groups-of",))
    repeat: int = option(5, "Calls of each selector; the median counts.", RUN, metavar="N")
    memory: bool = option(
        True, "Measure peak memory too, in a process for each (Linux).", RUN, flags=("--memory/--no-memory",)
    )
    as_json: bool = option(False, "The table as a JSON object.", OUTPUT, flags=("--json",))


@dataclass(frozen=True)
class Speed:
    """What `bench speed` takes, besides options of `ask`."""

    weights: str | None = option(
        None,
        "Instead of --model, a published architecture with random weights (written to disk once, in bf16): "
        "qwen2-vl-2b (4.4 GB), qwen2.5-vl-3b (7.5 GB), video-llava-7b (15 GB).",
        MEASURED,
        metavar="NAME",
        flags=("--random-weights",),
    )
    layers: int | None = option(
        None, "With --random-weights, fewer layers of the language model.", MEASURED, metavar="N", unset="as published"
    )
    keep: tuple[str, ...] = option("100%,10%", "Budgets, as ask takes them.", MEASURED, metavar="A,B,...", parse=split)
    clip: str | None = option(
        None,
        "The generated clip: moving (camera and object), still (an object passes a camera that stands still) or screen "
        "(pages of text).",
        MEASURED,
        metavar="KIND",
        unset="moving",
    )
    size: tuple[int, int] | None = option(
        None, "Size of the generated clip in pixels.", MEASURED, metavar="WxH", unset="448x448", parse=sides
    )
    seconds: float | None = option(None, "Length of the generated clip in seconds.", MEASURED, metavar="S", unset="8")
    repeat: int = option(3, "Rounds; the medians count.", RUN, metavar="N")
    memory: bool = option(True, "Measure peak memory too (Linux, CUDA).", RUN, flags=("--memory/--no-memory",))
    as_json: bool = option(False, "The table as a JSON object, every round of it.", OUTPUT, flags=("--json",))


bench = typer.Typer(help="Measure: accuracy and fidelity against budget, speed, and the selectors alone.")
# The models that `bench` measures unless told otherwise are there without a download.
demo_options = partial(model_options, model="demo")
demo_several = partial(several_options, model="demo")


# Answers are greedy, and every budget and selector is measured on features made for the run.
compared_options = partial(
    ask_options, "keep", "selector", "subtitles", "temperature", "top_p", "top_k", "check", "cache"
)


@bench.command()
@takes(own=options_of(Accuracy), options=compared_options("frames", max_new_tokens=32), loading=demo_options)
def accuracy(own: Accuracy, options: AskOptions, loading: dict[str, Any], yes: Yes = False) -> None:
    """Accuracy and retention of every selector at every budget, with 95 % intervals.

    Every question is answered from each selection; retention is the share of the accuracy with all tokens. On a CPU,
    --dtype auto is float32.
    """
    from flashvlm.bench import accuracy, frames
    from flashvlm.bench.data_sets import data_set
    from flashvlm.bench.plot import draw_accuracy, draw_frames
    from flashvlm_cli.tables import print_accuracy, print_frames

    measured: dict[str, Any] = {
        **loading,
        "selectors": with_ablations(own.selectors) or SELECTORS,
        "keep": own.keep,
        "words": own.words,
        "noise": own.noise,
    }
    asked = data_set(own.data or DEFAULT_DATA, own.questions)
    if len(own.frames) > 1:
        several = frames.Settings(**measured, options=options, frames=own.frames)
        compare(own, several, asked, yes, print_frames, draw_frames)
        return
    options = options.changed(frames=own.frames[0]) if own.frames else options
    compare(own, accuracy.Settings(**measured, options=options), asked, yes, print_accuracy, draw_accuracy)


@bench.command()
@takes(own=options_of(Fidelity), options=compared_options(max_new_tokens=64), loading=demo_options)
def fidelity(
    own: Fidelity,
    options: AskOptions,
    loading: dict[str, Any],
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VIDEO...|FILE.jsonl]",
            help="Videos and patterns, or a file of videos and questions; instead of --data.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            help="What to ask about every video; may be given several times.",
            show_default="four general ones",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """What pruning changes in what a model says, on any videos, with no right answers needed.

    The unpruned model answers each question; then each selection is given that answer token by token. The table says
    how far the next-token distribution moves (KL divergence), how often the likeliest token stays, how often the whole
    answer does, and how much the perplexity of the answer grows, with 95 % intervals over videos. On a CPU, --dtype
    auto is float32.
    """
    from flashvlm.bench.fidelity import Settings
    from flashvlm.bench.plot import draw_fidelity
    from flashvlm_cli.tables import print_fidelity

    settings = Settings(
        **loading, selectors=with_ablations(own.selectors), keep=own.keep, options=options, within=own.within
    )
    asked = asked_of(videos or [], questions or [], own.data)
    compare(own, settings, asked, yes, print_fidelity, draw_fidelity)


def asked_of(videos: Sequence[str], questions: Sequence[str], data: str | None) -> DataSet:
    """The videos with their questions, of which none needs an answer."""
    from flashvlm.bench.data import Lines, Videos
    from flashvlm.bench.data_sets import data_set
    from flashvlm.bench.fidelity import QUESTIONS
    from flashvlm_cli.batch import is_of_rows

    if videos and data is not None:
        raise UsageError("Give videos or --data, not both.")
    rows = [name for name in videos if is_of_rows(name)]
    if questions and (rows or not videos):
        raise UsageError("--question is for videos; a file or a data set has its own.")
    if rows and len(videos) > 1:
        raise UsageError(f"Rows come from one file; give {rows[0]!r} alone.")
    if rows:
        return Lines(Path(rows[0]), answered=False)
    return Videos(videos, questions or QUESTIONS) if videos else data_set(data or DEFAULT_DATA)


def compare(
    own: Compared,
    settings: Settings,
    data: DataSet,
    yes: bool,
    show: Callable[[dict[str, Any]], None],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Measure what the settings say, or continue to, and show the table; `yes`: a model may be downloaded.

    Raises:
        typer.Exit: some videos could not be read.
    """
    from flashvlm.bench import plot as plots
    from flashvlm.bench.run import Run, resolved
    from flashvlm_cli.console import Bar

    numbers = data.numbers(own.begin, own.limit)
    if own.plot is not None:
        plots.check(own.plot)
    prepare_libraries()
    allow_download(settings.model, settings.revision, yes)
    device, dtype = resolved(settings.device, settings.dtype)
    with Run(replace(settings, device=device, dtype=dtype), data, numbers, own.results) as run:
        try:
            with Bar("answering", len(numbers), run.done) as bar:
                for _ in run.answer(own.workers):
                    bar.advance()
        except KeyboardInterrupt:
            if own.results is not None:
                there = f"{run.done} of {len(numbers)} videos are in {own.results}"
                output.say(f"{there}; the same command continues from there.")
            raise
    for message in run.unreadable.values():
        output.warn(message)
    table = run.table()
    if own.plot is not None:
        draw(table, own.plot)
    if own.as_json:
        output.print_json(table)
    else:
        show(table)
    if run.unreadable:
        raise typer.Exit(1)


@bench.command()
@takes(own=options_of(Selection))
def selection(own: Selection) -> None:
    """The selectors alone, on synthetic tokens: seconds, growth, memory, coverage radius."""
    from flashvlm.bench.selection import SelectionRun, Settings
    from flashvlm_cli.console import Bar
    from flashvlm_cli.tables import print_selection

    settings = Settings(
        selectors=own.selectors or SELECTORS,
        tokens=tuple(map(whole_number, own.tokens)),
        width=own.width,
        keep=own.keep,
        group=own.group,
        repeats=own.repeat,
    )
    prepare_libraries()
    run = SelectionRun(settings, own.memory)
    with Bar("selecting", run.steps) as bar:
        for _ in run.measure():
            bar.advance()
    table = run.table()
    if own.as_json:
        output.print_json(table)
    else:
        print_selection(table)


@bench.command()
@takes(
    own=options_of(Speed),
    options=ask_options("keep", "subtitles", "check", "cache", max_new_tokens=16),
    loading=demo_several,
)
def speed(
    own: Speed,
    options: AskOptions,
    loading: list[dict[str, Any]],
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="A video; without one, a clip is generated.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Time of every stage at every budget, compared with all tokens and with transformers' own encoder.

    The latter encodes every moment, and its frames are decoded by exact seeking. Everything is measured in one run,
    round by round, after a warm-up that does not count; the figures are medians, and medians of the ratios.
    """
    from flashvlm.bench.footage import Footage
    from flashvlm.bench.speed import Settings, SpeedRun, random_weights
    from flashvlm_cli.console import Bar, Progress
    from flashvlm_cli.tables import print_speed

    if own.layers is not None and own.weights is None:
        raise UsageError("--layers goes with --random-weights.")
    settings = Settings(keep=own.keep, options=options, repeats=own.repeat)
    if video is None:
        shown: Footage | Path = Footage(
            own.clip or "moving", *(own.size or (448, 448)), 8.0 if own.seconds is None else own.seconds
        )
    else:
        for name in ("clip", "size", "seconds"):
            if getattr(own, name) is not None:
                raise UsageError(f"--{name} is for a generated clip: leave out the video.")
        (video,) = look_ahead([video], options, own.as_json)
        shown = Path(video)
    prepare_libraries()
    if own.weights is None:
        allow_download(loading[0]["model"], loading[0]["revision"], yes)
    with Progress() as progress:
        progress.stage("load")
        from flashvlm import VideoQA

        name = own.weights or loading[0]["model"]
        if own.weights is not None:
            loading = [{**one, "model": random_weights(own.weights, own.layers)} for one in loading]
        qa, *others = [VideoQA.from_pretrained(**one) for one in loading]
    run = SpeedRun(qa, settings, shown, own.memory, others)
    with Bar("measuring", run.steps) as bar:
        for _ in run.measure():
            bar.advance()
    table = run.table()
    if own.as_json:
        output.print_json(table)
    else:
        print_speed(table, name)


def with_ablations(names: Sequence[str]) -> tuple[str, ...]:
    """The selectors of these names, with `ablations` replaced by all ablations."""
    from flashvlm.bench.ablation import ABLATIONS

    return tuple(part for name in names for part in (ABLATIONS if name == "ablations" else (name,)))
