"""Segments of similar frames: the salient tokens of each frame, and density peaks that take in all others."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvlm.selection.geometry import unit_vectors
from flashvlm.selection.inputs import Inputs
from flashvlm.selection.published.density import distances, peaks
from flashvlm.selection.published.shares import apportion
from flashvlm.selection.result import Selection

# Published settings for Qwen2.5-VL: at least how many segments; the cosine of successive frames below which a segment
# ends, and above which the earlier one is left out; the share of a segment's tokens that are merged ones; the frames
# for each one that has them; the neighbours that a density is taken from; and the least weight of a merged token's own
# vector.
SEGMENTS = 8
CUT, SAME = 0.84, 0.95
MERGED_SHARE = 0.4
FRAMES_PER_ANCHOR = 4
NEIGHBOURS = 4
OWN = 0.6


def fastvid(inputs: Inputs) -> Selection:
    """Keep salient tokens and merge the rest of a segment into density peaks: FastVID (arXiv 2503.11187).

    The video is cut where successive frames differ most. A frame that the next one of its segment repeats keeps
    nothing. The others keep their most salient tokens. In every fourth of them, from the last one on, density peaks
    take in all other tokens of the segment that are not salient. The question plays no part, nor does the metric.

    The published code rounds the tokens of each frame down, so that it keeps 64 of 1,568 tokens when asked for 87. Here
    the largest remainders are rounded up, which meets any budget; if it exceeds what the frames left have, none is left
    out.
    """
    frames = torch.arange(len(inputs.tokens), device=inputs.tokens.device).split(inputs.group_sizes)
    segments, left_out = _segments(inputs)
    for drop in (left_out, set[int]()):
        shown = [[frames[place] for place in segment if place not in drop] for segment in segments]
        sizes = torch.tensor([sum(map(len, some)) for some in shown])
        if sizes.sum() >= inputs.budget:
            break
    lengths = torch.tensor([sum(len(frames[place]) for place in segment) for segment in segments])
    counts = apportion(lengths * (inputs.budget / len(inputs.tokens)), sizes, inputs.budget)
    entries = [
        entry
        for segment, some, count in zip(segments, shown, counts.tolist(), strict=True)
        if count
        for entry in _compressed(inputs, torch.cat([frames[place] for place in segment]), some, count)
    ]
    return Selection.mixed(inputs, *map(torch.cat, zip(*entries, strict=True)))


def _segments(inputs: Inputs) -> tuple[list[list[int]], set[int]]:
    """The frames of each segment, and those that the next frame of their segment repeats."""
    means = unit_vectors(torch.stack([part.mean(0) for part in inputs.tokens.float().split(inputs.group_sizes)]))
    alike = (means[:-1] * means[1:]).sum(1)
    cut = (alike < CUT).index_fill(0, alike.argsort(stable=True)[: SEGMENTS - 1], True)
    ends = [*cut.nonzero().flatten().tolist(), len(means) - 1]
    segments = [list(range(begin, end + 1)) for begin, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)]
    return segments, set((~cut & (alike >= SAME)).nonzero().flatten().tolist())


def _compressed(inputs: Inputs, tokens: Tensor, frames: list[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """Keep `count` tokens of a segment.

    Args:
        tokens: all tokens of the segment.
        frames: the tokens of each frame that keeps some.

    Returns:
        Kept tokens, the tokens that each is made of, and their weights: see `Selection.mixed`.
    """
    sizes = torch.tensor([len(frame) for frame in frames])
    peaked = torch.zeros_like(sizes)
    anchors = torch.arange(len(frames) - 1, -1, -FRAMES_PER_ANCHOR)
    merged = max(1, int(count * MERGED_SHARE))
    # The last frames get what does not divide evenly.
    shares = torch.full((len(anchors),), merged / len(anchors))
    peaked[anchors] = apportion(shares, torch.full_like(anchors, merged), merged)
    peaked = peaked.minimum((sizes // 2).clamp(min=1))
    rest = count - int(peaked.sum())
    salient = apportion(torch.full((len(frames),), rest / len(frames)), sizes - peaked, rest)
    ranked = [frame[inputs.saliency[frame].argsort(descending=True, stable=True)] for frame in frames]
    kept = torch.cat([frame[:most] for frame, most in zip(ranked, salient.tolist(), strict=True)])
    entries: list[tuple[Tensor, ...]] = [(kept, kept, torch.ones_like(kept, dtype=torch.float32))]
    others = tokens[~torch.isin(tokens, kept)]
    for frame, most, few in zip(ranked, salient.tolist(), peaked.tolist(), strict=True):
        if few:
            entries.append(_merged(inputs.tokens.float(), frame[most:].sort().values, others, few))
    return entries


def _merged(vectors: Tensor, frame: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge other tokens into `count` density peaks of a frame's tokens, each into the most similar one."""
    score = peaks(distances(vectors[frame]), min(NEIGHBOURS, len(frame)))
    centres = frame[score.argsort(descending=True, stable=True)[:count]].sort().values
    others = others[~torch.isin(others, centres)]
    into = (unit_vectors(vectors[others]) @ unit_vectors(vectors[centres]).T).argmax(1)
    members = torch.bincount(into, minlength=count)
    own = (1 / (members + 1)).clamp(min=OWN)
    own[members == 0] = 1
    weights = torch.cat([own, ((1 - own) / members)[into]])
    return torch.cat([centres, centres[into]]), torch.cat([centres, others]), weights
