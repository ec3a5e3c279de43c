"""Chat templates: rendered as transformers would, and bounded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from oracle import conversation
from transformers.utils.chat_template_utils import render_jinja_template

from flashvlm.backends.video_llava import VideoLlava
from flashvlm.errors import ModelError
from flashvlm.models import fetch
from flashvlm.template import ChatTemplate

TEMPLATES = {
    "the demo's": (fetch("demo") / "chat_template.jinja").read_text(),
    "Video-LLaVA's": VideoLlava.chat_template,
    "one with everything": """
        {% set count = namespace(value=0) %}
        {% for message in messages %}
            {% generation %}{{ message.role|upper }}: {{ message.content[-1]['text']|trim }}{% endgeneration %}
            {% set count.value = count.value + 1 %}
            {% if loop.last %}{% break %}{% endif %}
        {% endfor %}
        {{ bos_token }}{{ count.value }}{{ dict(a='é')|tojson }}{{ tools is none }}{{ strftime_now('%Y') }}
        {% if add_generation_prompt %}ASSISTANT:{% endif %}
    """,
}


def chat_template(template: str) -> ChatTemplate:
    tokenizer = SimpleNamespace(get_chat_template=lambda: template, special_tokens_map={"bos_token": "<s>"})
    return ChatTemplate(tokenizer, Path("folder"))


@pytest.mark.parametrize("turns", [0, 1, 11])
@pytest.mark.parametrize("system", [None, "Be\nbrief."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_one_of_transformers(name: str, system: str | None, turns: int) -> None:
    question = r"What's <that>, \1 {{ x }} {% y %} & ümlaut?"
    history = [(f"What is {number}?", rf"\{number} {{{{ x }}}}") for number in range(turns)]
    messages = conversation(question, [{"type": "video"}], system, history)
    theirs, _ = render_jinja_template(
        [messages], chat_template=TEMPLATES[name], add_generation_prompt=True, bos_token="<s>"
    )
    assert chat_template(TEMPLATES[name]).fill(question, system, history=history) == theirs[0]


@pytest.mark.parametrize(
    "template",
    [
        "<video>{{ messages[-1].content[-1].text }}",
        "<video>{% for message in messages if message.role == 'user' %}{{ message.content[-1].text }}{% endfor %}",
        # Answers as texts only.
        "<video>{% for message in messages %}"
        "{{ message.content[-1].text if message.role == 'user' else message.content }}{% endfor %}",
    ],
)
def test_a_template_without_a_place_for_earlier_questions_is_told(template: str) -> None:
    assert chat_template(template).fill("What?", None) == "<video>What?"
    with pytest.raises(ModelError, match=r"^The chat template in folder has no place for earlier questions"):
        chat_template(template).fill("What?", None, history=[("Who?", "A cat.")])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too long"),
        ("{{ 'a' * 20000000000 }}", "too much memory"),
        ("{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "much memory"),
        ("{{ 'a' * 1000000 }}", "more than 100000 characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "underscore"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('Not with videos') }}", r"Not with videos\."),
        ("{{ '\\ud800' }}", "surrogates"),
    ],
)
def test_a_template_that_does_harm_is_stopped(template: str, why: str) -> None:
    with pytest.raises(ModelError, match=rf"^The chat template in folder cannot be used: .*{why}"):
        chat_template(template).fill("What?", None)
