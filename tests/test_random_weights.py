"""Random checkpoints have the sizes and the special tokens of the published ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import (
    noise,
    tiny_internvl,
    tiny_llava,
    tiny_llava_onevision,
    tiny_qwen3_vl,
    tiny_qwen3_vl_moe,
    tiny_smolvlm,
)
from oracle import inputs, processor

from flashvlm.bench.random_weights import ARCHITECTURES, make_tokenizer, write
from flashvlm.errors import UsageError


# Billions of parameters, as their safetensors files have them on the hub; Video-LLaVA with two vision towers.
@pytest.mark.parametrize(
    "name, billions",
    [
        ("qwen2-vl-2b", 2.21),
        ("qwen2.5-vl-3b", 3.75),
        ("video-llava-7b", 7.37),
        ("qwen3-vl-2b", 2.13),
        ("llava-onevision-0.5b", 0.894),
        ("llava-1.5-7b", 7.06),
        ("internvl3-1b", 0.938),
        ("smolvlm2-500m", 0.507),
    ],
)
def test_sizes_are_the_published_ones(name: str, billions: float) -> None:
    architecture = ARCHITECTURES[name]
    config = architecture.model_config()
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.006)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_special_tokens_have_their_ids_and_text_comes_back(name: str) -> None:
    architecture = ARCHITECTURES[name]
    tokenizer = make_tokenizer(architecture, architecture.config["text_config"]["vocab_size"])
    assert len(tokenizer) == architecture.config["text_config"]["vocab_size"]
    for token, number in architecture.special.items():
        ids = tokenizer(f"Wo?\n{token} Ähre", add_special_tokens=False).input_ids
        assert ids.count(number) == 1
        assert tokenizer.decode(ids) == f"Wo?\n{token} Ähre"


# How many visual tokens three frames of 64 x 96 pixels are, and a picture of that size.
@pytest.mark.parametrize(
    "make, of_video, of_image",
    [
        (tiny_qwen3_vl, 2 * 6, 6),
        (tiny_qwen3_vl_moe, 2 * 6, 6),
        (tiny_llava_onevision, 3 * 9 + 1, 25 + 5 * 8 + 5),
        (tiny_llava, None, 16),
        (tiny_internvl, 3 * 4, 7 * 4),
        (tiny_smolvlm, 3 * 4, 13 * 4),
    ],
)
def test_transformers_runs_tiny_checkpoints_on_videos_and_pictures(
    tmp_path: Path, make: Callable[[Path], Path], of_video: int | None, of_image: int
) -> None:
    theirs = processor(make(tmp_path))
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="float32").eval()
    for kind, count in {"video": of_video, "image": of_image}.items():
        if count is None:
            continue
        messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What happens?"}]}]
        frames = noise(3, 64, 96)
        if kind == "video":
            given = inputs(theirs, messages, videos=[frames], times=[[0.0, 0.5, 1.0]])
        else:
            given = inputs(theirs, messages, images=[frames[0]])
        token = model.config.image_token_id if kind == "image" else getattr(model.config, "video_token_id", None)
        assert (given["input_ids"] == (token or model.config.image_token_id)).sum() == count
        assert model.generate(**given, max_new_tokens=2, min_new_tokens=2).shape[1] == given["input_ids"].shape[1] + 2


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no architecture 'gpt'.*qwen2-vl-2b"):
        write(tmp_path, "gpt")
