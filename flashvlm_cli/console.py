"""Everything that uses Rich: the spinner, the summary of an answer, the table of models.

If a stream is not a terminal, or NO_COLOR is set, the same text is printed without colours or any other codes.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text
from rich.theme import Theme

from flashvlm import units
from flashvlm.report import (
    Answer,
    BeforeAfter,
    Check,
    Inspection,
    Moment,
    Seen,
    VideoFacts,
    distinguishes,
    opening,
    overlap,
)
from flashvlm_cli import charts, output

if TYPE_CHECKING:
    from flashvlm.batch.run import Run

# Only the sixteen colours of the user's terminal, so that the text is readable on both light and dark ones.
THEME = Theme(
    {
        "title": "bold",
        "label": "dim",
        "aside": "dim",
        "axis": "dim",
        "track": "dim",
        "value": "bold",
        "saved": "bold green",
        "kept": "cyan",
        "important": "cyan",
        "diverse": "magenta",
        "time": "green",
    },
    inherit=False,
)

STAGES = {
    "fetch": "fetching the model, this once",
    "web": "downloading the video",
    "load": "loading the model",
    "decode": "reading the video",
    "encode": "looking at the frames",
    "select": "choosing tokens",
    "prefill": "reading what was kept",
    "generate": "answering",
    "check": "asking the unpruned model",
    "server": "asking the server",
    "overlay": "drawing what was kept",
}
TIMED_STAGES = ("decode", "encode", "select", "prefill", "generate")

INDENT = 1
LABEL_WIDTH = 9
GAP = 2
BEFORE = INDENT + LABEL_WIDTH + GAP
NARROWEST, WIDEST = 24, 100
# Tables go into files and issues, too, and look the same there.
WIDTH_OF_TABLES = 80
# Beside the facts of a model its description takes so many columns, or stands below them.
WIDE_ENOUGH = 40
CHART_HEIGHT = 4
FEWEST_BAR_CELLS = 10
DOWNLOAD_BAR_CELLS = 20
# For a batch: seconds between two lines if there is no bar, and how many failures and warnings are reported.
TOLD_EVERY = 10.0
FAILURES_TOLD = 10
# What moves goes when it is done. With redirection, Rich would move the answer from standard output to standard error.
TRANSIENT: dict[str, Any] = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}

# For terminals and files whose encoding has no block characters.
ASCII = str.maketrans(
    {
        **dict.fromkeys("▁▂▃▏▎▍▔", "."),
        **dict.fromkeys("▄▅▆▇█▌▋▊▉▀", "#"),
        "░": ".",
        "─": "-",
        "→": "->",
        "×": "x",
        "·": "-",
        "–": "-",
        "…": "...",
        "δ": "delta",
        "▲": "up",
        "▼": "down",
        "°": " degrees",
        "✓": "yes",
    }
)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def is_plain(stream: TextIO | None) -> bool:
    return not is_terminal(stream) or bool(os.environ.get("NO_COLOR"))


class Progress:
    """A spinner on standard error that names the stage; nothing if that is not a terminal, or `shown` is false."""

    def __init__(self, shown: bool = True) -> None:
        self._live: Live | None = None
        if shown and is_terminal(sys.stderr):
            self._spinner = Spinner("dots", style="kept")
            self._live = Live(self._spinner, console=_errors(), refresh_per_second=12.5, **TRANSIENT)

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def stage(self, name: str) -> None:
        if self._live is not None:
            self._spinner.update(text=Text(STAGES.get(name, name), "label"))

    def fetched(self, done: int, total: int, what: str = "fetch") -> None:
        """Show how far a download is, in bytes."""
        if self._live is not None and total:
            label = Text(f"{STAGES[what]}  ", "label")
            label.append_text(Text.assemble(*charts.share_bar(done, total, DOWNLOAD_BAR_CELLS)))
            label.append(f"  {units.scaled(done, 'B')} of {units.scaled(total, 'B')}")
            self._spinner.update(text=label)

    def give_way(self) -> None:
        """Stop for good if the answer is about to appear on the same screen."""
        if is_terminal(sys.stdout):
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class Bar:
    """A progress bar on standard error with the remaining time; nothing if that is not a terminal.

    With `paced`, the pace is given with `show` instead of the remaining time.
    """

    def __init__(self, label: str, total: int, done: int = 0, paced: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Columns

        self._columns = Columns(
            TextColumn("{task.description}"),
            BarColumn(complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}") if paced else TimeRemainingColumn(),
            console=_errors(),
            disable=not is_terminal(sys.stderr),
            **TRANSIENT,
        )
        self._task = self._columns.add_task(label, total=total, completed=done, pace="")

    def __enter__(self) -> Self:
        self._columns.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._columns.stop()

    def advance(self) -> None:
        self._columns.advance(self._task)


class RowProgress(Bar):
    """The progress of a batch, on standard error: a bar if that is a terminal, else a line now and then."""

    def __init__(self, run: Run, by_video: bool = False) -> None:
        """
        Args:
            by_video: a row is named by its video, not by its line.
        """
        super().__init__("loading the model", run.total, run.done, paced=True)
        self._run, self._by_video = run, by_video
        self._failures = 0
        self._warnings: set[str] = set()
        # The time of the last line; counted from the first record, when the model is loaded.
        self._told: float | None = None

    def __enter__(self) -> Self:
        if self._columns.disable:
            run = self._run
            before = f", {units.count(run.done)} of them done before" if run.done else ""
            videos = len({group[0].video for group in run.groups})
            on = f" on {units.plural(videos, 'video')}" if videos else ""
            output.say(f"{units.plural(run.total, 'row')}{before}; {units.count(run.to_do)} to answer{on}.")
        return super().__enter__()

    def show(self, record: Mapping[str, Any]) -> None:
        """Count one more record, and report its error and its warnings unless there were too many before."""
        run = self._run
        if self._told is None:
            self._told = time.monotonic()
        if "error" in record:
            self._failures += 1
            if self._failures <= FAILURES_TOLD:
                self._say(self._where(record, record["error"]["message"]))
            if self._failures == FAILURES_TOLD + 1:
                self._say("Further failures are only noted in the records.")
        for warning in record.get("warnings", ()):
            if warning not in self._warnings and len(self._warnings) < FAILURES_TOLD:
                self._warnings.add(warning)
                self._say(f"warning: {self._where(record, warning)}")
        to_go = "" if run.seconds_to_go is None else f", {units.duration(run.seconds_to_go)} to go"
        pace = f"{_rate(run.videos_a_minute)} videos a minute{to_go}"
        self._columns.update(self._task, description="answering", completed=run.done, pace=pace)
        if self._columns.disable and time.monotonic() - self._told > TOLD_EVERY:
            self._told = time.monotonic()
            output.say(f"{units.count(run.done)} of {units.plural(run.total, 'row')}, {pace}.")

    def summarise(self) -> None:
        """Report the outcome of the run."""
        run = self._run
        answered = run.answered + run.answered_before
        parts = [f"{units.count(answered)} of {units.plural(run.total, 'row')} answered"]
        if run.answered_before:
            parts[0] += f" ({units.count(run.answered_before)} before)"
        if run.unanswered:
            kinds = [f"{units.count(number)} {kind}" for kind, number in sorted(run.failed.items())]
            if run.failed_before:
                kinds.append(f"{units.count(run.failed_before)} before; --retry-failed tries them again")
            parts.append(f"{units.count(run.unanswered)} failed ({', '.join(kinds)})")
        if run.videos:
            parts.append(f"{units.plural(len(run.videos), 'video')} in {units.duration(run.seconds)}")
            parts.append(f"{_rate(run.videos_a_minute)} videos a minute")
        output.say(", ".join(parts) + ".")
        if run.records is not None and run.records.others:
            others = units.plural(run.records.others, "record")
            output.say(f"{run.records.path} keeps {others} of rows that the input does not have.")

    def _where(self, record: Mapping[str, Any], sentence: str) -> str:
        """The sentence, with the row that it is about."""
        named = record["row"]["video"] if self._by_video else f"line {record['line']}"
        return sentence if sentence.startswith(named) else f"{named}: {sentence}"

    def _say(self, sentence: str) -> None:
        if self._columns.disable:
            output.say(sentence)
        else:
            self._columns.console.print(output.shown(f"flashvlm: {sentence}", sys.stderr), soft_wrap=True)


def _errors() -> Console:
    """Standard error, for what moves on it."""
    return Console(
        stderr=True, theme=THEME, highlight=False, markup=False, color_system=None if is_plain(sys.stderr) else "auto"
    )


def _rate(number: float) -> str:
    """The number with three significant digits, or as a whole number: `9.31`, `92.4`, `2,120`."""
    return units.count(round(number)) if number >= 99.95 else f"{number:.3g}"


def print_table(title: str, columns: Mapping[str, Sequence[str]], keys: int = 1) -> None:
    """Print a title and columns of equal length, by their heads, on standard output.

    A column is right-aligned if any of its entries begins with a digit or sign, and left out if all are empty. Columns
    that do not fit beside one another go on below, with the first `keys` of them, which say what a row is, once more.
    """
    padded = []
    for head, cells in columns.items():
        if any(cells):
            width = max(map(len, (head, *cells)))
            figures = any(cell[:1].isdigit() or cell[:1] in "+-−" for cell in cells if cell)
            padded.append([cell.rjust(width) if figures else cell.ljust(width) for cell in (head, *cells)])
    lines = [Text(line, "title") for line in textwrap.wrap(title, WIDTH_OF_TABLES)]
    for block in _blocks(padded, keys, WIDTH_OF_TABLES):
        heads, *rows = ((" " * GAP).join(cells) for cells in zip(*block, strict=True))
        lines += [Text(heads, "label"), *map(Text, rows), Text()]
    _print(lines, sys.stdout)


def print_remark(text: str) -> None:
    """Print a remark on a table below it."""
    _print([*(Text(line, "aside") for line in textwrap.wrap(text, WIDTH_OF_TABLES)), Text()], sys.stdout)


def _blocks(columns: list[list[str]], keys: int, width: int) -> list[list[list[str]]]:
    """Columns of cells of one width each, in blocks of at most `width`, each with the first `keys` of the columns."""
    first, blocks = columns[:keys], [list(columns[:keys])]
    for column in columns[keys:]:
        taken = sum(len(one[0]) + GAP for one in blocks[-1])
        if taken + len(column[0]) > width and len(blocks[-1]) > keys:
            blocks.append(list(first))
        blocks[-1].append(column)
    return blocks


def print_summary(answer: Answer) -> None:
    """Print the model, what was kept of the video, where it lies in time, what that saved and how long it took."""
    width = min(_width(), WIDEST)
    content = width - BEFORE
    lines: list[Text] = [Text(), _title(answer, width), Text()]
    lines += _facts(answer, content)
    lines.append(Text())
    lines += _savings(
        [
            ("tokens", answer.tokens, units.count),
            ("KV cache", answer.kv_cache_bytes, lambda number: units.scaled(number, "B")),
            ("prefill", answer.prefill_flops, lambda number: units.scaled(number, "FLOP")),
        ],
        content,
    )
    lines.append(Text())
    lines += _moments(answer, content)
    lines.append(Text())
    lines += _times(answer, content)
    if answer.check is not None:
        lines += [Text(), *_labelled("check", _flow(_check(answer.check, answer), content))]
    _print(lines, sys.stderr, width)


def print_inspections(seen: Sequence[Inspection]) -> None:
    """Print what was kept of the video and where it lies in time; several selectors are also compared in a table."""
    first, width = seen[0], min(_width(sys.stdout), WIDEST)
    content = width - BEFORE
    lines = [_title(first, width), Text(), *_facts(first, content), Text()]
    lines += _savings([("tokens", first.tokens, units.count)], content)
    for one in seen:
        lines += [Text(), *_moments(one, content)]
    _print([*lines, Text()], sys.stdout, width)
    if len(seen) > 1:
        shared = [units.percent(overlap(first, one), one.tokens.after) for one in seen[1:]]
        print_table(
            "Selectors side by side",
            {
                "selector": [one.selection.selector for one in seen],
                "kept": [units.count(one.tokens.after) for one in seen],
                "for the question": [
                    units.count(one.selection.important) if distinguishes(one) else "" for one in seen
                ],
                "radius": [f"{one.selection.delta:.3f}" for one in seen],
                f"also kept by {first.selection.selector}": ["", *shared],
            },
        )


def print_written(paths: Sequence[Path], stream: TextIO) -> None:
    """Say which files were written."""
    labels = ["written", *[""] * len(paths)]
    sizes = [units.scaled(path.stat().st_size, "B") for path in paths]
    lines = [
        _line(label, [(str(path), "value"), (f"  {size}", "aside")])
        for label, path, size in zip(labels, paths, sizes, strict=False)
    ]
    if lines:
        _print([Text(), *lines] if stream is sys.stderr else lines, stream)


def print_greeting(video: VideoFacts, model: str) -> None:
    """Print the facts of the video and the model at the beginning of a chat, and how to get help."""
    print_facts(video, model)
    print_note("/help lists the commands, Ctrl-D ends")


def print_facts(video: VideoFacts, *others: str) -> None:
    """Print the facts of the video, and others, on a line of standard error."""
    _print(_flow(_plain(*_video_facts(video, _width()), *others), _width()), sys.stderr, _cut())


def print_brief(answer: Answer) -> None:
    """Print tokens and times of the answer on a line of standard error."""
    took = answer.seconds
    facts = [
        f"{units.count(answer.tokens.after)} of {units.plural(answer.tokens.before, 'token')}",
        f"first token {units.seconds(took.time_to_first_token)}",
        f"all {units.plural(answer.generated_tokens, 'token')} {units.seconds(took.total)}",
    ]
    if answer.check is not None:
        facts.append(f"the unpruned model {'says the same' if answer.check.same else 'differs'}")
    _print(_flow([[(fact, "aside")] for fact in facts], _width()), sys.stderr, _cut())


def print_note(text: str) -> None:
    """Print a remark on standard error."""
    # Not cut at the terminal's width: it may contain a path.
    _print([Text(text, "aside")], sys.stderr)


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names on standard error, and about each a text, in a column."""
    _print(_described([(Text(name, "value"), about) for name, about in rows], "", sys.stderr), sys.stderr, _cut())


