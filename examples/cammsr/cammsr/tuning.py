"""Search settings on validation, with the same number of trials for every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cammsr.config import Config
from cammsr.dataset import DatasetError
from cammsr.run import make_folder, open_data
from cammsr.training import train
from cammsr.variants import file_name

__all__ = ["best_file", "changed", "read_space", "tune"]

Space = dict[str, dict[str, Any]]  # setting -> {low, high, log} or {choices}
METRIC = "ndcg@10"


def read_space(path: Path) -> Space:
    """The settings to search, each with its range or its choices.

    Raises:
        ValueError: a setting is unknown, or has neither a range nor choices.
    """
    space: Space = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for name, values in space.items():
        changed(Config(), {name: None}, check=False)
        if set(values) != {"choices"} and not {"low", "high"} <= set(values) <= {
            "low",
            "high",
            "log",
        }:
            raise ValueError(
                f"Expected {name} in {path} with low and high (and log), or choices, got {values}."
            )
    return space


def changed(config: Config, values: Mapping[str, Any], *, check: bool = True) -> Config:
    """A configuration with other values of some settings, such as ``model.dropout``."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, setting = name.partition(".")
        known = {field.name for field in fields(getattr(config, part, None) or Config)}
        if not setting or not hasattr(config, part) or setting not in known:
            raise ValueError(f"Expected a setting such as model.dropout, got {name!r}.")
        parts.setdefault(part, {})[setting] = value
    if not check:
        return config
    return replace(
        config, **{part: replace(getattr(config, part), **new) for part, new in parts.items()}
    )


def tune(config: Config, models: list[str], trials: int, space: Path) -> dict[str, Config]:
    """Search each model; print and write the best settings, as a file that ``--config`` takes."""
    from optuna import create_study, logging, samplers  # an extra of its own

    if config.data is None:
        raise DatasetError("The search needs --data: the generated catalogue has its settings.")
    searched = read_space(space)
    grid = _combinations(searched)
    if 0 < len(grid) <= trials:
        trials = len(grid)
    else:
        grid = []  # too many: they are drawn
    dataset, split = open_data(config.data, config)
    folder = make_folder(config, models)
    logging.set_verbosity(logging.WARNING)
    found = {}
    for model in models:
        study = create_study(direction="maximize", sampler=samplers.TPESampler(seed=config.seed))
        for values in grid:
            study.enqueue_trial(values)
        for number in range(trials):
            trial = study.ask()
            tried = {name: _suggest(trial, name, given) for name, given in searched.items()}
            place = folder / file_name(model) / f"trial-{number}"
            trained = train(
                model, dataset, split, changed(config, tried), place, progress=False, test=False
            )
            value = trained.validation[METRIC]
            study.tell(trial, value)
            print(f"{model} {number + 1} of {trials}: {value:.4f} with {tried}", flush=True)
        found[model] = _write_best(folder, model, config, study.best_params, study.best_value)
    return found


def _combinations(space: Space) -> list[dict[str, Any]]:
    """All of them, where there are choices only; none where there are ranges."""
    choices = [given.get("choices", ()) for given in space.values()]
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


def _suggest(trial: Any, name: str, given: Mapping[str, Any]) -> Any:
    if "choices" in given:
        return trial.suggest_categorical(name, given["choices"])
    return trial.suggest_float(name, given["low"], given["high"], log=given.get("log", False))


def best_file(folder: Path, model: str) -> Path:
    """Where the best settings of a model are, in the folder of a search."""
    return folder / f"best-{file_name(model)}.yaml"


def _write_best(
    folder: Path, model: str, config: Config, values: dict[str, Any], value: float
) -> Config:
    best = changed(config, values)
    file = best_file(folder, model)
    head = f"# {model}: validation {METRIC} {value:.4f}\n"
    file.write_text(head + yaml.safe_dump(_unusual(best), sort_keys=False), encoding="utf-8")
    print(f"{model}: best validation {METRIC} {value:.4f}; train.py --config {file}")
    return best


def _unusual(config: Config) -> dict[str, Any]:
    """The settings that are not the default ones, without those of the run itself."""
    default = asdict(Config())
    unusual: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            changes = {key: one for key, one in value.items() if one != default[name][key]}
            unusual |= {name: changes} if changes else {}
        elif value != default[name] and name not in {"data", "output", "seed"}:
            unusual[name] = value
    return unusual
