"""The vision encoders' forward pass with the checkpoint's own modules and weights: transformers' result, faster.

Three things make it faster. A few frames go through all layers before the next ones, so that a layer's output is still
in the processor's cache when the next layer reads it, and memory does not grow with the video. Frames, or windows, of
the same size attend in one call, where transformers makes one call for each. And on a CPU, large temporaries (the inner
layer of an MLP, rotated positions in float32, attention scores) are made and used up piece by piece: in the cache, and
in memory that the allocator has at hand, whereas larger pieces are fetched from the system page by page, and given
back, every time. The patch embedding is computed as the matrix product that its Conv3d amounts to. (`packing` describes
what linear layers gain from laying out their weights once.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashvlm.encode import Features
from flashvlm.precision import quick_dtype

# How many attention scores are written out at once: on a CPU (True) as many as its cache holds, elsewhere as many as
# keep the device busy. All scores of a large picture would take gigabytes.
SCORES_AT_ONCE = {True: 2**20, False: 2**24}
# On a CPU, how many patches pass through an MLP, or are rotated, at once; elsewhere all are.
PATCHES_IN_CACHE = 256


@dataclass(frozen=True)
class Layout:
    """The order in which the blocks hold the patches of one group, and which of them attend to each other.

    `order` (P,) int64 are the indices of the patches in the encoder's input. `runs` lists successive windows of equal
    size as `(count, size)`, the size in patches; P patches in all. `whole` (one per block) says whether all patches of
    the group attend to each other instead.
    """

    order: Tensor
    runs: tuple[tuple[int, int], ...]
    whole: tuple[bool, ...]

    def seen(self, block: int) -> tuple[tuple[int, int], ...]:
        """The runs that apply in this block."""
        return ((1, len(self.order)),) if self.whole[block] else self.runs

    def part(self, places: Tensor) -> Layout:
        """The layout of only the patches at these ascending places of the order; windows may be empty."""
        sizes = torch.tensor([size for count, size in self.runs for _ in range(count)])
        left = torch.bucketize(places, sizes.cumsum(0), right=True).bincount(minlength=len(sizes))
        return Layout(self.order[places], tuple((1, size) for size in left.tolist()), self.whole)


def layout(rows: int, columns: int, merge: int, whole: Sequence[bool], side: int | None = None) -> Layout:
    """The layout of a group of `rows` x `columns` merged tokens, `merge`**2 patches each, in windows of `side` tokens.

    Windows are `side` tokens square, cut off at the picture's lower and right edges; equal ones are adjacent. Without a
    side, there is one window.
    """
    side = side or max(rows, columns)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    heights = (rows - row // side * side).clamp(max=side)
    widths = (columns - column // side * side).clamp(max=side)
    window = row // side * columns + column // side
    # Sorted by window size, then by window; tokens stay in order within a window.
    rank = ((heights * (side + 1) + widths) * rows * columns + window).flatten()
    tokens = rank.argsort(stable=True)
    sizes = torch.unique_consecutive(rank[tokens], return_counts=True)[1].tolist()
    runs: list[tuple[int, int]] = []
    for size in sizes:
        count = runs.pop()[0] + 1 if runs and runs[-1][1] == size * merge**2 else 1
        runs.append((count, size * merge**2))
    order = (tokens[:, None] * merge**2 + torch.arange(merge**2)).flatten()
    return Layout(order, tuple(runs), tuple(whole))


def forward(
    visual: Any,
    patches: Tensor,
    axes: Tensor,
    layout: Layout,
    learned: Tensor | None = None,
    mergers: Mapping[int, Any] = MappingProxyType({}),
    kept: list[Tensor] | None = None,
    changed: Tensor | None = None,
) -> Features:
    """Run the vision encoder of Qwen2-VL, Qwen2.5-VL or Qwen3-VL on groups of the same size.

    With `changed`, only those tokens of a single group go through it. They attend to each other, and to the keys and
    values that the others had when they went through last (Eventful Transformers, arXiv 2308.13494).

    Args:
        visual: the encoder, a transformers module.
        patches: (G, P, values), those of one merged token adjacent.
        axes: (P, 2) int64, row and column of each.
        learned: (P, C), learned positions that are added to the patches, if the encoder has any.
        mergers: modules that make a further plane of features of what comes out of a block, by the block's number.
        kept: for each block (P, 2, heads, d), the keys and values of the last group's patches in the layout's order;
            for the last block (P, 3, heads, d), queries too. It is written to, and empty before the first group.
        changed: (P / merge**2,) bool, the tokens that go through; None is all.

    Returns:
        The merged tokens (G, P / merge**2, D), or those that changed; and the saliency of all, which is how much
        attention each received from the others of its group (or of its window, if the last block has windows), averaged
        over heads and the token's patches.
    """
    merge = visual.spatial_merge_size**2
    places = None if changed is None else changed.repeat_interleave(merge)[layout.order].nonzero().squeeze(1)
    part = layout if places is None else layout.part(places)
    order = part.order.to(patches.device)
    groups, count = len(patches), len(order)
    embed = visual.patch_embed.proj
    hidden = F.linear(patches[:, order], embed.weight.flatten(1), embed.bias)
    if learned is not None:
        hidden += learned[order]
    cos, sin = (turn[:, None, None] for turn in visual.rotary_pos_emb(hidden, axes.to(patches.device)[order]))
    back, planes = order.argsort(), []

    def merged(merger: Any) -> Tensor:
        # A token's patches stay together, so every merge-th patch says where its token moves back to.
        return merger(hidden).view(groups, count // merge, -1)[:, back[::merge] // merge]

    at_once = PATCHES_IN_CACHE if hidden.device.type == "cpu" else groups * count
    last = len(visual.blocks) - 1
    for number, block in enumerate(visual.blocks):
        attention, runs = block.attn, layout.seen(number)
        # (G, P, 3, heads, head width)
        states = attention.qkv(block.norm1(hidden)).view(groups, count, 3, attention.num_heads, -1)
        step = max(1, at_once // groups)
        for some, *angles in zip(states.split(step, 1), cos.split(step), sin.split(step), strict=True):
            rotate_(some[:, :, :2], *angles)
        every = states if kept is None else _keep(kept, number, states[:, :, 0 if number == last else 1 :], places)
        *_, key, value = every.unbind(2)
        if number == last:
            received = attention_received(every[:, :, 0], key, attention.scaling, runs)
        hidden += attention.proj(attend(states[:, :, 0], key, value, attention.scaling, runs, part.seen(number)))
        for some in hidden.flatten(0, 1).split(at_once):
            some += block.mlp(block.norm2(some))
        if number in mergers:
            planes.append(merged(mergers[number]))
    saliency = received[:, layout.order.to(patches.device).argsort()].view(groups, -1, merge).mean(dim=2)
    return Features(merged(visual.merger), saliency, torch.stack(planes) if planes else None)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Apply rotary positions in place, in float32 like transformers; `cos` and `sin` broadcast to `x`."""
    left, right = x.float().chunk(2, dim=-1)
    # The two halves have the same angles.
    half = left.shape[-1]
    cos, sin = cos[..., :half], sin[..., :half]
    turned = (left * cos).addcmul_(right, sin, value=-1), (right * cos).addcmul_(left, sin)
    x[..., :half], x[..., half:] = turned


