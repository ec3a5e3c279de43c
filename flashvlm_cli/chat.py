"""`flashvlm chat`: question after question about one video."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashvlm.errors import ModelError, UsageError, VideoError, closest
from flashvlm.options import AskOptions, Talk, watching
from flashvlm_cli import output, prompt
from flashvlm_cli.failures import explain
from flashvlm_cli.options import OUTPUT, Server, Yes, ask_options, model_options, options_of, takes
from flashvlm_cli.running import (
    allow_download,
    loaded,
    look_ahead,
    prepare_libraries,
    show_loading,
    standard_input,
    stream_answer,
)
from flashvlm_cli.settings import DEFAULT, SETTINGS, changed, shown, suggested

if TYPE_CHECKING:
    from flashvlm.pipeline import Choice, Watched
    from flashvlm.remote import RemoteChoice, RemoteWatched
    from flashvlm.report import Answer

# The commands besides the settings: name -> its argument, what it does.
COMMANDS = {
    "video": ("PATH", "Look at another video, and forget the questions so far."),
    "forget": ("", "Forget the questions so far."),
    "overlay": ("PATH", "Draw what the last answer kept: .png, .gif, .webp or .mp4."),
    "report": ("PATH", "Write a page to look through what it kept: .html."),
    "summary": ("", "All figures of the last answer."),
    "settings": ("", "What is set."),
    "help": ("", "This list."),
    "quit": ("", "End the chat, as Ctrl-D does."),
}


@takes(options=ask_options(cache=True), talk=options_of(Talk), loading=model_options)
def chat(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, or a still image.")],
    options: AskOptions,
    talk: Talk,
    loading: dict[str, Any],
    server: Server = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line instead of text, errors too.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="The answers only: no figures.", rich_help_panel=OUTPUT)
    ] = False,
    yes: Yes = False,
) -> None:
    """Ask a video question after question.

    The model is loaded once and looks at the video once. It reads the earlier questions and answers; its visual tokens
    are chosen for the newest question alone. The demo models were trained on single questions: with them, and with
    --no-memory, each question stands alone. A line that begins with / is a command, such as /keep 5% or /start 1:00;
    /help lists them. Ctrl-C stops an answer, Ctrl-D ends the chat.

    Lines can be piped in: each question's answer is one line of standard output, empty if there is none; blank lines
    and lines that begin with # are skipped; after a /video that fails, questions get no answer until the next /video;
    the exit code is that of the last line that failed, or 0.
    """
    (video,) = look_ahead([video], options, as_json or quiet, server)
    if server is None:
        prepare_libraries()
        allow_download(loading["model"], loading["revision"], yes)
    session = Chat(options, as_json, quiet, piped=not standard_input().isatty(), memory=talk.memory)
    session.begin(video, loading, server)
    code = session.run(prompt.piped() if session.piped else prompt.typed(session.suggest))
    if code and session.piped:
        raise typer.Exit(code)


class Chat:
    """A loaded model, the video it looks at, and the settings; each line asks a question or is a command."""

    qa: Any
    video: str
    watched: Watched | RemoteWatched

    def __init__(
        self, options: AskOptions, as_json: bool, quiet: bool, piped: bool, memory: bool | None = None
    ) -> None:
        """`memory`: whether the model reads earlier questions; None leaves that to the model."""
        self.options, self.first = options, options
        self.memory = memory
        # The questions so far, with their answers, if they are remembered.
        self.turns: list[tuple[str, str]] = []
        self.as_json, self.piped = as_json, piped
        self.quiet = quiet or sys.stderr is None
        # The last answer, and the tokens that it was made from.
        self.last: tuple[Answer, Choice | RemoteChoice] | None = None
        # The options that `watched` was made with.
        self._looked: AskOptions | None = None
        # With piped lines, the video that could not be looked at: questions must not silently go to the one before it.
        self._missing: str | None = None

    def begin(self, video: str, loading: dict[str, Any], server: str | None = None) -> None:
        """Load the model, or find it on the server, and look at the video.

        Raises:
            ModelError: the model is not available.
            VideoError: the video cannot be read.
            UsageError: options that make no sense, in general or for this video.
        """
        from flashvlm_cli.console import Progress

        with Progress(shown=not self.quiet) as progress:
            show_loading(progress, loading, server)
            self.qa = loaded(loading, server)
            if self.memory is None:
                self.memory = not self.qa.single_turn
            self._look_at(video, progress.stage)
        self._warn_of_video()
        if not self.piped and not self.quiet:
            from flashvlm_cli.console import print_greeting

            print_greeting(self.watched.facts, self.qa.name)

    def run(self, lines: Iterable[str]) -> int:
        """Process the lines and return the exit code of the last one that failed, or 0.

        Raises:
            ModelError: the model is gone.
            OSError: output can no longer be written.
            KeyboardInterrupt: only if lines are piped in, since nobody is there to continue.
        """
        code = 0
        for line in map(str.strip, lines):
            if not line or (self.piped and line.startswith("#")):
                continue
            if line.split()[0].lower() in ("/quit", "/exit"):
                break
            try:
                self.take(line)
            except KeyboardInterrupt:
                if self.piped:
                    raise
                self._note("Stopped.")
            except (ModelError, OSError):
                raise
            except Exception as error:
                failure = explain(error)
                failure = replace(failure, message=_named(failure.message))
                code = failure.exit_code
                about = {"command" if line.startswith("/") else "question": line}
                output.fail(failure, self.as_json, about)
        return code

    def take(self, line: str) -> None:
        """Answer a question, or execute a line that begins with /."""
        if not line.startswith("/"):
            self._ask(line)
            return
        name, text = (*line[1:].strip().split(maxsplit=1), "", "")[:2]
        name = name.lower()
        if name in SETTINGS:
            self._set(name, text)
        elif name in COMMANDS:
            getattr(self, f"_{name}")(text)
        else:
            meant = closest(name, (*SETTINGS, *COMMANDS))
            suggestion = f"did you mean /{meant}? " if meant else ""
            raise UsageError(f"There is no command /{name}; {suggestion}/help lists what there is.")

    def suggest(self, line: str) -> list[str]:
        """Completions of a line that begins with /; there are none for questions."""
        if not line.startswith("/"):
            return []
        name, space, text = line[1:].partition(" ")
        if not space:
            return [
                f"/{command} " if command in SETTINGS or COMMANDS[command][0] else f"/{command}"
                for command in (*SETTINGS, *COMMANDS)
                if command.startswith(name)
            ]
        values = (
            suggested(name, text)
            if name in SETTINGS
            else _paths(text)
            if name in ("video", "overlay", "report")
            else ()
        )
        return [f"/{name} {value}" for value in values]

    def _ask(self, question: str) -> None:
        from flashvlm_cli.console import Progress, print_brief

        if self.as_json:
            output.print_line(self._answer(question).to_json())
            return
        with Progress(shown=not self.quiet) as progress:
            answer = stream_answer(
                lambda on_text: self._answer(question, on_text, progress.stage),
                before_first=progress.give_way,
                one_line=self.piped,
            )
        self._warn(answer.warnings)
        if not self.quiet:
            print_brief(answer)

    def _answer(
        self,
        question: str,
        on_text: Callable[[str], None] = lambda text: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Answer:
        try:
            question.encode()
        except UnicodeEncodeError:
            raise UsageError("This line is not text.") from None
        if self._missing is not None:
            raise VideoError(f"There is no answer, because {self._missing!r} could not be looked at.")
        if self._looked is None or watching(self._looked) != watching(self.options):
            self._look_at(self.video, on_stage)
        choice = self.qa.choose(self.watched, question, self.options, on_stage=on_stage)
        answer = self.qa.respond(choice, history=self.turns, on_text=on_text, on_stage=on_stage)
        self.last = answer, choice
        if self.memory:
            self.turns.append((question, answer.answer))
        # The time of looking at the video counts for this answer only, not for the next ones.
        self.watched = self.watched.again()
        return answer

    def _look_at(self, video: str, on_stage: Callable[[str], None]) -> None:
        watched = self.qa.watch(video, self.options, on_stage=on_stage)
        self.video, self.watched, self._looked = video, watched, self.options

    def _set(self, name: str, text: str) -> None:
        if text:
            options = changed(self.options, name, text, self.first)
            if options.sampling != self.options.sampling and self._missing is None:
                from flashvlm.video import choose_frames

                # Refuse a part that the video does not have now, not at the next question.
                choose_frames([0.0], self.watched.facts.duration, options.sampling)
            self.options = options
        self._note(f"{name} is {shown(self.options, name)}.")

    def _video(self, text: str) -> None:
        from flashvlm_cli.console import Progress, print_facts

        if not text:
            missing = f"{self._missing!r} could not be looked at."
            self._note(f"The video is {self.video}." if self._missing is None else missing)
            return
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        path = os.path.expanduser(text[1:-1] if quoted and not os.path.exists(text) else text)
        self._missing = path if self.piped else None
        try:
            (path,) = look_ahead([path], self.options, self.quiet or self.as_json)
            with Progress(shown=not self.quiet and not self.as_json) as progress:
                self._look_at(path, progress.stage)
        except (VideoError, UsageError) as error:
            if self.piped:
                raise
            raise type(error)(f"{error} The video is still {self.video}.") from error
        self._missing = None
        self.turns.clear()
        self._warn_of_video()
        if not self.quiet:
            print_facts(self.watched.facts)

    def _forget(self, text: str) -> None:
        self.turns.clear()
        self._note("The next question stands alone.")

    def _overlay(self, text: str) -> None:
        from flashvlm import overlay
        from flashvlm.files import OVERLAYS

        answer, _ = self._answered()
        if not text:
            raise UsageError(f"/overlay takes a file that ends in {', '.join(OVERLAYS)}.")
        path = self._drawn(lambda: overlay.write(Path(text).expanduser(), [answer]))
        self._note(f"What was kept is drawn in {path}.")

    def _report(self, text: str) -> None:
        from flashvlm import page
        from flashvlm.files import REPORTS

        answer, choice = self._answered()
        if not text:
            raise UsageError(f"/report takes a file that ends in {', '.join(REPORTS)}.")
        path = self._drawn(lambda: page.write(Path(text).expanduser(), [self.qa.inspect(choice)], answer))
        self._note(f"What was kept can be looked through in {path}.")

    def _drawn(self, write: Callable[[], Path]) -> Path:
        """The path of a file that `write` writes, while a spinner says so."""
        from flashvlm_cli.console import Progress

        with Progress(shown=not self.quiet and not self.as_json) as progress:
            progress.stage("overlay")
            return write()

    def _summary(self, text: str) -> None:
        from flashvlm_cli.console import print_summary

        print_summary(self._answered()[0])

    def _answered(self) -> tuple[Answer, Choice | RemoteChoice]:
        if self.last is None:
            raise UsageError("There is no answer yet.")
        return self.last

    def _settings(self, text: str) -> None:
        from flashvlm_cli.console import print_rows

        print_rows([("video", self._missing or self.video), *((name, shown(self.options, name)) for name in SETTINGS)])

    def _help(self, text: str) -> None:
        from flashvlm_cli.console import print_rows

        settings = [(f"/{name} {one.metavar or 'on|off'}", _named(one.help)) for name, one in SETTINGS.items()]
        commands = [(f"/{name} {values}".rstrip(), help) for name, (values, help) in COMMANDS.items()]
        rest = [
            (f"/NAME {DEFAULT}", "Put a setting back to what it was when the chat began."),
            ("anything else", f"A question; {'the model reads earlier ones' if self.memory else 'each stands alone'}."),
            ("Ctrl-C, Ctrl-D", "Stop the answer, end the chat."),
        ]
        print_rows([*settings, *commands, *rest])

    def _note(self, text: str) -> None:
        if not self.quiet:
            from flashvlm_cli.console import print_note

            print_note(text)

    def _warn_of_video(self) -> None:
        """Print the warnings about the video, unless the JSON of the next answer contains them."""
        if not self.as_json:
            self._warn(self.watched.warnings)
            self.watched = replace(self.watched, warnings=())

    def _warn(self, warnings: Iterable[str]) -> None:
        if not self.quiet and not self.as_json:
            for warning in warnings:
                output.warn(warning)


def _named(text: str) -> str:
    """The text, with options named as chat commands (`/keep` for `--keep`)."""
    return re.sub(
        r"--([a-z-]+)",
        lambda option: f"/{option[1]}" if option[1] in SETTINGS or option[1] in COMMANDS else option[0],
        text,
    )


def _paths(text: str) -> Iterator[str]:
    """The files and folders whose paths begin with `text`, folders with a slash; hidden ones only if asked for.

    What cannot be shown as it is is left out: readline prints what it completes.
    """
    folder, beginning = os.path.split(text)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = not beginning and entry.name.startswith(".")
        if entry.name.startswith(beginning) and not hidden and not output.COMMANDS.search(entry.name):
            yield os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
