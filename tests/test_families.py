"""What every model family must do: the pruned prompt is the unpruned one with the dropped tokens out of sight."""

import pytest
import torch
from checkpoints import FAMILIES, load, noise

from flashvlm import VideoQA
from flashvlm.encode import Encoded, encode
from flashvlm.generate import answers
from flashvlm.options import AskOptions
from flashvlm.pipeline import History

QUESTION = "Why is this video funny?"
HISTORY = (("Who?", "A cat."), ("Where?", "At home."))


@pytest.fixture(scope="module", params=FAMILIES)
def qa(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    return load(FAMILIES[request.param](tmp_path_factory.mktemp("family")))


def videos(qa: VideoQA, *counts: int) -> list[Encoded]:
    """Videos of so many frames."""
    size = qa.backend.frame_size(120, 170, AskOptions())
    return [encode(qa.backend, noise(count, *size)) for count in counts]


def choice(count: int) -> torch.Tensor:
    """About a third of `count` tokens, here and there."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 3].sort().values


def everything(seen: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor | None]:
    planes = [one.planes for one in seen if one.planes is not None]
    return torch.cat([one.tokens for one in seen]), torch.cat(planes, dim=1) if planes else None


@pytest.mark.parametrize(
    ("counts", "history"), [((8,), ()), ((4, 6), ()), ((4,), HISTORY)], ids=["a video", "two videos", "earlier turns"]
)
def test_pruning_hides_the_dropped_tokens_and_changes_nothing_else(
    qa: VideoQA, counts: tuple[int, ...], history: History
) -> None:
    seen = videos(qa, *counts)
    tokens, planes = everything(seen)
    prompt, kept = qa.backend.prompt(QUESTION, None, seen, history), choice(len(tokens))
    at = None if planes is None else planes[:, None]
    whole = qa.backend.inputs(prompt, torch.arange(len(tokens))[None], tokens[None], at)
    pruned = qa.backend.inputs(prompt, kept[None], tokens[kept][None], None if at is None else at[:, :, kept])
    places = prompt.places(kept[None])[0]
    assert pruned["input_ids"].shape[1] == len(places) == prompt.staying + len(kept)
    hidden = torch.ones(len(prompt.ids), dtype=torch.bool).index_fill(0, places, False)
    # What a token may see: those before it that were not dropped, and itself.
    visible = torch.ones(len(hidden), len(hidden)).tril().bool() & ~hidden | torch.eye(len(hidden), dtype=torch.bool)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        expected = qa.backend.model(**whole | {"attention_mask": mask[None, None]}).logits[0, places]
        got = qa.backend.model(**pruned).logits[0]
    # Of float32, in which the demo's logits reach 15; in float64 they are equal.
    torch.testing.assert_close(got, expected, atol=5e-5, rtol=0)


def test_generation_goes_on_at_the_positions_of_the_unpruned_prompt(qa: VideoQA) -> None:
    seen = videos(qa, 8)
    tokens, planes = everything(seen)
    prompt, kept = qa.backend.prompt(QUESTION, None, seen), choice(len(tokens))[None]
    further = None if planes is None else planes[:, kept]
    inputs, ids = qa.backend.inputs(prompt, kept, tokens[kept], further), []
    with torch.inference_mode():
        for _ in range(5):
            ids.append(qa.backend.model(**inputs).logits[:, -1].argmax(-1, keepdim=True))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[-1]], dim=1)
            positions = inputs["position_ids"]
            inputs["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    said = answers(qa.backend, prompt, kept, tokens[kept], further, max_new_tokens=5)
    assert said == [qa.backend.tokenizer.decode(torch.cat(ids, dim=1)[0], skip_special_tokens=True).strip()]
