"""Keeping 100 % is the unpruned model: logits, text and positions against transformers' own path."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import around, noise, our_inputs, our_text
from transformers import AttentionInterface, DynamicCache, Qwen2VLForConditionalGeneration

from flashvlm import VideoQA
from flashvlm.bench.footage import Footage, film
from flashvlm.encode import encode
from flashvlm.errors import UsageError
from flashvlm.generate import roomy_cache
from flashvlm.models import fetch
from flashvlm.options import AskOptions
from flashvlm.pixels import qwen2_vl_patches

QUESTION = "Which way does the dog move?"
# The demo's chat template with this question, as Qwen2-VL writes it, without a default system prompt.
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which way does the dog move?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def frames(count: int, height: int = 168, width: int = 280) -> torch.Tensor:
    return noise(count, height, width)


def transformers_inputs(qa: VideoQA, video: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a user of transformers alone would hand to the model for this video and QUESTION."""
    backend = qa.backend
    pixel_values, grid = qwen2_vl_patches(
        video, patch_size=14, temporal_patch_size=2, merge_size=2, image_mean=backend.mean, image_std=backend.std
    )
    tokens = int(grid.prod()) // 4
    text = PROMPT.replace("<|video_pad|>", "<|video_pad|>" * tokens)
    ids = torch.tensor([backend.tokenizer(text).input_ids])
    video_id = backend.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixel_values,
        "video_grid_thw": grid,
        "mm_token_type_ids": (ids == video_id).int() * 2,
    }


@torch.inference_mode()
def test_keys_and_values_stay_where_they_are_while_tokens_follow(demo: VideoQA) -> None:
    cache, theirs, places = roomy_cache(demo.backend, 2), DynamicCache(), set()
    for count in (3, 1, 1):
        states = torch.randn(2, 1, 2, count, 8)
        assert all(map(torch.equal, cache.update(*states, 0), theirs.update(*states, 0)))
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1


@torch.inference_mode()
def test_keys_and_values_move_on_when_their_room_is_full(demo: VideoQA) -> None:
    cache, theirs = roomy_cache(demo.backend, 1), DynamicCache()
    for count in (3, 1, 1, 4):
        states = torch.randn(2, 1, 2, count, 8)
        assert all(map(torch.equal, cache.update(*states, 0), theirs.update(*states, 0)))


@pytest.mark.parametrize("count", [1, 4, 8], ids=["still", "two moments", "four moments"])
def test_all_tokens_give_the_logits_of_transformers(demo: VideoQA, count: int) -> None:
    with torch.inference_mode():
        theirs = demo.backend.model(**transformers_inputs(demo, frames(count))).logits[:, -1]
        ours = demo.backend.model(**our_inputs(demo, frames(count), QUESTION)).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_clip_with_more_moments_than_the_grid_is_wide_gives_the_logits_of_transformers_at_our_positions(
    demo: VideoQA,
) -> None:
    video = frames(40, 112, 112)
    inputs = our_inputs(demo, video, QUESTION)
    with torch.inference_mode():
        theirs = demo.backend.model(
            **transformers_inputs(demo, video), position_ids=inputs["position_ids"]
        ).logits[:, -1]  # fmt: skip
        ours = demo.backend.model(**inputs).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    # The text starts one past the last moment: 3 tokens before the video, 20 groups.
    after = len(around(demo, QUESTION)[1])
    assert inputs["position_ids"][:, 0, -after].tolist() == [23, 23, 23]


@pytest.mark.parametrize("count", [1, 8])
def test_all_tokens_give_the_text_of_transformers(demo: VideoQA, count: int) -> None:
    inputs = transformers_inputs(demo, frames(count))
    output = demo.backend.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    theirs = demo.backend.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert our_text(demo, frames(count), QUESTION) == theirs.strip()


