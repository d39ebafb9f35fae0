"""A run: a dataset, its floors, some models, one folder with everything that came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml

from cammsr.catalogue import write_catalogue
from cammsr.categories import with_categories
from cammsr.chosen_split import choose_split
from cammsr.config import Config
from cammsr.dataset import Dataset, DatasetError, k_core, read_folder
from cammsr.floors import floors
from cammsr.hardware import hardware, use_threads
from cammsr.metrics import evaluate
from cammsr.named import differences
from cammsr.page import write_report
from cammsr.processes import agreed_path, process, started, wait_for_all
from cammsr.report import format_table
from cammsr.split import Split
from cammsr.training import Trained, train
from cammsr.variants import check, file_name

__all__ = ["Result", "make_folder", "open_data", "run"]

Floors = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, eq=False)
class Result:
    """What a run found."""

    folder: Path
    floors: Floors
    models: list[Trained]


def open_data(path: str | Path, config: Config) -> tuple[Dataset, Split]:
    """The 5-core of a dataset folder, and the split that the settings ask for."""
    whole = read_folder(path, config.model.modalities)
    dataset = with_categories(k_core(whole), config.categories, config.seed)
    print(
        f"{whole.name}: {whole.num_users} users, {whole.num_items} items; those with at least "
        f"five interactions: {dataset.num_users} users, {dataset.num_items} items"
    )
    chosen = choose_split(dataset, config)
    if chosen.leak is not None or config.split != "leave_one_out":
        print(chosen.note)
    return dataset, chosen.split


def run(
    config: Config, models: list[str], resume: Path | None = None, *, progress: bool = True
) -> Result:
    """Print the floors, train the models one after the other, print the table, write the folder.

    ``resume`` is the folder of a run that was stopped: each model goes on where it was, and what
    comes out is the same. Of several processes the first one prints, writes and evaluates.
    """
    use_threads(config.training)
    with started(config.training):
        hardware(config.training)  # what is wrong with it is said at once
        return _run(config, models, resume, progress)


def _run(config: Config, models: list[str], resume: Path | None, progress: bool) -> Result:
    is_first = process()[0] == 0
    if config.data is not None:
        dataset, split = open_data(config.data, config)  # what is wrong leaves no run behind
        _check_models(models, dataset, config)
    made = make_folder(config, models) if resume is None and is_first else resume
    folder = agreed_path(made)
    _check_settings(folder, config, models)
    print(f"run folder: {folder}")
    if config.data is None:
        if is_first:
            write_catalogue(folder / "planted", seed=config.seed)
        wait_for_all()
        dataset, split = open_data(folder / "planted", config)
        _check_models(models, dataset, config)
    if is_first:
        _check_same(folder, dataset)
    print(_describe(dataset, split))
    result = Result(folder, measure_floors(dataset, split) if is_first else {}, [])
    if is_first:
        _write(folder, dataset, result)
    finished = _found_before(folder)
    for number, name in enumerate(models, start=1):
        doing = "ranking with" if name in finished else "training"
        print(f"{doing} {name} ({number} of {len(models)})", flush=True)
        place = folder / file_name(name)
        with _saying_how_to_go_on(folder):
            result.models.append(train(name, dataset, split, config, place, progress=progress))
        if is_first:
            _write(folder, dataset, result)  # what is done is not lost if the rest is stopped
    if not is_first:
        return result
    print(f"\n{format_table(result.floors, result.models)}\n")
    page = write_report(folder, config.data)
    print(f"Everything is in {folder}; {page.name} shows it")
    return result


def _check_models(models: list[str], dataset: Dataset, config: Config) -> None:
    """Before the first of them is trained."""
    for name in models:
        check(name, dataset, config)


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; to go on: train.py --resume '{folder}'")
        raise


def measure_floors(dataset: Dataset, split: Split) -> Floors:
    """Validation and test metrics of every floor."""
    return {
        name: {
            "validation": evaluate(scorer, split.validation),
            "test": evaluate(scorer, split.test),
        }
        for name, scorer in floors(dataset, split).items()
    }


def make_folder(config: Config, models: list[str]) -> Path:
    """A folder with all that is needed to go on if the run is stopped."""
    name = "planted" if config.data is None else Path(config.data).resolve().name
    folder = Path(config.output) / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    folder.mkdir(parents=True)
    data = None if config.data is None else str(Path(config.data).resolve())
    settings = {**_settings(config, models), "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


def _settings(config: Config, models: list[str]) -> dict[str, Any]:
    return {**asdict(config), "models": models}


def _check_settings(folder: Path, config: Config, models: list[str]) -> None:
    """Refuse to go on with other settings than those that the run began with."""
    begun = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    others = differences(begun, _settings(config, models), but=frozenset({"data", "output"}))
    for name, (old, new) in others.items():
        raise ValueError(
            f"Expected the settings that {folder} began with, {name} {old}, got {new}. Start a new "
            "run."
        )


def _check_same(folder: Path, dataset: Dataset) -> None:
    """Refuse to go on with other data than those that the run began with."""
    found = dataset.fingerprint()
    file = folder / "dataset.sha256"
    if not file.is_file():
        file.write_text(found + "\n")
    elif (begun := file.read_text().strip()) != found:
        raise DatasetError(
            f"'{dataset.name}' has changed since {folder} began: its values were {begun[:12]} then "
            f"and are {found[:12]} now. Start a new run."
        )


def _describe(dataset: Dataset, split: Split) -> str:
    shares = ", ".join(
        f"{name} {(raw != 0).any(-1).double().mean():.0%}" for name, raw in dataset.features.items()
    )
    return (
        f"{len(dataset.item_ids)} interactions, {len(dataset.categories)} categories; "
        f"items with {shares}; {len(split.train.values)} interactions to train on"
    )


def _write(folder: Path, dataset: Dataset, result: Result) -> None:
    models: dict[str, Any] = {
        model.name: {
            "validation": model.validation,
            "test": model.test,
            "seconds": model.seconds,
            "epochs": model.epochs,
            "best_epoch": model.best_epoch,
            "curve": model.curve,
        }
        for model in result.models
    }
    metrics = {
        "dataset": dataset.name,
        "floors": result.floors,
        "models": {**_found_before(folder), **models},  # it stays until it is found again
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__},
    }
    beside = folder / "metrics.part"  # complete, or as it was
    beside.write_text(json.dumps(metrics, indent=2) + "\n")
    beside.replace(folder / "metrics.json")
    (folder / "table.txt").write_text(format_table(result.floors, result.models) + "\n")


def _found_before(folder: Path) -> dict[str, Any]:
    """The models that a run had finished before it was stopped."""
    file = folder / "metrics.json"
    found: dict[str, Any] = json.loads(file.read_text())["models"] if file.is_file() else {}
    return found
