"""What is left of a trained model when items lose a modality, or their categories are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cammsr.blockwise import model_ranks
from cammsr.dataset import UNKNOWN, Dataset, DatasetError
from cammsr.metrics import summarise
from cammsr.ranking import BLOCK, Reader
from cammsr.split import Target
from mmfuse import FeatureTable

__all__ = ["Noise", "adapt", "can_be_wrong", "curve", "with_wrong_categories", "without"]

Noise = Literal["wrong", "lost"]


def without(dataset: Dataset, modality: str, share: float, seed: int = 0) -> Dataset:
    """The dataset with a modality dropped from a random share of the items that have it.

    For one seed the sets are nested: what lacks it at a share lacks it at every greater one.
    """
    _check_share(share)
    if modality not in dataset.features:
        raise ValueError(f"Expected a modality among {list(dataset.features)}, got {modality!r}.")
    values = dataset.features[modality]
    chosen = _draw((values != 0).any(1), share, torch.Generator().manual_seed(seed))
    features = {**dataset.features, modality: values.index_fill(0, chosen, 0)}
    return replace(dataset, features=features)


def can_be_wrong(dataset: Dataset) -> Tensor:  # (V,)
    """Items with a category that lack another one, which would be wrong."""
    others = _others(dataset)
    return ~others.all(1) & others.any(1)


def with_wrong_categories(
    dataset: Dataset, share: float, seed: int = 0, *, noise: Noise = "wrong"
) -> Dataset:
    """The dataset with another category, or none, for a random share of the items that have one.

    A wrong category is drawn evenly among those that the item does not have, and takes the place of
    all that it has. For one seed the sets are nested, and an item keeps its wrong category.
    """
    _check_share(share)
    if noise not in get_args(Noise):
        raise ValueError(f"Expected noise among {list(get_args(Noise))}, got {noise!r}.")
    generator = torch.Generator().manual_seed(seed)
    others = _others(dataset)
    has = ~others.all(1)
    if noise == "wrong":
        has = can_be_wrong(dataset)
        if not has.any():
            raise DatasetError(
                f"Expected an item that some category is wrong for, '{dataset.name}' has none; it "
                f"has {len(dataset.categories)} categories."
            )
    chosen = _draw(has, share, generator)
    labels, category = dataset.labels.clone(), dataset.category.clone()
    labels[chosen], category[chosen] = False, UNKNOWN
    if noise == "wrong":
        lot = torch.rand(others.shape, generator=generator).masked_fill(~others, -1)
        category[chosen] = lot.argmax(1)[chosen]
        labels[chosen, category[chosen]] = True
    return replace(dataset, labels=labels, category=category)


def adapt(model: nn.Module, dataset: Dataset) -> nn.Module:
    """A copy of a trained model, over a dataset in which items have lost modalities or categories.

    Features that are left are scaled as they were in training; to build the model anew would scale
    them by the items that are left. Large tables are shared, not copied.
    """
    tables = list(_tables(model).values())
    shared = {id(table.features): table.features for table in tables}
    copied = copy.deepcopy(model, dict(shared))
    for name, table in _tables(copied).items():
        if name in dataset.features:
            present = (dataset.features[name] != 0).any(1)
            gained = (present.to(table.present.device) & ~table.present).nonzero().flatten()
            if len(gained):
                raise ValueError(
                    f"Expected items that lack no less than the model's, item {int(gained[0])} has "
                    f"{name!r} in '{dataset.name}' and lacks it in the model."
                )
            table.present.copy_(present)
    if "labels" in dict(copied.named_buffers(recurse=False)):
        copied.get_buffer("labels").copy_(dataset.labels)
    return copied


def curve(
    model: nn.Module,
    change: Callable[[float], Dataset],
    target: Target,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    block: int = BLOCK,
) -> list[dict[str, float]]:
    """The metrics of a trained model at each share of changed items.

    Args:
        model: any of :data:`cammsr.variants.VARIANTS`; it is left as it is.
        change: from a share to the changed dataset: :func:`without` and its like.
        target: what to rank.
        shares: which shares.
        block: how many items to score at a time.
    """
    points = []
    for share in shares:
        ranks = model_ranks(Reader(adapt(model, change(share))), target, block=block)
        points.append({"share": share, **summarise(ranks)})
    return points


def _tables(model: nn.Module) -> dict[str, FeatureTable]:
    """The tables of frozen features by modality."""
    items = model.get_submodule("items")
    tables: list[FeatureTable] = list(items.get_submodule("tables").children())  # type: ignore[arg-type]
    names: tuple[str, ...] = items.names  # type: ignore[assignment]
    return dict(zip(names[len(names) - len(tables) :], tables, strict=True))


def _draw(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random share of the true rows (V,): the first of one order, so that shares nest."""
    order = torch.randperm(len(rows), generator=generator)
    order = order[rows[order]]
    return order[: round(share * len(order))]


def _others(dataset: Dataset) -> Tensor:  # (V, C)
    """Categories that an item does not have."""
    others = ~dataset.labels
    others[dataset.category != UNKNOWN, dataset.category[dataset.category != UNKNOWN]] = False
    return others


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"Expected a share from 0 to 1, got {share}.")
