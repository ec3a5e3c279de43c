"""A model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), for public benchmarks at any budget:
`python -m lmms_eval --model flashvlm --model_args pretrained=qwen2-vl-2b,keep=10% --tasks videomme`.

lmms-eval loads it with every model, so nothing heavy of ours is imported before this one is asked for.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from flashvlm.errors import UsageError, known
from flashvlm.models import DEFAULT_MODEL
from flashvlm.options import OPTIONS, AskOptions, Loading, declared
from flashvlm_cli.turns import turns

if TYPE_CHECKING:
    from flashvlm.pipeline import Watched
    from flashvlm.report import Answer

MANIFEST = ModelManifest("flashvlm", chat_class_path=f"{__name__}.FlashVLM")
# What may stand in --model_args. lmms-eval calls the model `pretrained`.
LOADING = {name: option for name, option in declared(Loading).items() if name != "model"}
ARGUMENTS = LOADING | OPTIONS


class FlashVLM(lmms):
    """One model for lmms-eval. Questions on one video, over all tasks, decode and encode it once.

    What the user has set for good (`flashvlm config`) does not apply: results depend on what lmms-eval notes with them.
    """

    is_simple = False

    def __init__(
        self, pretrained: str = DEFAULT_MODEL, batch_size: int | str = 1, max_batch_size: None = None, **given: Any
    ) -> None:
        """Load the model.

        Args:
            pretrained: an alias (`demo`), a Hugging Face id or a checkpoint folder.
            batch_size, max_batch_size: lmms-eval's own. Questions are answered one by one.
            given: any option of `flashvlm ask` or of the model by its name, such as `keep`, `selector` and `dtype`.

        Raises:
            UsageError: there is no such option, or a value makes no sense.
            ModelError: the model is not available.
        """
        super().__init__()
        if str(batch_size) != "1" or max_batch_size is not None:
            raise UsageError("`batch_size` must be 1: flashvlm answers question by question.")
        # lmms-eval makes numbers of whatever looks like one.
        texts = {name for name in given if name in ARGUMENTS and ARGUMENTS[name].kind == "str"}
        values = {known("option", name, tuple(ARGUMENTS)): value for name, value in given.items()}
        values = {name: str(value) if name in texts else value for name, value in values.items()}
        loading = {name: values.pop(name) for name in LOADING if name in values}
        self._options = AskOptions(**values)

        import torch

        from flashvlm import VideoQA

        # accelerate and torchrun start a process for each GPU.
        if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            loading.setdefault("device", f"cuda:{os.environ['LOCAL_RANK']}")
        self._qa = VideoQA.from_pretrained(str(pretrained), **loading)
        # The videos that were looked at last.
        self._seen: tuple[list[Media], list[Watched]] | None = None

    @property
    def device(self) -> Any:
        """Where the model runs, as torch has it; lmms-eval asks for it where there are several processes."""
        return self._qa.backend.device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer each request from a model that sees only the kept tokens.

        Raises:
            FlashVLMError: a document has no video or picture, one cannot be read, or a setting makes no sense. Nothing
                is left out: a score over fewer documents would be another one.
        """
        answers: dict[int, tuple[Answer, str]] = {}
        for place in tqdm(self._by_video(requests), disable=self.rank != 0, desc="flashvlm"):
            answers[place] = self._answer(self._messages(requests[place]), requests[place].args[2])
        _report([answer for answer, _ in answers.values()])
        return [_result(*answers[place]) for place in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answer the rounds of each request: the task makes the messages of one from the answers before it.

        Raises:
            FlashVLMError: as for `generate_until`.
        """
        return [self._rounds(request) for request in tqdm(requests, disable=self.rank != 0, desc="flashvlm")]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: lmms-eval asks models of chat for answers only.

        Raises:
            UsageError: always.
        """
        raise UsageError("flashvlm generates answers and gives no log-likelihoods: choose a task that generates.")

    def _rounds(self, request: Instance) -> list[str]:
        said: list[str] = []
        told: Any = (self._messages(request), False, None, None)
        while isinstance(told, tuple) and not told[1]:
            said.append(self._answer(told[0], request.args[2])[1])
            told = self._messages(request, round_idx=len(said), previous_output=[*said], previous_round_info=told[3])
        return said

    def _messages(self, request: Instance, **about_round: Any) -> Any:
        _, doc_to_messages, _, number, task, split = request.args
        return doc_to_messages(self.task_dict[task][split][number], **about_round)

    def _by_video(self, requests: Sequence[Instance]) -> list[int]:
        """The places of the requests, in an order in which those on one video follow each other."""
        first: dict[Any, int] = {}
        places, in_memory = [], set()
        for place, request in enumerate(requests):
            key: Any = place
            # A task that hands out pictures instead of files takes time for it: they are made when they are needed.
            if request.args[4] not in in_memory:
                media = _asked(self._messages(request)).media
                if all(isinstance(one.source, str) for one in media):
                    key = tuple(media)
                else:
                    in_memory.add(request.args[4])
            places.append(first.setdefault(key, place))
        return sorted(range(len(requests)), key=places.__getitem__)

    def _answer(self, messages: Any, generation: dict[str, Any]) -> tuple[Answer, str]:
        """The answer to the last of the messages, and its text up to what the task says ends it."""
        asked = _asked(messages)
        options = self._options.changed(**_of_task(generation))
        if asked.system is not None:
            options = options.changed(system=asked.system)
        answer = self._qa.answer(self._watched(asked.media), asked.question, options, history=asked.history)
        until = generation.get("until") or []
        text = answer.answer
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, 1)[0] if stop else text
        return answer, text

    def _watched(self, media: list[Media]) -> list[Watched]:
        if not media:
            raise UsageError("flashvlm answers questions on videos and pictures, and this document has none.")
        files = all(isinstance(one.source, str) for one in media)
        if files and self._seen is not None and self._seen[0] == media:
            return [one.again() for one in self._seen[1]]
        self._seen = None
        watched = [self._qa.watch(one.source, self._options.changed(**one.part())) for one in media]
        if files:
            self._seen = media, watched
        return watched


