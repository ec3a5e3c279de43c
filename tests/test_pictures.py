"""Pictures go through a family's own image path: transformers' pixels, prompts, logits and words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, load, noise
from general_checkpoints import GENERAL
from oracle import inputs, processor

from flashvlm import VideoQA
from flashvlm.backends.base import Prompt
from flashvlm.encode import Encoded, encode
from flashvlm.errors import UsageError
from flashvlm.options import AskOptions
from flashvlm.samples import samples_dir

QUESTION, CHINESE = "What does the sign say?", "牌子上写着什么？ 🪧"
SECONDS = 0.52


@dataclass(frozen=True)
class Case:
    """Pictures and videos, in this order, by their number of frames (0: a picture), height and width; a question."""

    name: str
    shown: tuple[tuple[int, int, int], ...]
    question: str = QUESTION
    system: str | None = None

    @property
    def frames(self) -> list[torch.Tensor]:
        """(F, 3, H, W) each."""
        return [noise(max(count, 1), height, width) for count, height, width in self.shown]

    def parts(self, kind: Callable[[int], str]) -> list[dict[str, str]]:
        return [{"type": kind(count)} for count, _, _ in self.shown]


CASES = [
    Case("wide", ((0, 150, 420),)),
    Case("portrait, in Chinese", ((0, 333, 121),), CHINESE),
    Case("small", ((0, 40, 50),)),
    Case("two and a system prompt", ((0, 90, 160), (0, 200, 150)), QUESTION, "Be brief."),
    Case("one between two videos", ((2, 90, 160), (0, 200, 150), (2, 60, 60))),
]
MIXED = CASES[-1]
# Families that are shown pictures as such.
OWN = [family for family in FAMILIES if family != "video_llava"]
# Of classes whose video is pictures to transformers, or that mix them in no way.
UNMIXED = {
    "smolvlm": "transformers' processor gives the pixels of pictures and videos one name",
    "llava": "it knows no videos",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VideoQA, Any]]:
    """A family's tiny checkpoint and its `AutoProcessor`, loaded once."""
    made: dict[str, tuple[VideoQA, Any]] = {}

    def get(family: str) -> tuple[VideoQA, Any]:
        if family not in made:
            folder: Path = (FAMILIES | GENERAL)[family](tmp_path_factory.mktemp(family))
            theirs, qa = processor(folder), load(folder)
            qa.backend.model.generation_config.eos_token_id = None
            made[family] = qa, theirs
        return made[family]

    return get


def looked_at(qa: VideoQA, case: Case) -> list[Encoded]:
    """What flashvlm makes of each."""
    made = []
    for (count, _, _), frames in zip(case.shown, case.frames, strict=True):
        if not count:
            made.append(qa.backend.picture(frames[0], AskOptions()))
            continue
        fitted = torch.stack([qa.backend.fit(frame, AskOptions(), count) for frame in frames])
        made.append(encode(qa.backend, fitted, seconds_per_frame=SECONDS, timestamps=times(count)))
    return made


def times(count: int) -> list[float]:
    return [SECONDS * number for number in range(count)]


def theirs(processor: Any, case: Case) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of all."""
    content = [*case.parts(lambda count: "video" if count else "image"), {"type": "text", "text": case.question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if case.system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": case.system}]})
    videos = [frames for (count, _, _), frames in zip(case.shown, case.frames, strict=True) if count]
    images = [frames[0] for (count, _, _), frames in zip(case.shown, case.frames, strict=True) if not count]
    return inputs(
        processor,
        messages,
        images=images,
        videos=videos,
        times=[times(len(video)) for video in videos],
        durations=[SECONDS * len(video) for video in videos],
    )


def all_of(seen: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The indices, the tokens and the further features of all, for one prompt."""
    tokens, planes = torch.cat([one.tokens for one in seen]), [one.planes for one in seen if one.planes is not None]
    return torch.arange(len(tokens))[None], tokens[None], torch.cat(planes, dim=1)[:, None] if planes else None


def cases() -> list[Any]:
    return [
        pytest.param(family, case, id=f"{family}-{case.name}")
        for family in OWN
        for case in CASES
        if case is not MIXED or family not in UNMIXED
    ]


