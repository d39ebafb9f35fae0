"""What a run knows of the categories of its items: those given, virtual ones, fewer, wrong ones."""

from __future__ import annotations

from dataclasses import replace

import torch

from cammsr.clusters import k_means
from cammsr.config import CategoryConfig
from cammsr.dataset import UNKNOWN, Dataset, DatasetError
from cammsr.items import standardise
from cammsr.robustness import with_wrong_categories

__all__ = ["virtual_categories", "with_categories"]


def with_categories(dataset: Dataset, config: CategoryConfig, seed: int) -> Dataset:
    """The dataset with the categories that the settings speak of, the same for the same seed."""
    if config.source == "none":
        return replace(
            dataset,
            categories=(),
            labels=dataset.labels[:, :0].clone(),  # a view of nothing cannot be exported
            category=torch.full_like(dataset.category, UNKNOWN),
        )
    if config.source == "virtual":
        dataset = virtual_categories(dataset, config.clusters, seed)
    if config.removed:
        dataset = with_wrong_categories(dataset, config.removed, seed, noise="lost")
    if config.noise:
        dataset = with_wrong_categories(dataset, config.noise, seed)
    return dataset


def virtual_categories(dataset: Dataset, clusters: int, seed: int) -> Dataset:
    """The dataset with clusters of its items in the place of their categories.

    The points are all features side by side, standardised, and divided by the root of their width,
    so that a wide modality counts no more than a narrow one. What an item lacks stands at its mean;
    an item without any feature has no category.

    Raises:
        DatasetError: fewer items have features than there are clusters.
    """
    raw = list(dataset.features.values())
    has = torch.zeros(dataset.num_items, dtype=torch.bool)
    for values in raw:
        has |= (values != 0).any(1)
    if int(has.sum()) < clusters:
        raise DatasetError(
            f"Expected at least as many items with features as clusters ({clusters}), "
            f"'{dataset.name}' has {int(has.sum())}."
        )
    points = torch.cat([standardise(values)[has] / values.shape[1] ** 0.5 for values in raw], 1)
    category = torch.full_like(dataset.category, UNKNOWN)
    category[has] = k_means(points, clusters, seed)
    return replace(
        dataset,
        categories=tuple(f"cluster {number:04}" for number in range(clusters)),
        labels=category.unsqueeze(1) == torch.arange(clusters),
        category=category,
    )
