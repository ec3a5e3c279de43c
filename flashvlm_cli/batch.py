"""`flashvlm batch`: many questions about many videos."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashvlm.batch import rows as reading
from flashvlm.batch.table import FIELDS, SEPARATORS, Table
from flashvlm.errors import UsageError
from flashvlm.files import RECORDS
from flashvlm.options import OF_ROWS, OPTIONS, AskOptions, one_of, option
from flashvlm.remote import RemoteVideoQA, check_options
from flashvlm_cli import output
from flashvlm_cli.options import OUTPUT, Server, Yes, ask_options, model_options, options_of, takes
from flashvlm_cli.running import allow_download, loaded, prepare_libraries, standard_input

if TYPE_CHECKING:
    from flashvlm.batch.run import Engine, Run
    from flashvlm.journal import Record

ROWS = "Rows"
RUN = "How it runs"

EXIT_CODES = """\
[bold]Exit codes[/bold]
  0  every row was answered
  1  some were not: their records hold an error; or any other failure
  2  wrong usage, or an input that cannot be read at all
  4  the model is not available
129  the terminal was closed (SIGHUP)
130  interrupted (Ctrl-C); the same command continues where it stopped
141  the reader of standard output closed it (| head)
143  terminated (SIGTERM)
"""


@dataclass(frozen=True)
class Batch:
    """What `batch` takes, besides the rows and the options of `ask`."""

    out: Path | None = option(
        None,
        "Write records here, as lines of JSON (.jsonl) or a table (.csv, .tsv); the same command continues where it "
        "stopped. - is standard output.",
        ROWS,
        metavar="FILE",
        unset="standard output",
        flags=("--output", "-o"),
    )
    questions_file: Path | None = option(
        None,
        "A text file with a question to ask about every video on each line.",
        ROWS,
        metavar="FILE",
        flags=("--questions",),
    )
    fields: tuple[str, ...] | None = option(
        None,
        "The columns of a table: video, question, answer, error, columns of the rows, and what a record has, as in "
        "tokens.after.",
        ROWS,
        metavar="A,B,...",
        unset=",".join(FIELDS),
        parse=lambda text, name: tuple(part.strip() for part in text.split(",") if part.strip()),
    )
    compact: bool = option(False, "Records without moments, which are most of their length.", ROWS)
    retry_failed: bool = option(False, "Try rows again that failed in an earlier run.", ROWS)
    engine: str = option(
        "here", "here: one process; ray: workers on a Ray cluster.", RUN, metavar="WHICH", **one_of("here", "ray")
    )
    ray_address: str | None = option(
        None, "The cluster of --engine ray.", RUN, metavar="ADDR", unset="$RAY_ADDRESS, or this machine"
    )
    workers: int | None = option(
        None,
        "Worker processes of --engine ray, each with a model.",
        RUN,
        metavar="N",
        unset="one per GPU or, without GPUs, per machine",
    )
    quiet: bool = option(False, "No progress and no summary.", OUTPUT, flags=("--quiet", "-q"))


@takes(own=options_of(Batch), options=ask_options(cache=True), loading=model_options)
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="A .jsonl or .csv file with video and question (- reads standard input); or videos, patterns and "
            "folders (- reads a list of paths), with --question.",
        ),
    ],
    options: AskOptions,
    loading: dict[str, Any],
    own: Batch,
    server: Server = None,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            help="What to ask about every video; may be given several times.",
            show_default=False,
            rich_help_panel=ROWS,
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Answer many questions about many videos, with one line of JSON, or a row of a table, each.

    The model is loaded once, and every video is decoded and encoded once. A row that fails gives a record with its
    error. The columns keep, selector, start and end are options of their row; all columns are returned under "row".
    """
    from flashvlm.batch.plan import make_plan
    from flashvlm.batch.records import Records
    from flashvlm.batch.run import Run

    questions = [*(questions or []), *(reading.questions_of(own.questions_file) if own.questions_file else [])]
    asked, folder = read_rows(inputs, questions)
    out, table = written_to(own, asked)
    if server is not None and own.engine != "here":
        raise UsageError("Give --engine ray or --server, not both.")
    if own.retry_failed and out is None:
        raise UsageError("--retry-failed is for records in a file: give it with -o.")
    model = {name: loading[name] for name in ("model", "revision", "dtype")}
    if server is None:
        answers = chosen_engine(own.engine, loading, own.ray_address, own.workers)
        prepare_libraries()
    else:
        check_options(options)
        answers, model = asked_elsewhere(loading, server)
    plan = make_plan(asked, options, model, folder)
    if not own.quiet:
        warn_of_columns(asked)
    opened = Records(out, plan, retry_failed=own.retry_failed, table=table) if out else contextlib.nullcontext()
    with opened as records:
        run = Run(plan, records, own.compact)
        # Workers of a cluster have models of their own.
        if run.groups and own.engine == "here" and server is None:
            allow_download(loading["model"], loading["revision"], yes)
        for record in told(run, answers, own.quiet, by_video=bool(questions)):
            if records is None:
                output.print_line(record)
    if run.unanswered:
        raise typer.Exit(1)


