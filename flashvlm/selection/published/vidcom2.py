"""Frames and tokens that differ from the rest of the video."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flashvlm.selection.geometry import in_range
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published.shares import apportion
from flashvlm.selection.result import Selection

# Published settings: the share of the channels that are compared, those that vary least; the widths of the Gaussian
# kernels; and the temperature of the softmax over the frames.
CHANNELS = 0.5
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


def vidcom2(inputs: Inputs) -> Selection:
    """Keep the tokens least like the mean of their frame and of the video: VidCom2 (arXiv 2505.14454).

    Similarity is a sum of Gaussian kernels of the distance of unit vectors. Frames that are unlike the video's mean get
    a larger share of the budget. The question plays no part, nor does the metric.

    The published code rounds each frame's share for itself, to at least one token, so that it keeps 96 of 1,568 tokens
    when asked for 87. Here the largest remainders are rounded up, which meets any budget.
    """
    sizes = torch.tensor(inputs.group_sizes, device=inputs.tokens.device)
    to_video, to_frame = similarities(inputs.tokens, inputs.group_sizes)
    unlike = -torch.stack([part.mean() for part in to_video.split(inputs.group_sizes)])
    chance = (unlike / TEMPERATURE).softmax(0)
    counts = apportion(inputs.budget / len(to_video) * (1 + chance - chance.mean()) * sizes, sizes, inputs.budget)
    scores = -(to_video + to_frame)
    begins = (sizes.cumsum(0) - sizes).tolist()
    kept = [
        begin + part.argsort(descending=True, stable=True)[:count]
        for begin, part, count in zip(begins, scores.split(inputs.group_sizes), counts.tolist(), strict=True)
    ]
    return Selection.of(inputs, torch.cat(kept), scores=scores - scores.min())


def similarities(tokens: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(N,) similarity of each token to the mean of the video, and (N,) to that of its frame."""
    values = in_range(tokens).float()
    steady = values.var(0, unbiased=False).topk(max(1, int(values.shape[1] * CHANNELS)), largest=False).indices
    units = functional.normalize(values[:, steady], dim=1)
    frames = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in units.split(sizes)])
    return _kernels(units, units.mean(0)), _kernels(units, frames)


def _kernels(points: Tensor, centres: Tensor) -> Tensor:
    distance = (points - centres).square().sum(1)
    return torch.stack([(-distance / (2 * width)).exp() for width in WIDTHS]).sum(0)
