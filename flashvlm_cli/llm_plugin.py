"""A plugin for llm (https://llm.datasette.io): `llm -m flashvlm -a clip.mp4 "What happens?" -o keep 10%`.

llm loads it with every command of its own, so nothing heavy is imported before a question is asked.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import AttachmentPart, TextPart
from pydantic import Field, ValidationInfo, create_model, field_validator

from flashvlm.defaults import LASTING, applying
from flashvlm.errors import UsageError
from flashvlm.options import AskOptions, Loading, Option, checked, watching
from flashvlm_cli.turns import turns

if TYPE_CHECKING:
    from flashvlm import VideoQA
    from flashvlm.pipeline import History, Watched
    from flashvlm.report import Answer

# As llm names the types of files that FFmpeg or Pillow can read.
VIDEOS = (
    "mp4", "quicktime", "x-matroska", "webm", "avi", "x-msvideo", "mpeg", "mp2t", "ogg", "x-flv", "x-ms-wmv", "3gpp",
)  # fmt: skip
PICTURES = ("jpeg", "png", "webp", "gif", "bmp", "x-ms-bmp", "tiff", "avif")
# llm has an option of its own for the system prompt.
OPTIONS = {name: option for name, option in LASTING.items() if name != "system"}
TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool}


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    register(FlashVLM())


class _Checked(llm.Options):
    @field_validator("*", mode="after")
    @classmethod
    def allowed(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        try:
            if value is not None:
                checked(value, OPTIONS[name].kind, OPTIONS[name], name)
        except UsageError as error:
            raise ValueError(str(error)) from None
        # llm checks values again that were checked before.
        return value


def _field(option: Option) -> tuple[Any, Any]:
    kind = str | int | float if option.parse else TYPES.get(option.kind, str)
    return kind | None, Field(default=None, description=option.help)


FIELDS: dict[str, Any] = {name: _field(option) for name, option in OPTIONS.items()}
Settings: Any = create_model("Settings", __base__=_Checked, **FIELDS)


class FlashVLM(llm.Model):
    """One model for llm: which checkpoint answers is its option `model`.

    Options that are not given have the user's own defaults (`flashvlm config`).
    """

    model_id = "flashvlm"
    can_stream = True
    attachment_types = frozenset([f"video/{name}" for name in VIDEOS] + [f"image/{name}" for name in PICTURES])
    Options = Settings

    def __init__(self) -> None:
        # The model that answered last and the videos it looked at, for the next question of `llm chat`.
        self._loaded: tuple[Loading, VideoQA] | None = None
        self._seen: tuple[Any, list[Watched]] | None = None

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Answer the last question of a conversation on all videos and pictures that are attached to it.

        Raises:
            FlashVLMError: anything that the command line would refuse.
        """
        system, history, question, attachments = _conversation(prompt.messages)
        if not attachments:
            raise UsageError("Attach a video or a picture: -a clip.mp4.")
        given = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        set_for_good = {name: default.value for name, default in applying(given).items()}
        values = {"cache": True, **set_for_good, **given} | ({} if system is None else {"system": system})
        loading = Loading(**{name: values.pop(name) for name in vars(Loading()) if name in values})
        memory = values.pop("memory", None)
        options = AskOptions().changed(**values)

        def answer(on_text: Callable[[str], None]) -> Answer:
            qa = self._model(loading)
            remembered: History = history if memory or (memory is None and not qa.single_turn) else ()
            qa.check(question, options, remembered)
            watched = self._watched(qa, attachments, options)
            return qa.answer(watched, question, options, history=remembered, on_text=on_text)

        said = yield from _pieces(answer)
        response.set_usage(input=said.prompt_tokens.after, output=said.generated_tokens)
        about = said.to_json()
        response.response_json = {name: about[name] for name in REPORTED}
        response.set_resolved_model(said.model.name)

    def _model(self, loading: Loading) -> VideoQA:
        from flashvlm import VideoQA
        from flashvlm_cli.running import prepare_libraries

        if self._loaded is None or self._loaded[0] != loading:
            prepare_libraries()
            self._seen = None
            self._loaded = loading, VideoQA.from_pretrained(**vars(loading))
        return self._loaded[1]

    def _watched(self, qa: VideoQA, attachments: list[llm.Attachment], options: AskOptions) -> list[Watched]:
        key = [one.id() for one in attachments], watching(options)
        if self._seen is None or self._seen[0] != key:
            with contextlib.ExitStack() as stack:
                self._seen = key, list(qa.watch([_file(one, stack) for one in attachments], options))
        watched = self._seen[1]
        self._seen = key, [one.again() for one in watched]
        return watched


# What llm stores of an answer besides its text.
REPORTED = ("model", "tokens", "prompt_tokens", "selection", "seconds", "warnings", "versions")


def _conversation(messages: list[Any]) -> tuple[str | None, list[tuple[str, str]], str, list[llm.Attachment]]:
    """The system prompt, the earlier questions with their answers, the newest question, and all that is attached."""
    said, attachments = [], []
    for message in messages:
        said.append((message.role, "\n".join(part.text for part in message.parts if isinstance(part, TextPart))))
        attached = (part.attachment for part in message.parts if isinstance(part, AttachmentPart))
        attachments += [one for one in attached if one is not None]
    return *turns(said), attachments


def _file(attachment: llm.Attachment, stack: contextlib.ExitStack) -> Path:
    """The file of an attachment; one that has none is written into a file that goes with `stack`."""
    if attachment.path:
        return Path(attachment.path)
    file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="flashvlm-"))  # noqa: SIM115
    file.write(attachment.content_bytes())
    file.flush()
    return Path(file.name)


class _Left(Exception):
    """Nobody waits for the answer any more."""


def _pieces(answer: Callable[[Callable[[str], None]], Answer]) -> Generator[str, None, Answer]:
    """The pieces of an answer as they are generated, in a thread of its own; returns the answer."""
    from flashvlm import aside

    pieces: SimpleQueue[str | None] = SimpleQueue()
    left = False

    def take(text: str) -> None:
        if left:
            raise _Left
        pieces.put(text)

    def run() -> Answer:
        try:
            return answer(take)
        finally:
            pieces.put(None)

    future = aside.begin(run, "answer")
    try:
        while (piece := pieces.get()) is not None:
            yield piece
    finally:
        left = True
    return future.result()