def written_to(own: Batch, rows: Sequence[reading.Row]) -> tuple[Path | None, Table | None]:
    """The file of records, None for standard output, and its columns if it is a table.

    Raises:
        UsageError: its name ends in something else, or the columns make no sense.
    """
    out = None if own.out == Path("-") else own.out
    suffix = out.suffix.lower() if out else ""
    if out and suffix not in RECORDS:
        raise UsageError(f"-o takes a file that ends in {', '.join(RECORDS)}, or -; not {str(out)!r}.")
    if suffix not in SEPARATORS:
        if own.fields is not None:
            raise UsageError("--fields is for a table: give a .csv or .tsv file with -o.")
        return out, None
    table = Table(own.fields or FIELDS, SEPARATORS[suffix])
    table.check(row.columns for row in rows)
    return out, table


def read_rows(inputs: Sequence[str], questions: Sequence[str]) -> tuple[list[reading.Row], Path | None]:
    """The rows, and the folder that their videos are relative to."""
    first = inputs[0]
    of_rows = [name for name in inputs if is_of_rows(name)]
    if not of_rows:
        if not questions:
            raise UsageError(f"{first!r} is taken for a video: give --question TEXT, or rows as .jsonl, .csv or -.")
        if not all(question.strip() for question in questions):
            raise UsageError("The question is empty.")
        return reading.of_videos(inputs, questions), None
    if len(inputs) > 1:
        raise UsageError(f"Rows come from one file; give {of_rows[0]!r} alone.")
    if questions and first != "-":
        raise UsageError("--question is for videos; rows have their own.")
    if questions:
        return reading.of_paths(reading.paths_of(standard_input().buffer.read()), questions), None
    if first == "-":
        return reading.of_stream(standard_input().buffer.read()), None
    return reading.of_file(Path(first)), Path(first).parent


def warn_of_columns(rows: Sequence[reading.Row]) -> None:
    """Warn of a column that is called like an option, but cannot be set for each row."""
    given = [row.columns for row in rows if isinstance(row.columns, dict)]
    meant = sorted(
        name for name in {*OPTIONS} - {*OF_ROWS} if any(columns.get(name) not in (None, "") for columns in given)
    )
    if meant:
        output.warn(f"Nothing is set by the column {', '.join(meant)}: a row can have its own {', '.join(OF_ROWS)}.")


def is_of_rows(name: str) -> bool:
    return name == "-" or Path(name).suffix.lower() in (*reading.JSON_SUFFIXES, *reading.CSV_SUFFIXES)


def chosen_engine(name: str, loading: dict[str, Any], address: str | None, workers: int | None) -> Engine:
    """The engine that answers groups of rows; nothing is loaded before the first group."""
    if name == "ray":
        from flashvlm.batch.cluster import Cluster

        return Cluster(loading, address, workers)
    if address is not None or workers is not None:
        raise UsageError("--ray-address and --workers are for --engine ray.")

    def answer_here(groups: Any) -> Iterator[Record]:
        from flashvlm import VideoQA
        from flashvlm.batch.here import answered

        return answered(VideoQA.from_pretrained(**loading), groups)

    return answer_here


def asked_elsewhere(loading: dict[str, Any], server: str) -> tuple[Engine, dict[str, Any]]:
    """The engine that asks a server, and the model that the server has."""
    from flashvlm.batch.elsewhere import answered

    qa = loaded(loading, server)
    assert isinstance(qa, RemoteVideoQA)
    model = {"model": qa.name, "revision": None, "dtype": qa.about["dtype"], "served": qa.about["weights"]}
    return lambda groups: answered(qa, groups), model


def told(run: Run, engine: Engine, quiet: bool, by_video: bool) -> Iterator[Record]:
    """The records of a run, while showing its progress and then a summary on standard error.

    Args:
        by_video: failures name the video, not the line of the row.
    """
    if quiet or sys.stderr is None:
        yield from run.answer(engine)
        return
    from flashvlm_cli.console import RowProgress

    with RowProgress(run, by_video) as progress:
        for record in run.answer(engine):
            yield record
            progress.show(record)
    progress.summarise()
