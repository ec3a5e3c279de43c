"""Windows of the video in which cells stand still, merged over time and then among one another."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor

from flashvlm.selection.geometry import unit_vectors
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published.density import clusters
from flashvlm.selection.published.shares import apportion
from flashvlm.selection.result import Selection

# Published settings: a cell stands still if its cosine from frame to frame exceeds this; the neighbours that a density
# is taken from; and the weight of a cluster's centre against the mean of its other members.
STILL = 0.8
NEIGHBOURS = 7
CENTRE = 0.6


def holitom(inputs: Inputs) -> Selection:
    """Merge what stands still, keep the most salient of the rest: HoliTom (arXiv 2505.21334), outside the model.

    The video is cut into windows of frames so that as many tokens as possible repeat the frame before. In each window,
    the cells that stand still throughout are averaged over time, and density peaks among them take in the others. Of
    the remaining tokens of each frame the most salient are kept. The question plays no part, nor does the metric. The
    published method goes on merging inside the language model.

    The published code rounds the share of each part for itself, so that it keeps 96 of 1,568 tokens when asked for 87.
    Here the largest remainders are rounded up, which meets any budget; one that exceeds what the averages leave is met
    without averaging.
    """
    parts = windows(inputs)
    if sum(part.shape[1] for part in parts) < inputs.budget:
        parts = [part[None] for part in torch.arange(len(inputs.tokens)).to(parts[0]).split(inputs.group_sizes)]
    sizes = torch.tensor([part.shape[1] for part in parts])
    counts = apportion(sizes * (inputs.budget / int(sizes.sum())), sizes, inputs.budget)
    return compress(inputs, parts, counts.tolist())


def windows(inputs: Inputs) -> list[Tensor]:
    """Cut the video into parts that are compressed apart.

    Returns:
        (W, m) int64 tokens each: m cells that stand still over W > 1 frames, or the other m tokens of one frame (1, m).
    """
    frames = torch.arange(len(inputs.tokens), device=inputs.tokens.device).split(inputs.group_sizes)
    units = unit_vectors(inputs.tokens)
    still = [
        (units[one] * units[other]).sum(1) > STILL if len(one) == len(other) else one.new_zeros(0, dtype=torch.bool)
        for one, other in pairwise(frames)
    ]
    parts = []
    for begin, end in _spans(still):
        throughout = torch.stack(still[begin:end]).all(0) if end > begin else torch.zeros_like(frames[begin]).bool()
        cells = torch.stack(frames[begin : end + 1])
        parts += [cells[:, throughout], *cells[:, ~throughout].split(1)]
    return [part for part in parts if part.numel()]


def _spans(still: list[Tensor]) -> list[tuple[int, int]]:
    """The first and last frame of each window, so that most tokens repeat the frame before within their window."""
    count = len(still) + 1
    saved = torch.zeros(count, count, dtype=torch.int64)
    for first in range(count - 1):
        _, alike = next(groupby(still[first:], len))
        cells = list(alike)
        throughout = torch.stack(cells).cumprod(0).sum(1).cpu()
        saved[first, first + 1 : first + 1 + len(cells)] = throughout * torch.arange(1, len(cells) + 1)
    gain = saved.tolist()
    # The most that the frames up to each one can save, and where the window that it ends begins.
    best, begins = [0] * count, list(range(count))
    for last in range(1, count):
        best[last] = best[last - 1]
        for first in range(last - 1, -1, -1):
            whole = gain[first][last] + (best[first - 1] if first else 0)
            if whole > best[last]:
                best[last], begins[last] = whole, first
    spans, last = [], count - 1
    while last >= 0:
        spans.append((begins[last], last))
        last = begins[last] - 1
    return spans[::-1]


def compress(inputs: Inputs, parts: list[Tensor], counts: list[int]) -> Selection:
    """Keep `counts` tokens of each part: of cells that stand still in the place that they have in the first frame."""
    # Of every token, the kept one that it is merged into (-1: none), and its weight there.
    into = torch.full_like(inputs.saliency, -1, dtype=torch.int64)
    weights = torch.ones_like(inputs.saliency)
    for part, count in zip(parts, counts, strict=True):
        if len(part) == 1:
            kept = part[0, inputs.saliency[part[0]].argsort(descending=True, stable=True)[:count]]
            into[kept] = kept
        elif count:
            cells, shares = _clusters(inputs.tokens[part].float().mean(0), count)
            into[part] = part[0, cells].expand_as(part)
            weights[part] = (shares / len(part)).expand_as(part)
    tokens = (into >= 0).nonzero().flatten()
    return Selection.mixed(inputs, into[tokens], tokens, weights[tokens])


def _clusters(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each of (M, D) points, the density peak (M,) that takes it in, and its weight there (M,)."""
    centres, nearest = clusters(points, count, NEIGHBOURS)
    others = torch.bincount(nearest, minlength=count) - 1
    weights = (1 - CENTRE) / others.clamp(min=1)[nearest]
    weights[centres] = torch.where(others > 0, CENTRE, 1.0).to(weights)
    return centres[nearest], weights