def print_models(models: Sequence[Mapping[str, Any]]) -> None:
    """Print the aliases with their sources, and whether they are on this machine; if piped, each on one line."""
    width = max(len(model["alias"]) for model in models) + GAP
    states = ["✓ here" if model["present"] else "incomplete" * model["incomplete"] for model in models]
    state_width = max(len("✓ here"), *map(len, states)) + GAP
    rows = []
    for model, state in zip(models, states, strict=True):
        there = (state.ljust(state_width), "saved" if model["present"] else "aside")
        source = "built in" if model["bundled"] else model["source"]
        rows.append((Text.assemble((model["alias"].ljust(width), "value"), there, source), model["description"]))
    _print(_described(rows, "aside", sys.stdout), sys.stdout)


# What is so of a family that is served in this way.
WAYS = {
    "own": "Has a file of its own: fast pixels and vision encoder, saliency, and reuse of repeated moments. Checked "
    "against transformers: pixels, prompt, logits and words; what is dropped is as if hidden.",
    "general": "The general way, with torchvision (flashvlm[any]): the checkpoint's own processor; all tokens are "
    "equally salient. Checked against transformers: prompt, logits and words; what is dropped is as if hidden (except "
    "in layers that carry on a state: qwen3_5).",
}
OTHERS = (
    "Any other class of transformers that takes mm_encoder_outputs is served in the general way, too, but is not "
    "checked: an answer says so."
)


