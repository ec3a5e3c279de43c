"""With all tokens kept, every family is transformers': its processor's prompts and pixels, its logits, its answers.

transformers' side is `model.generate(**AutoProcessor(...))` and nothing else. It needs torchvision and num2words; where
they are not installed, these tests are skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, load, noise
from oracle import conversation, inputs, processor

from flashvlm import VideoQA
from flashvlm.backends.base import Prompt
from flashvlm.encode import Encoded, encode
from flashvlm.generate import answers
from flashvlm.options import AskOptions

HISTORY = (("Who?", "A cat."), ("Doing what?", "")), (("谁？", "一只猫 🐈‍⬛"),)
QUESTION, CHINESE = "Why is this video funny?", "这个视频里发生了什么？ 🐈‍⬛🎬"


@dataclass(frozen=True)
class Case:
    """A video and what is asked about it. Each frame stands for 0.52 s and appears in the middle of them."""

    name: str
    frames: int
    height: int
    width: int
    question: str = QUESTION
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    @property
    def times(self) -> list[float]:
        return [0.26 + 0.52 * number for number in range(self.frames)]

    @property
    def duration(self) -> float:
        return 0.52 * self.frames


CASES = [
    Case("a still", 1, 90, 160),
    Case("an odd number of frames", 7, 90, 160),
    Case("portrait", 4, 160, 90),
    Case("40 moments", 40, 60, 60),
    Case("Chinese and emoji", 4, 90, 160, CHINESE),
    Case("a system prompt", 4, 90, 160, QUESTION, "Be brief."),
    Case("earlier questions", 4, 90, 160, "Why?", None, HISTORY[0]),
    Case("an earlier question and a system prompt", 3, 90, 160, "Where?", "Be brief.", HISTORY[1]),
]


@dataclass(frozen=True)
class Theirs:
    """How transformers takes a video of a family, and where flashvlm deliberately gives something else."""

    # Whether the frames are handed to its processor as so many pictures.
    pictures: bool = False
    # The name of a case -> why transformers is given flashvlm's positions there.
    positions: dict[str, str] = field(default_factory=dict)
    # The name of a case -> why it cannot be compared: the test must fail there.
    differs: dict[str, str] = field(default_factory=dict)


AS_TRAINED = "text after a long video has the positions of the code that the checkpoints came with"
NO_STILL = {"a still": "transformers' processor refuses a video of one frame"}
OF_FAMILY = {
    "qwen2_vl": Theirs(positions={"40 moments": AS_TRAINED}),
    # Four moments of 1.04 s are 0, 2, 4 and 6 on its time axis, and frames have six columns.
    "qwen2_5_vl": Theirs(positions={"40 moments": AS_TRAINED, "an odd number of frames": AS_TRAINED}),
    "qwen3_vl": Theirs(differs=NO_STILL),
    "qwen3_vl_moe": Theirs(differs=NO_STILL),
    "video_llava": Theirs(differs={"40 moments": "the tiny checkpoint has fewer positions"}),
    "smolvlm": Theirs(),
    "llava_onevision": Theirs(),
    "internvl": Theirs(),
    "llava": Theirs(pictures=True),
}


def cases() -> list[Any]:
    found = []
    for family, theirs in OF_FAMILY.items():
        for case in CASES:
            why = theirs.differs.get(case.name)
            marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
            found.append(pytest.param(family, case, id=f"{family}-{case.name}", marks=marks))
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VideoQA, Any]]:
    """A family's tiny checkpoint and its `AutoProcessor`, loaded once."""
    made: dict[str, tuple[VideoQA, Any]] = {}

    def get(family: str) -> tuple[VideoQA, Any]:
        if family not in made:
            folder: Path = FAMILIES[family](tmp_path_factory.mktemp(family))
            theirs, qa = processor(folder), load(folder)
            if theirs.chat_template is None:
                # The published one of Video-LLaVA is in its README only.
                theirs.chat_template = qa.backend.chat_template
            qa.backend.model.generation_config.eos_token_id = None
            made[family] = qa, theirs
        return made[family]

    return get


def watched(qa: VideoQA, case: Case) -> tuple[torch.Tensor, Encoded, Prompt]:
    """What flashvlm makes of it: the frames that it looks at, its tokens, its prompt."""
    video = noise(case.frames, case.height, case.width)
    frames = torch.stack([qa.backend.fit(frame, AskOptions(), case.frames) for frame in video])
    encoded = encode(qa.backend, frames, seconds_per_frame=0.52, timestamps=case.times, duration=case.duration)
    return frames, encoded, qa.backend.prompt(case.question, case.system, [encoded], case.history)


def given(theirs: Any, family: str, case: Case) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of it."""
    video, pictures = noise(case.frames, case.height, case.width), OF_FAMILY[family].pictures
    parts = [{"type": "image"}] * case.frames if pictures else [{"type": "video"}]
    messages = conversation(case.question, parts, case.system, case.history)
    if pictures:
        return inputs(theirs, messages, images=list(video))
    return inputs(theirs, messages, videos=[video], times=[case.times], durations=[case.duration])


@pytest.mark.parametrize("family, case", cases())
def test_all_tokens_give_what_transformers_gives(family: str, case: Case, loaded: Any) -> None:
    qa, processor = loaded(family)
    theirs = given(processor, family, case)
    frames, encoded, prompt = watched(qa, case)
    assert prompt.ids.tolist() == theirs["input_ids"][0].tolist()
    for name, pixels in qa.backend.pixels(frames).items():
        torch.testing.assert_close(pixels, theirs[name], atol=1e-5, rtol=0)
    planes = None if encoded.planes is None else encoded.planes[:, None]
    everything = torch.arange(len(encoded.tokens))[None], encoded.tokens[None], planes
    ours = qa.backend.inputs(prompt, *everything)
    if case.name in OF_FAMILY[family].positions:
        theirs["position_ids"] = ours["position_ids"]
    settings: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
    with torch.inference_mode():
        logits, expected = (qa.backend.model(**one).logits[:, -1] for one in (ours, theirs))
        print(f"{family}, {case.name}: the logits differ by at most {(logits - expected).abs().max():.1e}")
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        said = qa.backend.model.generate(**theirs, **settings)[0, len(prompt.ids) :]
        assert qa.backend.model.generate(**ours, **settings)[0, len(prompt.ids) :].tolist() == said.tolist()
    text = qa.backend.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert answers(qa.backend, prompt, *everything, max_new_tokens=32) == [text]
    assert len(said) == 32
