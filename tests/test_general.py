"""Families without a file of their own: at 100 % they are transformers', and what is dropped is out of sight."""

import pytest
import torch
from checkpoints import load, noise
from general_checkpoints import GENERAL
from oracle import inputs, processor

from flashvlm import VideoQA
from flashvlm.encode import Encoded, encode
from flashvlm.generate import answers

QUESTION = "Why is this video funny?"
# Families whose layers carry on a state: hiding a token is not the same as taking it out.
RECURRENT = {"qwen3_5"}
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


def theirs(qa: VideoQA, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `generate` takes, by the checkpoint's processor alone."""
    if qa.backend.kind == "video":
        content, given = [{"type": "video"}], {"videos": [frames], "times": [times(len(frames))]}
    else:
        content, given = [{"type": "image"}] * len(frames), {"images": [list(frames)]}
    settings = SETTINGS.get(qa.backend.family, {}) if qa.backend.kind == "video" or len(frames) > 1 else {}
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    return inputs(processor(qa.backend.folder), messages, **given, **settings)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_keeping_everything_is_what_transformers_does(qa: VideoQA, count: int) -> None:
    if count == 1 and qa.backend.frames_per_group > 1:
        pytest.skip("transformers' own processor takes no video of one frame")
    frames, model = noise(count, 90, 160), qa.backend.model
    expected, encoded = theirs(qa, frames), seen(qa, frames)
    prompt, everything = qa.backend.prompt(QUESTION, None, [encoded]), torch.arange(len(encoded.tokens))[None]
    assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
    ours = qa.backend.inputs(prompt, everything, encoded.tokens[None])
    with torch.inference_mode():
        logits = [model(**given).logits[0] for given in (ours, expected)]
        said = model.generate(**expected, max_new_tokens=12, do_sample=False)[0, len(prompt.ids) :]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    assert len(logits[0].argmax(-1).unique()) > 3
    text = qa.backend.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert answers(qa.backend, prompt, everything, encoded.tokens[None], max_new_tokens=12) == [text]


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


def test_pruning_hides_the_dropped_tokens_and_changes_nothing_else(qa: VideoQA) -> None:
    backend, encoded = qa.backend, seen(qa, noise(6, 90, 160))
    count = len(encoded.tokens)
    kept = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 3].sort().values[None]
    prompt = backend.prompt(QUESTION, None, [encoded])
    whole = backend.inputs(prompt, torch.arange(count)[None], encoded.tokens[None])
    pruned = backend.inputs(prompt, kept, encoded.tokens[kept])
    places = prompt.places(kept)[0]
    hidden = torch.ones(len(prompt.ids), dtype=torch.bool).index_fill(0, places, False)
    masks = {
        kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        for kind, mask in visible(qa, prompt.ids, hidden).items()
    }
    layers = set(getattr(backend.text_config, "layer_types", None) or ())
    mask = masks if "sliding_attention" in layers else masks["full_attention"]
    if backend.family in RECURRENT:
        assert any("carry on a state" in told for told in backend.warnings)
        return
    with torch.inference_mode():
        expected = backend.model(**whole | {"attention_mask": mask}).logits[0, places]
        got = backend.model(**pruned).logits[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_group_is_a_grid(qa: VideoQA) -> None:
    encoded = seen(qa, noise(4, 90, 160))
    assert encoded.groups == 4 // qa.backend.frames_per_group
    assert encoded.groups * encoded.height * encoded.width == len(encoded.tokens)