def print_families(families: Sequence[Mapping[str, str]]) -> None:
    """Print the families that are served, by the way in which they are."""
    wide, width = max(len(family["family"]) for family in families) + GAP, _width(sys.stdout)
    lines: list[Text] = []
    for way, about in WAYS.items():
        lines += [Text(line, "aside") for line in textwrap.wrap(about, width, break_on_hyphens=False)]
        lines += [
            Text.assemble(" " * GAP, (family["family"].ljust(wide), "value"), family["model_class"])
            for family in families
            if family["way"] == way
        ]
        lines.append(Text(""))
    lines += [Text(line, "aside") for line in textwrap.wrap(OTHERS, width, break_on_hyphens=False)]
    _print(lines, sys.stdout)


def _described(rows: Sequence[tuple[Text, str]], style: str, stream: TextIO | None) -> list[Text]:
    """Heads with a text about each: beside them in a column or, on a narrow terminal, below."""
    before = max(head.cell_len for head, _ in rows) + GAP
    room = _width(stream) - before if is_terminal(stream) else sys.maxsize
    if room < WIDE_ENOUGH:
        before, room = 2 * GAP, max(_width(stream) - 2 * GAP, NARROWEST)
    lines = []
    for head, about in rows:
        parts = textwrap.wrap(about, room, break_on_hyphens=False)
        first = parts.pop(0) if parts and head.cell_len < before else ""
        lines.append(Text.assemble(head, " " * (before - head.cell_len), (first, style)))
        lines += [Text.assemble(" " * before, (part, style)) for part in parts]
    return lines


