"""What finished runs found, joined over their seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cammsr.metrics import METRIC_NAMES

__all__ = ["Joined", "Scores", "read_runs"]

Scores = dict[str, list[float]]  # of each model, one value a seed
OF_THE_RUN = {"data", "output", "seed", "models"}


@dataclass(frozen=True, eq=False)
class Joined:
    """The models, and the scores of each metric; floors are among the scores."""

    models: list[str]
    scores: dict[str, Scores]


@dataclass(frozen=True, eq=False)
class _Found:
    """A model's test in a run, and the settings that it was trained with."""

    folder: Path
    test: dict[str, float]
    settings: dict[str, Any]


def read_runs(folders: Sequence[Path], models: list[str] | None = None) -> Joined:
    """The test metrics of runs, a seed or some models each.

    Args:
        folders: of finished runs, of the same data.
        models: which of theirs, in which order; all of them, as they come, by default.

    Raises:
        ValueError: a run is not finished, or is of other data; a model was run twice with a seed,
            not with all seeds, or not with the same settings for all of them.
    """
    found: dict[str, dict[int, _Found]] = {}
    floors: dict[int, dict[str, dict[str, float]]] = {}
    data: dict[str, tuple[Path, list[Any]]] = {}
    for folder in folders:
        config, metrics = _read(folder)
        seed = config["seed"]
        split = [metrics["dataset"], config.get("split"), config.get("time_share")]
        drawn = f"seed {seed}, categories {config.get('categories')}"
        _check_same(data, "", folder, split)
        _check_same(data, drawn, folder, [(folder / "dataset.sha256").read_text().strip()])
        floors[seed] = {name: values["test"] for name, values in metrics["floors"].items()}
        settings = {name: value for name, value in config.items() if name not in OF_THE_RUN}
        for model, values in metrics["models"].items():
            _add(found.setdefault(model, {}), seed, _Found(folder, values["test"], settings), model)
    models = _chosen(found, models)
    seeds = _seeds(found, models)
    tests = {
        **{name: [floors[seed][name] for seed in seeds] for name in floors[seeds[0]]},
        **{model: [found[model][seed].test for seed in seeds] for model in models},
    }
    scores = {
        metric: {name: [test[metric] for test in values] for name, values in tests.items()}
        for metric in METRIC_NAMES
    }
    return Joined(models, scores)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        lacking = Path(error.filename).name
        raise ValueError(f"Expected the folder of a run, {folder} has no {lacking}.") from None
    missing = [name for name in config["models"] if name not in metrics["models"]]
    if missing:
        raise ValueError(f"Expected finished runs, {folder} lacks {missing}; train.py --resume.")
    return config, metrics


def _check_same(
    known: dict[str, tuple[Path, list[Any]]], key: str, folder: Path, new: list[Any]
) -> None:
    """The name and the split are those of all runs, the values those of the same draw."""
    first, old = known.setdefault(key, (folder, new))
    if new != old:
        raise ValueError(
            f"Expected runs of the same data, got {old} in {first} and {new} in {folder}."
        )


def _add(runs: dict[int, _Found], seed: int, new: _Found, model: str) -> None:
    if seed in runs:
        raise ValueError(
            f"Expected {model} once for each seed, got seed {seed} in {runs[seed].folder} and "
            f"{new.folder}."
        )
    for old in runs.values():
        for name, value in new.settings.items():
            if old.settings.get(name) != value:
                raise ValueError(
                    f"Expected {model} with the same settings for every seed, got {name} "
                    f"{old.settings.get(name)} in {old.folder} and {value} in {new.folder}."
                )
    runs[seed] = new


def _chosen(found: dict[str, dict[int, _Found]], models: list[str] | None) -> list[str]:
    for model in models or ():
        if model not in found:
            raise ValueError(f"Expected models of the runs, {list(found)}, got {model!r}.")
    return models or list(found)


def _seeds(found: dict[str, dict[int, _Found]], models: list[str]) -> list[int]:
    seeds = sorted(found[models[0]])
    for model in models:
        if sorted(found[model]) != seeds:
            raise ValueError(
                f"Expected every model with the same seeds, {models[0]} has {seeds} and {model} "
                f"{sorted(found[model])}."
            )
    return seeds
