"""Selection: the published indices, valid sets from any input, and the coverage measured."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flashvlm.errors import UsageError
from flashvlm.selection import METRICS, SELECTORS, geometry, select
from flashvlm.selection.geometry import Space
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published import cdpruner, density, divprune, flashvid, holitom, mmtok, paper
from flashvlm.selection.result import Selection

GOLDEN = Path(__file__).parent / "golden" / "selection_reference.npz"
# What the published code of video methods keeps and merges.
VIDEO = Path(__file__).parent / "golden" / "selection_video.npz"
every_selector = pytest.mark.parametrize("selector", SELECTORS)


def clip(count: int = 96, width: int = 24, words: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in clusters, as a video's are, their saliency, and the words of a question."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, width, generator=generator)
    tokens = centres[torch.randint(12, (count,), generator=generator)]
    tokens = tokens + 0.4 * torch.randn(count, width, generator=generator)
    return tokens, torch.rand(count, generator=generator), torch.randn(words, width, generator=generator)


def keep(inputs, budget, **options):
    tokens, saliency, words = inputs
    groups = [len(group) for group in tokens.tensor_split(3) if len(group)]
    return select(tokens, saliency, words, **{"group_sizes": groups, "budget": budget} | options)


def assert_valid(selection, count, budget):
    kept = selection.indices
    assert kept.dtype == torch.int64
    assert len(kept) == min(budget, count)
    assert (kept.diff() > 0).all()
    assert kept[0] >= 0 and kept[-1] < count
    assert selection.important.shape == kept.shape and selection.important.dtype == torch.bool
    assert selection.scores.shape == (count,) and selection.scores.isfinite().all()
    assert selection.nearest.shape == (count,) and selection.nearest.dtype == torch.int64
    assert torch.equal(selection.nearest[kept], torch.arange(len(kept)))
    assert 0 <= selection.delta <= 2


@pytest.mark.parametrize("case", ["small", "llava", "deep", "odd"])
def test_paper_keeps_exactly_what_the_published_code_keeps(case):
    golden = np.load(GOLDEN)
    tokens, saliency, words = (torch.from_numpy(golden[f"{case}/{name}"]) for name in ("features", "saliency", "text"))
    selection = keep((tokens, saliency, words), int(golden[f"{case}/budget"]), selector="paper")
    assert selection.indices.tolist() == golden[f"{case}/kept"].tolist()


def test_paper_keeps_the_highest_scores_as_important_in_half_the_budget():
    selection = keep(clip(), 21, selector="paper")
    highest = selection.scores.topk(10).indices.sort().values
    assert torch.equal(selection.indices[selection.important], highest)


def test_paper_without_words_ranks_by_saliency():
    tokens, saliency, _ = clip()
    selection = keep((tokens, saliency, tokens[:0]), 20, selector="paper")
    assert torch.equal(selection.scores.argsort(), saliency.argsort())


def test_paper_prefers_the_token_that_shows_the_word():
    tokens, saliency, _ = clip(width=64)
    selection = keep((tokens, torch.ones_like(saliency), tokens[40:41]), 2, selector="paper")
    assert selection.indices[selection.important].tolist() == [40]


def test_rounds_drop_the_same_tokens_without_a_table_of_similarities(monkeypatch):
    tokens, saliency, _ = clip(400, width=paper.TABLE_WIDTH)
    space, order = Space.of(tokens, "cosine"), saliency.argsort()
    with_table = paper.bipartite_rounds(space, order, 30)
    monkeypatch.setattr(paper, "TABLE_BYTES", 0)
    assert torch.equal(paper.bipartite_rounds(space, order, 30), with_table)


def test_a_round_drops_the_even_token_that_an_odd_one_repeats():
    space = Space.of(torch.eye(3)[[0, 0, 1, 2]], "cosine")
    assert paper.bipartite_rounds(space, torch.arange(4), 3).tolist() == [2, 1, 3]


def test_uniform_is_evenly_spread():
    kept = keep(clip(100), 7, selector="uniform").indices
    assert set(kept.diff().tolist()) <= {14, 15}
    assert kept[0] == 99 - kept[-1]


def test_random_follows_the_seed():
    first, again, other = (keep(clip(), 20, selector="random", seed=seed).indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("sizes", "budget", "kept"),
    [
        ([4] * 6, 8, [4, 5, 6, 7, 16, 17, 18, 19]),
        ([4] * 6, 6, [4, 5, 6, 7, 17, 19]),
        ([4] * 6, 2, [13, 15]),
        ([2, 6, 2], 7, [0, 1, 2, 3, 5, 6, 7]),
    ],
    ids=["whole groups", "one group in part", "less than a group", "groups of many sizes"],
)
def test_frames_keeps_whole_groups(sizes, budget, kept):
    selection = keep(clip(sum(sizes)), budget, selector="frames", group_sizes=sizes)
    assert selection.indices.tolist() == kept


def test_saliency_keeps_the_most_salient_and_of_equals_the_first():
    tokens, _, words = clip(6)
    saliency = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 2.0])
    assert keep((tokens, saliency, words), 3, selector="saliency").indices.tolist() == [1, 2, 3]


def test_temporal_keeps_the_first_group_and_what_changed():
    tokens, saliency, words = clip(24)
    tokens[8:] = tokens[:8].repeat(2, 1)
    tokens[13] += 1
    # What changes back is new again.
    kept = keep((tokens, saliency, words), 10, selector="temporal", group_sizes=[8, 8, 8]).indices
    assert kept.tolist() == [*range(8), 13, 21]


def test_temporal_finds_the_place_of_a_token_in_a_group_of_another_size():
    tokens = torch.eye(4)[[0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3, 0]]
    kept = keep((tokens, torch.ones(12), tokens[:0]), 5, selector="temporal", group_sizes=[4, 8]).indices
    assert kept.tolist() == [0, 1, 2, 3, 11]


def test_temporal_keeps_the_most_salient_of_a_first_group_that_is_too_large():
    tokens, saliency, words = clip(24)
    kept = keep((tokens, saliency, words), 5, selector="temporal", group_sizes=[12, 12]).indices
    assert kept.tolist() == saliency[:12].topk(5).indices.sort().values.tolist()


def test_vispruner_is_the_published_selector_without_a_question():
    tokens, saliency, words = clip(200)
    expected = keep((tokens, saliency, words[:0]), 41, selector="paper").indices
    selection = keep((tokens, saliency, words), 41, selector="vispruner")
    assert torch.equal(selection.indices, expected)
    assert not selection.important.any()


def cosines(tokens: Tensor, others: Tensor) -> Tensor:
    return torch.cosine_similarity(tokens[:, None].double(), others[None].double(), dim=-1)


@pytest.mark.parametrize("pool", [1, 7, divprune.POOL])
def test_divprune_begins_with_the_loneliest_token_and_goes_on_with_the_farthest(monkeypatch, pool):
    monkeypatch.setattr(divprune, "POOL", pool)
    monkeypatch.setattr(divprune, "ROWS", 5)
    inputs = clip(150)
    similarity = cosines(inputs[0], inputs[0])
    chosen = [int((similarity - 9 * torch.eye(150)).amax(1).argmin())]
    while len(chosen) < 40:
        to_chosen = similarity[:, chosen].amax(1)
        to_chosen[chosen] = 9
        chosen.append(int(to_chosen.argmin()))
    assert keep(inputs, 40, selector="divprune").indices.tolist() == sorted(chosen)


def test_cdpruner_grows_the_determinant_most_at_each_step():
    tokens, saliency, words = clip(60)
    relevance = cosines(tokens, words).mean(1)
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * cosines(tokens, tokens) * relevance
    chosen: list[int] = []
    while len(chosen) < 15:
        grown = [[*chosen, place] for place in range(60) if place not in chosen]
        chosen = max(grown, key=lambda places: torch.det(kernel[places][:, places]).item())
    assert keep((tokens, saliency, words), 15, selector="cdpruner").indices.tolist() == sorted(chosen)


def test_cdpruner_fills_up_by_relevance_where_no_token_adds_to_the_determinant():
    tokens = torch.eye(4)[[0, 0, 0, 1, 1, 1]] + torch.eye(4)[2] * torch.tensor([0, 1, 2, 0, 1, 2])[:, None] / 2
    words = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    selection = keep((tokens, torch.ones(6), words), 5, selector="cdpruner")
    # Three span all; of the rest those nearest to the word come first.
    assert selection.indices.tolist() == [0, 1, 2, 3, 4]


def test_cdpruner_with_less_weight_on_relevance_is_less_bound_to_it(monkeypatch):
    tokens, saliency, words = clip(150)
    relevance = cosines(tokens, words).mean(1)
    means = []
    for theta in (0.1, 0.5, 0.9, 0.97):
        monkeypatch.setattr(cdpruner, "THETA", theta)
        means.append(relevance[keep((tokens, saliency, words), 20, selector="cdpruner").indices].mean())
    assert means == sorted(means)


@pytest.mark.parametrize("table", [0, mmtok.TABLE_BYTES])
def test_mmtok_adds_most_to_the_cover_at_each_step(monkeypatch, table):
    monkeypatch.setattr(mmtok, "TABLE_BYTES", table)
    monkeypatch.setattr(mmtok, "CANDIDATES", 3)
    tokens, saliency, words = clip(120)
    of_words = (cosines(words, tokens) / mmtok.WORD_TEMPERATURE).softmax(1) / len(words)
    of_tokens = (cosines(tokens, tokens) / mmtok.TOKEN_TEMPERATURE).softmax(1) / len(tokens)
    covers = torch.cat([of_words, mmtok.TOKEN_WEIGHT * of_tokens])
    chosen: list[int] = []
    for _ in range(30):
        best = covers[:, chosen].amax(1, keepdim=True) if chosen else covers.new_zeros(len(covers), 1)
        gains = (covers - best).clamp(min=0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
    assert keep((tokens, saliency, words), 30, selector="mmtok").indices.tolist() == sorted(chosen)


def test_tome_merges_the_most_similar_pairs_round_after_round():
    tokens, saliency, words = clip(41)
    merged = [(index, token.double(), 1) for index, token in enumerate(tokens)]
    while len(merged) > 12:
        similarity = cosines(torch.stack([token for _, token, _ in merged]), torch.stack([t for _, t, _ in merged]))
        pairs = [(similarity[even, 1::2].max(), even) for even in range(0, len(merged), 2)]
        goes = {
            even: 1 + 2 * int(similarity[even, 1::2].argmax())
            for _, even in sorted(pairs, reverse=True)[: min(len(merged) - 12, len(merged) // 4)]
        }
        for even, odd in goes.items():
            (_, token, size), (index, into, others) = merged[even], merged[odd]
            merged[odd] = (index, (token * size + into * others) / (size + others), size + others)
        merged = [entry for place, entry in enumerate(merged) if place not in goes]
    selection = keep((tokens, saliency, words), 12, selector="tome")
    assert selection.indices.tolist() == [index for index, _, _ in merged]
    assert torch.allclose(selection.vectors.double(), torch.stack([token for _, token, _ in merged]), atol=1e-5)


def test_what_tome_merged_can_be_merged_from_other_tokens():
    tokens, saliency, words = clip(41)
    selection = keep((tokens, saliency, words), 12, selector="tome")
    assert torch.allclose(selection.remade(tokens).vectors, selection.vectors, atol=1e-6)
    assert torch.allclose(selection.remade(3 * tokens + 1).vectors, 3 * selection.vectors + 1, atol=1e-5)
    plain = keep((tokens, saliency, words), 12, selector="uniform")
    assert torch.equal(plain.remade(-tokens).vectors, -plain.vectors)


def published(case: str, method: str) -> tuple[dict[str, Any], float, dict[str, Tensor]]:
    """Arguments of `select` but for the budget, the share of the tokens asked for, and what published code keeps."""
    golden = np.load(VIDEO)
    about = json.loads(str(golden["meta_json"]))[case]
    video = {name: torch.from_numpy(golden[f"{case}/{name}"]).float() for name in ("tokens", "saliency", "words")}
    name = f"{case}/{method}/"
    kept = {key.removeprefix(name): torch.from_numpy(golden[key]) for key in golden.files if key.startswith(name)}
    return {**video, "group_sizes": (about["per_group"],) * about["groups"]}, about["ratio"], kept


every_case = pytest.mark.parametrize("case", ["clip", "still", "long", "generous"])


@every_case
@pytest.mark.parametrize("selector", ["divprune", "mmtok", "vidcom2"])
def test_as_many_tokens_as_the_published_code_keeps_are_the_same_tokens(case, selector):
    video, _, expected = published(case, selector)
    selection = select(**video, budget=len(expected["kept"]), selector=selector)
    assert torch.equal(selection.indices, expected["kept"])


@every_case
def test_cdpruner_keeps_what_its_published_code_does_until_the_kept_tokens_span_all(monkeypatch, case):
    monkeypatch.setattr(cdpruner, "RELEVANCE_SIGN", -1.0)
    video, _, expected = published(case, "cdpruner")
    budget = min(video["tokens"].shape[1], len(expected["kept"]))
    selection = select(**video, budget=budget, selector="cdpruner")
    # From then on the published code follows the last digits.
    assert torch.isin(selection.indices, expected["kept"]).all()


def assert_merged_as_published(selection: Selection, expected: dict[str, Tensor]) -> None:
    assert torch.equal(selection.indices, expected["kept"])
    assert torch.allclose(selection.vectors, expected["vectors"], atol=1e-5)


@every_case
def test_fastvid_merges_as_its_published_code_does(case):
    video, _, expected = published(case, "fastvid")
    assert_merged_as_published(select(**video, budget=len(expected["kept"]), selector="fastvid"), expected)


@every_case
@pytest.mark.parametrize(
    ("method", "events", "segments"), [("flashvid_attn_div", False, 4), ("flashvid_attn_div_v2", True, 8)]
)
def test_flashvid_merges_as_its_published_code_does_if_it_rounds_as_that_does(
    monkeypatch, case, method, events, segments
):
    def noisy_peaks(distance: Tensor, neighbours: int) -> Tensor:
        density = (-distance.topk(neighbours, largest=False).values.square().mean(1)).exp()
        density += 1e-6 * torch.rand(density.shape, generator=generator)
        return torch.where(density[None] > density[:, None], distance, distance.max()).amin(1) * density

    monkeypatch.setattr(density, "peaks", noisy_peaks)
    monkeypatch.setattr(flashvid, "EVENTS", events)
    monkeypatch.setattr(flashvid, "SEGMENTS", segments)
    video, ratio, expected = published(case, method)
    inputs = Inputs.checked(**video, budget=1, delta=None, metric="cosine", seed=0)
    budgets = [math.ceil(ratio * size) for size in inputs.group_sizes]
    found = torch.zeros(len(expected["kept"]), dtype=torch.bool)
    # Of two tokens that are each other's nearest, the noise of the published code decides which is a centre.
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        whole, entries = flashvid.compress(inputs, budgets, lambda shares, *_: shares.ceil().long(), twice=True)
        centres, (into, tokens, weights) = entries[0].unique(), entries
        parts = [inputs.tokens[tokens[into == centre]].T @ weights[into == centre] for centre in centres]
        kept = torch.cat([whole, centres])
        vectors = torch.cat([inputs.tokens[whole], *(part[None] for part in parts)])
        assert len(kept) == len(found)
        alike = (expected["vectors"][:, None] - vectors).abs().amax(2) < 1e-5
        found |= (alike & (expected["kept"][:, None] == kept)).any(1)
        if found.all():
            break
    assert found.all()


@every_case
def test_holitom_merges_as_its_published_code_does_if_it_rounds_as_that_does(case):
    video, ratio, expected = published(case, "holitom")
    inputs = Inputs.checked(**video, budget=1, delta=None, metric="cosine", seed=0)
    parts = holitom.windows(inputs)
    share = ratio * len(inputs.tokens) / sum(part.shape[1] for part in parts)
    counts = [(round if len(part) > 1 else math.ceil)(share * part.shape[1]) for part in parts]
    assert_merged_as_published(holitom.compress(inputs, parts, counts), expected)


def test_visionzip_keeps_salient_tokens_and_merges_the_others_into_the_most_similar_evenly_spaced_one():
    # Two frames of 20: ten salient tokens after ten that point one of two ways.
    one, other = [0, 2, 3, 7, 9], [1, 4, 5, 6, 8]
    frame = torch.zeros(20, 3).index_fill(0, torch.arange(10, 20), 1.0)
    frame[one, 0], frame[other, 1] = torch.arange(1.0, 6), torch.arange(2.0, 7)
    saliency = torch.tensor([0.1] * 10 + [0.9] * 10).repeat(2)
    selection = select(
        frame.repeat(2, 1), saliency, torch.empty(0, 3), group_sizes=[20, 20], budget=24, selector="visionzip"
    )
    kept = [0, 5, *range(10, 20)]
    assert selection.indices.tolist() == kept + [20 + place for place in kept]
    expected = torch.cat([frame[one].mean(0)[None], frame[other].mean(0)[None], frame[10:]])
    assert torch.allclose(selection.vectors, expected.repeat(2, 1))


@pytest.mark.parametrize("selector", ["flashvlm", "tome", "visionzip", "holitom", "fastvid", "flashvid"])
@pytest.mark.parametrize("merged", [False, True], ids=["as chosen", "merged"])
def test_other_values_of_the_tokens_are_reduced_as_the_tokens_are(selector, merged):
    tokens, saliency, words = clip(41)
    selection = keep((tokens, saliency, words), 12, selector=selector)
    if merged:
        selection = selection.merged()
    assert torch.allclose(selection.pooled(tokens), selection.vectors, atol=1e-6)
    planes = torch.randn(2, 3, 41, 7, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.bfloat16):
        pooled = selection.pooled(planes.to(dtype))
        assert pooled.shape == (2, 3, 12, 7) and pooled.dtype == dtype
        for one, whole in zip(pooled.flatten(0, 1), planes.to(dtype).flatten(0, 1), strict=True):
            assert torch.equal(one, selection.remade(whole).vectors)


def test_merging_does_not_change_what_was_chosen_or_how_far_it_reaches():
    selection = keep(clip(), 10, selector="flashvlm")
    merged = selection.merged()
    assert torch.equal(merged.indices, selection.indices) and torch.equal(merged.important, selection.important)
    assert torch.equal(merged.nearest, selection.nearest) and merged.delta == selection.delta
    assert torch.equal(merged.merged_into, selection.nearest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tome_merges_all_into_their_mean(dtype):
    tokens, saliency, words = clip()
    selection = keep((tokens.to(dtype), saliency, words), 1, selector="tome")
    assert selection.vectors.dtype == dtype
    assert torch.allclose(selection.vectors.float(), tokens.to(dtype).float().mean(0), atol=1e-2)


@every_selector
def test_keeping_all_keeps_the_tokens_as_they_are(selector):
    tokens, saliency, words = clip()
    assert torch.equal(keep((tokens, saliency, words), 96, selector=selector).vectors, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merging_averages_each_kept_token_with_those_it_stands_for(dtype):
    tokens, saliency, words = clip()
    selection = keep((tokens.to(dtype), saliency, words), 10, selector="saliency")
    merged = selection.merged().vectors
    assert merged.dtype == dtype
    for place in range(10):
        members = selection.tokens[selection.nearest == place].float()
        assert torch.allclose(merged[place].float(), members.mean(0), atol=1e-3)


@every_selector
@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_gives_a_valid_set(selector, metric):
    selection = keep(clip(), 20, selector=selector, metric=metric)
    assert len(selection.indices) == 20 and (selection.indices.diff() > 0).all()


@pytest.mark.parametrize("selector", ["uniform", "random"])
def test_selectors_that_look_at_nothing_have_no_scores(selector):
    selection = keep(clip(), 20, selector=selector)
    assert not selection.important.any()
    assert not selection.scores.any()


@every_selector
def test_any_budget_gives_a_valid_set(selector):
    for budget in (1, 2, 9, 50, 95, 96, 97, 1000):
        assert_valid(keep(clip(), budget, selector=selector), 96, budget)


@every_selector
@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_few_tokens_give_a_valid_set(selector, count):
    for budget in range(1, count + 2):
        assert_valid(keep(clip(count), budget, selector=selector), count, budget)


@every_selector
@pytest.mark.parametrize(
    "change",
    [
        lambda tokens, saliency, words: (torch.zeros_like(tokens), saliency, words),
        lambda tokens, saliency, words: (tokens[:1].repeat(96, 1), saliency, words),
        lambda tokens, saliency, words: (tokens, saliency, torch.zeros_like(words)),
        lambda tokens, saliency, words: (tokens, saliency, words[:0]),
        lambda tokens, saliency, words: (tokens, torch.ones_like(saliency), words),
        lambda tokens, saliency, words: (tokens, torch.zeros_like(saliency), words[:0]),
        lambda tokens, saliency, words: (tokens[:, :1], saliency, words[:, :1]),
    ],
    ids=["zero tokens", "identical tokens", "zero words", "no words", "flat saliency", "no signal", "one axis"],
)
def test_degenerate_input_gives_a_valid_set(selector, change):
    assert_valid(keep(change(*clip()), 20, selector=selector), 96, 20)


@every_selector
def test_the_same_input_gives_the_same_set(selector):
    first, again = (keep(clip(), 20, selector=selector) for _ in range(2))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.important, again.important)
    assert torch.equal(first.scores, again.scores)


@every_selector
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_same_tokens(selector, dtype):
    half = [tensor.to(dtype) for tensor in clip(300)]
    kept, expected = (
        set(keep(inputs, 60, selector=selector).indices.tolist())
        for inputs in (half, [tensor.float() for tensor in half])
    )
    assert len(kept & expected) >= 0.99 * 60


@every_selector
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_the_same_tokens(selector):
    on_cpu = keep(clip(300), 60, selector=selector)
    on_gpu = keep([tensor.cuda() for tensor in clip(300)], 60, selector=selector)
    assert on_gpu.indices.is_cuda and on_gpu.important.is_cuda and on_gpu.scores.is_cuda and on_gpu.nearest.is_cuda
    assert len(set(on_gpu.indices.tolist()) & set(on_cpu.indices.tolist())) >= 0.99 * 60
    assert on_gpu.delta == pytest.approx(on_cpu.delta, abs=1e-5)


@every_selector
@pytest.mark.parametrize("block", [1, 1000, geometry.BLOCK])
def test_delta_is_the_largest_distance_to_a_kept_token(monkeypatch, selector, block):
    monkeypatch.setattr(geometry, "BLOCK", block)
    tokens, saliency, words = clip()
    selection = keep((tokens, saliency, words), 9, selector=selector)
    kept = tokens[selection.indices]
    distances = 1 - torch.cosine_similarity(tokens[:, None].double(), kept[None].double(), dim=-1)
    assert selection.delta == pytest.approx(distances.min(1).values.max().item(), abs=1e-6)
    assert torch.equal(selection.nearest, distances.argmin(1))


def test_delta_is_zero_when_all_are_kept():
    tokens, saliency, words = clip()
    assert keep((torch.cat([tokens[:-1], tokens[:1] * 0]), saliency, words), 96).delta == 0


def test_a_kept_zero_vector_stands_for_the_others():
    tokens = torch.eye(4)[[0, 0, 1, 1]] * torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None]
    nearest, distance = geometry.cover(Space.of(tokens, "cosine"), torch.tensor([0, 3]))
    assert nearest.tolist() == [0, 0, 1, 1]
    assert distance.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": torch.full((96, 24), float("nan"))}, "tokens"),
        ({"tokens": torch.full((96, 24), float("inf"))}, "tokens"),
        ({"tokens": torch.ones(96, 24, dtype=torch.int64)}, "tokens"),
        ({"tokens": torch.ones(96, 24).to(torch.float8_e5m2)}, "tokens"),
        ({"tokens": torch.ones(96)}, "tokens"),
        ({"tokens": torch.ones(0, 24), "saliency": torch.ones(0), "group_sizes": []}, "tokens"),
        ({"saliency": torch.full((96,), float("nan"))}, "saliency"),
        ({"saliency": torch.ones(96, 1)}, "saliency"),
        ({"saliency": torch.ones(95)}, "saliency"),
        ({"saliency": -torch.ones(96)}, "saliency"),
        ({"words": torch.full((2, 24), float("-inf"))}, "words"),
        ({"words": torch.ones(2, 23)}, "words"),
        ({"words": torch.ones(24)}, "words"),
        ({"group_sizes": [48, 47]}, "group_sizes"),
        ({"group_sizes": [100, -4]}, "group_sizes"),
        ({"group_sizes": [48.0, 48.0]}, "group_sizes"),
        ({"group_sizes": 96}, "group_sizes"),
        ({"group_sizes": [0, 96]}, "group_sizes"),
        ({"budget": torch.tensor([5, 6])}, "budget"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"budget": 0}, "budget"),
        ({"budget": -3}, "budget"),
        ({"budget": 1.5}, "budget"),
        (
            {"selector": "best"},
            "uniform, random, frames, saliency, temporal, vispruner, divprune, cdpruner, mmtok, tome",
        ),
        ({"metric": "manhattan"}, "cosine"),
    ],
)
def test_a_wrong_argument_is_named(wrong, named):
    tokens, saliency, words = clip()
    right = {"tokens": tokens, "saliency": saliency, "words": words, "group_sizes": [48, 48], "budget": 9}
    with pytest.raises(UsageError, match=named):
        select(**right | wrong)


def test_the_names_of_the_selectors_need_no_torch():
    code = "import sys; from flashvlm.selection import SELECTORS; sys.exit('torch' in sys.modules or not SELECTORS)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The video selector


def made_up(sizes, width=24, spread=0.4, looks=12, seed=0):
    """Tokens of a video with groups of these sizes: noisy copies of a few looks, without words."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    centres = torch.randn(looks, width, generator=generator)
    tokens = centres[torch.randint(looks, (count,), generator=generator)]
    tokens = tokens + spread * torch.randn(count, width, generator=generator)
    return tokens, torch.rand(count, generator=generator), tokens[:0]


