"""What a request asks for: the body of `POST /v1/chat/completions`, read and checked. Touches no file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flashvlm.errors import UsageError
from flashvlm.options import FRAME_PIXELS, OPTIONS, AskOptions
from flashvlm.selection import SELECTORS
from flashvlm.serve.refusals import bad, renamed

# The options that a request may set, by name: a new one may lead to files of this machine, and needs a thought first.
SETTABLE = (
    *("keep", "selector", "metric", "merge", "fps", "frames", "max_frames", "start", "end", "max_pixels", "min_pixels"),
    *("encode", "seek", "look", "system", "max_new_tokens", "temperature", "top_p", "top_k", "seed", "check"),
)
# What OpenAI's API calls them; the newer name last.
OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# So many frames cost as much as anybody should ask of a shared machine; Qwen's own practice ends here, too.
MOST_FRAMES = 768
MOST_NEW_TOKENS = 8192
MOST_VIDEOS = 32
MOST_TURNS = 100
# The keys under which a part may have its address, in the order that they are looked for.
PARTS = {"video_url": "video", "input_video": "video", "image_url": "image", "input_image": "image"}


@dataclass(frozen=True)
class Reference:
    """What names a video in a request: an address (`file:`, `data:`, `https:`, `sha256:`, `sample:`).

    `name` is what the client calls it, and what messages call it.
    """

    address: str
    name: str


@dataclass(frozen=True)
class Asked:
    """A question about one or several videos, with its options, and how the answer is to be sent."""

    videos: tuple[Reference, ...]
    question: str
    # The questions before it, each with its answer.
    history: tuple[tuple[str, str], ...]
    options: AskOptions
    model: str | None
    stream: bool
    # Whether the last event of a stream has the usage.
    usage: bool
    # Whether the answer's figures have the kept cells.
    moments: bool


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        Refused: it is none.
    """
    try:
        body = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise bad("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise bad("The body is not a JSON object.")
    return body


def read(body: dict[str, Any], defaults: AskOptions) -> Asked:
    """The question that a body asks.

    Args:
        defaults: what applies unless the request says otherwise.

    Raises:
        Refused: something is missing, or makes no sense.
    """
    for name in ("stream", "moments"):
        if not isinstance(body.get(name) or False, bool):
            raise bad(f"{name} must be true or false.", name)
    if body.get("n") not in (None, 1):
        raise bad("n must be 1: there is one answer to a question.", "n")
    if body.get("stop"):
        raise bad("stop is not supported: an answer ends where the model ends it.", "stop")
    wants = body.get("stream_options") or {}
    if not isinstance(wants, dict):
        raise bad("stream_options must be an object.", "stream_options")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad("model must be a text.", "model")
    system, texts, videos = _messages(body.get("messages"))
    *earlier, question = texts[::2]
    history = tuple(zip(earlier, texts[1::2], strict=True))
    options = options_of(body, defaults)
    if system is not None:
        options = options.changed(system=system)
    stream, usage = bool(body.get("stream")), bool(wants.get("include_usage"))
    return Asked(tuple(videos), question, history, options, model, stream, usage, bool(body.get("moments")))


def options_of(body: dict[str, Any], defaults: AskOptions) -> AskOptions:
    """The options that a body sets, beside the `defaults`.

    Raises:
        Refused: a value makes no sense, alone or with the others, or costs too much.
    """
    given: dict[str, Any] = {}
    for name, value in body.items():
        name = OTHER_NAMES.get(name, name)
        if name not in SETTABLE or value is None:
            continue
        if isinstance(value, dict | list):
            raise bad(f"{name} must be a text or a number.", name)
        if name == "selector" and value not in SELECTORS:
            raise bad(f"selector must be one of {', '.join(SELECTORS)}.", name)
        given[name] = value
        # What the request says takes the place of what cannot stand beside it.
        if (other := OPTIONS[name].instead_of) and body.get(other) is None:
            given.setdefault(other, None)
    try:
        options = defaults.changed(**given)
    except UsageError as error:
        raise bad(renamed(str(error), {}), next(iter(given), None) if len(given) == 1 else None) from None
    sampling = options.sampling
    for name, value, most in (
        ("frames", sampling.frames, MOST_FRAMES),
        ("max_frames", sampling.max_frames, MOST_FRAMES),
        ("max_pixels", options.max_pixels, max(defaults.frame_pixels, FRAME_PIXELS)),
        ("max_new_tokens", options.max_new_tokens, MOST_NEW_TOKENS),
    ):
        if value is not None and value > most:
            raise bad(f"{name} is at most {most} on this server, not {value}.", name)
    return options


def reference(value: Any, param: str, kind: str = "video") -> Reference:
    """A video as a request names it: a bare address, or an object with `url` (or `data` and `format`), and `name`.

    Raises:
        Refused: it is neither.
    """
    name = None
    if isinstance(value, dict):
        name = value.get("name")
        if isinstance(data := value.get("data"), str):
            form = value.get("format") or "mp4"
            value = data if data.startswith("data:") else f"data:{kind}/{form};base64,{data}"
        else:
            value = value.get("url", value.get("file_id"))
    if not isinstance(value, str) or not value.strip():
        raise bad(f"{param} must be an address, or an object with a url.", param)
    if name is not None and not isinstance(name, str):
        raise bad("name must be a text.", param)
    shown = f"the {kind}" if value.startswith(("data:", "sha256:")) else value
    return Reference(value.strip(), name or shown)


def _messages(messages: Any) -> tuple[str | None, list[str], list[Reference]]:
    """The system prompt; questions and their answers in turns, the newest question last; and the videos."""
    if not isinstance(messages, list) or not messages:
        raise bad("messages must be a list of messages.", "messages")
    system: list[str] = []
    turns: list[str] = []
    videos: list[Reference] = []
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise bad("A message has the role system, user or assistant.", f"{param}.role")
        texts, found = _content(message.get("content"), param)
        said = "\n".join(texts).strip()
        if found and role != "user":
            raise bad(f"A message of the role {role} holds text only.", param)
        videos += found
        if role in ("system", "developer"):
            system += texts
        elif (role == "user") == (len(turns) % 2 == 0):
            turns.append(said)
        elif role == "user":
            # A video in one message and the question in the next, say.
            turns[-1] = f"{turns[-1]}\n{said}".strip()
        else:
            raise bad("An answer of the assistant follows a question.", param)
    if len(turns) % 2 == 0 or not all(turns[::2]):
        raise bad("The question is empty: the user's message needs text.", "messages")
    if len(turns) > 2 * MOST_TURNS:
        raise bad(f"There are more than {MOST_TURNS} earlier questions.", "messages")
    if not 1 <= len(videos) <= MOST_VIDEOS:
        what = f"There are more than {MOST_VIDEOS} videos." if videos else "There is no video: give a video_url."
        raise bad(what, "messages")
    return "\n".join(system) if system else None, turns, videos


def _content(content: Any, param: str) -> tuple[list[str], list[Reference]]:
    """The texts and the videos of a message."""
    if content is None:
        return [], []
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, list):
        raise bad("content must be a text or a list of parts.", f"{param}.content")
    texts: list[str] = []
    videos: list[Reference] = []
    for number, part in enumerate(content):
        where = f"{param}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text"):
            if not isinstance(part.get("text"), str):
                raise bad("A part of type text has a text.", where)
            texts.append(part["text"])
        elif kind in PARTS:
            value = part.get(kind, part.get(f"{PARTS[kind]}_url"))
            videos.append(reference(value, f"{where}.{kind}", PARTS[kind]))
        else:
            raise bad(f"A part has the type text, {', '.join(PARTS)}.", f"{where}.type")
    return texts, videos


def _refuse(constant: str) -> None:
    raise ValueError(constant)
