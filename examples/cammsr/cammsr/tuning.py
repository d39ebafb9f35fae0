"""Search settings on validation, with the same number of trials for every model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cammsr.config import Config
from cammsr.dataset import DatasetError
from cammsr.hardware import use_threads
from cammsr.named import changed, differences, nested
from cammsr.run import make_folder, open_data
from cammsr.search_space import Space, combinations, read_space, suggest
from cammsr.training import train
from cammsr.variants import check, file_name, fixed_otherwise

__all__ = ["best_file", "tune"]

METRIC = "ndcg@10"
OF_THE_RUN = frozenset({"data", "output", "seed"})


def tune(
    config: Config, models: list[str], trials: int, space: Path, epochs: int | None = None
) -> dict[str, Config]:
    """Search each model; print and write the best settings, as a file that ``--config`` takes.

    Trials end after some epochs at most, if ``epochs`` are given; what is written does not.

    A trial that fails, by settings that do not go together or numbers that are none, is said and
    counted, and the search goes on. Every trial is written down when it is over.

    Raises:
        DatasetError: the data are not named, or lack what a model needs.
        ValueError: the space is none, or all trials of a model failed.
    """
    if config.data is None:
        raise DatasetError("The search needs --data: the generated catalogue has its settings.")
    use_threads(config.training)
    searched = read_space(space)
    spaces = {model: _left_open(searched, model, config) for model in models}
    studies = {model: _study(space, trials, config.seed) for model, space in spaces.items()}
    dataset, split = open_data(config.data, config)
    for model in models:
        check(model, dataset, config)
    folder = make_folder(config, models)
    short = {} if epochs is None else {"training.max_epochs": epochs}

    def measure(model: str, values: dict[str, Any], number: int) -> float:
        place = folder / file_name(model) / f"trial-{number}"
        chosen = changed(config, {**short, **values})
        trained = train(model, dataset, split, chosen, place, progress=False, test=False)
        return trained.validation[METRIC]

    found = {}
    for model, (study, count) in studies.items():
        written = folder / f"trials-{file_name(model)}.json"
        for said in _search(study, count, spaces[model], partial(measure, model), written):
            print(f"{model} {said}", flush=True)
        found[model] = _write_best(folder, model, config, study.best_params, study.best_value)
    return found


def best_file(folder: Path, model: str) -> Path:
    """Where the best settings of a model are, in the folder of a search."""
    return folder / f"best-{file_name(model)}.yaml"


def _left_open(space: Space, model: str, config: Config) -> Space:
    """What of a space a model does not fix: other values would be searched in vain."""

    def is_open(name: str, value: Any) -> bool:
        try:
            return name not in fixed_otherwise(model, changed(config, {name: value}))
        except ValueError:
            return True  # beside the values of others it may do

    found: Space = {}
    for name, given in space.items():
        choices = [value for value in given.get("choices", ()) if is_open(name, value)]
        if choices:
            found[name] = {"choices": choices}
        elif "low" in given and all(is_open(name, given[end]) for end in ("low", "high")):
            found[name] = given
    return found


def _search(
    study: Any,
    trials: int,
    space: Space,
    measure: Callable[[dict[str, Any], int], float],
    written: Path,
) -> Iterator[str]:
    """All trials of a model, each written down and said when it is over."""
    from optuna.trial import TrialState

    tried: list[dict[str, Any]] = []
    for number in range(trials):
        trial = study.ask()
        values = suggest(trial, space)
        try:
            value = measure(values, number)
        except (TypeError, ValueError) as error:
            study.tell(trial, state=TrialState.FAIL)
            tried.append({"settings": values, "error": str(error)})
            said = f"failed ({error})"
        else:
            study.tell(trial, value)
            tried.append({"settings": values, METRIC: value})
            said = f"{value:.4f}"
        written.write_text(json.dumps(tried, indent=2) + "\n", encoding="utf-8")
        yield f"{number + 1} of {trials}: {said} with {values}"
    if all("error" in one for one in tried):
        raise ValueError(f"Expected a trial that works, all of them failed: {written}.")


def _study(space: Space, trials: int, seed: int) -> tuple[Any, int]:
    """Every combination once, if there are choices only and no more than trials, or drawn ones."""
    from optuna import create_study, logging, samplers  # an extra of its own

    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", "Choices for a categorical distribution should be")  # lists
    study = create_study(direction="maximize", sampler=samplers.TPESampler(seed=seed))
    grid = combinations(space)
    if 0 < len(grid) <= trials:
        for values in grid:
            study.enqueue_trial(values)
        return study, len(grid)
    return study, trials


def _write_best(
    folder: Path, model: str, config: Config, values: dict[str, Any], value: float
) -> Config:
    """What was searched, and all else that is not the default."""
    best = changed(config, values)
    unusual = differences({}, asdict(best), but=OF_THE_RUN)
    settings = {**{name: own for name, (_, own) in unusual.items()}, **values}
    file = best_file(folder, model)
    head = f"# {model}: validation {METRIC} {value:.4f}\n"
    file.write_text(head + yaml.safe_dump(nested(settings), sort_keys=False), encoding="utf-8")
    print(
        f"{model}: best validation {METRIC} {value:.4f}; "
        f"train.py --data {config.data} --models '[{model}]' --config {file}"
    )
    return best
