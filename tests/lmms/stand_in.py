"""What the plugin takes from lmms-eval, as of 0.7.3, for where that is not installed: constraints.txt pins newer PyAV
and protobuf than it allows. `python tests/lmms` runs the plugin in lmms-eval itself.
"""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict

    @property
    def args(self) -> tuple:
        return self.arguments


class lmms:
    is_simple = True

    def __init__(self) -> None:
        self.rank, self.world_size, self.task_dict = 0, 1, {}


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class Content(BaseModel):
    type: str
    text: str | None = None
    url: Any = None
    start_time: float | None = None
    end_time: float | None = None


class Message(BaseModel):
    role: str
    content: list[Content]


class ChatMessages(BaseModel):
    messages: list[Message]


def log_metrics(
    total_elapsed_time: float, total_gen_tokens: int, avg_speed: float, additional_metrics: dict | None = None
) -> None:
    pass


MODULES = {
    "lmms_eval": (),
    "lmms_eval.api": (),
    "lmms_eval.api.instance": (TokenCounts, GenerationResult, Instance),
    "lmms_eval.api.model": (lmms,),
    "lmms_eval.models": (),
    "lmms_eval.models.registry_v2": (ModelManifest,),
    "lmms_eval.models.model_utils": (),
    "lmms_eval.models.model_utils.gen_metrics": (log_metrics,),
    "lmms_eval.protocol": (ChatMessages,),
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in until the test ends."""
    for name, members in MODULES.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)
