"""Which precision a processor is quick in."""

from __future__ import annotations

import torch


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, but float32 on a CPU that does not multiply it."""
    if device.type != "cpu":
        return torch.bfloat16
    # What torch itself asks before it sends bf16 products to oneDNN, where it has that: AVX512-bf16 or AMX.
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
