"""Which precision a device is fast in."""

from __future__ import annotations

import torch


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, but float32 on a CPU without fast bfloat16 products."""
    if device.type != "cpu":
        return torch.bfloat16
    # The check that torch itself makes before it sends bf16 products to oneDNN, if it has oneDNN.
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
