"""The demo's world: deterministic, balanced, and its questions answerable from what is drawn."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from flashvlm import models
from flashvlm.demo.questions import FAMILIES, WORDINGS, ask
from flashvlm.demo.world import HELD_OUT_PAIRS, NAMES, make_scene, render, sample_times, tells
from flashvlm.encode import encode
from flashvlm.samples import samples_dir
from training import qwen2_vl, train
from training.blueprint import WORDS, Blueprint
from training.drawing import draw_frames
from training.labels import cell_labels
from training.samples import make_samples


def scenes(count: int, **settings):
    return [make_scene(np.random.default_rng([99, number]), **settings) for number in range(count)]


def test_a_seed_makes_the_same_clip() -> None:
    one, other = (make_scene(np.random.default_rng(5), frames=8) for _ in range(2))
    assert one == other
    pictures = [render(scene, sample_times(8), 112, 112) for scene in (one, other)]
    assert np.array_equal(*pictures)


def test_no_training_clip_holds_a_held_out_pair() -> None:
    assert not {(thing.name, thing.direction) for scene in scenes(200) for thing in scene.things} & HELD_OUT_PAIRS
    for scene in scenes(30, held_out_pairs=True, frames=8):
        pairs = {(thing.name, thing.direction) for thing in scene.things if thing.direction}
        assert pairs and pairs <= HELD_OUT_PAIRS


def test_yes_and_no_come_up_alike() -> None:
    rng = np.random.default_rng(0)
    asked = [ask(scene, "exist", rng) for scene in scenes(400, frames=8)]
    yes = Counter(question.answer for question in asked if question)["yes"] / 400
    assert 0.42 < yes < 0.58


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_of_a_family_is_in_the_vocabulary_and_held_out_wordings_add_none(family: str) -> None:
    def words(wordings) -> set[str]:
        return {word for text in wordings for word in re.sub(r"\{\w+\}|[^a-z ]", " ", text.lower()).split()}

    trained = words(wording for wordings in WORDINGS.values() for wording in wordings[:-1])
    assert words(WORDINGS[family]) <= set(WORDS)
    assert words(WORDINGS[family][-1:]) <= trained
    tokenizers = [blueprint().tokenizer for blueprint in train.BLUEPRINTS.values()]
    rng = np.random.default_rng(1)
    for scene in scenes(40):
        question = ask(scene, family, rng)
        if question is not None:
            for tokenizer in tokenizers:
                assert tokenizer.unk_token_id not in tokenizer(f"{question.text} {question.answer}").input_ids


def test_labels_say_where_the_pictures_are() -> None:
    for scene in scenes(20, frames=4, sequence=False, aspect=(1, 1)):
        labels = cell_labels(scene, sample_times(4), 8, 8)
        empty = render(replace(scene, things=()), sample_times(4), 224, 224)
        change = np.abs(render(scene, sample_times(4), 224, 224).astype(int) - empty).max(-1) > 8
        cells = change.reshape(2, 2, 8, 28, 8, 28).mean(axis=(1, 3, 5))
        assert cells[labels.thing >= 0].mean() > 0.25
        assert cells[labels.thing == -1].max() < 0.25


def test_the_samples_are_what_the_generator_makes(tmp_path: Path) -> None:
    make_samples(tmp_path)
    assert (tmp_path / "questions.jsonl").read_text() == (samples_dir() / "questions.jsonl").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in samples_dir().iterdir()}
    assert all((samples_dir() / name).stat().st_size < 300_000 for name in names)
    assert {json.loads(line)["video"] for line in (tmp_path / "questions.jsonl").read_text().splitlines()} < names


@pytest.mark.parametrize("name", train.BLUEPRINTS)
def test_training_resumes_where_it_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    for module in ("qwen2_vl", "video_llava"):
        monkeypatch.setattr(f"training.{module}.SHAPES_SHARE", 0.0)
    monkeypatch.setattr("training.qwen2_vl.SHORT_FRAMES", {4: 1})
    blueprint = train.BLUEPRINTS[name]()
    train.train(blueprint, "words", tmp_path / "whole", steps=2, lr=1e-3)
    train.train(blueprint, "words", tmp_path / "parts", steps=2, lr=1e-3, stop_after=1)
    train.train(blueprint, "words", tmp_path / "parts", steps=2, lr=1e-3)
    whole, parts = (torch.load(tmp_path / name / "words.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 2
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(parts["weights"][name], weight)


def test_training_starts_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.qwen2_vl.SHAPES_SHARE", 0.0)
    blueprint, start = train.BLUEPRINTS["qwen2-vl"](), models.fetch("demo")
    train.train(blueprint, "words", tmp_path, steps=1, lr=0.0, start=start)
    trained = torch.load(tmp_path / "words.pt", weights_only=True)["weights"]
    given = type(blueprint.build_model()).from_pretrained(start, dtype=torch.float32).model.language_model.state_dict()
    for name, weight in given.items():
        assert name == "embed_tokens.weight" or torch.equal(trained[name], weight), name
    with pytest.raises(SystemExit, match="began with other weights"):
        train.train(blueprint, "words", tmp_path, steps=2, lr=0.0)
    with pytest.raises(SystemExit, match="is of another model"):
        train.begin_from(blueprint.build_model(), models.fetch("demo-video-llava"))


def test_training_begins_with_the_batch_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    blueprint = train.BLUEPRINTS["qwen2-vl"]()
    draw = blueprint.draw_clips
    monkeypatch.setattr("training.qwen2_vl.SHAPES_SHARE", 0.0)
    monkeypatch.setattr("training.qwen2_vl.SHORT_FRAMES", {1: 1})

    def noted(*arguments: Any, **options: Any) -> Any:
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(blueprint, "draw_clips", noted)
    train.train(blueprint, "words", tmp_path / "two", steps=2, lr=1e-3)
    train.train(blueprint, "words", tmp_path / "second", steps=1, lr=1e-3, first_batch=1)
    first, second, again = ([clip.questions for clip in clips] for _, clips in drawn)
    assert first != second == again
    with pytest.raises(SystemExit, match="other weights or batches"):
        train.train(blueprint, "words", tmp_path / "second", steps=2, lr=1e-3)


def test_what_tells_a_scene_is_seen_in_time() -> None:
    scene = make_scene(np.random.default_rng(3), frames=8, aspect=(1, 1), sequence=True, count=2)
    one, two = scene.things
    assert tells(scene, np.linspace(0, 1, 50))
    assert not tells(replace(scene, things=(one, replace(two, appears=0.51, vanishes=0.56))), sample_times(8))
    # Both are first seen at the second of two looks.
    late = replace(one, direction=None, end=one.start, appears=0.8), replace(two, appears=0.9, direction=None)
    assert not tells(replace(scene, things=late), sample_times(2))


def test_both_models_have_one_code_for_the_words_that_they_share() -> None:
    one, other = (train.BLUEPRINTS[name]() for name in ("qwen2-vl", "video-llava"))
    for word in WORDS:
        codes = [b.codes.words[b.tokenizer.convert_tokens_to_ids(word)] for b in (one, other)]
        assert torch.equal(*codes)
    assert torch.equal(one.codes.rows, other.codes.rows)
    words = other.codes.words
    directions = torch.cat([words, other.codes.rows, other.codes.columns])
    torch.testing.assert_close(directions @ directions.T, torch.eye(len(directions)), atol=1e-5, rtol=0)


def test_a_class_token_sums_up_what_its_frame_shows() -> None:
    blueprint = train.BLUEPRINTS["video-llava"]()
    scene = make_scene(np.random.default_rng(8), frames=8, aspect=(1, 1), sequence=False, count=3)
    labels = cell_labels(scene, sample_times(2), 8, 8, frames_per_group=1)
    shown = {NAMES[i] for i in blueprint.codes.presence(labels)[0].nonzero().flatten()}
    assert shown == {thing.name for thing in scene.things}
    called = blueprint.codes.summaries(labels) @ blueprint.codes.names.T
    torch.testing.assert_close(called, blueprint.codes.presence(labels), atol=1e-5, rtol=0)


def read_as_transformers_does(blueprint: Blueprint, model: torch.nn.Module, visual: torch.Tensor, grid) -> None:
    """Hold `train.read` on two questions at once to the class's own language model on each."""
    conversation = train.Conversation(blueprint.tokenizer, blueprint.video_token)
    before = torch.tensor(conversation.before)
    text = torch.randint(10, 100, (1, 2, 9), generator=torch.Generator().manual_seed(1))
    embed = model.get_input_embeddings()
    shared = torch.cat([embed(before), visual]).unsqueeze(0)
    at, text_at = blueprint.positions(len(before), 3, grid, 9)
    hidden, *_ = train.read(model, shared, at, text, text_at)
    for number in range(2):
        whole = torch.cat([shared, embed(text[:, number])], dim=1)
        position_ids = torch.cat([at, text_at], dim=1)
        position_ids = position_ids.unsqueeze(1) if len(at) > 1 else position_ids
        expected = model.model.language_model(inputs_embeds=whole, position_ids=position_ids).last_hidden_state
        torch.testing.assert_close(hidden[:, number], expected[:, -9:], atol=1e-4, rtol=1e-4)


