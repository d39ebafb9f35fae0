"""What finished runs found, joined over their seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cammsr.metrics import METRIC_NAMES
from cammsr.named import DEFAULTS, config_of, differences
from cammsr.variants import configure

__all__ = ["IDLE", "Joined", "Scores", "read_runs"]

Scores = dict[str, list[float]]  # of each model, one value a seed
Tests = dict[str, dict[str, float]]
PLAIN = ("popularity", "item k-NN")  # floors that see no category
IDLE = frozenset(  # what may differ between the seeds of a model
    {"data", "output", "seed", "models", "split", "time_share"}  # the split is asked for apart
    | {
        f"training.{name}"
        for name in ("threads", "accelerator", "devices", "num_nodes", "checkpoint_steps")
    }
)


@dataclass(frozen=True, eq=False)
class Joined:
    """Models with their settings, and the scores of each metric; floors are among the scores."""

    models: dict[str, dict[str, Any]]
    scores: dict[str, Scores]


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished run: its seed and settings, what it was trained on, and its tests."""

    folder: Path
    settings: dict[str, Any]
    seed: int
    dataset: list[str]  # its name and the split
    drawn: str  # what the values of the data depend on
    values: str
    floors: Tests
    models: Tests


def read_runs(folders: Sequence[Path], models: list[str] | None = None) -> Joined:
    """The test metrics of runs, a seed or some models each.

    Args:
        folders: of finished runs, of the same data.
        models: which of theirs, in which order; all of them, as they come, by default.

    Raises:
        ValueError: a run cannot be read, is not finished, or is of other data; a model was run
            twice with a seed, not with all seeds, or not with the same settings for all of them.
    """
    found: dict[str, dict[int, _Run]] = {}
    runs = [_read(folder) for folder in folders]
    for run in runs:
        _check_same(run, runs[0].folder, runs[0].dataset, run.dataset)
        _check_same(run, runs[0].folder, _told(runs[0]), _told(run))
        alike = next(other for other in runs if other.drawn == run.drawn)
        _check_same(run, alike.folder, [alike.values], [run.values])
        for model in run.models:
            _add(found.setdefault(model, {}), model, run)
    models = _chosen(found, models)
    seeds = _seeds(found, models)
    by_seed = {run.seed: run.floors for run in runs}
    floors = [by_seed[seed] for seed in seeds]
    tests = {
        **{
            name: [of[name] for of in floors]
            for name in floors[0]
            if all(name in f for f in floors)
        },
        **{model: [found[model][seed].models[model] for seed in seeds] for model in models},
    }
    scores = {
        metric: {name: [test[metric] for test in values] for name, values in tests.items()}
        for metric in METRIC_NAMES
    }
    own = {
        model: asdict(configure(model, config_of(found[model][seeds[0]].settings)))
        for model in models
    }
    return Joined(own, scores)


def _read(folder: Path) -> _Run:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        missing = [name for name in config["models"] if name not in metrics["models"]]
        split = config.get("split", DEFAULTS["split"])
        share = config.get("time_share", DEFAULTS["time_share"])
        found = _Run(
            folder=folder,
            settings=config,
            seed=config["seed"],
            dataset=[metrics["dataset"], split, *([share] if split == "global_time" else [])],
            drawn=_drawn(config),
            values=(folder / "dataset.sha256").read_text(encoding="utf-8").strip(),
            floors=_tests(metrics["floors"]),
            models=_tests(metrics["models"]),
        )
    except (AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"Expected the folder of a run, {folder} is none: {error!r}.") from None
    if missing:
        raise ValueError(f"Expected finished runs, {folder} lacks {missing}; train.py --resume.")
    return found


def _told(run: _Run) -> list[str]:
    """What these have on data of a folder: the same for every seed."""
    if run.settings["data"] is None:
        return []
    return [f"{name} {run.floors[name]['ndcg@10']:.6f}" for name in PLAIN if name in run.floors]


def _tests(found: dict[str, Any]) -> Tests:
    """The metrics of some models, all of them numbers."""
    tests = {
        model: {metric: float(values["test"][metric]) for metric in METRIC_NAMES}
        for model, values in found.items()
    }
    for model, test in tests.items():
        if not all(map(math.isfinite, test.values())):
            raise ValueError(f"{model} has {test}")
    return tests


def _drawn(config: dict[str, Any]) -> str:
    """Generated data and drawn categories are those of a seed."""
    categories = {**DEFAULTS["categories"], **config.get("categories", {})}
    by_seed = config["data"] is None or categories["source"] == "virtual"
    if by_seed or categories["removed"] or categories["noise"]:
        return f"{categories} {config['seed']}"
    return str(categories)


def _check_same(run: _Run, first: Path, expected: list[str], got: list[str]) -> None:
    if got != expected:
        raise ValueError(
            f"Expected runs of the same data, got {expected} in {first} and {got} in {run.folder}."
        )


def _add(runs: dict[int, _Run], model: str, new: _Run) -> None:
    if new.seed in runs:
        raise ValueError(
            f"Expected {model} once for each seed, got seed {new.seed} in {runs[new.seed].folder} "
            f"and {new.folder}."
        )
    for old in runs.values():
        for name, (one, other) in differences(old.settings, new.settings, but=IDLE).items():
            raise ValueError(
                f"Expected {model} with the same settings for every seed, got {name} {one} in "
                f"{old.folder} and {other} in {new.folder}."
            )
    runs[new.seed] = new


def _chosen(found: dict[str, dict[int, _Run]], models: list[str] | None) -> list[str]:
    for model in models or ():
        if model not in found:
            raise ValueError(f"Expected models of the runs, {list(found)}, got {model!r}.")
    return models or list(found)


def _seeds(found: dict[str, dict[int, _Run]], models: list[str]) -> list[int]:
    seeds = sorted(found[models[0]])
    for model in models:
        if sorted(found[model]) != seeds:
            raise ValueError(
                f"Expected every model with the same seeds, {models[0]} has {seeds} and {model} "
                f"{sorted(found[model])}."
            )
    return seeds
