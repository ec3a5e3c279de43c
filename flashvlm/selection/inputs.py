"""The input of every selector, checked once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, SupportsFloat

import torch
from torch import Tensor

from flashvlm.errors import UsageError
from flashvlm.selection.geometry import in_range

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of `select`, checked to make sense together. All tensors are on the device of the tokens."""

    # (N, D) floats of any kind: the visual tokens, group after group.
    tokens: Tensor
    # (N,) float32, at least 0; rescaled if it would not fit.
    saliency: Tensor
    # (L, D) floats of any kind: the words of the question; L may be 0.
    words: Tensor
    # How many tokens each temporal group has; they sum to N.
    group_sizes: tuple[int, ...]
    # How many tokens to keep, from 1 to N; N if the selector is to choose it, for `auto` or `delta`.
    budget: int
    auto: bool
    # Instead of a budget, the largest distance from any token to its nearest kept one.
    delta: float | None
    # How distance is measured: see `geometry.places`.
    metric: str
    # The random seed of selectors that draw.
    seed: int

    @classmethod
    def checked(
        cls,
        tokens: Tensor,
        saliency: Tensor,
        words: Tensor,
        group_sizes: Sequence[int],
        budget: int | Literal["auto"] | None,
        delta: float | None,
        metric: str,
        seed: int,
    ) -> Inputs:
        """Check the arguments of `select`.

        Raises:
            UsageError: an argument that makes no sense, alone or with the others; the message names it.
        """
        _check_floats("tokens", tokens, "N", "D")
        _check_floats("saliency", saliency, "N")
        _check_floats("words", words, "L", "D")
        count, width = tokens.shape
        if tokens.numel() == 0:
            raise UsageError(f"tokens must hold at least one vector, but has shape {tuple(tokens.shape)}.")
        if len(saliency) != count:
            raise UsageError(f"saliency must have one value a token, but has {len(saliency)} for {count} tokens.")
        if saliency.min() < 0:
            raise UsageError(f"saliency must not be negative, but goes down to {saliency.min().item():g}.")
        if len(words) and words.shape[1] != width:
            raise UsageError(f"words must be as wide as tokens ({width}), but are {words.shape[1]} wide.")
        sizes = _whole_numbers(group_sizes)
        if sizes is None or min(sizes, default=0) < 1:
            raise UsageError("group_sizes must be whole numbers, each at least 1.")
        if sum(sizes) != count:
            raise UsageError(f"group_sizes must sum to the {count} tokens, not to {sum(sizes)}.")
        if (budget is None) == (delta is None):
            raise UsageError("Give a budget or a delta, one of the two.")
        if delta is not None and not _is_distance(delta):
            raise UsageError(f"delta must be a distance of 0 or more, not {delta!r}.")
        most = count
        if budget is not None and budget != "auto":
            whole = _whole_numbers([budget])
            if whole is None or whole[0] < 1:
                raise UsageError(f"budget must be a whole number of tokens, at least 1, not {budget!r}.")
            most = min(whole[0], count)
        drawn = _whole_numbers([seed])
        if drawn is None or not -(2**63) <= drawn[0] < 2**63:
            raise UsageError(f"seed must be a whole number of 64 bits, not {seed!r}.")
        return cls(
            tokens.detach(),
            in_range(saliency.detach()).to(tokens.device, torch.float32),
            words.detach().to(tokens.device),
            sizes,
            most,
            budget == "auto",
            None if delta is None else float(delta),
            metric,
            drawn[0],
        )


def _whole_numbers(values: object) -> tuple[int, ...] | None:
    """Whole numbers of any type as Python integers; None if any is not a whole number."""
    try:
        return tuple(map(index, values))  # type: ignore[call-overload]
    except TypeError:
        return None


def _is_distance(value: object) -> bool:
    try:
        return isinstance(value, SupportsFloat) and 0 <= float(value) < math.inf
    except (TypeError, ValueError, RuntimeError):
        return False


def _check_floats(name: str, value: Tensor, *axes: str) -> None:
    if not isinstance(value, Tensor) or value.dtype not in FLOATS:
        raise UsageError(f"{name} must be a tensor of floats of at least 16 bits.")
    if value.ndim != len(axes):
        raise UsageError(f"{name} must have the axes {', '.join(axes)}, but has the shape {tuple(value.shape)}.")
    # `aminmax` propagates NaN and, unlike isfinite, needs no second tensor of that size.
    if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
        raise UsageError(f"{name} must be finite, but holds NaN or infinity.")
