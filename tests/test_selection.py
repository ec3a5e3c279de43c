"""Selection: the published indices, valid sets from any input, and the coverage measured."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flashvlm.errors import UsageError
from flashvlm.selection import SELECTORS, coverage, diversity, select
from flashvlm.selection.metric import Space

GOLDEN = Path(__file__).parent / "golden" / "selection_reference.npz"
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
    return select(tokens, saliency, words, **{"group_sizes": [len(tokens)], "budget": budget} | options)


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
    tokens, saliency, _ = clip(400, width=diversity.TABLE_WIDTH)
    space, order = Space.of(tokens, "cosine"), saliency.argsort()
    with_table = diversity.bipartite_rounds(space, order, 30)
    monkeypatch.setattr(diversity, "TABLE_BYTES", 0)
    assert torch.equal(diversity.bipartite_rounds(space, order, 30), with_table)


def test_a_round_drops_the_even_token_that_an_odd_one_repeats():
    space = Space.of(torch.eye(3)[[0, 0, 1, 2]], "cosine")
    assert diversity.bipartite_rounds(space, torch.arange(4), 3).tolist() == [2, 1, 3]


def test_uniform_is_evenly_spread():
    kept = keep(clip(100), 7, selector="uniform").indices
    assert set(kept.diff().tolist()) <= {14, 15}
    assert kept[0] == 99 - kept[-1]


def test_random_follows_the_seed():
    first, again, other = (keep(clip(), 20, selector="random", seed=seed).indices for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("selector", ["uniform", "random"])
def test_selectors_that_look_at_nothing_have_no_scores(selector):
    selection = keep(clip(), 20, selector=selector)
    assert not selection.important.any()
    assert not selection.scores.any()


@every_selector
@pytest.mark.parametrize("budget", [1, 2, 9, 50, 95, 96, 97, 1000])
def test_any_budget_gives_a_valid_set(selector, budget):
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
@pytest.mark.parametrize("block", [1, 1000, coverage.BLOCK])
def test_delta_is_the_largest_distance_to_a_kept_token(monkeypatch, selector, block):
    monkeypatch.setattr(coverage, "BLOCK", block)
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
    nearest, distance = coverage.cover(Space.of(tokens, "cosine"), torch.tensor([0, 3]))
    assert nearest.tolist() == [0, 0, 1, 1]
    assert distance.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": torch.full((96, 24), float("nan"))}, "tokens"),
        ({"tokens": torch.full((96, 24), float("inf"))}, "tokens"),
        ({"tokens": torch.ones(96, 24, dtype=torch.int64)}, "tokens"),
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
        ({"budget": 0}, "budget"),
        ({"budget": -3}, "budget"),
        ({"budget": 1.5}, "budget"),
        ({"selector": "best"}, "uniform, random, frames, saliency, temporal, vispruner, divprune, cdpruner, mmtok, tome"),
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
