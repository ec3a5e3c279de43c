"""What commands share while they run: their input, the streamed answer, and the files that show what was kept."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from flashvlm import units
from flashvlm.errors import FlashVLMError, ModelError, UsageError
from flashvlm.files import VIDEOS
from flashvlm.libraries import hide_unfit_torchvision
from flashvlm_cli import output
from flashvlm_cli.options import Pictures

if TYPE_CHECKING:
    from pathlib import Path

    from flashvlm import VideoQA
    from flashvlm.options import AskOptions
    from flashvlm.remote import RemoteVideoQA
    from flashvlm.report import Answer, Inspection, Seen
    from flashvlm_cli.console import Progress

# No model reads so many characters, and what is piped in may have no end.
LONGEST_QUESTION = 10_000_000


def prepare_libraries() -> None:
    """Before libraries are loaded: keep their messages, which are for developers, off standard error.

    Raises:
        FlashVLMError: the working directory was removed; torch would abort the process.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FlashVLMError("The working directory does not exist any more.") from None
    except OSError:
        pass
    hide_unfit_torchvision()
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


def look_ahead(videos: Sequence[str], options: AskOptions, quiet: bool = True, server: str | None = None) -> list[str]:
    """Refuse videos that cannot be looked at, before a model is loaded for them; returns their paths.

    What is given by its address is downloaded; unless `quiet`, that is shown on standard error. A `server` looks at
    the files itself.

    Raises:
        VideoError: one is missing, or no video.
        UsageError: the part to look at begins past its end.
    """
    from flashvlm import web

    paths = [fetched(one, quiet) if web.is_address(one) else one for one in videos]
    if server is not None:
        return paths
    from flashvlm import subtitles, video

    for one in paths:
        video.glance(one, options.sampling, video.Limits(options.timeout, options.max_source_pixels))
    if options.subtitles not in (None, subtitles.AUTO):
        subtitles.read(options.subtitles)
    return paths


def fetched(address: str, quiet: bool) -> str:
    """The path of a video that is downloaded."""
    from flashvlm import web
    from flashvlm_cli.console import Progress

    with Progress(shown=not quiet) as progress:
        progress.stage("web")
        return str(web.fetch(address, lambda done, total: progress.fetched(done, total, "web")))


def standard_input() -> TextIO:
    """Standard input, which a shell can close.

    Raises:
        UsageError: it is closed.
    """
    if sys.stdin is None:
        raise UsageError("Standard input is closed.")
    return sys.stdin


def read_question(text: str) -> str:
    """The question itself, or standard input if it is `-`."""
    if text == "-":
        try:
            text = standard_input().read(LONGEST_QUESTION + 1)
        except UnicodeDecodeError:
            raise UsageError("The question on standard input is not text.") from None
        if len(text) > LONGEST_QUESTION:
            raise UsageError(f"The question on standard input has more than {LONGEST_QUESTION} characters.")
    question = text.strip()
    if not question:
        raise UsageError("The question is empty.")
    return question


def names_file(question: str) -> bool:
    """Whether what stands where the question goes is a file, probably a video, or called like one."""
    suffix = os.path.splitext(question)[1]
    return bool(suffix) and (os.path.isfile(question) or (suffix.lower() in VIDEOS and " " not in question))


def allow_download(model: str, revision: str | None, yes: bool) -> None:
    """Tell what has to be downloaded for this model, if anything; at a terminal, ask unless `yes`.

    Raises:
        ModelError: the answer is no, or the model is not available.
    """
    from flashvlm.models import to_download

    wanted = to_download(model, revision)
    if wanted is None:
        return
    size = "the hub does not say how much there is" if wanted.size is None else units.scaled(wanted.size, "B")
    what = "not complete" if wanted.begun else "not"
    told = f"{wanted.hub_id} is {what} on this machine: {size} to download."
    if yes or not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        output.say(told)
    elif not output.agreed(f"{told} Go on? [y/N] ", standard_input()):
        raise ModelError(f"{wanted.hub_id} is not downloaded; --model demo needs no download.")


def loaded(loading: dict[str, Any], server: str | None) -> VideoQA | RemoteVideoQA:
    """The model: loaded here, or that of a server.

    Raises:
        FlashVLMError: it is not available.
    """
    if server is None:
        from flashvlm import VideoQA

        return VideoQA.from_pretrained(**loading)
    from flashvlm.models import DEFAULT_MODEL
    from flashvlm.remote import RemoteVideoQA

    for name, usual in {"revision": None, "device": "auto", "dtype": "auto"}.items():
        if loading[name] != usual:
            raise UsageError(f"--{name} is for a model that is loaded here, and --server asks one elsewhere.")
    return RemoteVideoQA(server, None if loading["model"] == DEFAULT_MODEL else loading["model"])


def show_loading(progress: Progress, loading: dict[str, Any], server: str | None = None) -> None:
    """Let `progress` follow the loading of the model, and its download if it is not on this machine."""
    if server is not None:
        progress.stage("server")
        return
    from flashvlm.models import present

    progress.stage("load" if present(loading["model"], loading["revision"]) else "fetch")
    loading["on_download"] = lambda done, total: (
        progress.fetched(done, total) if done < total else progress.stage("load")
    )


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
