"""Checks for the files of a dataset folder: a complaint names the file, the row and a remedy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "DatasetError",
    "check_interactions",
    "check_items",
    "check_modalities",
    "find_features",
    "read_features",
    "read_table",
]


class DatasetError(ValueError):
    """A dataset folder that does not keep to its format."""


def read_table(
    path: Path, columns: Mapping[str, str], optional: Collection[str] = ()
) -> pl.DataFrame:
    """Read these columns of a parquet table and check them.

    Args:
        path: the parquet file.
        columns: column name to what it must hold, ``"integer"``, ``"identifier"`` (an integer that
            is never negative) or ``"text"``. Only text may be null, which is read as empty.
        optional: columns that are all empty text when the table does not have them.
    """
    _check_is_file(path)
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as a parquet table ({_first_line(error)}). Write it again."
        ) from error
    for name, kind in columns.items():
        if name not in table.columns and name in optional:
            table = table.with_columns(pl.lit("").alias(name))
        if name not in table.columns:
            have = ", ".join(table.columns) or "none"
            raise DatasetError(f"{path} has no column '{name}'. Add it; its columns are: {have}.")
        _check_column(path, table[name], kind)
    text = [name for name, kind in columns.items() if kind == "text"]
    return table.select(list(columns)).with_columns(pl.col(text).cast(pl.String).fill_null(""))


def check_items(path: Path, items: pl.DataFrame) -> None:
    """Row i of the items must be item i, and a category is one label."""
    if items.is_empty():
        raise DatasetError(f"{path} has no rows. Write one row for each item.")
    ids = items["item_id"].to_numpy()
    row = _first(ids != np.arange(len(ids)))
    if row is not None:
        raise DatasetError(
            f"{path}, row {row}: expected item_id {row}, got {ids[row]}. "
            "Number the items from 0 without gaps and write them in that order."
        )
    row = _first(items["category"].str.contains("|", literal=True).to_numpy())
    if row is not None:
        raise DatasetError(
            f"{path}, row {row}: category '{items['category'][row]}' holds more than one label. "
            "Put several labels into the column 'categories', joined by '|'."
        )


def check_interactions(path: Path, interactions: pl.DataFrame, num_items: int) -> None:
    """Ids must be in range and the rows sorted by user, then time; every user must have a row."""
    if interactions.is_empty():
        raise DatasetError(f"{path} has no interactions. Write one row for each interaction.")
    items = interactions["item_id"].to_numpy()
    row = _first(items >= num_items)
    if row is not None:
        raise DatasetError(
            f"{path}, row {row}: item_id {items[row]} is out of range, items.parquet has "
            f"{num_items} items. Add the item there or drop this row."
        )
    users = interactions["user_id"].to_numpy().astype(np.int64)
    times = interactions["timestamp"].to_numpy()
    same_user, earlier = users[1:] == users[:-1], times[1:] < times[:-1]
    row = _first((users[1:] < users[:-1]) | (same_user & earlier))
    if row is not None:
        raise DatasetError(
            f"{path}, row {row + 1}: user {users[row + 1]} at time {times[row + 1]} comes after "
            f"user {users[row]} at time {times[row]}. Sort the rows by user_id, then timestamp."
        )
    _check_no_empty_history(path, users)


def find_features(folder: Path) -> dict[str, Path]:
    """The files ``features_<modality>.npy`` of a folder, in the order of their names."""
    found = {path.stem.removeprefix("features_"): path for path in folder.glob("features_?*.npy")}
    if not found:
        raise DatasetError(
            f"{folder} has no features_<modality>.npy. "
            "Write at least one, for example features_text.npy of shape (items, width)."
        )
    if "id" in found:
        raise DatasetError(
            f"{found['id']}: 'id' is the item itself, not a modality. Give the file another name."
        )
    return dict(sorted(found.items()))


def check_modalities(folder: Path, asked: list[str], found: Mapping[str, Path]) -> None:
    """Every modality that is asked for must be one that the folder has."""
    if not asked:
        raise DatasetError(f"No modality asked for. Choose from: {', '.join(found)}.")
    for name in asked:
        if name not in found:
            raise DatasetError(
                f"{folder} has no modality '{name}'. Choose from: {', '.join(found)}."
            )


def read_features(path: Path, num_items: int) -> Tensor:  # (V, D_m)
    """Read one modality's features as float32; row i is item i, an all-zero row is absent."""
    array = _load_array(path)
    if array.ndim != 2 or array.shape[0] != num_items or array.shape[1] == 0:
        raise DatasetError(
            f"{path}: expected an array of shape ({num_items}, width), got {array.shape}. "
            "Write one row for each item of items.parquet, zeros for an item without this modality."
        )
    with np.errstate(over="ignore"):
        features = array.astype(np.float32)
    finite = np.isfinite(features)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DatasetError(
            f"{path}, row {row}, column {column}: {array[row, column]} is not a finite float32 "
            "number. Clean the extraction, or fill the row with zeros to mark it as absent."
        )
    return torch.from_numpy(features)


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as a plain array of numbers ({_first_line(error)}). "
            "Write it again with numpy.save(path, array.astype(numpy.float32))."
        ) from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise DatasetError(
            f"{path}: expected floats (float16, float32 or float64), got {got}. "
            "Write it again with numpy.save(path, array.astype(numpy.float32))."
        )
    return array


def _check_is_file(path: Path) -> None:
    if not path.parent.is_dir():
        raise DatasetError(
            f"{path.parent} is not a folder. Give the folder that holds {path.name}."
        )
    if not path.is_file():
        raise DatasetError(f"{path.parent} has no file {path.name}. Write it; see DATASET.md.")


def _check_column(path: Path, column: pl.Series, kind: str) -> None:
    is_text = column.dtype in (pl.String, pl.Null)  # Null: nothing is known of any item
    right = is_text if kind == "text" else column.dtype.is_integer()
    if not right:
        wanted = "text" if kind == "text" else "integers"
        raise DatasetError(
            f"{path}: expected column '{column.name}' to hold {wanted}, got {column.dtype}. "
            "Cast the column and write the file again."
        )
    if kind == "text":
        return
    row = _first(column.is_null().to_numpy())
    if row is not None:
        raise DatasetError(f"{path}, row {row}: {column.name} is null. Fill it or drop the row.")
    row = _first((column < 0).to_numpy()) if kind == "identifier" else None
    if row is not None:
        raise DatasetError(
            f"{path}, row {row}: {column.name} {column[row]} is negative. Number the ids from 0."
        )


def _check_no_empty_history(path: Path, users: NDArray[np.int64]) -> None:
    before = np.concatenate([np.array([-1]), users[:-1]])
    row = _first(users > before + 1)
    if row is not None:
        raise DatasetError(
            f"{path}, row {row}: user {before[row] + 1} has an empty history, the rows go on with "
            f"user {users[row]}. Number the users from 0 without gaps."
        )


def _first(wrong: NDArray[Any]) -> int | None:
    """The first row where something is wrong."""
    return int(wrong.argmax()) if wrong.any() else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