def groups_of(selection, sizes):
    """The temporal group of each kept token."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[selection.indices]


SIZES = {
    "unequal": [1, 300, 7, 64, 65],
    "of one token": [1] * 90,
    "one": [1000],
    "one large, many of one": [64] + [1] * 150,
    "equal": [64] * 9,
}
every_cut = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


@every_cut
@pytest.mark.parametrize("metric", METRICS)
def test_the_budget_is_exact_however_the_video_is_cut(sizes, metric):
    count = sum(sizes)
    for budget in {1, 2, len(sizes), len(sizes) + 1, count // 10, count // 2, count - 1, count}:
        assert_valid(select(*made_up(sizes), group_sizes=sizes, budget=budget, metric=metric), count, budget)


@pytest.mark.parametrize("looks", [1, 3])
def test_the_budget_is_exact_for_a_video_of_equal_tokens(looks):
    sizes = [64] + [1] * 150
    for budget in (1, 20, 151, 200, 213):
        video = made_up(sizes, spread=0, looks=looks)
        assert_valid(select(*video, group_sizes=sizes, budget=budget), sum(sizes), budget)


@every_cut
def test_every_group_keeps_a_token(sizes):
    count = sum(sizes)
    for budget in (len(sizes), len(sizes) + 1, len(sizes) * 3 // 2, count - 1):
        budget = max(budget, len(sizes))
        kept = groups_of(select(*made_up(sizes), group_sizes=sizes, budget=budget), sizes)
        assert len(kept.unique()) == len(sizes), budget


def test_the_last_moment_is_shown_in_full_though_others_showed_the_same():
    sizes = [16] * 8
    tokens, saliency, words = made_up([16], looks=5)
    kept = groups_of(select(tokens.repeat(8, 1), saliency.repeat(8), words, group_sizes=sizes, budget=24), sizes)
    counts = kept.bincount()
    assert min(counts[0], counts[-1]) >= 4 > counts[2:-1].max()


@pytest.mark.parametrize("budget", [2, 9, 30, 59])
def test_a_budget_below_the_number_of_groups_is_spent_in_as_many_groups(budget):
    sizes = [5] * 60
    kept = groups_of(select(*made_up(sizes), group_sizes=sizes, budget=budget), sizes)
    assert len(kept.unique()) == budget


@pytest.mark.parametrize("seed", range(4))
def test_fewer_tokens_than_groups_find_what_one_of_many_alike_groups_shows_beside_the_rest(seed):
    generator = torch.Generator().manual_seed(seed)
    ground, thing, needle = torch.nn.functional.normalize(torch.randn(3, 64, generator=generator), dim=1)
    tokens = ground + 0.02 * torch.randn(32, 16, 64, generator=generator)
    for group in tokens:
        # Everywhere the same thing, somewhere else in each group.
        group[torch.randperm(15, generator=generator)[:4]] += thing - ground
    tokens[17, 15] += needle - ground
    kept = select(tokens.flatten(0, 1), torch.ones(512), torch.empty(0, 64), group_sizes=[16] * 32, budget=8).indices
    assert 17 * 16 + 15 in kept.tolist()
    assert len((kept // 16).unique()) == 8


@pytest.mark.parametrize("sizes", [[64] + [2] * 200, [64] + [2] * 400], ids=len)
def test_the_budget_is_exact_where_most_groups_are_far_shorter_than_the_longest(sizes):
    count = sum(sizes)
    assert_valid(select(*made_up(sizes), group_sizes=sizes, budget=count - 1), count, count - 1)


@pytest.mark.parametrize("budget", [6, 12])
def test_what_the_question_names_is_kept_and_marked_important(budget):
    sizes, place = [16] * 12, 133
    tokens, saliency, none = made_up(sizes, width=64, spread=0.3, looks=4)
    word = torch.randn(1, 64, generator=torch.Generator().manual_seed(9))
    # Near enough to its neighbour for a choice without the question to pass it over.
    tokens[place] = tokens[place - 1] + 0.7 * word[0]
    asked, unasked = (select(tokens, saliency, words, group_sizes=sizes, budget=budget) for words in (word, none))
    assert asked.distinguishes
    assert place in asked.indices[asked.important]
    assert place not in unasked.indices
    assert not unasked.important.any()


@pytest.mark.parametrize("budget", [42, 60, 100])
def test_a_part_of_the_budget_is_for_what_the_question_names_if_one_moment_shows_it(budget):
    sizes = [16] * 40
    tokens, saliency, _ = made_up(sizes, width=64, spread=0.3, looks=4)
    word = torch.randn(1, 64, generator=torch.Generator().manual_seed(9))
    tokens[48:60] += word
    kept = select(tokens, saliency, word, group_sizes=sizes, budget=budget)
    named = kept.indices[kept.important]
    # As far as there is room beside a token of every moment.
    assert len(named) >= min(12, int(0.2 * budget), budget - 40 + 1) and set(named.tolist()) <= set(range(48, 60))
    assert len(groups_of(kept, sizes).unique()) == 40


@pytest.mark.parametrize(
    "words",
    [
        lambda tokens: torch.randn(6, 64, generator=torch.Generator().manual_seed(1)),
        lambda tokens: torch.zeros(3, 64),
        lambda tokens: torch.linalg.svd(tokens, full_matrices=True).Vh[-2:],
    ],
    ids=["noise", "zero", "equally unlike all"],
)
def test_words_that_tell_nothing_apart_change_nothing(words):
    sizes = [16] * 3
    tokens, saliency, none = made_up(sizes, width=64)
    with_words, without = (
        select(tokens, saliency, asked, group_sizes=sizes, budget=7) for asked in (words(tokens), none)
    )
    assert torch.equal(with_words.indices, without.indices)
    assert not with_words.important.any()


@pytest.mark.parametrize("budget", [18, 43])
def test_what_is_new_in_a_video_that_repeats_itself_is_kept(budget):
    first, saliency, words = made_up([36], looks=4)
    tokens, place = first.repeat(12, 1), 9 * 36 + 17
    tokens[place] = torch.randn(24, generator=torch.Generator().manual_seed(3))
    kept = select(tokens, saliency.repeat(12), words, group_sizes=[36] * 12, budget=budget).indices
    assert place in kept


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_radius_is_never_exceeded_and_a_larger_one_takes_fewer_tokens(metric, dtype):
    sizes = SIZES["unequal"]
    tokens, saliency, words = made_up(sizes)
    tokens[::7] = tokens[3]
    counts = []
    for delta in (0, 0.05, 0.3, 1):
        selection = select(tokens.to(dtype), saliency, words, group_sizes=sizes, delta=delta, metric=metric)
        assert_valid(selection, len(tokens), len(selection.indices))
        assert selection.delta <= delta
        counts.append(len(selection.indices))
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 * counts[-1]


def test_a_radius_takes_one_token_where_all_are_equal():
    tokens, saliency, words = made_up([50, 50], spread=0, looks=1)
    assert len(select(tokens, saliency, words, group_sizes=[50, 50], delta=0.01).indices) == 1


def test_auto_takes_fewer_tokens_of_a_video_that_repeats_itself_and_some_of_every_group():
    sizes = [49] * 10
    unlike, saliency, words = made_up(sizes, looks=490)
    again = unlike[:49].repeat(10, 1)
    few, many = (select(video, saliency, words, group_sizes=sizes, budget="auto") for video in (again, unlike))
    assert len(few.indices) < len(many.indices) < 490
    for selection in (few, many):
        assert_valid(selection, 490, len(selection.indices))
        assert len(groups_of(selection, sizes).unique()) == 10
    assert torch.equal(many.indices, select(unlike, saliency, words, group_sizes=sizes, budget="auto").indices)


@every_cut
def test_auto_keeps_a_token_of_every_group(sizes):
    kept = groups_of(select(*made_up(sizes), group_sizes=sizes, budget="auto"), sizes)
    assert len(kept.unique()) == len(sizes)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if name != "flashvlm"])
@pytest.mark.parametrize("by_content", [{"budget": "auto"}, {"delta": 0.3}], ids=["auto", "delta"])
def test_other_selectors_take_a_budget_in_tokens_only(selector, by_content):
    with pytest.raises(UsageError, match=f"{selector} takes a budget"):
        select(*clip(), group_sizes=[96], selector=selector, **by_content)


@pytest.mark.parametrize(
    "wrong",
    [{"delta": -0.1}, {"delta": float("nan")}, {"delta": float("inf")}, {"delta": 0.3, "budget": 9},
     {"delta": 0.3, "budget": "auto"}, {}, {"budget": "all"}, {"delta": "0.3"}, {"delta": torch.ones(2)}],
    ids=str,
)  # fmt: skip
def test_a_radius_or_a_budget_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match=r"delta|budget"):
        select(*clip(), group_sizes=[96], **wrong)


def test_tokens_all_unlike_one_another_leave_little_to_drop():
    sizes = [64] * 6
    gaussian = select(*made_up(sizes, width=256, looks=384), group_sizes=sizes, budget=38)
    clustered = select(*made_up(sizes, width=256), group_sizes=sizes, budget=38)
    assert_valid(gaussian, 384, 38)
    assert gaussian.little_to_drop and not clustered.little_to_drop
    # Moments that alternate are unlike the one before, and still nothing of them is missed.
    scenes = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    alternating = select(scenes, torch.ones(1024), scenes[:0], group_sizes=[64] * 16, budget=300)
    assert max(alternating.redundancy) < 0.5 and alternating.delta < 1e-3 and not alternating.little_to_drop
    for selection in (gaussian, clustered):
        assert selection.redundancy and all(-1 <= value <= 1 for value in selection.redundancy)
    # Where no token is more than another, no group is either: 6 of each on average.
    held = torch.bincount(groups_of(gaussian, sizes), minlength=6)
    assert held.min() >= 3 and held.max() <= 12


def test_rare_looks_are_found_in_a_long_video_that_repeats_itself():
    groups, size, rare = 120, 256, 36
    picture, saliency, words = made_up([size], width=64, spread=0)
    generator = torch.Generator().manual_seed(1)
    tokens = picture.repeat(groups, 1) + 0.1 * torch.randn(groups * size, 64, generator=generator)
    places = torch.randperm(len(tokens), generator=generator)[:rare]
    tokens[places] = torch.randn(rare, 64, generator=generator)
    # More tokens are not kept in their own block than are looked up, but they all look like the moment before.
    selection = select(tokens, saliency.repeat(groups), words, group_sizes=[size] * groups, budget=200)
    assert torch.isin(places, selection.indices).sum() >= 0.9 * rare


@pytest.mark.parametrize("heavy", ["saliency", "words"])
def test_of_tokens_unlike_all_others_those_that_weigh_most_come_first(heavy):
    generator = torch.Generator().manual_seed(0)
    tokens, saliency = torch.randn(256, 64, generator=generator), torch.ones(256)
    places = torch.randperm(256, generator=generator)[:40]
    words = tokens[places] if heavy == "words" else tokens[:0]
    if heavy == "saliency":
        saliency[places] = 25
    selection = select(tokens, saliency, words, group_sizes=[64] * 4, budget=80)
    assert torch.isin(places, selection.indices).all()


def test_a_token_weighs_the_root_of_its_saliency():
    tokens, saliency, words = clip()
    saliency += 0.1
    flat = keep((tokens, torch.ones_like(saliency), words), 20)
    assert torch.allclose(keep((tokens, saliency, words), 20).scores, flat.scores * (saliency / saliency.mean()).sqrt())
    none = keep((tokens, torch.zeros_like(saliency), words), 20)
    assert torch.equal(none.indices, flat.indices) and torch.equal(none.scores, flat.scores)


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_the_scale_of_saliency_means_nothing(factor):
    tokens, saliency, words = clip()
    expected = keep((tokens, saliency, words), 20).indices
    assert torch.equal(keep((tokens, saliency.double() * factor, words), 20).indices, expected)
    assert torch.equal(keep((tokens, saliency * 3e38, words), 20).indices, expected)


def test_the_heaviest_come_first_in_a_long_video_of_unlike_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens, saliency = torch.randn(6400, 64, generator=generator), torch.ones(6400)
    places = torch.randperm(6400, generator=generator)[:500]
    saliency[places] = 25
    selection = select(tokens, saliency, tokens[:0], group_sizes=[64] * 100, budget=1000)
    assert torch.isin(places, selection.indices).sum() >= 0.98 * 500


def test_as_many_looks_as_take_two_thirds_of_the_budget_are_all_found():
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(8, 20, 64, generator=generator)
    shown = torch.randint(20, (8, 128), generator=generator)
    tokens = looks.gather(1, shown[:, :, None].expand(-1, -1, 64)).flatten(0, 1)
    tokens += 0.1 * torch.randn(tokens.shape, generator=generator)
    assert select(tokens, torch.ones(1024), tokens[:0], group_sizes=[128] * 8, budget=240).delta < 0.2


def test_auto_keeps_as_many_whatever_is_salient():
    tokens, saliency, words = clip()
    flat = keep((tokens, torch.ones_like(saliency), words), "auto")
    assert len(keep((tokens, saliency**4, words), "auto").indices) == len(flat.indices) < 96


@pytest.mark.parametrize("seed", range(3))
def test_looks_that_are_rare_and_come_without_order_are_all_found(seed):
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(256, 64, generator=generator)
    shown = torch.multinomial(1 / torch.arange(1.0, 257), 4096, replacement=True, generator=generator)
    tokens = looks[shown] + 0.1 * torch.randn(4096, 64, generator=generator)
    saliency, words = torch.rand(4096, generator=generator), torch.randn(4, 64, generator=generator)
    selection = select(tokens, saliency, words, group_sizes=[256] * 16, budget=901)
    assert set(shown.tolist()) == set(shown[selection.indices].tolist()) and selection.delta < 0.1


def test_a_budget_of_more_corners_than_are_looked_for_is_kept_to():
    # A fifth of it are 1,600.
    tokens, saliency, words = made_up([256] * 64, width=16)
    selection = select(tokens, saliency, words, group_sizes=[256] * 64, budget=8000)
    assert_valid(selection, 256 * 64, 8000)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("width", [48, 256, 257, 1000, 1536])
def test_every_look_is_covered_however_wide_the_tokens(width, metric):
    sizes = [64] * 6
    tokens, saliency, words = made_up(sizes, width=width, spread=0.2, looks=24)
    assert select(tokens, saliency, words, group_sizes=sizes, budget=30, metric=metric).delta < 0.1


@pytest.mark.parametrize("budget", [19, 64, 300])
def test_rounding_tokens_and_words_to_bfloat16_keeps_the_same_set(budget):
    sizes = [64] * 10
    tokens, saliency, _ = made_up(sizes, width=48)
    words = tokens[100:103] + 0.1
    kept, expected = (
        set(select(tokens.to(dtype), saliency, words.to(dtype), group_sizes=sizes, budget=budget).indices.tolist())
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert len(kept & expected) >= 0.99 * budget


@pytest.mark.parametrize("made", [dict(looks=40, spread=0.3), dict(looks=40, spread=0.1), dict(looks=640)], ids=str)
def test_rounding_tokens_and_words_to_float16_keeps_nearly_the_same_set(made):
    sizes, shared = [64] * 10, 0
    for seed in range(12):
        tokens, saliency, _ = made_up(sizes, width=256, seed=seed, **made)
        words = tokens[100:103] + 0.1
        kept, expected = (
            select(tokens.to(dtype), saliency, words.to(dtype), group_sizes=sizes, budget=64).indices
            for dtype in (torch.float16, torch.float32)
        )
        shared += int(torch.isin(kept, expected).sum())
    # Tokens are read in bfloat16, and one that float16 rounded first may be another there.
    assert shared >= 0.97 * 12 * 64


def test_cosine_and_euclidean_agree_on_tokens_of_one_length():
    sizes, shared = [64] * 6, 0
    for seed in range(12):
        tokens, saliency, words = made_up(sizes, width=48, seed=seed)
        tokens = 5 * torch.nn.functional.normalize(tokens, dim=1)
        kept, expected = (
            set(select(tokens, saliency, words, group_sizes=sizes, budget=60, metric=metric).indices.tolist())
            for metric in ("cosine", "euclidean")
        )
        shared += len(kept & expected)
    # Lengths, read in bfloat16, are not quite one, which decides between tokens as good as equal.
    assert shared >= 0.93 * 12 * 60


@pytest.mark.parametrize("factor", [2**-20, 2**20])
def test_the_length_of_all_tokens_means_nothing_to_the_cosine(factor):
    sizes = [64] * 6
    tokens, saliency, _ = made_up(sizes, width=48)
    selection, scaled = (
        select(tokens * times, saliency, tokens[70:72], group_sizes=sizes, budget=40) for times in (1, factor)
    )
    assert torch.equal(selection.indices, scaled.indices)
    assert torch.equal(selection.important, scaled.important)


def test_merging_after_the_video_selector_loses_nothing_of_the_sum():
    sizes = SIZES["unequal"]
    tokens, saliency, words = made_up(sizes)
    selection = select(tokens, saliency, words, group_sizes=sizes, budget=40)
    held = torch.bincount(selection.nearest, minlength=40)
    assert torch.allclose((selection.merged().vectors * held[:, None]).sum(0), tokens.sum(0), atol=1e-3)


def test_auto_sees_what_is_new_in_any_column():
    busy, saliency, words = made_up([256] * 8, width=64, looks=2048)
    some = busy.clone().view(8, 16, 16, 64)
    some[:, :, [0, 4, 8, 12]] = busy[0]
    budgets = [
        len(select(tokens, saliency, words, group_sizes=[256] * 8, budget="auto").indices)
        for tokens in (busy[:1].expand(2048, 64), some.flatten(0, 2), busy)
    ]
    assert budgets[0] < budgets[2] / 5 < budgets[1] <= budgets[2]
    assert budgets[1] > budgets[2] / 2


def test_auto_keeps_no_more_of_the_same_clip_at_twice_the_resolution():
    tokens, saliency, words = clip(240)
    plain = select(tokens, saliency, words, group_sizes=[60] * 4, budget="auto")
    finer = tokens.repeat_interleave(4, dim=0) + 0.02 * torch.randn(960, 24, generator=torch.Generator().manual_seed(1))
    fine = select(finer, saliency.repeat_interleave(4), words, group_sizes=[240] * 4, budget="auto")
    assert len(fine.indices) <= 1.5 * len(plain.indices)
