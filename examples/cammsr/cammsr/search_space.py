"""What a search tries: settings, each with a range or with choices."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cammsr.named import DEFAULTS, check_name, flat

__all__ = ["Space", "combinations", "read_space", "suggest"]

Space = dict[str, dict[str, Any]]  # setting -> {low, high, log} or {choices}
OF_THE_DATA = ("categories.", "model.modalities")


def read_space(path: Path) -> Space:
    """The settings to search.

    Raises:
        ValueError: a setting is unknown, belongs to the data, or has neither a range nor choices.
    """
    try:
        space = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Expected YAML in {path}: {error}") from None
    if not isinstance(space, dict):
        raise ValueError(f"Expected settings with what to try for each in {path}, got {space}.")
    return {name: _read(path, name, values) for name, values in space.items()}


def combinations(space: Space) -> list[dict[str, Any]]:
    """All of them, where there are choices only; none where there are ranges."""
    choices = [given.get("choices", ()) for given in space.values()]
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The values of a trial, of whole numbers where the setting has them."""
    return {name: _suggest(trial, name, given) for name, given in space.items()}


def _read(path: Path, name: str, values: Any) -> dict[str, Any]:
    check_name(str(name))
    if name.startswith(OF_THE_DATA):
        raise ValueError(f"Expected settings in {path} that leave the data alone, got {name}.")
    if not isinstance(values, dict) or not (
        set(values) == {"choices"} or {"low", "high"} <= set(values) <= {"low", "high", "log"}
    ):
        raise ValueError(
            f"Expected {name} in {path} with low and high (and log), or choices, got {values}."
        )
    if "choices" in values:
        choices = values["choices"]
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"Expected a list of choices of {name} in {path}, got {choices}.")
        return {"choices": [_number(choice) for choice in choices]}
    low, high, log = _number(values["low"]), _number(values["high"]), values.get("log", False)
    numbers = all(isinstance(one, (int, float)) for one in (low, high))
    if not numbers or not low <= high or (log and low <= 0):
        raise ValueError(
            f"Expected low <= high of {name} in {path}, and above 0 where log is true, got {low} "
            f"and {high}."
        )
    return {"low": low, "high": high, "log": log}


def _number(value: Any) -> Any:
    """YAML has 1e-3 for a word, the command line for a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _suggest(trial: Any, name: str, given: dict[str, Any]) -> Any:
    if "choices" in given:
        return trial.suggest_categorical(name, given["choices"])
    whole = isinstance(given["low"], int) and isinstance(given["high"], int)
    if whole and not isinstance(flat(DEFAULTS)[name], float):
        return trial.suggest_int(name, **given)
    return trial.suggest_float(name, **given)
