"""A dataset of interactions between users and items with several modalities, and its folder.

A *dataset folder* is this example's own format (``DATASET.md`` describes it at length):

``interactions.parquet``
    ``user_id``, ``item_id`` (integers, contiguous from 0) and ``timestamp`` (integer), sorted by
    user, then time. Rows with equal times keep their order in the file, so a timestamp may be
    nothing but the position in the user's sequence.
``items.parquet``
    ``item_id`` (row i is item i), ``title``, ``category`` (one label) and, optionally,
    ``categories`` (labels joined by ``|``). Null or empty means unknown.
``features_<modality>.npy``
    floats (items, width), one file a modality; an all-zero row means that the item lacks it.

Further columns are ignored. Nothing in a folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cammsr.validate import (
    DatasetError,
    check_interactions,
    check_items,
    check_modalities,
    find_features,
    read_features,
    read_table,
)
from mmfuse.gating import UNKNOWN

__all__ = ["UNKNOWN", "Dataset", "DatasetError", "k_core", "read_folder", "write_folder"]

SECONDS_BELOW = (10**11, 10**14, 10**17)  # beyond each of them it is a thousandth more


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions, sorted by user and then time, and what is known of the items."""

    name: str
    user_ids: Tensor  # (I,) int64
    item_ids: Tensor  # (I,) int64
    timestamps: Tensor  # (I,) int64, in seconds, or positions
    features: dict[str, Tensor]  # modality -> (V, D_m) float32, an all-zero row is absent
    categories: tuple[str, ...]  # the C names, sorted
    labels: Tensor  # (V, C) bool, an all-False row is unknown
    category: Tensor  # (V,) int64, UNKNOWN where it is not known
    titles: tuple[str, ...]  # V titles

    def fingerprint(self) -> str:
        """A SHA-256 of all values, the same for the same dataset on any machine."""
        digest = hashlib.sha256(
            json.dumps([self.categories, self.titles, sorted(self.features)]).encode()
        )
        for values in (
            self.user_ids,
            self.item_ids,
            self.timestamps,
            self.labels,
            self.category,
            *(self.features[name] for name in sorted(self.features)),
        ):
            digest.update(str(tuple(values.shape)).encode())
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def num_users(self) -> int:
        """Users are numbered from 0 and each has at least one interaction."""
        return int(self.user_ids[-1]) + 1

    @property
    def num_items(self) -> int:
        """The catalogue size V, items without any interaction included."""
        return len(self.titles)


def read_folder(path: str | Path, modalities: Sequence[str] | None = None) -> Dataset:
    """Read and check a dataset folder.

    Args:
        path: the folder; its name becomes the dataset's name.
        modalities: which features to read, in this order; all of them by default.

    Raises:
        DatasetError: the folder does not keep to the format; the message says where.
    """
    folder = Path(path)
    items_file, interactions_file = folder / "items.parquet", folder / "interactions.parquet"
    text = dict.fromkeys(("title", "category", "categories"), "text")
    items = read_table(items_file, {"item_id": "identifier", **text}, optional=["categories"])
    check_items(items_file, items)
    interactions = read_table(
        interactions_file,
        {"user_id": "identifier", "item_id": "identifier", "timestamp": "integer"},
    )
    check_interactions(interactions_file, interactions, len(items))
    found = find_features(folder)
    chosen = list(found if modalities is None else modalities)
    check_modalities(folder, chosen, found)
    features = {name: read_features(found[name], len(items)) for name in chosen}
    categories, labels, category = _encode_categories(items)
    return Dataset(
        name=folder.resolve().name,
        user_ids=_to_tensor(interactions["user_id"]),
        item_ids=_to_tensor(interactions["item_id"]),
        timestamps=in_seconds(_to_tensor(interactions["timestamp"])),
        features=features,
        categories=categories,
        labels=labels,
        category=category,
        titles=tuple(items["title"].to_list()),
    )


