"""Which precision a processor is quick in."""

from __future__ import annotations

import torch


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, but float32 on a CPU that does not multiply it."""
    # What torch itself asks before it sends bf16 products to oneDNN: AVX512-bf16 or AMX.
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return torch.bfloat16