def _keep(kept: list[Tensor], block: int, states: Tensor, places: Tensor | None) -> Tensor:
    """Keep a block's states (G, P, n, heads, d) of the last group, and return them; at `places`, complete the kept."""
    if places is not None:
        kept[block][places] = states[0]
        return kept[block][None]
    if block == len(kept):
        kept.append(torch.empty_like(states[-1]))
    kept[block].copy_(states[-1])
    return states


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    runs: Sequence[tuple[int, int]],
    asking: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Attention within each window, from (G, P, heads, d) each to (G, P, heads * d).

    `asking` are the runs of the queries, if these are of a part (see `Layout.part`).
    """
    if asking is None:
        asking = runs
    elif asking != runs:
        runs = [(1, size) for count, size in runs for _ in range(count)]
    parts = []
    quick = query.dtype == torch.bfloat16 and quick_dtype(query.device) == torch.bfloat16
    written_out = quick and query.device.type == "cpu"
    for (q,), (k, v) in zip(_windows((query,), asking), _windows((key, value), runs), strict=True):
        if not q.shape[2]:
            continue
        mixed = _mix(q, k, v, scaling) if written_out else F.scaled_dot_product_attention(q, k, v, scale=scaling)
        parts.append(mixed.transpose(1, 2).reshape(len(query), -1, query.shape[2] * query.shape[3]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _mix(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """`scaled_dot_product_attention` of (B, heads, P, d), with scores in bfloat16, much like transformers' eager code.

    It takes two thirds of the time of torch's own on a CPU with AVX512-bf16.
    """
    (heads, rows), mixed = heads_and_rows_at_once(query, key), []
    states = (x.flatten(0, 1).contiguous().split(heads) for x in (query * scaling, key, value))
    for q, k, v in zip(*states, strict=True):
        parts = [torch.bmm(torch.bmm(part, k.transpose(1, 2)).softmax(dim=-1), v) for part in q.split(rows, 1)]
        mixed.append(torch.cat(parts, dim=1))
    return torch.cat(mixed).view(query.shape)


def heads_and_rows_at_once(query: Tensor, key: Tensor) -> tuple[int, int]:
    """For how many heads of (B, heads, P, d), and queries of each, attention scores are written out together."""
    scores = SCORES_AT_ONCE[query.device.type == "cpu"]
    return max(1, scores // (query.shape[2] * key.shape[2])), max(1, scores // key.shape[2])


def attention_received(query: Tensor, key: Tensor, scaling: float, runs: Sequence[tuple[int, int]]) -> Tensor:
    """How much attention each patch receives from the others in its window, averaged over heads.

    Args:
        query, key: (G, P, heads, d), with rotary positions applied.

    Returns:
        (G, P) float32, non-negative; 0 if a window is a single patch.
    """
    parts = []
    for queries, keys in _windows((query, key), runs):
        (heads, rows), received = heads_and_rows_at_once(queries, keys), []
        for q, k in zip(*(x.flatten(0, 1).split(heads) for x in (queries, keys)), strict=True):
            received.append(torch.zeros(k.shape[:2], device=k.device))
            for begin in range(0, q.shape[1], rows):
                weights = torch.bmm(q[:, begin : begin + rows], k.transpose(1, 2)).float().mul_(scaling).softmax(dim=-1)
                received[-1] += weights.sum(dim=1)
                received[-1][:, begin : begin + rows] -= weights.diagonal(begin, dim1=1, dim2=2)
        mean = torch.cat(received).view(queries.shape[:3]).mean(dim=1) / max(queries.shape[2] - 1, 1)
        parts.append(mean.view(len(query), -1))
    return torch.cat(parts, dim=1).clamp(min=0)


def _windows(states: Sequence[Tensor], runs: Sequence[tuple[int, int]]) -> list[list[Tensor]]:
    """(G, P, heads, d) tensors as (G * count, heads, size, d), run by run."""
    parts, begin = [], 0
    for count, size in runs:
        end = begin + count * size
        cut = [x[:, begin:end].unflatten(1, (count, size)).flatten(0, 1).transpose(1, 2) for x in states]
        parts.append(cut)
        begin = end
    return parts
