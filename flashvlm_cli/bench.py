"""`flashvlm bench`: how much accuracy a budget costs, how much time it saves, and what selection itself costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from flashvlm.errors import UsageError
from flashvlm.files import check_video
from flashvlm.options import (
    DEFAULT_ENCODE,
    DEFAULT_FPS,
    DEFAULT_LOOK,
    DEFAULT_MAX_FRAMES,
    DEFAULT_MAX_PIXELS,
    DEFAULT_SEEK,
    AskOptions,
    Sampling,
)
from flashvlm.selection import SELECTORS
from flashvlm_cli import output
from flashvlm_cli.options import Device, Dtype, among, number, some_of, whole_number
from flashvlm_cli.running import prepare_libraries

BUDGETS = "100%,22.2%,11.1%,5.6%,2.8%"

MEASURED = "What is measured"
STRESS = "Made harder"
RUN = "How it runs"
OUTPUT = "What is printed"

ModelName = Annotated[
    str, typer.Option(metavar="ID|PATH|ALIAS", help="Hub id, folder or alias.", rich_help_panel=MEASURED)
]
Budgets = Annotated[str, typer.Option(metavar="A,B,...", help="Budgets, as ask takes them.", rich_help_panel=MEASURED)]
Frames = Annotated[
    int | None,
    typer.Option(
        parser=whole_number,
        metavar="N",
        help="Exactly this many frames.",
        show_default=f"{DEFAULT_FPS:g} a second",
        rich_help_panel=MEASURED,
    ),
]
MaxPixels = Annotated[
    int, typer.Option(parser=whole_number, metavar="P", help="Largest frame, in pixels.", rich_help_panel=MEASURED)
]
Encode = Annotated[
    str, typer.Option(metavar="WHICH", help="As ask: changed moments, or all.", rich_help_panel=MEASURED)
]
Seek = Annotated[str, typer.Option(metavar="HOW", help="As ask: fast or exact.", rich_help_panel=MEASURED)]
Look = Annotated[str, typer.Option(metavar="HOW", help="As ask: once or twice.", rich_help_panel=MEASURED)]


def suggest_data(incomplete: str) -> list[str]:
    from flashvlm.bench.data_sets import NAMES

    return among(NAMES)(incomplete)


bench = typer.Typer(help="Measure: accuracy against budget, speed, and the selectors alone.")


@bench.command()
def accuracy(
    model: ModelName = "demo",
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=suggest_data,
            help="clips, eight-looks, needle, crowd, easy-vqa, or a .jsonl file of questions.",
            rich_help_panel=MEASURED,
        ),
    ] = "clips",
    selectors: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            autocompletion=some_of((*SELECTORS, "ablations")),
            help="Selectors; the others are compared with the first. ablations: flashvlm's parts, one by one.",
            show_default="all",
            rich_help_panel=MEASURED,
        ),
    ] = "",
    keep: Budgets = BUDGETS,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Number of videos.",
            show_default="300; all of easy-vqa or a file",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    begin: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Number of the first video. Clips below 2000 are for tuning, not for reports.",
            show_default="2000; 0 of easy-vqa or a file",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    questions: Annotated[
        int,
        typer.Option(parser=whole_number, metavar="N", help="Questions per generated clip.", rich_help_panel=MEASURED),
    ] = 1,
    frames: Frames = None,
    max_frames: Annotated[
        int,
        typer.Option(parser=whole_number, metavar="N", help="The most frames to look at.", rich_help_panel=MEASURED),
    ] = DEFAULT_MAX_FRAMES,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    encode: Encode = DEFAULT_ENCODE,
    seek: Seek = DEFAULT_SEEK,
    look: Look = DEFAULT_LOOK,
    words: Annotated[
        Literal["question", "unrelated"],
        typer.Option(
            metavar="WHICH",
            help="unrelated: the selectors get the words of another question; the model does not.",
            rich_help_panel=STRESS,
        ),
    ] = "question",
    noise: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Noise on the tokens that selectors see, as a share of their length; the model gets clean ones.",
            rich_help_panel=STRESS,
        ),
    ] = "0%",
    metric: Annotated[
        str,
        typer.Option(metavar="NAME", help="Distance of tokens: cosine, centered, euclidean.", rich_help_panel=STRESS),
    ] = "cosine",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Average dropped tokens into the kept ones nearest to them.", rich_help_panel=STRESS
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Longest answer.", rich_help_panel=MEASURED)
    ] = 32,
    seed: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="For the selector random.", rich_help_panel=MEASURED)
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="Processes, each with a model of its own.", rich_help_panel=RUN
        ),
    ] = 2,
    device: Annotated[Device, typer.Option(help="Where the model runs.", rich_help_panel=RUN)] = "auto",
    dtype: Annotated[
        Dtype,
        typer.Option(
            metavar="DTYPE", help="auto (float32 on the CPU), float32, bfloat16 or float16.", rich_help_panel=RUN
        ),
    ] = "auto",
    results: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write results here as they come; the same command continues where it stopped.",
            rich_help_panel=RUN,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw accuracy against budget: .png, .svg or .pdf (needs matplotlib).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The table as a JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Accuracy and retention of every selector at every budget, with 95 % intervals.

    Every question is answered from each selection; retention is the share of the accuracy with all tokens.
    """
    from flashvlm.bench import plot as plots
    from flashvlm.bench.accuracy import Run, Settings, resolved
    from flashvlm.bench.data_sets import data_set
    from flashvlm_cli.console import Bar
    from flashvlm_cli.tables import print_accuracy

    for name, value in (("--limit", limit), ("--questions", questions), ("--workers", workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    asked = data_set(data, questions)
    numbers = asked.numbers(begin, limit)
    settings = Settings(
        model=model,
        selectors=with_ablations(split(selectors)) or SELECTORS,
        keep=split(keep),
        words=words,
        noise=share(noise),
        metric=metric,
        merge=merge,
        seed=seed,
        max_new_tokens=max_new_tokens,
        frames=frames,
        max_frames=max_frames,
        max_pixels=max_pixels,
        encode=encode,
        seek=seek,
        look=look,
    )
    if plot is not None:
        plots.check(plot)
    prepare_libraries()
    device_here, dtype_here = resolved(device, dtype)
    with Run(replace(settings, device=device_here, dtype=dtype_here), asked, numbers, results) as run:
        try:
            with Bar("answering", len(numbers), run.done) as bar:
                for _ in run.answer(workers):
                    bar.advance()
        except KeyboardInterrupt:
            if results is not None:
                output.say(
                    f"{run.done} of {len(numbers)} videos are in {results}; the same command continues from there."
                )
            raise
    for message in run.unreadable.values():
        output.warn(message)
    table = run.table()
    if plot is not None:
        plots.draw(table, plot)
    if as_json:
        output.print_json(table)
    else:
        print_accuracy(table)
    if run.unreadable:
        raise typer.Exit(1)


@bench.command()
def selection(
    selectors: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help="The selectors.",
            show_default="all",
            rich_help_panel=MEASURED,
            autocompletion=some_of(SELECTORS),
        ),
    ] = "",
    tokens: Annotated[
        str, typer.Option(metavar="N,M,...", help="How many visual tokens, rising.", rich_help_panel=MEASURED)
    ] = "1024,4096,16384",
    width: Annotated[
        int, typer.Option(parser=whole_number, metavar="D", help="Width of a token.", rich_help_panel=MEASURED)
    ] = 1536,
    keep: Annotated[
        str, typer.Option(metavar="SHARE|COUNT", help="The budget, as ask takes it.", rich_help_panel=MEASURED)
    ] = "10%",
    group: Annotated[
        int,
        typer.Option(
            "--groups-of", parser=whole_number, metavar="N", help="Tokens per moment.", rich_help_panel=MEASURED
        ),
    ] = 256,
    repeat: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="Calls of each selector; the median counts.", rich_help_panel=RUN
        ),
    ] = 5,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory", help="Measure peak memory too, in a process for each (Linux).", rich_help_panel=RUN
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="The table as a JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """The selectors alone, on synthetic tokens: seconds, growth, memory, coverage radius."""
    from flashvlm.bench.selection import SelectionRun, Settings
    from flashvlm_cli.console import Bar
    from flashvlm_cli.tables import print_selection

    settings = Settings(
        selectors=split(selectors) or SELECTORS,
        tokens=tuple(whole_number(size) for size in split(tokens)),
        width=width,
        keep=keep,
        group=group,
        repeats=repeat,
    )
    prepare_libraries()
    run = SelectionRun(settings, memory)
    with Bar("selecting", run.steps) as bar:
        for _ in run.measure():
            bar.advance()
    table = run.table()
    if as_json:
        output.print_json(table)
    else:
        print_selection(table)


@bench.command()
def speed(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="A video; without one, a clip is generated.")
    ] = None,
    model: ModelName = "demo",
    weights: Annotated[
        str | None,
        typer.Option(
            "--random-weights",
            metavar="NAME",
            help="Instead of --model, a published architecture with random weights (written to disk once, in bf16): "
            "qwen2-vl-2b (4.4 GB), qwen2.5-vl-3b (7.5 GB), video-llava-7b (15 GB).",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="With --random-weights, fewer layers of the language model.",
            show_default="as published",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    keep: Budgets = "100%,10%",
    frames: Frames = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    encode: Encode = DEFAULT_ENCODE,
    seek: Seek = DEFAULT_SEEK,
    look: Look = DEFAULT_LOOK,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="The generated clip: moving (camera and object), still (an object passes a camera that stands "
            "still) or screen (pages of text).",
            show_default="moving",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Size of the generated clip in pixels.",
            show_default="448x448",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            parser=number,
            metavar="S",
            help="Length of the generated clip in seconds.",
            show_default="8",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap", help="Measure the last budget once more, encoding while decoding.", rich_help_panel=MEASURED
        ),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Longest answer.", rich_help_panel=MEASURED)
    ] = 16,
    repeat: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Rounds; the medians count.", rich_help_panel=RUN)
    ] = 3,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory too (Linux, CUDA).", rich_help_panel=RUN)
    ] = True,
    device: Annotated[Device, typer.Option(help="Where the model runs.", rich_help_panel=RUN)] = "auto",
    dtype: Annotated[
        Dtype, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16 or float16.", rich_help_panel=RUN)
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="The table as a JSON object, every round of it.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Time of every stage at every budget, compared with all tokens and with transformers' own encoder.

    The latter encodes every moment, and its frames are decoded by exact seeking. Everything is measured in one run,
    round by round, after a warm-up that does not count; the figures are medians, and medians of the ratios.
    """
    from flashvlm.bench.footage import Footage
    from flashvlm.bench.speed import Settings, SpeedRun, random_weights
    from flashvlm_cli.console import Bar, Progress
    from flashvlm_cli.tables import print_speed

    if layers is not None and weights is None:
        raise UsageError("--layers goes with --random-weights.")
    sampling = Sampling(frames=frames, max_frames=max(frames or 0, DEFAULT_MAX_FRAMES))
    options = AskOptions(
        sampling=sampling, max_pixels=max_pixels, encode=encode, seek=seek, look=look, max_new_tokens=max_new_tokens
    )
    settings = Settings(keep=split(keep), options=options, repeats=repeat, overlap=overlap)
    if video is None:
        shown: Footage | Path = Footage(
            "moving" if clip is None else clip,
            *sides("448x448" if size is None else size),
            8.0 if seconds is None else seconds,
        )
    else:
        for name, value in (("--clip", clip), ("--size", size), ("--seconds", seconds)):
            if value is not None:
                raise UsageError(f"{name} is for a generated clip: leave out the video.")
        check_video(video)
        shown = Path(video)
    prepare_libraries()
    with Progress() as progress:
        progress.stage("load")
        from flashvlm import VideoQA

        source = model if weights is None else random_weights(weights, layers)
        qa = VideoQA.from_pretrained(source, device=device, dtype=dtype)
    run = SpeedRun(qa, settings, shown, memory)
    with Bar("measuring", run.steps) as bar:
        for _ in run.measure():
            bar.advance()
    table = run.table()
    if as_json:
        output.print_json(table)
    else:
        print_speed(table, weights or model)


def sides(text: str) -> tuple[int, int]:
    """Width and height of `448x448`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--size takes width and height such as 1280x720, not {text!r}.")
    return int(parts[0]), int(parts[1])


def with_ablations(names: Sequence[str]) -> tuple[str, ...]:
    """The selectors of these names, with `ablations` replaced by all ablations."""
    from flashvlm.bench.ablation import ABLATIONS

    return tuple(part for name in names for part in (ABLATIONS if name == "ablations" else (name,)))


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def share(text: str) -> float:
    """Parse a share such as `5%` or `0.05`; above 1 it needs its percent sign, because `5` hardly means 500 %."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if math.isnan(value) or (value > 1 and not text.endswith("%")):
        raise UsageError(f"--noise takes a share such as 5% or 0.05, not {text!r}.")
    return value / 100 if text.endswith("%") else value
