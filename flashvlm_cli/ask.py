"""`flashvlm ask`: one question about one video."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from flashvlm.errors import UsageError
from flashvlm.files import check_video
from flashvlm.options import AskOptions
from flashvlm_cli import output
from flashvlm_cli.options import OUTPUT, Pictures, ask_options, model_options, picture_options, takes

if TYPE_CHECKING:
    from pathlib import Path

    from flashvlm.report import Answer, Inspection, Seen
    from flashvlm_cli.console import Progress

OnText = Callable[[str], None]
OnStage = Callable[[str], None]


@takes(options=ask_options, loading=model_options, pictures=picture_options)
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or a still image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask; - reads it from standard input.")],
    options: AskOptions,
    loading: dict[str, Any],
    pictures: Pictures,
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
    check_video(video)
    pictures.check(video)
    asked = read_question(question)
    silence_libraries()
    inspections: list[Inspection] = []

    def answer_with(on_text: OnText, on_stage: OnStage = lambda stage: None) -> Answer:
        from flashvlm import VideoQA

        loaded = VideoQA.from_pretrained(**loading)
        if pictures.report is None:
            return loaded.ask(video, asked, options, on_text=on_text, on_stage=on_stage)
        watched = loaded.watch(video, options, on_stage=on_stage)
        watched = loaded.look_again(watched, asked, options, on_stage=on_stage)
        choice = loaded.choose(watched, asked, options, on_stage=on_stage)
        inspections.append(loaded.inspect(watched, choice))
        return loaded.respond(watched, choice, on_text=on_text, on_stage=on_stage)

    if as_json:
        answer = answer_with(lambda text: None)
        draw(pictures, [answer], inspections, answer)
        output.print_json(answer.to_json())
    elif quiet or sys.stderr is None:
        answer = stream_answer(answer_with)
        draw(pictures, [answer], inspections, answer)
    else:
        from flashvlm_cli.console import Progress, print_summary, print_written

        with Progress() as progress:
            show_loading(progress, loading)
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


def show_loading(progress: Progress, loading: dict[str, Any]) -> None:
    """Let `progress` follow the loading of the model, and its download if it is not on this machine."""
    from flashvlm.models import present

    progress.stage("load" if present(loading["model"], loading["revision"]) else "fetch")
    loading["on_download"] = lambda done, total: (
        progress.fetched(done, total) if done < total else progress.stage("load")
    )


def draw(
    pictures: Pictures, seen: Sequence[Seen], inspections: Sequence[Inspection], answer: Answer | None = None
) -> list[Path]:
    """Write those files showing what was kept that were asked for, and return their paths."""
    written = []
    if pictures.overlay is not None:
        from flashvlm import overlay

        written.append(overlay.write(pictures.overlay, seen))
    if pictures.report is not None:
        from flashvlm import page

        written.append(page.write(pictures.report, inspections, answer))
    return written


def stream_answer(
    answer_with: Callable[[Callable[[str], None]], Answer],
    before_first: Callable[[], None] = lambda: None,
    one_line: bool = False,
) -> Answer:
    """Print an answer while it is generated; an interrupted one still ends with a newline.

    With `one_line`, exactly one line is printed in any case: an empty one if there is no answer.
    """
    stream = output.AnswerStream(before_first, one_line)
    try:
        answer = answer_with(stream.write)
    except BaseException:
        if stream.started or one_line:
            with contextlib.suppress(OSError):
                stream.finish()
        raise
    if not stream.started:
        stream.write(answer.answer)
    stream.finish()
    return answer


def read_question(text: str) -> str:
    """The question itself, or standard input if it is `-`."""
    if text == "-":
        try:
            text = standard_input().read()
        except UnicodeDecodeError:
            raise UsageError("The question on standard input is not text.") from None
    question = text.strip()
    if not question:
        raise UsageError("The question is empty.")
    return question


def standard_input() -> TextIO:
    """Standard input, which a shell can close.

    Raises:
        UsageError: it is closed.
    """
    if sys.stdin is None:
        raise UsageError("Standard input is closed.")
    return sys.stdin


def silence_libraries() -> None:
    """Keep the libraries' messages, which are for developers, off standard error."""
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
