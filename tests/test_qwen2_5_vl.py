"""Qwen2.5-VL with all tokens is transformers' own: logits and text, windows, seconds and penalties."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import around, load, noise, our_inputs, our_text, their_text, tiny_qwen2_5_vl
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

from flashvlm import VideoQA
from flashvlm.encode import encode
from flashvlm.options import AskOptions, Sampling
from flashvlm.pixels import qwen2_vl_patches
from flashvlm.samples import samples_dir

QUESTION = "Which way does the dog move?"
# What the published chat template makes of a video and this question.
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which way does the dog move?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# 6 x 10 tokens a group, in windows of 2 x 2: none of them is cut off.
HEIGHT, WIDTH = 168, 280


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    return load(tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl")))


def transformers_inputs(qa: VideoQA, video: torch.Tensor, seconds_per_group: float) -> dict[str, torch.Tensor]:
    """What a user of transformers alone would hand to the model for this video and QUESTION."""
    backend = qa.backend
    pixel_values, grid = qwen2_vl_patches(
        video, patch_size=14, temporal_patch_size=2, merge_size=2, image_mean=backend.mean, image_std=backend.std
    )
    text = PROMPT.replace("<|video_pad|>", "<|video_pad|>" * (int(grid.prod()) // 4))
    ids = torch.tensor([backend.tokenizer(text).input_ids])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixel_values,
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.tensor([seconds_per_group]),
        "mm_token_type_ids": (ids == backend.tokenizer.convert_tokens_to_ids("<|video_pad|>")).int() * 2,
    }


def test_the_prompt_is_the_published_chat_template(qa: VideoQA) -> None:
    (before, after), decode = around(qa, QUESTION, None), qa.backend.tokenizer.decode
    assert decode(before) + "<|video_pad|>" + decode(after) == PROMPT


def test_a_system_prompt_takes_the_place_of_the_default_one(qa: VideoQA) -> None:
    (before, after), decode = around(qa, QUESTION, "Be brief."), qa.backend.tokenizer.decode
    expected = PROMPT.replace("You are a helpful assistant.", "Be brief.")
    assert decode(before) + "<|video_pad|>" + decode(after) == expected


# 3 groups at 1 second each are at 0, 2, 4 of 6 x 10 cells' axes: transformers' positions are the trained ones there.
@pytest.mark.parametrize("seconds", [1.0, 1.33, 0.3], ids=["whole", "more", "less than half"])
@pytest.mark.parametrize("height, width", [(HEIGHT, WIDTH), (140, 196)], ids=["whole windows", "cut windows"])
def test_all_tokens_give_the_logits_of_transformers(qa: VideoQA, seconds: float, height: int, width: int) -> None:
    video = noise(6, height, width)
    with torch.inference_mode():
        theirs = qa.backend.model(**transformers_inputs(qa, video, seconds)).logits[:, -1]
        ours = qa.backend.model(**our_inputs(qa, video, QUESTION, seconds=seconds / 2)).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_still_gives_the_logits_of_transformers(qa: VideoQA) -> None:
    with torch.inference_mode():
        theirs = qa.backend.model(**transformers_inputs(qa, noise(1, HEIGHT, WIDTH), 1.0)).logits[:, -1]
        ours = qa.backend.model(**our_inputs(qa, noise(1, HEIGHT, WIDTH), QUESTION, seconds=0.0)).logits[:, -1]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_time_is_counted_in_half_seconds_rounded_down(qa: VideoQA) -> None:
    before = len(around(qa, QUESTION)[0])
    positions = our_inputs(qa, noise(10, 56, 56), QUESTION, seconds=0.665)["position_ids"][:, 0]
    # 2 x 2 tokens a group, 1.33 s a group, two positions a second.
    assert (positions[0, before : before + 20 : 4] - before).tolist() == [0, 2, 5, 7, 10]
    # The text goes on one past the last moment.
    assert positions[:, before + 20].tolist() == [before + 11] * 3


def test_a_long_clip_gives_the_logits_of_transformers_at_our_positions(qa: VideoQA) -> None:
    video = noise(10, 56, 56)
    inputs = our_inputs(qa, video, QUESTION, seconds=0.665)
    with torch.inference_mode():
        theirs = qa.backend.model(**transformers_inputs(qa, video, 1.33), position_ids=inputs["position_ids"]).logits
        ours = qa.backend.model(**inputs).logits
    torch.testing.assert_close(ours[:, -1], theirs[:, -1], atol=1e-4, rtol=0)


def test_kept_tokens_keep_their_time(qa: VideoQA) -> None:
    before = len(around(qa, QUESTION)[0])
    positions = our_inputs(qa, noise(6, HEIGHT, WIDTH), QUESTION, kept=[7, 61, 130], seconds=0.665)["position_ids"]
    assert (positions[:, 0, before : before + 3].T - before).tolist() == [[0, 0, 7], [2, 0, 1], [5, 1, 0]]


@pytest.mark.parametrize("seconds", [1.0, 0.7])
def test_all_tokens_give_the_text_of_transformers(qa: VideoQA, seconds: float) -> None:
    theirs = their_text(qa, transformers_inputs(qa, noise(6, HEIGHT, WIDTH), seconds))
    assert theirs and our_text(qa, noise(6, HEIGHT, WIDTH), QUESTION, seconds / 2) == theirs


def test_a_repetition_penalty_sees_the_prompt_as_it_would_unpruned(tmp_path: Path) -> None:
    folder = tiny_qwen2_5_vl(tmp_path)
    plain = our_text(load(folder), noise(6, HEIGHT, WIDTH), QUESTION)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 3.0}))
    qa = load(folder)
    theirs = their_text(qa, transformers_inputs(qa, noise(6, HEIGHT, WIDTH), 1.0))
    assert our_text(qa, noise(6, HEIGHT, WIDTH), QUESTION) == theirs != plain


def test_a_configuration_as_the_published_ones_gives_the_same_answer(tmp_path: Path) -> None:
    folder = tiny_qwen2_5_vl(tmp_path)
    before = our_text(load(folder), noise(6, HEIGHT, WIDTH), QUESTION)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "layer_types", "dtype"):
        text.pop(name, None)
    # The language model's entries stand at the top level there.
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    published = {**text, **config, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    path.write_text(json.dumps(published))
    assert our_text(load(folder), noise(6, HEIGHT, WIDTH), QUESTION) == before


@pytest.mark.parametrize("full", [[2], [0]], ids=["full last block", "windowed last block"])
def test_saliency_is_the_attention_in_the_last_vision_block_of_transformers(full: list[int], tmp_path: Path) -> None:
    recorded = []

    def record(module, query, key, value, attention_mask, scaling, **kwargs):
        weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1)
        recorded.append(weights[0].mean(dim=0))
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("recorded", record)
    folder = tiny_qwen2_5_vl(tmp_path, fullatt_block_indexes=full)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="recorded"
    )
    qa = load(folder)
    video = noise(4, 140, 196)
    inputs = transformers_inputs(qa, video, 1.0)
    with torch.inference_mode():
        reference.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"])
    # 2 groups of 5 x 7 tokens; windows of 2 x 2 tokens, row by row: 3 x 4 a group, those at the edges cut off.
    spans = [range(y, min(y + 2, 5)) for y in range(0, 5, 2)], [range(x, min(x + 2, 7)) for x in range(0, 7, 2)]
    windows = [[(y, x) for y in ys for x in xs] for ys in spans[0] for xs in spans[1]]
    stretches = [[cell for window in windows for cell in window]] * 2 if full == [2] else windows * 2
    expected = torch.zeros(2, 5, 7)
    for number, (cells, weights) in enumerate(zip(stretches, recorded[-len(stretches) :], strict=True)):
        received = (weights.sum(dim=0) - weights.diagonal()) / (len(weights) - 1)
        for (y, x), value in zip(cells, received.view(-1, 4).mean(dim=1), strict=True):
            expected[number * 2 // len(stretches), y, x] = value
    torch.testing.assert_close(encode(qa.backend, video).saliency, expected.flatten(), atol=1e-6, rtol=1e-4)


def test_a_question_on_a_file_is_answered_with_the_seconds_of_its_frames(qa: VideoQA) -> None:
    answer = qa.ask(samples_dir() / "sequence.mp4", QUESTION, frames=6, keep=0.2, max_new_tokens=3)
    assert answer.model.family == "qwen2_5_vl" and len(answer.moments) == 3
    for sampling, seconds in ((Sampling(frames=6), 4.0), (Sampling(frames=6, start=3, end=7.5), 1.5)):
        watched = qa.watch(samples_dir() / "sequence.mp4", AskOptions(sampling=sampling))
        assert watched.encoded.seconds_per_group == pytest.approx(seconds, abs=1e-3)