def test_the_encoder_and_reader_of_the_training_are_those_that_answer(demo) -> None:
    model, grid, blueprint = demo.backend.model, (6, 10), train.BLUEPRINTS["qwen2-vl"]()
    scene = make_scene(np.random.default_rng(8), frames=5, aspect=(3, 5), sequence=False, count=2)
    patches = qwen2_vl.draw_patches(scene, sample_times(5), grid, np.random.default_rng(0))
    frames = draw_frames(scene, sample_times(5), 6 * 28, 10 * 28, np.random.default_rng(0))
    with torch.inference_mode():
        seen = blueprint.see(model, patches, grid)
        torch.testing.assert_close(seen.flatten(0, 1), encode(demo.backend, frames).tokens, atol=1e-4, rtol=1e-4)
        read_as_transformers_does(blueprint, model, seen.flatten(0, 1), grid)


def test_the_reader_of_the_training_is_that_of_transformers_in_one_dimension() -> None:
    blueprint = train.BLUEPRINTS["video-llava"]()
    with torch.inference_mode():
        visual = torch.randn(3 * 65, 256, generator=torch.Generator().manual_seed(0)) * 0.1
        read_as_transformers_does(blueprint, blueprint.build_model(), visual, (8, 8))


@pytest.mark.parametrize("name", ["qwen2-vl", "video-llava"])
def test_shapes_are_drawn_as_the_model_sees_them_and_asked_about_in_words_it_has(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"training.{name.replace('-', '_')}.SHAPES_SHARE", 1.0)
    blueprint = train.BLUEPRINTS[name]()
    grid, drawn = blueprint.draw_clips(np.random.default_rng(3), 6, small=False, pixels=True)
    with torch.no_grad():
        tokens = blueprint.see(blueprint.build_model(), torch.cat([shown.pixels for shown in drawn]), grid)
    assert tokens.shape[:2] == (len(drawn), blueprint.class_tokens + grid[0] * grid[1])
    for shown in drawn:
        assert shown.labels.thing.shape == (1, *grid) and (shown.labels.thing >= len(NAMES)).any()
        for question in shown.questions:
            ids = blueprint.tokenizer(f"{question.text} {question.answer}").input_ids
            assert blueprint.tokenizer.unk_token_id not in ids, question


