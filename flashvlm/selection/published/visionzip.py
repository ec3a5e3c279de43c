"""The most salient tokens of each frame, and means of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import Space
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published.shares import apportion
from flashvlm.selection.result import Selection

# The published share of a frame's tokens that are contextual: 10 of 64 (20 of 128, 30 of 192).
CONTEXTUAL_SHARE = 10 / 64


def visionzip(inputs: Inputs) -> Selection:
    """Keep the dominant tokens of each frame, and merge the others into contextual ones: VisionZip (arXiv 2412.04467).

    Every frame has the same share of the budget. Its dominant tokens are the most salient ones. Of the others, evenly
    spaced ones take in the rest, each token going into the most similar of them; a contextual token is their mean. The
    question plays no part. A frame that keeps one token keeps a dominant one; one that keeps more has a contextual one.

    Similarity is that of the tokens themselves. The paper takes that of the vision encoder's keys, which a selector
    does not see.
    """
    sizes = torch.tensor(inputs.group_sizes)
    counts = apportion(sizes * (inputs.budget / len(inputs.tokens)), sizes, inputs.budget)
    frames = torch.arange(len(inputs.tokens), device=inputs.tokens.device).split(inputs.group_sizes)
    space = Space.of(inputs.tokens, inputs.metric)
    entries = [
        entry
        for frame, count in zip(frames, counts.tolist(), strict=True)
        if count
        for entry in _compressed(inputs, space, frame, count)
    ]
    return Selection.mixed(inputs, *map(torch.cat, zip(*entries, strict=True)))


def _compressed(inputs: Inputs, space: Space, frame: Tensor, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keep `count` of the tokens of a frame: kept tokens, those that each is made of, and weights, as `Selection.mixed`
    takes them."""
    contextual = max(int(count > 1), round(count * CONTEXTUAL_SHARE)) if count < len(frame) else 0
    ranked = frame[inputs.saliency[frame].argsort(descending=True, stable=True)]
    dominant, rest = ranked[: count - contextual], ranked[count - contextual :].sort().values
    entries = [(dominant, dominant, torch.ones_like(dominant, dtype=torch.float32))]
    if contextual:
        targets = rest[:: len(rest) // contextual][:contextual]
        into = (space.left[rest] @ space.right[targets].T).argmax(1)
        # A target stays its own, whatever rounding says or if another one equals it.
        into[torch.isin(rest, targets)] = torch.arange(contextual, device=into.device)
        members = torch.bincount(into, minlength=contextual)
        entries.append((targets[into], rest, 1 / members[into]))
    return entries
