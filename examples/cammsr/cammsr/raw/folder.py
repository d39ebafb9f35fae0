"""Writing a dataset folder: all of it or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cammsr.raw.interactions import Interactions
from cammsr.validate import DatasetError

__all__ = ["check_output", "new_features", "new_folder", "write_note", "write_tables"]


def check_output(path: Path, *, overwrite: bool) -> None:
    """The folder must not be there, or be empty, unless it may be replaced."""
    if path.exists() and not path.is_dir():
        raise DatasetError(f"{path} is a file. Give another --output.")
    there = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    if there and not overwrite:
        raise DatasetError(f"{path} already has {', '.join(there[:3])}. Say --overwrite true.")
    if there and "interactions.parquet" not in there:
        raise DatasetError(
            f"{path} has {', '.join(there[:3])}, which is no dataset folder, and is not replaced."
        )


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside ``path`` that takes its place in the end, and is deleted after an error."""
    check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        work.chmod(0o755)  # mkdtemp's folders are private
        yield work
        check_output(path, overwrite=overwrite)
        if path.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old)
            work.replace(path)
            shutil.rmtree(old)
        else:
            work.replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_tables(folder: Path, interactions: Interactions, items: pl.DataFrame) -> None:
    """``interactions.parquet``, ``items.parquet``, and ``users.parquet`` with the raw names.

    Beyond what DATASET.md asks for, the items carry ``item``, their raw identifier, and ``text``,
    what the text encoder read.
    """
    interactions.rows.write_parquet(folder / "interactions.parquet")
    columns = ("title", "category", "categories", "item", "text")
    _numbered("item_id", items.select(columns)).write_parquet(folder / "items.parquet")
    users = pl.DataFrame({"user": interactions.users})
    _numbered("user_id", users).write_parquet(folder / "users.parquet")


def new_features(folder: Path, modality: str, num_items: int, width: int) -> NDArray[np.float32]:
    """``features_<modality>.npy`` as zeros that are filled in place, without being held."""
    file = folder / f"features_{modality}.npy"
    shape = (num_items, width)
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)


def write_note(folder: Path, name: str, values: dict[str, Any]) -> None:
    """A JSON file beside the data."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _numbered(name: str, table: pl.DataFrame) -> pl.DataFrame:
    numbers = pl.int_range(pl.len(), dtype=pl.Int32).alias(name)
    return table.select(numbers, pl.all())