@pytest.mark.parametrize("family, case", cases())
def test_all_tokens_give_what_transformers_gives(
    family: str, case: Case, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa, processor = loaded(family)
    expected, made = theirs(processor, case), []
    pixels = qa.backend.pixels
    monkeypatch.setattr(qa.backend, "pixels", lambda frames: made.append(pixels(frames)) or made[-1])
    seen = looked_at(qa, case)
    if len(case.shown) == 1:
        # Videos have their own test; of several pictures, some processors pad the smaller ones.
        values = torch.cat([next(iter(one.values())).flatten() for one in made])
        torch.testing.assert_close(values, expected["pixel_values"].flatten(), atol=1e-5, rtol=0)
    prompt = qa.backend.prompt(case.question, case.system, seen)
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    ours = qa.backend.inputs(prompt, *all_of(seen))
    with torch.inference_mode():
        logits, wanted = (qa.backend.model(**one).logits[:, -1] for one in (ours, expected))
        print(f"{family}, {case.name}: the logits differ by at most {(logits - wanted).abs().max():.1e}")
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
        settings: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
        said, words = (qa.backend.model.generate(**one, **settings)[0, len(prompt.ids) :] for one in (ours, expected))
    assert said.tolist() == words.tolist() and len(said) == 32


def pruned(qa: VideoQA, prompt: Prompt, seen: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the prompt with a third of the tokens, and of the whole one in which the others are hidden."""
    everything, tokens, planes = all_of(seen)
    kept = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(1))
    kept = kept[: max(1, len(kept) // 3)].sort().values
    whole = qa.backend.inputs(prompt, everything, tokens, planes)
    part = qa.backend.inputs(prompt, kept[None], tokens[:, kept], None if planes is None else planes[:, :, kept])
    places = prompt.places(kept[None])[0]
    hidden = torch.ones(len(prompt.ids), dtype=torch.bool).index_fill(0, places, False)
    visible = torch.ones(len(hidden), len(hidden)).tril().bool() & ~hidden | torch.eye(len(hidden), dtype=torch.bool)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        expected = qa.backend.model(**whole | {"attention_mask": mask[None, None]}).logits[0, places]
        return qa.backend.model(**part).logits[0], expected


@pytest.mark.parametrize("case", [CASES[0], MIXED], ids=["a picture", "one between two videos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_hides_the_dropped_tokens_and_changes_nothing_else(family: str, case: Case, loaded: Any) -> None:
    qa, _ = loaded(family)
    if family == "video_llava":
        case = replace(case, shown=((0, 40, 50), *case.shown[1:2]))
    seen = looked_at(qa, case)
    torch.testing.assert_close(*pruned(qa, qa.backend.prompt(QUESTION, None, seen), seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm"])
def test_max_pixels_bounds_what_is_seen_of_a_picture(family: str, loaded: Any) -> None:
    backend, picture = loaded(family)[0].backend, noise(1, 150, 200)[0]
    areas = []
    for most in (None, 150 * 140, 70 * 70):
        seen = backend.picture(picture, AskOptions(max_pixels=most))
        areas.append(max(height * width for height, width in seen.grids))
    assert areas[0] >= areas[1] > areas[2]


def test_a_large_picture_is_bounded_unless_more_is_asked_for(loaded: Any) -> None:
    backend, picture = loaded("qwen2_5_vl")[0].backend, torch.zeros(3, 2000, 3000, dtype=torch.uint8)
    sizes = [backend.tiles(picture, AskOptions(max_pixels=most))[0][0, 0].numel() for most in (None, 5_000_000)]
    assert 0.97 * 2_408_448 < sizes[0] <= 2_408_448 and 0.97 * 5_000_000 < sizes[1] <= 5_000_000
    # A full HD screen is seen as it is.
    assert backend.tiles(torch.zeros(3, 1080, 1920, dtype=torch.uint8), AskOptions())[0].shape[2:] == (1092, 1932)


def test_a_template_without_a_place_for_pictures_gets_a_video_of_one_frame(tmp_path: Path) -> None:
    qa = load(FAMILIES["internvl"](tmp_path))
    template = qa.backend.tokenizer.chat_template
    qa.backend.tokenizer.chat_template = template.replace("'image'", "'picture'")
    seen = qa.backend.picture(noise(1, 150, 420)[0], AskOptions())
    assert seen.kind == "video" and seen.grids == ((2, 2),)
    assert "Frame1: <img>" in qa.backend.tokenizer.decode(qa.backend.prompt(QUESTION, None, [seen]).ids)


def test_a_picture_in_tiles_is_cached_and_told(loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    qa, still = loaded("internvl")[0], samples_dir() / "still.jpg"
    first, second = (qa.ask(still, QUESTION, keep=0.5, max_new_tokens=4, cache=True) for _ in range(2))
    assert second.cached and not first.cached and first.moments == second.moments and first.answer == second.answer
    grids = [(moment.grid_height, moment.grid_width) for moment in first.moments]
    assert first.frames == 1 and grids == [(4, 6), (2, 2)]
    assert sum(moment.kept_count for moment in first.moments) == first.tokens.after == 14


def test_a_model_that_cannot_look_twice_says_so_before_it_looks(loaded: Any) -> None:
    with pytest.raises(UsageError, match="any size"):
        loaded("internvl")[0].ask("nowhere.mp4", QUESTION, look="twice")
    seen = loaded("qwen2_5_vl")[0].ask(samples_dir() / "still.jpg", QUESTION, look="twice", max_new_tokens=1)
    assert len(seen.moments) == 1 and not seen.moments[0].small
