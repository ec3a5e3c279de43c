"""Families without a file of their own: at 100 % they are transformers', and what is dropped is out of sight."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load, noise, tiny_llava_onevision, tiny_qwen3_vl
from general_checkpoints import GENERAL, gemma3
from oracle import conversation, inputs, processor

from flashvlm import VideoQA
from flashvlm.backends import served
from flashvlm.backends.general import CHECKED, backend_of
from flashvlm.encode import Encoded, encode
from flashvlm.errors import ModelError, UsageError
from flashvlm.generate import answers
from flashvlm.options import AskOptions
from flashvlm.pipeline import History
from flashvlm.samples import samples_dir

QUESTION = "Why is this video funny?"
# Families whose layers carry on a state: hiding a token is not the same as taking it out.
RECURRENT = {"qwen3_5"}
# Families that cannot tell pictures from videos.
ONE_TOKEN = {"glm4v", "glm46v"}
# Processors that would choose tokens themselves, or cut the frames of a video into tiles.
SETTINGS = {
    "video_llama_3": {"use_token_compression": False},
    "idefics3": {"do_image_splitting": False},
    "aya_vision": {"crop_to_patches": False},
}


@pytest.fixture(scope="module", params=GENERAL)
def qa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    folder = GENERAL[request.param](tmp_path_factory.mktemp("family"))
    processor(folder)
    return load(folder)


def times(count: int) -> list[float]:
    return [0.25 + 0.52 * number for number in range(count)]


def seen(qa: VideoQA, frames: torch.Tensor) -> Encoded:
    return encode(qa.backend, frames, seconds_per_frame=0.52, timestamps=times(len(frames)))


def pictures(qa: VideoQA, count: int) -> list[Encoded]:
    if "image" not in qa.backend.markers:
        pytest.skip("the family knows no pictures")
    return [qa.backend.picture(picture, AskOptions()) for picture in noise(count, 150, 260)]


def theirs(qa: VideoQA, frames: torch.Tensor, history: History = ()) -> dict[str, torch.Tensor]:
    """What `generate` takes, by the checkpoint's processor alone."""
    if qa.backend.part == "video":
        content, given = [{"type": "video"}], {"videos": [frames], "times": [times(len(frames))]}
    else:
        content, given = [{"type": "image"}] * len(frames), {"images": [list(frames)]}
    settings = SETTINGS.get(qa.backend.family, {}) if qa.backend.part == "video" or len(frames) > 1 else {}
    return asked(qa, content, given, settings, history)


def test_a_picture_and_a_video_are_what_transformers_makes_of_them(qa: VideoQA) -> None:
    if qa.backend.part != "video" or qa.backend.family in ONE_TOKEN:
        pytest.skip("the family does not tell pictures from videos")
    video, picture = noise(2, 90, 160), noise(1, 150, 260)
    given = {"images": list(picture), "videos": [video], "times": [times(2)]}
    expected = asked(qa, [{"type": "image"}, {"type": "video"}], given, SETTINGS.get(qa.backend.family, {}))
    check_all(qa, [*pictures(qa, 1), seen(qa, video)], expected)


def asked(
    qa: VideoQA,
    content: list[dict[str, str]],
    given: dict[str, Any],
    settings: dict[str, bool],
    history: History = (),
) -> dict[str, torch.Tensor]:
    messages = conversation(QUESTION, content, history=history)
    return inputs(processor(qa.backend.folder), messages, **given, **settings)


@pytest.mark.parametrize(("count", "history"), [(1, ()), (2, [("Who?", "A cat."), ("Where?", "Here.")]), (5, ())])
def test_keeping_everything_is_what_transformers_does(qa: VideoQA, count: int, history: History) -> None:
    if count == 1 and qa.backend.frames_per_group > 1:
        pytest.skip("transformers' own processor takes no video of one frame")
    frames = noise(count, 90, 160)
    check_all(qa, [seen(qa, frames)], theirs(qa, frames, history), history)


@pytest.mark.parametrize("count", [1, 2])
def test_pictures_are_what_transformers_makes_of_them(qa: VideoQA, count: int) -> None:
    made = pictures(qa, count)
    check_all(qa, made, asked(qa, [{"type": "image"}] * count, {"images": list(noise(count, 150, 260))}, {}))


