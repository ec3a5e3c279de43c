"""`flashvlm ask`: one question about one video, or several."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashvlm.errors import UsageError
from flashvlm.options import AskOptions
from flashvlm_cli import output
from flashvlm_cli.options import OUTPUT, More, Pictures, Server, Yes, ask_options, model_options, options_of, takes
from flashvlm_cli.running import (
    allow_download,
    draw,
    loaded,
    look_ahead,
    names_file,
    prepare_libraries,
    read_question,
    show_loading,
    stream_answer,
)

if TYPE_CHECKING:
    from flashvlm.report import Answer, Inspection

OnText = Callable[[str], None]
OnStage = Callable[[str], None]


@takes(options=ask_options(), loading=model_options, pictures=options_of(Pictures))
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or a still image.")],
    *,
    more: More = [],  # noqa: B006
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask; - reads it from standard input.")],
    options: AskOptions,
    loading: dict[str, Any],
    pictures: Pictures,
    server: Server = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of text, errors too.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="The answer only: no summary.", rich_help_panel=OUTPUT)
    ] = False,
    yes: Yes = False,
) -> None:
    """Ask a video a question, or several videos one: the budget is for all of them together.

    The answer goes to standard output, as it is generated; a summary of what was kept and saved goes to standard error.
    """
    videos = [video, *more]
    if names_file(question):
        raise UsageError(f"The question goes last, and {question} is a file.")
    videos = look_ahead(videos, options, as_json or quiet, server)
    pictures.check(videos)
    if server is not None and pictures.report is not None:
        raise UsageError("--report needs a model that is loaded here; without --server it is written.")
    asked = read_question(question)
    if server is None:
        prepare_libraries()
        allow_download(loading["model"], loading["revision"], yes)
    inspections: list[Inspection] = []

    def answer_with(on_text: OnText, on_stage: OnStage = lambda stage: None) -> Answer:
        qa: Any = loaded(loading, server)
        if pictures.report is None:
            return qa.ask(videos if more else videos[0], asked, options, on_text=on_text, on_stage=on_stage)
        qa.check(asked, options)
        watched = qa.watch(videos, options, on_stage=on_stage)
        choice = qa.choose(watched, asked, options, on_stage=on_stage)
        inspections.append(qa.inspect(choice))
        return qa.respond(choice, on_text=on_text, on_stage=on_stage)

    if as_json:
        answer = answer_with(lambda text: None)
        draw(pictures, [answer], inspections, answer)
        output.print_json(answer.to_json())
    elif quiet or sys.stderr is None:
        answer = stream_answer(answer_with)
        draw(pictures, [answer], inspections, answer)
    else:
        show(answer_with, loading, server, pictures, inspections)


def show(
    answer_with: Callable[[OnText, OnStage], Answer],
    loading: dict[str, Any],
    server: str | None,
    pictures: Pictures,
    inspections: list[Inspection],
) -> None:
    """Stream the answer, and tell on standard error what is being done, what was kept, and what was drawn."""
    from flashvlm_cli.console import Progress, print_summary, print_written

    with Progress() as progress:
        show_loading(progress, loading, server)
        answer = stream_answer(
            lambda on_text: answer_with(on_text, progress.stage),
            before_first=progress.give_way,
        )
    for warning in answer.warnings:
        output.warn(warning)
    print_summary(answer)
    if pictures.wanted:
        with Progress() as progress:
            progress.stage("overlay")
            written = draw(pictures, [answer], inspections, answer)
        print_written(written, sys.stderr)