def _title(answer: Seen, width: int) -> Text:
    model = answer.model
    facts = f" {model.family} · {model.device} · {model.dtype} ──"
    room = width - len(facts) - 6
    name = model.name if len(model.name) <= room else "…" + model.name[len(model.name) - room + 1 :]
    rule = "─" * (width - len(facts) - len(name) - 4)
    return Text.assemble(("── ", "axis"), (name, "title"), (f" {rule}{facts}", "axis"))


def _facts(answer: Seen, width: int) -> list[Text]:
    sampled = _plain(f"{units.plural(answer.frames, 'frame')} in {units.plural(len(answer.moments), 'moment')}")
    if answer.video.fps and not answer.videos:
        first, last = (
            units.timestamp(at) for at in (answer.moments[0].timestamps[0], answer.moments[-1].timestamps[-1])
        )
        sampled.append([(f"{first} to {last}" if answer.frames > 1 else f"at {first}", "")])
    small = sum(moment.small for moment in answer.moments)
    if small:
        full = f"{units.count(len(answer.moments) - small)} at full size"
        sampled.append([(full, "value"), (f", {units.count(small)} small", "aside")])
    repeated = sum(moment.like is not None for moment in answer.moments)
    if repeated:
        encoded = f"{units.count(len(answer.moments) - repeated)} encoded"
        sampled.append([(encoded, "value"), (f", {units.count(repeated)} like an earlier one", "aside")])
    named = {f"video {number}": video for number, video in enumerate(answer.videos, 1)} or {"video": answer.video}
    lines = []
    for label, video in named.items():
        lines += _labelled(label, _flow(_plain(*_video_facts(video, width)), width))
    lines += _labelled("looked at", _flow(sampled, width))
    if said := getattr(answer, "subtitles", 0):
        lines += _labelled("subtitles", _flow(_plain(f"{units.plural(said, 'line')} with the question"), width))
    return lines


