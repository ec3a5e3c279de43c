"""`flashvlm bench`: how much accuracy a budget costs, how much time it saves, and what selection itself costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flashvlm import units
from flashvlm.errors import UsageError
from flashvlm.files import check_video
from flashvlm.options import AskOptions, allowed, among, at_least, one_of, option, some_of
from flashvlm.selection import SELECTORS
from flashvlm_cli import output
from flashvlm_cli.options import OUTPUT, ask_options, model_options, options_of, takes, whole_number
from flashvlm_cli.running import prepare_libraries

MEASURED = "What is measured"
STRESS = "Made harder"
RUN = "How it runs"


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


def sides(text: str, name: str) -> tuple[int, int]:
    """Width and height of `448x448`."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{name} takes width and height such as 1280x720, not {text!r}.")
    return int(parts[0]), int(parts[1])


@dataclass(frozen=True)
class Accuracy:
    """What `bench accuracy` takes, besides options of `ask`."""

    data: str = option(
        "clips",
        "clips, eight-looks, needle, crowd, easy-vqa, or a .jsonl file of questions.",
        MEASURED,
        metavar="NAME|FILE",
        suggest=suggest_data,
    )
    selectors: tuple[str, ...] = option(
        "",
        "Selectors; the others are compared with the first. ablations: flashvlm's parts, one by one.",
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
    questions: int = option(1, "Questions per generated clip.", MEASURED, metavar="N", check=at_least(1))
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
    workers: int = option(2, "Processes, each with a model of its own.", RUN, metavar="N", check=at_least(1))
    results: Path | None = option(
        None,
        "Write results here as they come; the same command continues where it stopped.",
        RUN,
        metavar="FILE",
        flags=("--output", "-o"),
    )
    plot: Path | None = option(
        None, "Draw accuracy against budget: .png, .svg or .pdf (needs matplotlib).", OUTPUT, metavar="FILE"
    )
    as_json: bool = option(False, "The table as a JSON object.", OUTPUT, flags=("--json",))


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


bench = typer.Typer(help="Measure: accuracy against budget, speed, and the selectors alone.")
# The models that `bench` measures unless told otherwise are there without a download.
demo_options = partial(model_options, model="demo")


@bench.command()
@takes(
    own=options_of(Accuracy),
    options=ask_options("keep", "selector", "temperature", "cache", max_new_tokens=32),
    loading=demo_options,
)
def accuracy(own: Accuracy, options: AskOptions, loading: dict[str, Any]) -> None:
    """Accuracy and retention of every selector at every budget, with 95 % intervals.

    Every question is answered from each selection; retention is the share of the accuracy with all tokens. On a CPU,
    --dtype auto is float32.
    """
    from flashvlm.bench import plot as plots
    from flashvlm.bench.accuracy import Run, Settings, resolved
    from flashvlm.bench.data_sets import data_set
    from flashvlm_cli.console import Bar

    asked = data_set(own.data, own.questions)
    numbers = asked.numbers(own.begin, own.limit)
    settings = Settings(
        **loading,
        selectors=with_ablations(own.selectors) or SELECTORS,
        keep=own.keep,
        options=options,
        words=own.words,
        noise=own.noise,
    )
    if own.plot is not None:
        plots.check(own.plot)
    prepare_libraries()
    device, dtype = resolved(settings.device, settings.dtype)
    with Run(replace(settings, device=device, dtype=dtype), asked, numbers, own.results) as run:
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
        plots.draw(table, own.plot)
    if own.as_json:
        output.print_json(table)
    else:
        print_accuracy(table)
    if run.unreadable:
        raise typer.Exit(1)


@bench.command()
@takes(own=options_of(Selection))
def selection(own: Selection) -> None:
    """The selectors alone, on synthetic tokens: seconds, growth, memory, coverage radius."""
    from flashvlm.bench.selection import SelectionRun, Settings
    from flashvlm_cli.console import Bar

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
@takes(own=options_of(Speed), options=ask_options("keep", "cache", max_new_tokens=16), loading=demo_options)
def speed(
    own: Speed,
    options: AskOptions,
    loading: dict[str, Any],
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="A video; without one, a clip is generated.")
    ] = None,
) -> None:
    """Time of every stage at every budget, compared with all tokens and with transformers' own encoder.

    The latter encodes every moment, and its frames are decoded by exact seeking. Everything is measured in one run,
    round by round, after a warm-up that does not count; the figures are medians, and medians of the ratios.
    """
    from flashvlm.bench.footage import Footage
    from flashvlm.bench.speed import Settings, SpeedRun, random_weights
    from flashvlm_cli.console import Bar, Progress

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
        check_video(video)
        shown = Path(video)
    prepare_libraries()
    with Progress() as progress:
        progress.stage("load")
        from flashvlm import VideoQA

        if own.weights is not None:
            loading["model"] = random_weights(own.weights, own.layers)
        qa = VideoQA.from_pretrained(**loading)
    run = SpeedRun(qa, settings, shown, own.memory)
    with Bar("measuring", run.steps) as bar:
        for _ in run.measure():
            bar.advance()
    table = run.table()
    if own.as_json:
        output.print_json(table)
    else:
        print_speed(table, own.weights or loading["model"])