def in_seconds(times: Tensor) -> Tensor:
    """Times of the unit that the latest of them tells."""
    latest = int(times.max()) if len(times) else 0
    unit = int(1000 ** sum(latest > bound for bound in SECONDS_BELOW))
    return times // unit


def write_folder(dataset: Dataset, path: str | Path) -> None:
    """Write a dataset as a folder that :func:`read_folder` reads back to the same values.

    The name is the folder's name, and a category that no item carries is forgotten.

    Raises:
        DatasetError: the folder has features that would be read as part of this dataset.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("features_?*.npy"):
        if file.stem.removeprefix("features_") not in dataset.features:
            raise DatasetError(f"{file} belongs to another dataset. Write to a folder of its own.")
    pl.DataFrame(
        {
            "user_id": dataset.user_ids.numpy().astype(np.int32),
            "item_id": dataset.item_ids.numpy().astype(np.int32),
            "timestamp": dataset.timestamps.numpy(),
        }
    ).write_parquet(folder / "interactions.parquet")
    names = dataset.categories
    pl.DataFrame(
        {
            "item_id": np.arange(dataset.num_items, dtype=np.int32),
            "title": dataset.titles,
            "category": [None if c == UNKNOWN else names[c] for c in dataset.category.tolist()],
            "categories": [_join_labels(names, row) for row in dataset.labels],
        },
        schema_overrides={"category": pl.String, "categories": pl.String},
    ).write_parquet(folder / "items.parquet")
    for name, values in dataset.features.items():
        np.save(folder / f"features_{name}.npy", values.numpy(), allow_pickle=False)


def k_core(dataset: Dataset, k: int = 5) -> Dataset:
    """Keep the users and items with at least ``k`` interactions among each other, and renumber.

    Dropping a user can leave an item with too few interactions and the other way round, so the
    rule is applied until nothing changes. Users and items keep their order.
    """
    users, items = dataset.user_ids, dataset.item_ids
    keep, kept = torch.ones_like(users, dtype=torch.bool), -1
    while kept != int(keep.sum()):
        kept = int(keep.sum())
        enough_users = torch.bincount(users[keep], minlength=dataset.num_users) >= k
        enough_items = torch.bincount(items[keep], minlength=dataset.num_items) >= k
        keep = keep & enough_users[users] & enough_items[items]
    if kept == 0:
        raise DatasetError(
            f"The {k}-core of '{dataset.name}' is empty: every user and item needs {k} "
            "interactions. Add some, or choose a smaller k."
        )
    _, new_users = torch.unique(users[keep], return_inverse=True)
    old_items, new_items = torch.unique(items[keep], return_inverse=True)
    return Dataset(
        name=dataset.name,
        user_ids=new_users,
        item_ids=new_items,
        timestamps=dataset.timestamps[keep],
        features={name: values[old_items] for name, values in dataset.features.items()},
        categories=dataset.categories,
        labels=dataset.labels[old_items],
        category=dataset.category[old_items],
        titles=tuple(dataset.titles[i] for i in old_items.tolist()),
    )


def _encode_categories(items: pl.DataFrame) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """The sorted names, the labels (V, C) and the single category (V,)."""
    single = items["category"].str.strip_chars().to_list()
    many = [
        _split_labels(joined) or _split_labels(one)
        for joined, one in zip(items["categories"], single, strict=True)
    ]
    names = tuple(sorted({name for row in many for name in row} | set(single) - {""}))
    index = {name: c for c, name in enumerate(names)}
    labels = torch.zeros(len(single), len(names), dtype=torch.bool)
    for i, row in enumerate(many):
        labels[i, [index[name] for name in row]] = True
    category = torch.tensor([index.get(name, UNKNOWN) for name in single], dtype=torch.int64)
    return names, labels, category


def _split_labels(text: str) -> list[str]:
    return [name.strip() for name in text.split("|") if name.strip()]


def _join_labels(names: tuple[str, ...], row: Tensor) -> str | None:
    return "|".join(names[c] for c in row.nonzero().flatten().tolist()) or None


def _to_tensor(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.cast(pl.Int64).to_numpy().copy())