# A penalty below 1 favours what the prompt has; one token alone may not be repeated.
@pytest.mark.parametrize("setting", [{"repetition_penalty": 0.02}, {"no_repeat_ngram_size": 1}], ids=list)
def test_what_weighs_repetition_sees_the_prompt_as_it_would_unpruned(demo: VideoQA, tmp_path, setting: dict) -> None:
    folder = tmp_path / "weighed"
    shutil.copytree(fetch("demo"), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    qa = VideoQA.from_pretrained(folder, device="cpu", dtype="float32")
    inputs = transformers_inputs(qa, frames(8))
    output = qa.backend.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    theirs = qa.backend.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert our_text(qa, frames(8), QUESTION) == theirs.strip() != our_text(demo, frames(8), QUESTION)


def test_kept_tokens_and_the_text_keep_their_positions(demo: VideoQA) -> None:
    whole = our_inputs(demo, frames(8), QUESTION)["position_ids"]
    before = len(around(demo, QUESTION)[0])
    kept = [0, 7, 61, 130]
    pruned = our_inputs(demo, frames(8), QUESTION, kept)["position_ids"]
    # Four groups of 6 x 10 tokens: 0, 7 are in the first row of the first, 61 and 130 in the second and third.
    expected = [[0, 0, 0], [0, 0, 7], [1, 0, 1], [2, 1, 0]]
    assert (pruned[:, 0, before : before + 4].T - before).tolist() == expected
    assert torch.equal(pruned[..., before + 4 :], whole[..., before + 240 :])


def test_the_prompt_is_the_chat_template_of_the_checkpoint(demo: VideoQA) -> None:
    before, after = (demo.backend.tokenizer(text).input_ids for text in PROMPT.split("<|video_pad|>"))
    assert [ids.tolist() for ids in around(demo, QUESTION)] == [before, after]


@pytest.mark.parametrize("marker", ["<|video_pad|>", "<|image_pad|>"])
def test_a_marker_of_visual_tokens_in_the_question_is_refused(demo: VideoQA, marker: str) -> None:
    with pytest.raises(UsageError, match="marker"):
        around(demo, f"what is {marker}?")


def test_saliency_is_the_attention_in_the_last_vision_block_of_transformers(demo: VideoQA) -> None:
    recorded = []

    def record(module, query, key, value, attention_mask, scaling, **kwargs):
        weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1)
        recorded.append(weights)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("recorded", record)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(
        fetch("demo"), dtype=torch.float32, attn_implementation="recorded"
    )
    inputs = transformers_inputs(demo, frames(4))
    with torch.inference_mode():
        reference.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    expected = []
    for weights in recorded[-2:]:  # the last block's, a group each
        weights = weights[0].mean(dim=0)
        others = weights.fill_diagonal_(0).sum(dim=0) / (len(weights) - 1)
        expected.append(others.view(-1, 4).mean(dim=1))
    torch.testing.assert_close(encode(demo.backend, frames(4)).saliency, torch.cat(expected), atol=1e-6, rtol=1e-4)


def test_min_pixels_makes_small_frames_larger(tmp_path: Path) -> None:
    clip, folder = film(Footage("moving", 320, 320, 1.0, 8), tmp_path / "clip.mp4"), tmp_path / "model"
    shutil.copytree(fetch("demo"), folder)
    settings = json.loads((folder / "video_preprocessor_config.json").read_text())
    # As published; the demo's own settings leave frames of this size no choice.
    settings["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    qa = VideoQA.from_pretrained(folder, device="cpu", dtype="float32")
    grids = []
    # Qwen's own pipeline enlarges frames to 128 x 28 x 28 pixels.
    for least in (None, 128 * 28 * 28):
        first = qa.ask(clip, QUESTION, min_pixels=least, frames=2, max_new_tokens=1).moments[0]
        grids.append((first.grid_height, first.grid_width))
    assert grids == [(11, 11), (12, 12)]


def test_min_pixels_leaves_small_frames_small(demo: VideoQA, tmp_path: Path) -> None:
    clip, grids = film(Footage("moving", 112, 112, 1.0, 8), tmp_path / "clip.mp4"), []
    for least in (None, 28 * 28):
        watched = demo.watch(clip, AskOptions(min_pixels=least))
        grids.append((watched.encoded.height, watched.encoded.width))
    assert grids == [(8, 8), (4, 4)]
