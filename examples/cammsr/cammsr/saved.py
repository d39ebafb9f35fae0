"""A run folder, read again: its settings, its models, the dataset that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cammsr.categories import with_categories
from cammsr.config import Config
from cammsr.dataset import Dataset, k_core, read_folder
from cammsr.named import config_of
from cammsr.raw_names import RawNames
from cammsr.variants import build, file_name

__all__ = ["Catalogue", "SavedRun", "ServingError", "read_catalogue", "read_run", "restore"]

WEIGHTS = "weights.safetensors"


class ServingError(ValueError):
    """What was asked for cannot be served; the message says why and what to give instead."""


@dataclass(frozen=True, eq=False)
class SavedRun:
    """What a run folder says."""

    folder: Path
    config: Config
    models: tuple[str, ...]  # those that were trained to the end, in their order

    @property
    def data(self) -> Path:
        """The dataset folder of the run: the generated catalogue lies in the run itself."""
        return Path(self.config.data) if self.config.data else self.folder / "planted"

    def choose(self, model: str | None) -> str:
        """A model of the run; the first one by default."""
        if not self.models:
            raise ServingError(f"{self.folder} has no trained model yet. Let train.py finish one.")
        if model is None:
            return self.models[0]
        if model not in self.models:
            raise ServingError(
                f"{self.folder} has no model {model!r}. It has: {', '.join(self.models)}."
            )
        return model


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The users and items that a run knows, and their ids in the dataset folder.

    A run leaves out users and items with fewer than five interactions and numbers the others anew.
    """

    dataset: Dataset
    item_ids: Tensor  # (V,) int64, ascending
    user_ids: Tensor  # (U,) int64, ascending
    item_names: RawNames = field(default_factory=RawNames)
    user_names: RawNames = field(default_factory=RawNames)

    @classmethod
    def whole(cls, dataset: Dataset) -> Catalogue:
        """A dataset of which nothing was left out."""
        return cls(dataset, torch.arange(dataset.num_items), torch.arange(dataset.num_users))

    def item_rows(self, ids: Tensor) -> Tensor:  # (N,) -> (N,)
        """The model's numbers of some items of the folder."""
        return _rows(self.item_ids, ids, f"item of '{self.dataset.name}'")

    def user_row(self, user: int | str) -> int:
        """The model's number of a user of the folder, by the user's id or raw identifier."""
        if isinstance(user, str):
            number = self.user_names.number(user)
            if number is None:
                raise ServingError(f"'{self.dataset.name}' has no user {user!r}.")
            user = number
        return int(_rows(self.user_ids, torch.tensor([user]), f"user of '{self.dataset.name}'"))


def read_run(path: str | Path) -> SavedRun:
    """Read the settings of a run folder, and which models it has.

    Raises:
        ServingError: it is not a run folder; the message names what is missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ServingError(f"{folder} is not a folder. Give a run folder, as train.py leaves one.")
    missing = [name for name in ("config.yaml", "metrics.json") if not (folder / name).is_file()]
    if missing:
        raise ServingError(f"{folder} is not a run folder: it has no {' and no '.join(missing)}.")
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return SavedRun(folder, config_of(settings), tuple(metrics["models"]))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ServingError(
            f"{folder} cannot be read as a run folder of this version ({error}). Train again."
        ) from error


def read_catalogue(run: SavedRun, data: str | Path | None = None) -> Catalogue:
    """The dataset of a run as its models were trained on it.

    Args:
        run: the run.
        data: where the dataset folder lies now; where the run says by default.
    """
    folder = run.data if data is None else Path(data)
    if not folder.is_dir():
        raise ServingError(
            f"The dataset folder {folder} of {run.folder} is not there. Say where it lies now: "
            "data=FOLDER, or --data FOLDER."
        )
    whole = read_folder(folder, run.config.model.modalities)
    # The same selection once more, over a copy that carries ids where it has titles and times.
    numbered = replace(
        whole,
        features={},
        titles=tuple(str(item) for item in range(whole.num_items)),
        timestamps=whole.user_ids,
    )
    kept, ids = k_core(whole), k_core(numbered)
    item_ids = torch.tensor([int(item) for item in ids.titles])
    kept = with_categories(kept, run.config.categories, run.config.seed)
    return Catalogue(
        kept,
        item_ids,
        ids.timestamps.unique(),
        RawNames.read(folder / "items.parquet", "item"),
        RawNames.read(folder / "users.parquet", "user"),
    )


def restore(run: SavedRun, name: str, dataset: Dataset) -> nn.Module:
    """A model of the run with its weights, in eval mode.

    The frozen features come from the dataset; every other value must be in the file of weights.

    Raises:
        ServingError: the weights are not there, or are not those of this model and dataset.
    """
    file = run.folder / file_name(name) / WEIGHTS
    if not file.is_file():
        raise ServingError(f"{run.folder} has no weights of {name!r}: {file} is missing.")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ServingError(f"{file} cannot be read as safetensors ({error}).") from error
    with torch.random.fork_rng(devices=()):  # build() seeds, and not for us
        model, _ = build(name, dataset, run.config)
    expected = {key: value for key, value in model.state_dict().items() if ".tables." not in key}
    _check_fit(file, weights, expected, dataset)
    _check_same(run, dataset)
    model.load_state_dict(weights, strict=False)  # the check was strict
    return model.eval()


def _check_fit(
    file: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], dataset: Dataset
) -> None:
    embedding = weights.get("items.embedding.weight")
    if embedding is not None and len(embedding) != dataset.num_items:
        raise ServingError(
            f"{file} is for {len(embedding)} items, and '{dataset.name}' has {dataset.num_items} "
            "with at least five interactions. Give the dataset folder that the run was trained on."
        )
    for key in sorted({*weights, *expected}):
        have, want = (
            list(part[key].shape) if key in part else None for part in (weights, expected)
        )
        if have != want:
            raise ServingError(
                f"{file} does not fit '{dataset.name}': {key} has the shape {have} in the file and "
                f"{want} by the dataset and config.yaml. Give the dataset folder that the run was "
                "trained on."
            )


def _check_same(run: SavedRun, dataset: Dataset) -> None:
    """Other items under the same numbers would be recommended without a word."""
    file = run.folder / "dataset.sha256"
    if not file.is_file():
        return
    begun, found = file.read_text(encoding="utf-8").strip(), dataset.fingerprint()
    if begun != found:
        raise ServingError(
            f"'{dataset.name}' is not what {run.folder} was trained on: its values were "
            f"{begun[:12]} then and are {found[:12]} now. Give the dataset folder as it was."
        )


def _rows(known: Tensor, ids: Tensor, what: str) -> Tensor:
    """Where some ids stand among the known ones, which ascend."""
    rows = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    wrong = (known[rows] != ids).nonzero().flatten()
    if len(wrong):
        raise ServingError(
            f"The model knows no {what} with the id {int(ids[wrong[0]])}. It knows {len(known)}, "
            f"from {int(known[0])} to {int(known[-1])}: those with at least five interactions."
        )
    return rows