def print_speed(table: dict[str, Any], model: str) -> None:
    from flashvlm.bench.speed import STAGES
    from flashvlm_cli.console import print_table

    facts, video, machine = table["model"], table["video"], table["machine"]
    name = f"a {video['kind']} clip" if video["kind"] else Path(video["path"]).name
    title = (
        f"{model} ({facts['dtype']} on {facts['device']}, {units.plural(machine['threads'], 'thread')}) on {name}: "
        f"{table['frames']} frames of {video['width']} × {video['height']}, {units.timestamp(video['duration'])}; "
        f"medians of {table['settings']['repeats']}"
    )
    heads = ("encoder", "keep", "encoded", "tokens", "KV cache", *STAGES, "first token", "tokens/s", "peak memory")
    rows: list[tuple[str, ...]] = [heads]
    for row in table["rows"]:
        times = [units.seconds(row["seconds"][stage]) for stage in (*STAGES, "time_to_first_token")]
        rate = "" if row["tokens_a_second"] is None else f"{row['tokens_a_second']:.3g}"
        peak = "" if row["peak_bytes"] is None else units.scaled(row["peak_bytes"], "B")
        cache = units.scaled(row["kv_cache_bytes"], "B")
        encoded = f"{row['encoded']} of {table['moments']}"
        rows.append((row["encoder"], row["keep"], encoded, units.count(row["tokens"]), cache, *times, rate, peak))
    print_table(title, rows)
    stages = ("encoder", "keep", "decode", "encode", "prefill", "first token", "prefill", "first token")
    names = ("decode_ratio", "encode_ratio", "prefill_ratio", "first_ratio", "prefill_to_unpruned", "first_to_unpruned")
    ratios = [(row["encoder"], row["keep"], *(times_as(row[name]) for name in names)) for row in table["rows"]]
    print_table("times less than transformers at 100%; last two: than flashvlm at 100%", [stages, *ratios[1:]])


def print_selection(table: dict[str, Any]) -> None:
    from flashvlm_cli.console import print_table

    settings, threads = table["settings"], units.plural(table["versions"]["threads"], "thread")
    heads = ("selector", "median", "fastest", "slowest", "faster than paper", "growth", "peak", "kept", "δ", "δ took")
    before = None
    for size in settings["tokens"]:
        rows = [heads, *(selection_row(row) for row in table["rows"] if row["tokens"] == size)]
        grown = f", growth from {units.count(before)}" if before else ""
        title = (
            f"{units.count(size)} tokens of {settings['width']}, {settings['keep']} kept, "
            f"{units.plural(settings['repeats'], 'repeat')}, {threads}{grown}"
        )
        print_table(title, rows)
        before = size


