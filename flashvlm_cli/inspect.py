"""`flashvlm inspect`: what would be kept of a video, or several, without generating an answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashvlm.errors import UsageError
from flashvlm.options import DEFAULT_SELECTOR, TOKENS, AskOptions, some_of
from flashvlm.selection import SELECTORS
from flashvlm_cli import output
from flashvlm_cli.options import (
    OUTPUT,
    More,
    Pictures,
    Yes,
    ask_options,
    model_options,
    options_of,
    takes,
)
from flashvlm_cli.running import (
    allow_download,
    draw,
    look_ahead,
    names_file,
    prepare_libraries,
    read_question,
    show_loading,
)

if TYPE_CHECKING:
    from flashvlm.report import Inspection


@takes(
    options=ask_options("system", "subtitles", "max_new_tokens", "temperature", "top_p", "top_k", "check"),
    loading=model_options,
    pictures=options_of(Pictures),
)
def inspect(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or a still image.")],
    *,
    more: More = [],  # noqa: B006
    options: AskOptions,
    loading: dict[str, Any],
    pictures: Pictures,
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="What the tokens are kept for; - reads it from standard input."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            autocompletion=some_of(SELECTORS),
            help="Selectors side by side, instead of --selector.",
            show_default=False,
            rich_help_panel=TOKENS,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The numbers as JSON, errors too.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing: only write the files.", rich_help_panel=OUTPUT)
    ] = False,
    yes: Yes = False,
) -> None:
    """See which tokens of a video, or of several, are kept, with or without a question; no answer is generated.

    --overlay and --report show it in pictures.
    """
    if compare is not None and options.selector != DEFAULT_SELECTOR:
        raise UsageError("Give --selector or --compare, not both.")
    names = [name.strip() for name in compare.split(",")] if compare is not None else [options.selector]
    choices = [replace(options, selector=name) for name in dict.fromkeys(names)]
    if question is not None and names_file(question):
        more, question = [*more, question], None
    videos = [video, *more]
    videos = look_ahead(videos, options, as_json or quiet)
    pictures.check(videos)
    asked = None if question is None else read_question(question)
    prepare_libraries()
    allow_download(loading["model"], loading["revision"], yes)

    def look(on_stage: Callable[[str], None]) -> list[Inspection]:
        from flashvlm import VideoQA

        loaded = VideoQA.from_pretrained(**loading)
        watched = loaded.watch(videos, options, on_stage=on_stage)
        # Once for all selectors.
        watched = tuple(loaded.look_again(one, asked, options, on_stage=on_stage) for one in watched)
        return [loaded.inspect(loaded.choose(watched, asked, chosen, on_stage=on_stage)) for chosen in choices]

    if as_json or quiet:
        seen = look(lambda stage: None)
        draw(pictures, seen, seen)
        if as_json:
            output.print_json(seen[0].to_json() if compare is None else [one.to_json() for one in seen])
        return

    show(look, loading, pictures)


def show(
    look: Callable[[Callable[[str], None]], list[Inspection]], loading: dict[str, Any], pictures: Pictures
) -> None:
    """Tell on standard error what is being done, and on standard output what would be kept and what was drawn."""
    from flashvlm_cli.console import Progress, print_inspections, print_written

    with Progress() as progress:
        show_loading(progress, loading)
        seen = look(progress.stage)
        progress.stage("overlay")
        written = draw(pictures, seen, seen)
    for warning in seen[0].warnings:
        output.warn(warning)
    print_inspections(seen)
    print_written(written, sys.stdout)