def test_tokens_of_the_unaligned_model_do_not_resemble_what_they_show_but_are_as_far_apart() -> None:
    blueprint, aligned = train.BLUEPRINTS["unaligned"](), train.BLUEPRINTS["qwen2-vl"]().codes
    torch.testing.assert_close((blueprint.codes.names * aligned.names).sum(1), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(blueprint.codes.things @ blueprint.codes.things.T, aligned.things @ aligned.things.T)
    assert torch.equal(blueprint.codes.words, aligned.words)
    # The turn is gradual, and so quick to follow.
    blueprint.progress("words", 0.0)
    torch.testing.assert_close(blueprint.codes.things, aligned.things)
    model, patches = blueprint.build_model(), torch.randn(1, 16, 1176, generator=torch.Generator().manual_seed(0))
    blueprint.progress("answers", 0.0)
    with torch.no_grad():
        seen = blueprint.see(model, patches, (2, 2))
        blueprint.finish(model)
        saved = train.BLUEPRINTS["qwen2-vl"]().see(model, patches, (2, 2))
    torch.testing.assert_close(seen, saved, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("qwen2-vl", "demo"),
        ("qwen2-vl", "demo-natural"),
        ("unaligned", "demo-unaligned"),
        ("video-llava", "demo-video-llava"),
        ("video-llava", "demo-video-llava-natural"),
    ],
)
def test_a_checkpoint_has_the_words_of_its_training(name: str, alias: str) -> None:
    given = AutoTokenizer.from_pretrained(models.fetch(alias))
    assert given.get_vocab() == train.BLUEPRINTS[name]().tokenizer.get_vocab()
