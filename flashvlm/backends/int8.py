"""Linear layers in int8, on a CPU: half the memory of bfloat16, and products at twice its peak where the CPU has both.

A weight has one scale for every output channel, an activation one for every token as it comes (dynamic quantisation).
Real activations have a few channels far larger than all others (LLM.int8(), arXiv 2208.07339), which would leave the
others only a few of the 255 levels. So both factors are turned first, in blocks of channels, by an orthogonal matrix
that spreads each channel over its block, which changes nothing in the product (QuaRot, arXiv 2404.00456). It needs no
calibration and no list of outliers.

The linear layers of the repeated blocks are quantised. What comes first and last (patch embedding, merger or projector,
word embeddings, output layer) stays as it is, and so do experts, which are not linear layers in transformers.

transformers hands over one weight after the other while it loads, and each is read, quantised and given up before the
next one.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from flashvlm.errors import ModelError, UsageError
from flashvlm.models import weight_files

METHOD = "flashvlm-int8"
# Layers of a stack, by their names in every family's weights.
STACKED = re.compile(r"\.(layers|blocks|layer)\.\d+\.(.*\.)?(?!gate\.)\w+\.weight$")
# Rows that are multiplied at once, so that the product stays in the processor's cache; and how many values are
# quantised at once, since that takes several passes over them.
ROWS = 256
VALUES = 2**18
# The most channels that are turned together.
BLOCK = 128
# Activations are unsigned to oneDNN, which has quick products for these on every processor.
ZERO = 128
# The attribute of a tensor under which its rows in int8 are kept.
SEEN = "_flashvlm_int8"
# The least scale: of a row of zeros.
SMALLEST = 1e-30


def refuse_elsewhere(device: str) -> None:
    """Refuse int8 where this module cannot compute in it.

    Raises:
        UsageError: a device that is no CPU, or a torch without these products.
    """
    if device != "cpu":
        raise UsageError(f"--dtype int8 is for a CPU; on {device}, use bfloat16 or float16.")
    if not hasattr(torch.ops.onednn, "qlinear_pointwise") or not torch.backends.mkldnn.is_available() or not levels():
        raise UsageError("--dtype int8 needs a torch with oneDNN's products in int8, which this one lacks.")


@cache
def levels() -> int:
    """The largest quantised weight whose products oneDNN adds up exactly on this processor; 0 if there is none.

    Without VNNI instructions it adds pairs of products in 16 bits, which overflow unless weights have a bit less.
    """
    for largest in (127, 63):
        weight = torch.full((16, 64), largest, dtype=torch.int8)
        row = torch.full((1, 64), 255, dtype=torch.uint8)
        scales, zeros = torch.ones(16), torch.zeros(16, dtype=torch.long)
        try:
            laid_out = torch.ops.onednn.qlinear_prepack(weight, None)
            product = _product(row, 1.0, laid_out, scales, zeros, None, torch.float32)
        except RuntimeError:
            return 0
        if (product == 64 * (255 - ZERO) * largest).all():
            return largest
    return 0


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, which takes and makes tensors of `dtype`."""

    def __init__(self, layer: nn.Linear, weight: Tensor, dtype: torch.dtype) -> None:
        """Quantise the (N, K) `weight` of `layer`, and take over its bias."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = layer.bias
        self.turn = turning(self.in_features, dtype)
        # For one row, products in float32 are much quicker than those of oneDNN.
        self.turn_one = turning(self.in_features, torch.float32)
        # A part at a time, which stays in the processor's cache.
        parts = [self._quantised_weight(part) for part in weight.to(dtype).split(ROWS)]
        quantised, self.scales = (torch.cat(part) for part in zip(*parts, strict=True))
        # In oneDNN's layout; as a parameter, for those who count the weights.
        laid_out = torch.ops.onednn.qlinear_prepack(quantised, None)
        self.weight = nn.Parameter(laid_out, requires_grad=False)
        # Else transformers would fill it with random numbers once all weights are loaded.
        self.weight._is_hf_initialized = True  # type: ignore[attr-defined]
        self.zeros = torch.zeros(self.out_features, dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = self._quantised(x)
        if len(rows) == 1:
            bias = None if self.bias is None else self.bias.float()
            made = _product(rows, scale.item(), self.weight, self.scales, self.zeros, bias, x.dtype)
        else:
            made = x.new_empty(len(rows), self.out_features)
            for some, each, out in zip(rows.split(ROWS), scale.to(x.dtype).split(ROWS), made.split(ROWS), strict=True):
                product = _product(some, 1.0, self.weight, self.scales, self.zeros, None, x.dtype)
                if self.bias is None:
                    torch.mul(product, each, out=out)
                else:
                    torch.addcmul(self.bias, product, each, out=out)
        return made.view(*x.shape[:-1], self.out_features)

    def _quantised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`quantise` of the turned rows of `x`, made once for all layers that get this very tensor (as query, key and
        value do), with which it is given up.
        """
        if (made := getattr(x, SEEN, None)) is None:
            rows = x.reshape(-1, self.in_features)
            if len(rows) == 1:
                made = quantise(self._turned(rows))
            else:
                at_once = max(1, VALUES // self.in_features)
                parts = [quantise(self._turned(some)) for some in rows.split(at_once)]
                made = tuple(torch.cat(part) for part in zip(*parts, strict=True))
            setattr(x, SEEN, made)
        return made

    def _quantised_weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        turned = self._turned(weight).float()
        scales = turned.abs().amax(dim=1).div_(levels()).clamp_(min=SMALLEST)
        return turned.mul_(scales.reciprocal()[:, None]).round_().to(torch.int8), scales

    def _turned(self, rows: Tensor) -> Tensor:
        turn = self.turn if len(rows) > 1 else self.turn_one
        # The matrix is symmetric, and its own inverse.
        return (rows.reshape(-1, len(turn)).to(turn.dtype) @ turn).view(rows.shape)


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(R, K) activations as uint8 around `ZERO`, and their scales (R, 1) float32, which bfloat16 holds exactly."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().div_(127).clamp_(min=SMALLEST)
    # What the product is multiplied by is what is divided by here.
    scale = scale.to(torch.bfloat16).float()
    signed = rows.float().mul_(scale.reciprocal()).round_().to(torch.int8)
    # The same as adding ZERO, without widening.
    return signed.view(torch.uint8).bitwise_xor_(ZERO), scale


@cache
def turning(channels: int, dtype: torch.dtype) -> Tensor:
    """The orthogonal matrix that blocks of the channels are multiplied by: a discrete Hartley transform, (B, B).

    B is the largest number up to `BLOCK` that divides `channels`. No entry is larger than sqrt(2 / B), so that a
    single large channel is spread over all B.
    """
    size = next(number for number in range(min(BLOCK, channels), 0, -1) if channels % number == 0)
    count = torch.arange(size, dtype=torch.float64)
    angles = 2 * math.pi / size * (count[:, None] * count[None] % size)
    return ((angles.cos() + angles.sin()) / math.sqrt(size)).to(dtype)


def _product(
    rows: Tensor, scale: float, weight: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        *(rows, scale, ZERO, weight, scales, zeros, bias, 1.0, 0, dtype),
        # Nothing happens to the product afterwards.
        *("none", [], ""),
    )


def is_stacked(name: str) -> bool:
    """Whether this is the weight of a layer in a stack, by its name."""
    return STACKED.search(f".{name}") is not None


def weights_of(folder: Path) -> dict[str, Any]:
    """The folder's weights by name, each read only where transformers takes it (`tensor[...]`)."""
    weights: dict[str, Any] = {}
    for file in weight_files(folder) or []:
        with safe_open(folder / file, framework="pt") as opened:
            weights |= {name: _OnDisk(folder / file, name) for name in opened.keys()}  # noqa: SIM118
    return weights


class _OnDisk:
    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __getitem__(self, part: Any) -> Tensor:
        # A copy: what is mapped counts as memory as long as the file is open.
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.name)[part].clone()


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """Tells transformers' `from_pretrained` to load by `_Quantizer`."""

    def __init__(self) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]


@register_quantizer(METHOD)
class _Quantizer(HfQuantizer):
    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return is_stacked(param_name) and type(model.get_submodule(param_name.rpartition(".")[0])) is nn.Linear

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Raise what transformers would have turned into an error of its own before."""
        for name, module in model.named_modules():
            if isinstance(module, _Unfit):
                there, expected = module.shapes
                raise ModelError(f"The weights do not fit config.json: {name} has the shape {there}, not {expected}.")

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


class _Quantise(ConversionOps):
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        """Put the quantised layers in place; nothing is left for transformers to do."""
        model = kwargs["model"]
        for name, given in input_dict.items():
            weight = given[0] if isinstance(given, list) else given
            place = name.rpartition(".")[0]
            layer = model.get_submodule(place)
            fits = weight.shape == layer.weight.shape
            made = Int8Linear(layer, weight, layer.weight.dtype) if fits else _Unfit(layer, weight)
            model.set_submodule(place, made)
            kwargs["missing_keys"].discard(name)
        return {}


class _Unfit(nn.Linear):
    """Stands for a layer whose weights have another shape than they should."""

    def __init__(self, layer: nn.Linear, weight: Tensor) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.shapes = tuple(weight.shape), tuple(layer.weight.shape)