def _video_facts(video: VideoFacts, width: int) -> list[str]:
    name = Path(video.path).name
    facts = [name if len(name) <= width else name[: width - 1] + "…", f"{video.width} × {video.height}"]
    if video.fps:
        facts += [units.timestamp(video.duration), f"{video.fps:.4g} fps"]
    else:
        facts.append("still")
    if video.rotation:
        facts.append(f"turned {video.rotation}°")
    return facts


def _savings(figures: Sequence[tuple[str, BeforeAfter, Callable[[int], str]]], width: int) -> list[Text]:
    """Each figure before and after, and the remaining share as a number and as a bar."""
    befores = [form(pair.before) for _, pair, form in figures]
    afters = [form(pair.after) for _, pair, form in figures]
    shares = [units.percent(pair.after, pair.before) for _, pair, _ in figures]
    factors = [units.factor(pair.before, pair.after) for _, pair, _ in figures]
    factors = [f"{factor} less" if factor else "" for factor in factors]
    widths = [max(map(len, column)) for column in (befores, afters, shares, factors)]
    room = width - sum(widths) - len(" → ") - 3 * GAP
    lines = []
    for row, (label, pair, _) in enumerate(figures):
        if room + GAP < 0:
            pieces = [f"{befores[row]} → {afters[row]}", shares[row], factors[row]]
            styled = zip(pieces, ("value", "kept", "saved"), strict=True)
            lines += _labelled(label, _flow([[piece] for piece in styled if piece[0]], width))
            continue
        text = Text.assemble(
            (befores[row].rjust(widths[0]), ""),
            (" → ", "label"),
            (afters[row].ljust(widths[1]), "value"),
            "  ",
            (shares[row].rjust(widths[2]), "kept"),
        )
        if room >= FEWEST_BAR_CELLS:
            text.append_text(Text.assemble("  ", *charts.share_bar(pair.after, pair.before, room)))
        text.append_text(Text.assemble("  ", (factors[row].rjust(widths[3]), "saved")))
        lines += _labelled(label, [text])
    return lines


