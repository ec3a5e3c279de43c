"""Density peaks: tokens with many near neighbours, far from any token that has more (Rodriguez and Laio 2014)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distances(points: Tensor) -> Tensor:
    """(M, M) float32 distances of (M, D) points, as root mean squares over D."""
    return torch.cdist(points.float(), points.float()) / math.sqrt(points.shape[1])


def peaks(distance: Tensor, neighbours: int) -> Tensor:
    """How much of a density peak each point is: its density times its distance from the nearest denser point.

    Published code adds noise to the densities, so that no two are equal. Here the first of equal ones is denser.

    Args:
        distance: (M, M) of the points.
        neighbours: how many of the nearest points, itself included, a point's density is taken from; at most M.

    Returns:
        (M,) float32.
    """
    density = (-distance.topk(neighbours, largest=False).values.square().mean(1)).exp()
    rank = torch.empty_like(density, dtype=torch.int64)
    rank[density.argsort(descending=True, stable=True)] = torch.arange(len(density), device=density.device)
    denser = rank[None] < rank[:, None]
    return torch.where(denser, distance, distance.max()).amin(1) * density


def clusters(points: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Assign (M, D) points to the `count` highest density peaks among them.

    Returns:
        centres: (count,) int64, ascending.
        nearest: (M,) int64, the position in `centres` of the nearest one; for a centre, its own.
    """
    distance = distances(points)
    ranked = peaks(distance, min(neighbours, count)).argsort(descending=True, stable=True)
    centres = ranked[:count].sort().values
    nearest = distance[:, centres].argmin(1)
    nearest[centres] = torch.arange(count, device=centres.device)
    return centres, nearest