def selection_row(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table; cells without a figure are empty."""
    if "skipped" in row:
        expected = "too long" if row["skipped"] is None else units.seconds(row["skipped"])
        return (row["selector"], "left out", f"({expected})", *[""] * 7)
    times = [units.seconds(row[name]) for name in ("seconds", "fastest", "slowest")]
    ratios = [times_as(row[name]) for name in ("against_paper", "growth")]
    peak = "" if row["peak_bytes"] is None else units.scaled(row["peak_bytes"], "B")
    radius = [f"{row['delta']:.3f}", units.seconds(row["delta_seconds"])]
    return (row["selector"], *times, *ratios, peak, units.count(row["kept"]), *radius)


def times_as(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:,.0f}×" if ratio >= 100 else f"{ratio:.3g}×"


def with_ablations(names: Sequence[str]) -> tuple[str, ...]:
    """The selectors of these names, with `ablations` replaced by all ablations."""
    from flashvlm.bench.ablation import ABLATIONS

    return tuple(part for name in names for part in (ABLATIONS if name == "ablations" else (name,)))


def print_accuracy(table: dict[str, Any]) -> None:
    from flashvlm_cli.console import print_table

    settings = table["settings"]
    overall, *families = table["sections"]
    first = settings["selectors"][0]
    at_most = "at most " if overall["chance_at_most"] else ""
    title = (
        f"{settings['model']} on {settings['data']} {table['begin']} to {table['end']}: "
        f"{units.plural(table['questions'], 'question')}, {at_most}{percent(overall['chance'])} by chance, "
        f"{settings['dtype']} on {settings['device']}"
    )
    if table["unreadable"]:
        questions = sum(one["questions"] for one in table["unreadable"])
        videos = units.plural(len(table["unreadable"]), "unreadable video")
        title += f"; without {units.plural(questions, 'question')} about {videos}"
    heads = (
        "keep",
        "selector",
        "right",
        "95 %",
        "retained",
        "95 %",
        f"points to {first}",
        "95 %",
        "",
        "kept",
        "select",
        "δ",
        "same",
    )
    lines = [heads, *(accuracy_row(row) for row in overall["rows"])]
    # The last column is left out if it is empty: it has figures only if selectors are hampered.
    print_table(title, lines if any(line[-1] for line in lines[1:]) else [line[:-1] for line in lines])
    for budget in settings["keep"]:
        rows = [("selector", *(section["family"] for section in families))]
        rows.append(("questions", *(str(section["count"]) for section in families)))
        at_mosts = ["≤" if section["chance_at_most"] else "" for section in families]
        chances = [percent(section["chance"]) for section in families]
        rows.append(("chance", *(sign + chance for sign, chance in zip(at_mosts, chances, strict=True))))
        places = [place for place, row in enumerate(overall["rows"]) if row["keep"] == budget]
        for place in places:
            ours = [section["rows"][place] for section in families]
            rows.append(
                (overall["rows"][place]["selector"] or "all tokens", *(percent(row["accuracy"]) for row in ours))
            )
        if families:
            print_table(f"right by family, {budget} kept", rows)


def accuracy_row(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table; cells where a figure makes no sense are empty."""
    cells = [row["keep"], row["selector"] or "all tokens"]
    cells += [percent(row["accuracy"]), span(row["accuracy_interval"])]
    cells += [percent(row.get("retention")), span(row.get("retention_interval"))]
    if "difference" in row:
        between = row["difference_interval"]
        shown = "" if between is None else f"{100 * between[0]:+.1f} to {100 * between[1]:+.1f}"
        cells += [f"{100 * row['difference']:+.1f}", shown, "tie" if row["tie"] else ""]
    else:
        cells += ["", "", ""]
    if "kept" in row:
        cells += [percent(row["kept"]), units.seconds(row["seconds"]), f"{row['delta']:.3f}"]
    else:
        cells += ["", "", ""]
    return (*cells, percent(row.get("same")))


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
