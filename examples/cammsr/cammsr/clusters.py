"""k-means: points in groups around their means."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]


def k_means(points: Tensor, clusters: int, seed: int = 0, *, rounds: int = 50) -> Tensor:
    """The cluster of every point: (N, D) -> (N,) int64, the same for the same seed.

    The first centres are points drawn one after the other, with a probability that grows with the
    squared distance to the nearest centre so far (k-means++); then points go to their nearest
    centre and centres to the mean of their points until nothing changes, or for so many rounds.

    Raises:
        ValueError: there are more clusters than points.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"Expected from 1 to {len(points)} clusters, got {clusters}.")
    points = points.double()
    centres = _first_centres(points, clusters, torch.Generator().manual_seed(seed))
    nearest = torch.full((len(points),), -1)
    for _ in range(rounds):
        before, nearest = nearest, _squared_distances(points, centres).argmin(1)
        if torch.equal(nearest, before):
            break
        counts = torch.bincount(nearest, minlength=clusters).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return nearest


def _first_centres(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    distances = _squared_distances(points, centres)[:, 0]
    while len(centres) < clusters:
        steps = distances.cumsum(0)
        lot = torch.rand(1, generator=generator, dtype=torch.float64) * steps[-1]
        place = torch.searchsorted(steps, lot, right=True).clamp(max=len(points) - 1)
        centres = torch.cat([centres, points[place]])
        distances = distances.minimum(_squared_distances(points, centres[-1:])[:, 0])
    return centres


def _squared_distances(points: Tensor, centres: Tensor) -> Tensor:  # (N, D), (K, D) -> (N, K)
    products = points @ centres.T
    lengths = points.square().sum(1, keepdim=True) + centres.square().sum(1)
    return (lengths - 2 * products).clamp(min=0)