@dataclass(frozen=True)
class Media:
    """A video or a picture: its file or address, or a picture of Pillow; and the part to look at, in seconds."""

    source: Any
    start: float | None = None
    end: float | None = None

    def part(self) -> dict[str, Any]:
        return {name: value for name, value in (("start", self.start), ("end", self.end)) if value is not None}


class _Asked(NamedTuple):
    """What messages ask."""

    system: str | None
    # Earlier questions, each with its answer.
    history: list[tuple[str, str]]
    question: str
    media: list[Media]


def _asked(messages: Any) -> _Asked:
    """What messages of lmms-eval ask. Videos and pictures come before the question, wherever they stand in it."""
    from lmms_eval.protocol import ChatMessages

    media: list[Media] = []
    said: list[tuple[str, str]] = []
    for message in ChatMessages(messages=messages).messages:
        said.append((message.role, "\n".join(part.text for part in message.content if part.type == "text")))
        media += [_media(part) for part in message.content if part.type != "text"]
    return _Asked(*turns(said), media)


def _media(part: Any) -> Media:
    """A part of a message that is no text; lmms-eval takes some videos (.webm) for sound, and a reader can tell."""
    source, start, end = part.url, getattr(part, "start_time", None), getattr(part, "end_time", None)
    if isinstance(source, dict):
        start, end = source.get("video_start", start), source.get("video_end", end)
        source = source.get("url") or source.get("path")
        if source is None:
            raise UsageError(f"flashvlm looks at videos and pictures, and cannot use {part.type} of this kind.")
    return Media(source, start, end)


def _of_task(generation: dict[str, Any]) -> dict[str, Any]:
    """The options that a task sets: how its answers are generated, in the words of transformers.

    Raises:
        UsageError: it asks for a beam search.
    """
    if generation.get("num_beams") not in (None, 1):
        raise UsageError("flashvlm generates without a beam search: `num_beams` must be 1.")
    given = {"max_new_tokens": generation.get("max_new_tokens", generation.get("max_gen_toks"))}
    if generation.get("do_sample") is False or generation.get("temperature") == 0:
        given["temperature"] = 0.0
    else:
        given |= {name: generation.get(name) for name in ("temperature", "top_p", "top_k")}
    return {name: value for name, value in given.items() if value is not None}


def _result(answer: Answer, text: str) -> GenerationResult:
    return GenerationResult(text, TokenCounts(answer.prompt_tokens.after, answer.generated_tokens))


def _report(answers: Sequence[Answer]) -> None:
    """Note with lmms-eval's results what was kept, and how long it took."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    if not answers:
        return
    generated = sum(answer.generated_tokens for answer in answers)
    seconds = sum(answer.seconds.prefill + answer.seconds.generate for answer in answers)

    def mean(value: Callable[[Answer], float]) -> float:
        return statistics.fmean(value(answer) for answer in answers)

    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=generated,
        avg_speed=generated / seconds,
        additional_metrics={
            "visual_tokens": mean(lambda answer: answer.tokens.before),
            "kept_tokens": mean(lambda answer: answer.tokens.after),
            "prefill_seconds": mean(lambda answer: answer.seconds.prefill),
        },
    )
