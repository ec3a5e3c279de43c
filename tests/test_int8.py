"""Linear layers in int8: what they give, which they are, where they are refused; and single rows in bfloat16."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES, noise, tiny_qwen2_5_vl
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flashvlm import VideoQA
from flashvlm.backends.int8 import Int8Linear, levels
from flashvlm.backends.packing import quick_single_rows
from flashvlm.encode import encode
from flashvlm.errors import ModelError, UsageError
from flashvlm.options import AskOptions


def layer(channels: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(channels, outputs).to(dtype)


def with_outliers(rows: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Activations of which one channel in 97 is twenty times larger, as in real checkpoints."""
    x = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1))
    x[:, ::97] *= 20
    return x.to(dtype)


def alike(one: Tensor, other: Tensor) -> float:
    """The smallest cosine of two rows."""
    return float(F.cosine_similarity(one.double(), other.double(), dim=-1).min())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("channels, outputs", [(1536, 512), (3420, 256), (97, 33)])
@torch.inference_mode()
def test_outlying_channels_cost_little(channels: int, outputs: int, dtype: torch.dtype) -> None:
    exact = layer(channels, outputs, dtype)
    x = with_outliers(40, channels, dtype)
    quantised = Int8Linear(exact, exact.weight, dtype)(x)
    assert quantised.dtype == dtype
    # 97 channels are one block that holds both outliers of a row.
    assert alike(quantised, exact(x)) > 0.999


@torch.inference_mode()
def test_a_row_alone_gives_what_it_gives_among_others() -> None:
    exact = layer(256, 128, torch.float32)
    quantised, x = Int8Linear(exact, exact.weight, torch.float32), with_outliers(5, 256, torch.float32)
    # Scales are rounded to bfloat16, and products are not.
    torch.testing.assert_close(quantised(x[2:3]), quantised(x)[2:3])
    assert quantised(x.view(5, 1, 256)).shape == (5, 1, 128)


@pytest.mark.parametrize("rows", [1, 300])
@torch.inference_mode()
def test_layers_that_share_their_input_give_what_each_gives_alone(rows: int) -> None:
    one, other = (Int8Linear(exact, exact.weight, torch.float32) for exact in (nn.Linear(256, 128), nn.Linear(256, 32)))
    x = with_outliers(rows, 256, torch.float32)
    one(x)
    assert torch.equal(other(x), other(x.clone()))


@torch.inference_mode()
def test_rows_of_zeros_give_the_bias() -> None:
    exact = layer(64, 32, torch.bfloat16)
    quantised = Int8Linear(exact, exact.weight, torch.bfloat16)
    assert torch.equal(quantised(torch.zeros(3, 64, dtype=torch.bfloat16)), exact.bias.expand(3, 32))


def test_products_are_right_on_older_processors() -> None:
    """Without VNNI, oneDNN's sums of two products overflow 16 bits unless weights have 7 bits."""
    code = (
        "from test_int8 import *\n"
        "exact = layer(256, 128, torch.float32)\n"
        "x = with_outliers(5, 256, torch.float32)\n"
        "with torch.inference_mode():\n"
        "    print(levels(), min(alike(Int8Linear(exact, exact.weight, torch.float32)(part), exact(part))"
        " for part in (x, x[:1])))\n"
    )
    settings = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True).stdout
    largest, cosine = said.split()
    assert int(largest) in (63, levels()) and float(cosine) > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_in_int8(family: str, tmp_path: Path) -> None:
    folder = FAMILIES[family](tmp_path)
    exact, quantised = (VideoQA.from_pretrained(folder, device="cpu", dtype=name) for name in ("float32", "int8"))
    assert (quantised.backend.precision, quantised.backend.dtype.is_floating_point) == ("int8", True)
    frames = noise(4, *exact.backend.frame_size(112, 168, AskOptions()))
    tokens = [encode(qa.backend, frames).tokens for qa in (exact, quantised)]
    assert alike(*tokens) > 0.98
    kinds = {name: type(module) for name, module in quantised.backend.model.named_modules()}
    inner = [name for name, kind in kinds.items() if kind is Int8Linear]
    assert any(".layers.0." in name for name in inner)
    assert not any("lm_head" in name or "merger" in name or "projector" in name for name in inner)


def test_an_answer_says_that_it_was_made_in_int8(tmp_path: Path) -> None:
    answer = VideoQA.from_pretrained("demo", device="cpu", dtype="int8").ask(
        Path(__file__).parent.parent / "samples" / "one.mp4", "What shape is the moving object?"
    )
    assert answer.model.dtype == "int8" and answer.answer
    assert answer.prefill_flops.before > 0


def test_int8_is_refused_on_other_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="int8 is for a CPU; on cuda, use bfloat16 or float16"):
        VideoQA.from_pretrained("demo", device="cuda", dtype="int8")


@pytest.mark.parametrize("damage, message", [("shape", "do not fit"), ("missing", "incomplete: .*q_proj.weight")])
def test_weights_that_do_not_fit_are_told_in_int8_too(damage: str, message: str, tmp_path: Path) -> None:
    folder = tiny_qwen2_5_vl(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    weight = weights.pop(name)
    if damage == "shape":
        weights[name] = weight[:-1].clone()
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        VideoQA.from_pretrained(folder, device="cpu", dtype="int8")


def test_weights_that_meet_single_rows_begin_where_they_are_read_quickly(tmp_path: Path) -> None:
    model = VideoQA.from_pretrained(FAMILIES["qwen2_vl"](tmp_path), device="cpu", dtype="bfloat16").backend.model
    layers = [layer for layer in model.get_decoder().modules() if isinstance(layer, nn.Linear)]
    if type(layers[0]) is nn.Linear:
        pytest.skip("this CPU has no quick products in bfloat16")
    assert all(layer.weight.data_ptr() % 64 == 0 for layer in [*layers, model.lm_head])


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@torch.inference_mode()
def test_a_single_row_in_bfloat16_is_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    quick = nn.Sequential(nn.Linear(256, 128, bias=bias).to(torch.bfloat16))
    exact = nn.Linear(256, 128, bias=bias).double()
    exact.load_state_dict(quick[0].state_dict())
    quick_single_rows(quick)
    x = torch.randn(3, 1, 256).to(torch.bfloat16)
    for part in (x, x[:1]):
        torch.testing.assert_close(quick(part).double(), exact(part.double()), rtol=2**-8, atol=1e-3)