def _moments(answer: Seen, width: int) -> list[Text]:
    """The kept tokens along the video's time, with a legend."""
    chosen = answer.selection
    apart = distinguishes(answer)
    drawn = charts.columns(answer.moments, apart, width, CHART_HEIGHT)
    name, number = ("important", chosen.important) if apart else ("kept", answer.tokens.after)
    above = [""] * (len(drawn.above) - 2) + [name, units.count(number)]
    below = ["diverse", units.count(chosen.diverse)] + [""] * len(drawn.below)
    meaning = [[(f"by {chosen.selector}", "")]]
    if apart:
        meaning += [[("▲ for the question", "important")], [("▼ for coverage", "diverse")]]
    peak = _peak(answer, apart)
    if drawn.moments_per_column > 1:
        peak.append([(f"a bar is {drawn.moments_per_column} moments", "aside")])
    radius = [
        [("radius ", ""), (f"δ {chosen.delta:.3f}", "value")],
        [("farthest any token is from a kept one", "aside")],
    ]
    if chosen.little_to_drop:
        radius.append([("little to drop: no token is like another", "value")])
    return [
        *_labelled("kept", _flow(meaning, width)),
        Text(),
        *(_line(label, row, name) for label, row in zip(above, drawn.above, strict=True)),
        _line("", drawn.axis),
        *(_line(label, row, "diverse") for label, row in zip(below, drawn.below, strict=False)),
        Text(),
        *_labelled("peak", _flow(peak, width)),
        *_labelled("coverage", _flow(radius, width)),
    ]


def _peak(answer: Seen, apart: bool) -> list[charts.Row]:
    """How many tokens were kept of the moment with most, and of that with most for the question if it is another."""

    def at(moment: Moment) -> str:
        return f" at {units.timestamp(moment.timestamps[0])}" + (f" of video {moment.video + 1}" * bool(answer.videos))

    most = max(answer.moments, key=lambda moment: moment.kept_count)
    alike = len(answer.moments) > 1 and all(moment.kept_count == most.kept_count for moment in answer.moments)
    told = f"{units.count(most.kept_count)} of {units.plural(most.tokens, 'token')}"
    peak: list[charts.Row] = [[(told + (" at every moment" if alike else at(most)), "")]]
    asked = answer.moments[opening(answer)]
    if apart and asked.important_count > most.important_count:
        peak.append([(f"{units.count(asked.important_count)} for the question{at(asked)}", "")])
    return peak