def check_all(qa: VideoQA, videos: list[Encoded], expected: dict[str, torch.Tensor], history: History = ()) -> None:
    """All tokens of these give the prompt, the logits and the words that transformers gives."""
    prompt, model, tokens = qa.backend.prompt(QUESTION, None, videos, history), qa.backend.model, joined(videos)
    everything = torch.arange(len(tokens))[None]
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    ours = qa.backend.inputs(prompt, everything, tokens[None])
    with torch.inference_mode():
        logits = [model(**given).logits[0] for given in (ours, expected)]
        said = model.generate(**expected, max_new_tokens=12, do_sample=False)[0, len(prompt.ids) :]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    assert len(logits[0].argmax(-1).unique()) > 3
    text = qa.backend.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert answers(qa.backend, prompt, everything, tokens[None], max_new_tokens=12) == [text]


def joined(videos: list[Encoded]) -> torch.Tensor:
    return torch.cat([video.tokens for video in videos])


def visible(qa: VideoQA, ids: torch.Tensor, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens each token sees, (S, S) for each kind of layer: those before it and, in some families, in its own
    picture; not the hidden ones."""
    before = torch.ones(len(ids), len(ids)).tril().bool()
    visual = torch.isin(ids, torch.tensor(list(qa.backend.visual_tokens)))
    picture = (visual & ~visual.roll(1)).cumsum(0)
    together = (picture[:, None] == picture) & visual & visual[:, None]
    full = before | together if qa.backend.family == "gemma3" else before
    near = before | together if qa.backend.family in ("gemma3", "gemma4") else before
    itself = torch.eye(len(ids), dtype=torch.bool)
    return {kind: seen & ~hidden | itself for kind, seen in {"full_attention": full, "sliding_attention": near}.items()}


@pytest.mark.parametrize("shown", ["a video", "two videos", "a picture", "a picture and a video"])
def test_pruning_hides_the_dropped_tokens_and_changes_nothing_else(qa: VideoQA, shown: str) -> None:
    backend, counts = qa.backend, {"a video": [6], "two videos": [2, 3], "a picture and a video": [2]}
    videos = pictures(qa, 1) if "picture" in shown else []
    videos += [seen(qa, noise(count, 90, 160)) for count in counts.get(shown, [])]
    if shown == "a picture and a video" and backend.family in ONE_TOKEN:
        with pytest.raises(UsageError, match="one token for pictures and videos"):
            backend.prompt(QUESTION, None, videos)
        return
    if backend.family in RECURRENT:
        assert any("carry on a state" in told for told in backend.warnings)
        return
    tokens, prompt = joined(videos), backend.prompt(QUESTION, None, videos)
    kept = a_third(len(tokens))
    whole = backend.inputs(prompt, torch.arange(len(tokens))[None], tokens[None])
    pruned = backend.inputs(prompt, kept, tokens[kept])
    places = prompt.places(kept)[0]
    hidden = torch.ones(len(prompt.ids), dtype=torch.bool).index_fill(0, places, False)
    masks = {
        kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in visible(qa, prompt.ids, hidden).items()
    }
    layers = set(getattr(backend.text_config, "layer_types", None) or ())
    mask = masks if "sliding_attention" in layers else masks["full_attention"]
    with torch.inference_mode():
        expected = backend.model(**whole | {"attention_mask": mask}).logits[0, places]
        got = backend.model(**pruned).logits[0]
    torch.testing.assert_close(got, expected, atol=3e-5, rtol=0)


def a_third(count: int) -> torch.Tensor:
    """About a third of `count` tokens, here and there, (1, K)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 3].sort().values[None]


