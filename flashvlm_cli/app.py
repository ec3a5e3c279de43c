"""The Typer app, and how every run of `flashvlm` ends: one sentence and a documented exit code.

Nothing imported here imports torch, transformers or decord, so that help and usage errors appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from inspect import cleandoc
from typing import Annotated

import typer

from flashvlm.errors import UsageError
from flashvlm_cli import failures, output
from flashvlm_cli.ask import ask
from flashvlm_cli.batch import EXIT_CODES as BATCH_EXIT_CODES
from flashvlm_cli.batch import batch
from flashvlm_cli.bench import bench
from flashvlm_cli.cache import cache
from flashvlm_cli.chat import chat
from flashvlm_cli.config import config
from flashvlm_cli.fetch import fetch
from flashvlm_cli.inspect import inspect
from flashvlm_cli.models import models
from flashvlm_cli.samples import samples

# Set by a shell that asks for completions.
COMPLETING = "_FLASHVLM_COMPLETE"
EXIT_CODES = """\
[bold]Exit codes[/bold]
  0  answered
  1  any other failure (out of memory, say)
  2  wrong usage
  3  the video cannot be read
  4  the model is not available
129  the terminal was closed (SIGHUP)
130  interrupted (Ctrl-C)
141  the reader of standard output closed it (| head)
143  terminated (SIGTERM)
"""

LASTING = """\
Options can be set for good, in the environment (FLASHVLM_KEEP=5%) or in a file: see flashvlm config --help.

"""

app = typer.Typer(
    help="Ask a video a question: keep only the visual tokens that matter for it, and see what that saved.",
    epilog=LASTING + EXIT_CODES,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["--help", "-h"],
        # Absent flags are false. To convert None to that, Typer would import pydantic, which takes a third of the time
        # of a command's help.
        "default_map": dict.fromkeys(("help", "install_completion", "show_completion"), False),
    },
)
app.command(epilog=EXIT_CODES)(ask)
app.command(epilog=EXIT_CODES)(inspect)
app.command(epilog=BATCH_EXIT_CODES)(batch)
app.command()(cache)
app.command(epilog=EXIT_CODES)(chat)
app.command()(config)
app.command()(models)
app.command()(fetch)
app.command()(samples)
app.add_typer(bench, name="bench")
for command in (*app.registered_commands, *bench.registered_commands):
    # Typer keeps the line breaks of a docstring, and would break lines once more where the terminal ends.
    command.help = "\n\n".join(
        " ".join(part.split()) for part in cleandoc(command.callback.__doc__ or "").split("\n\n")
    )


def print_version(wanted: bool) -> None:
    if wanted:
        from flashvlm import __version__

        print(f"flashvlm {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def flashvlm(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `flashvlm` with `arguments` (None: the command line's own) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if COMPLETING in os.environ:
        # Typer wraps the help of options, and a shell would take each line for a completion of its own.
        os.environ["COLUMNS"] = "1000"
    elif os.environ.get("COLUMNS") == "0":
        # A terminal that does not know its size.
        del os.environ["COLUMNS"]
    try:
        if sys.stdout is None:
            raise UsageError("Standard output is closed.")
        # In standalone mode, Typer would print its own errors, in boxes of several lines.
        code = app(args=list(arguments), prog_name="flashvlm", standalone_mode=False) or 0
        if code != failures.INTERRUPTED:
            output.flush()
            return code
        failure = failures.explain(KeyboardInterrupt())
    except (Exception, KeyboardInterrupt) as error:
        failure = failures.explain(error)
    except SystemExit as ended:
        # Typer turns a broken pipe into an exit, and also ends shell completion with one.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        failure = failures.explain(ended.__context__)
    output.fail(failure, as_json=output.json_wanted(arguments))
    return failure.exit_code