def _times(answer: Answer, width: int) -> list[Text]:
    took = answer.seconds
    # What came from the cache was neither decoded nor encoded.
    labels = {stage: stage for stage in TIMED_STAGES}
    if answer.cached:
        labels = {"decode": "cached", **{stage: stage for stage in TIMED_STAGES[2:]}}
    durations = [getattr(took, stage) for stage in labels]
    figures = [units.seconds(duration) for duration in durations]
    widest = max(map(len, figures))
    rows = charts.waterfall(durations, max(took.total, sum(durations)), width - widest - GAP)
    lines = []
    for label, figure, row in zip(labels.values(), figures, rows, strict=True):
        lines.append(_line(label, [(figure.rjust(widest), ""), (" " * GAP, ""), *row]))
    notes = [
        [("first token ", "aside"), (units.seconds(took.time_to_first_token), "value")],
        [(f"all {units.plural(answer.generated_tokens, 'token')} ", "aside"), (units.seconds(took.total), "value")],
        [("model load ", "aside"), (units.seconds(took.load), "")],
    ]
    return [*lines, *_labelled("time", _flow(notes, width))]


def _check(check: Check, answer: Answer) -> list[list[charts.Cell]]:
    """Whether the unpruned model would have said the same, and what it took to find that out."""
    if check.first_difference is None:
        verdict = [[("the unpruned model says the same", "saved")]]
    else:
        place = check.first_difference
        said, unpruned = (repr(text.strip()) if text.strip() else "the end" for text in (place.said, place.unpruned))
        verdict = [
            [("the unpruned model differs", "value"), (f" from token {units.count(place.token + 1)} on", "")],
            [(f"{unpruned} instead of {said}", "value")],
        ]
    price = units.scaled(answer.prefill_flops.before, "FLOP")
    return [
        *verdict,
        [("KL ", ""), (f"{check.kl:.2g}", "value"), (" nats a token", "")],
        [(f"one unpruned prefill ({price}), {units.seconds(check.seconds)} more", "aside")],
    ]


def _flow(items: Iterable[Sequence[charts.Cell]], width: int) -> list[Text]:
    """Lay items out on as few lines as possible; an item longer than a line is broken, between words if possible."""
    lines: list[Text] = []
    for item in items:
        text = Text.assemble(*item)
        if lines and lines[-1].cell_len + 3 + text.cell_len <= width:
            lines[-1].append_text(Text.assemble((" · ", "label"), text))
        else:
            lines += text.wrap(Console(width=width), width)
    return lines


def _labelled(label: str, lines: Sequence[Text]) -> list[Text]:
    return [
        Text.assemble(" " * INDENT, ((label if row == 0 else "").ljust(LABEL_WIDTH + GAP), "label"), line)
        for row, line in enumerate(lines)
    ]


def _line(label: str, row: charts.Row, label_style: str = "label") -> Text:
    return Text.assemble(" " * INDENT, (label.ljust(LABEL_WIDTH + GAP), label_style), *row)


def _width(stream: TextIO | None = None) -> int:
    return max(NARROWEST, Console(file=stream or sys.stderr).width)


def _cut() -> int | None:
    """Where lines on standard error end: a file's have no end."""
    return _width() if is_terminal(sys.stderr) else None


def _plain(*facts: str) -> list[list[charts.Cell]]:
    return [[(fact, "")] for fact in facts]


def _print(lines: Sequence[Text], stream: TextIO | None, width: int | None = None) -> None:
    """Print finished lines, cut at the width, without trailing space, in characters that the stream can encode."""
    if stream is None:
        return
    plain, drawn = is_plain(stream), io.StringIO()
    console = Console(
        file=drawn,
        theme=THEME,
        highlight=False,
        force_terminal=not plain,
        color_system=None if plain else "auto",
        width=width or max((len(line) for line in lines), default=1) + 1,
    )
    for line in lines:
        pieces = ((output.shown(piece.text, stream), piece.style or "") for piece in line.render(console))
        line = Text.assemble(*pieces)
        line.rstrip()
        console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    text = drawn.getvalue()
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(ASCII)
    print(text, end="", file=stream, flush=True)
