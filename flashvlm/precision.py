"""Which precision a device is fast in."""

from __future__ import annotations

import platform

import torch


def quick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, but float32 on a CPU without fast bfloat16 products."""
    if device.type != "cpu":
        return torch.bfloat16
    # The check that torch itself makes before it sends bf16 products to oneDNN, if it has oneDNN. It also passes on x86
    # processors on which oneDNN emulates them.
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine() in ("x86_64", "AMD64"):
        quick = quick and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if quick else torch.float32
