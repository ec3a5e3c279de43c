"""Random checkpoints have the sizes and the special tokens of the published ones."""

from pathlib import Path

import pytest
import torch
import transformers

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


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no architecture 'gpt'.*qwen2-vl-2b"):
        write(tmp_path, "gpt")
