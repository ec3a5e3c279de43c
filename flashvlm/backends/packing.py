"""Linear layers whose products suit a CPU: weights laid out for it once, and single rows at the speed of memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flashvlm.backends.loading import free_memory
from flashvlm.precision import quick_dtype

# Bytes of a line of the processor's cache, of which a read should not need two.
LINE = 64


def packed(module: Any) -> Any:
    """A twin of `module` whose linear layers hold their weights in oneDNN's layout; it shares everything else.

    It gives the results of `module`, with the weights as they are now, and takes as much memory again as these. If
    memory is short or nothing is gained (devices or dtypes that oneDNN does not multiply), `module` itself is returned.
    """
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not all(map(_gains, weights)):
        return module
    if not _have_room(weights):
        return module
    with torch.inference_mode():
        return _twin(module)


def quick_single_rows(model: nn.Module) -> None:
    """Have the model's linear layers multiply a single row, as when a token follows another, by torch's matrix-vector
    product, where that is faster.

    For one row, oneDNN copies the weights piece by piece into a layout of its own. The matrix-vector product reads them
    as they are, and rounds once, like oneDNN.
    """
    for layer in model.modules():
        if type(layer) is nn.Linear and _gains(layer.weight):
            layer.__class__ = _SingleRowLinear


def align(model: Any) -> None:
    """Copy the language model's weights to where a CPU reads them at full speed, if they do not begin there.

    Those that are mapped from a file begin anywhere. They stay as they are if memory is short.
    """
    layers = [*model.get_decoder().modules(), model.get_output_embeddings()]
    layers = [layer for layer in layers if type(layer) is _SingleRowLinear and layer.weight.data_ptr() % LINE]
    if _have_room([layer.weight for layer in layers]):
        for layer in layers:
            layer.weight.data = layer.weight.data.clone()


def _have_room(weights: Sequence[Tensor]) -> bool:
    """Whether a second copy of the weights leaves as much memory free as it takes; if that is unknown, it does."""
    free = free_memory("cpu")
    return free is None or free >= 2 * sum(weight.nbytes for weight in weights)


def _gains(weight: Tensor) -> bool:
    # The operators that torch's own compiler inserts when it freezes a model; they are not a public interface.
    here = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return here and on_cpu and quick_dtype(weight.device) == torch.bfloat16


def _twin(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return _PackedLinear(module)
    twin = copy.copy(module)
    twin._modules = {name: child and _twin(child) for name, child in module._modules.items()}
    return twin


class _PackedLinear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _SingleRowLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.numel() != self.in_features:
            return super().forward(x)
        row = x.flatten()
        product = torch.mv(self.weight, row) if self.bias is None else torch.addmv(self.bias, self.weight, row)
        return product.view(*x.shape[:-1], -1)