def test_generation_goes_on_at_the_positions_of_the_unpruned_prompt(qa: VideoQA) -> None:
    video = seen(qa, noise(6, 90, 160))
    prompt, kept = qa.backend.prompt(QUESTION, None, [video]), a_third(len(video.tokens))
    inputs, ids = qa.backend.inputs(prompt, kept, video.tokens[kept]), []
    with torch.inference_mode():
        for _ in range(5):
            ids.append(qa.backend.model(**inputs).logits[:, -1].argmax(-1, keepdim=True))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[-1]], dim=1)
            positions = inputs["position_ids"]
            inputs["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            for name in inputs.keys() & {"mm_token_type_ids", "token_type_ids"}:
                inputs[name] = torch.cat([inputs[name], torch.zeros_like(ids[-1])], dim=1)
    said = answers(qa.backend, prompt, kept, video.tokens[kept], max_new_tokens=5)
    assert said == [qa.backend.tokenizer.decode(torch.cat(ids, dim=1)[0], skip_special_tokens=True).strip()]


def test_a_group_is_a_grid(qa: VideoQA) -> None:
    encoded = seen(qa, noise(4, 90, 160))
    assert encoded.groups == 4 // qa.backend.frames_per_group
    assert encoded.groups * encoded.height * encoded.width == len(encoded.tokens)
    # Places in the picture are known, but not where it is cut into tiles, with tokens that end a row.
    assert (encoded.height > 1) == (qa.backend.family != "llava_next")


def test_an_answer_says_how_the_model_is_served(qa: VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = samples_dir() / "sequence.mp4"
    first, second = (qa.ask(path, QUESTION, keep=0.2, frames=4, max_new_tokens=4, cache=True) for _ in range(2))
    assert second.cached and not first.cached and first.answer == second.answer
    assert any("equally salient" in told for told in first.warnings)
    assert first.tokens.after == max(1, round(first.tokens.before * 0.2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = gemma3(tmp_path)
    processor(made)
    return made


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_video_that_ends_with_a_token_of_its_own_keeps_it(tmp_path: Path) -> None:
    folder = tiny_llava_onevision(tmp_path)
    processor(folder)
    backend = backend_of("llava_onevision", "LlavaOnevisionForConditionalGeneration")
    assert backend is not None
    encoded = encode(backend.load(folder, device="cpu", dtype="float32"), noise(4, 90, 160))
    assert (encoded.groups, encoded.height, encoded.width) == (4, 3, 3)
    assert encoded.fixed is not None and len(encoded.fixed) == 1


def test_features_that_do_not_match_the_placeholders_are_refused(folder: Path) -> None:
    change(folder / "processor_config.json", image_seq_length=5)
    with pytest.raises(ModelError, match="10 places for 8 visual tokens"):
        encode(load(folder).backend, noise(2, 90, 160))


def test_a_template_without_a_place_for_a_picture_is_refused(folder: Path) -> None:
    change(folder / "chat_template.json", chat_template="{{ messages[-1]['content'][-1]['text'] }}")
    with pytest.raises(ModelError, match="no way to show it a picture"):
        encode(load(folder).backend, noise(2, 90, 160))


def test_features_that_cannot_be_pruned_are_refused(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    processor(folder)
    backend = backend_of("qwen3_vl", "Qwen3VLForConditionalGeneration")
    assert backend is not None
    with pytest.raises(ModelError, match="makes deepstack_features of a video"):
        encode(backend.load(folder, device="cpu", dtype="float32"), noise(4, 90, 160))


def test_a_class_that_nobody_has_checked_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CHECKED, "gemma3")
    assert any("Nobody has checked models of type gemma3" in told for told in load(folder).backend.warnings)


@pytest.mark.parametrize(
    "family, name",
    [("t5gemma2", "T5Gemma2ForConditionalGeneration"), ("clip", "CLIPModel"), ("gemma3", "Gemma3ForCausalLM")],
)
def test_a_class_that_cannot_be_served_is_refused(folder: Path, family: str, name: str) -> None:
    change(folder / "config.json", model_type=family, architectures=[name])
    with pytest.raises(ModelError, match=f"Models of type '{family}' are not supported"):
        load(folder)


def test_without_torchvision_it_is_said_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError, match=r"need torchvision.*pip install 'flashvlm\[any\]'"):
        load(folder)


def test_what_is_checked_is_what_is_tested() -> None:
    assert {family["family"] for family in served() if family["way"] == "general"} == set(GENERAL)
