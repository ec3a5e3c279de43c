"""A checkpoint's chat template, rendered where it can do no harm.

A chat template is a program that came with the weights: Jinja's sandbox keeps it from files and from Python, but not
from loops without end or texts of any length. So it runs in a process of its own that is bounded, once for each form of
a conversation (with a system prompt or without, after so many earlier turns); the words are then put into what it made.

Run as a script, this file is that process, which imports nothing but Jinja.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

# In the place of a question and of a system prompt while the template is rendered: no template says these of its own.
QUESTION, SYSTEM = "Question-b7c1e0d4", "System-b7c1e0d4"
# In the place of an earlier question and of its answer, by the number of the turn.
EARLIER = ("Question-{}-b7c1e0d4", "Answer-{}-b7c1e0d4")
# What a template may take: seconds of processor time and of waiting, bytes of memory, characters that it makes.
SECONDS, PATIENCE, MEMORY, LONGEST = 5, 20.0, 2**30, 100_000


class ChatTemplate:
    """The prompts that a chat template makes. Rendering begins in the background at once."""

    def __init__(self, tokenizer: Any, folder: Path, part: str = "video") -> None:
        """`tokenizer` has the template, and the special tokens that it may name; `folder` is for errors.

        Args:
            part: what the template calls a part of a message that is a video.
        """
        self._tokenizer, self._folder = tokenizer, folder
        self._rendered: dict[tuple[str, bool, tuple[str, ...], int], Future[str]] = {}
        self._begin(with_system=False, parts=(part,))

    def fill(
        self,
        question: str,
        system: str | None,
        parts: Sequence[str] = ("video",),
        history: Sequence[tuple[str, str]] = (),
    ) -> str:
        """The prompt for this question about videos and pictures, which the conversation's first question is about.

        Args:
            parts: what the template calls each of them.
            history: the earlier questions, each with its answer.

        Raises:
            ModelError: the template is broken, takes too long or too much memory, or has no place for the history.
        """
        earlier = {
            EARLIER[which].format(number): text
            for number, turn in enumerate(history)
            for which, text in enumerate(turn)
        }
        words = {QUESTION: question, SYSTEM: system or "", **earlier}
        rendered = self._begin(system is not None, tuple(parts), len(history)).result()
        if earlier:
            self._check_turns(rendered, [*earlier, QUESTION])
        return re.sub("|".join(words), lambda found: words[found[0]], rendered)

    def _check_turns(self, rendered: str, wanted: Sequence[str]) -> None:
        from flashvlm.errors import ModelError

        # A template that takes answers as texts only would write the notation of a list.
        if re.findall("|".join(wanted), rendered) != list(wanted) or f"'text': '{wanted[1]}'" in rendered:
            raise ModelError(
                f"The chat template in {self._folder} has no place for earlier questions and their answers."
            )

    def writes(self, marker: str, part: str) -> bool:
        """Whether the template writes this marker for such a part of a message."""
        from flashvlm.errors import ModelError

        try:
            return marker in self._begin(with_system=False, parts=(part,)).result()
        except ModelError:
            return False

    def _begin(self, with_system: bool, parts: tuple[str, ...], turns: int = 0) -> Future[str]:
        from flashvlm import aside

        key = self._tokenizer.get_chat_template(), with_system, parts, turns
        if key not in self._rendered:
            self._rendered[key] = aside.begin(partial(self._render, *key), "template")
        return self._rendered[key]

    def _render(self, template: str, with_system: bool, parts: tuple[str, ...], turns: int) -> str:
        from flashvlm.errors import FlashVLMError, ModelError, sentence

        messages = _messages(with_system, parts, turns)
        variables = {**self._tokenizer.special_tokens_map, "messages": messages}
        asked = json.dumps({"template": template, "variables": variables})
        # What this process imports, that one finds; nothing is taken from the folder that it runs in (-P).
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-P", __file__]
        why = "it takes too long or too much memory"
        try:
            child = subprocess.run(
                command, input=asked, capture_output=True, encoding="utf-8", env=environment, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            # Its own bound is far less: the machine is busy, and the next question may try again.
            self._rendered.pop((template, with_system, parts, turns), None)
            child = None
        if child is not None and child.returncode > 0 and "MemoryError" not in child.stderr:
            # Not the template's fault, whose errors are part of the output.
            raise FlashVLMError(f"The chat template could not be rendered: {child.stderr.strip()[-300:]}")
        if child is not None and child.returncode == 0:
            made = json.loads(child.stdout)
            if "text" in made:
                return made["text"]
            why = made["error"]
        raise ModelError(f"The chat template in {self._folder} cannot be used: {sentence(why)}")


def _messages(with_system: bool, parts: tuple[str, ...], turns: int) -> list[dict[str, Any]]:
    """A conversation with markers for its texts; the videos are in its first question."""

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    asked, answered = EARLIER
    earlier = [(said("user", asked.format(n)), said("assistant", answered.format(n))) for n in range(turns)]
    messages = [*(message for turn in earlier for message in turn), said("user", QUESTION)]
    messages[0]["content"] = [*({"type": part} for part in parts), *messages[0]["content"]]
    return [said("system", SYSTEM), *messages] if with_system else messages


def main() -> None:
    """Read a template and its variables from standard input, and write what it makes, or its error, as JSON."""
    asked = json.loads(sys.stdin.buffer.read())
    _bound()
    try:
        text = (
            _environment()
            .from_string(asked["template"])
            .render(**asked["variables"], tools=None, documents=None, add_generation_prompt=True)
        )
        # Half of a surrogate pair is no text.
        text.encode()
        made = {"text": text} if len(text) <= LONGEST else {"error": f"it makes more than {LONGEST} characters"}
    except MemoryError:
        made = {"error": "it takes too much memory"}
    except Exception as error:
        # Templates raise whatever they run into: one for texts only adds a text and a list.
        made = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST]}
    print(json.dumps(made))


def _bound() -> None:
    """Bound this process, where the system can (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates (`_compile_jinja_template`), and as strict."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    from jinja2.utils import Namespace

    class Generation(Extension):
        """What {% generation %} marks is for training: here it is only text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Names(Namespace):
        def __init__(*arguments: Any, **named: Any) -> None:
            names = dict(*arguments[1:], **named)
            for name in names:
                Names.check(name)
            Namespace.__init__(arguments[0], names)

        def __setitem__(self, name: str, value: Any) -> None:
            Names.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: str) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a name may not begin with an underscore: {name!r}")

    def fail(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {
        "raise_exception": fail,
        "strftime_now": lambda wanted: datetime.now().strftime(wanted),
        "dict": lambda *pairs, **named: dict(*pairs, **named),
        "namespace": Names,
    }
    return environment


if __name__ == "__main__":
    main()
