"""Settings by their names, such as ``model.dropout``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from cammsr.config import CategoryConfig, Config, ModelConfig, ObjectiveConfig, TrainingConfig

__all__ = ["changed", "check_name", "config_of", "differences", "flat", "nested", "unlike"]

DEFAULTS = asdict(Config())


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix + name
        found |= flat(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of :func:`flat`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        part, _, setting = name.partition(".")
        if setting:
            found.setdefault(part, {})[setting] = value
        else:
            found[part] = value
    return found


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], but: frozenset[str] = frozenset()
) -> dict[str, tuple[Any, Any]]:
    """What differs between nested settings; one that is not there has its default.

    Args:
        old: settings, the first of the values.
        new: settings, the second of the values.
        but: names that do not count.
    """
    defaults = flat(DEFAULTS)
    first, second = {**defaults, **flat(old)}, {**defaults, **flat(new)}
    return {
        name: (first.get(name), second.get(name))
        for name in {**first, **second}
        if first.get(name) != second.get(name) and name not in but
    }


def unlike(
    settings: Mapping[str, Mapping[str, Any]], but: frozenset[str] = frozenset()
) -> dict[str, dict[str, Any]]:
    """Of several nested settings, each under a name, those in which they are not all the same.

    Args:
        settings: one or more; what is not there has its default.
        but: names of settings that do not count.
    """
    full = {name: {**flat(DEFAULTS), **flat(own)} for name, own in settings.items()}
    first = next(iter(full.values()))
    varied = [
        key
        for key in first
        if key not in but and any(own.get(key) != first[key] for own in full.values())
    ]
    return {name: {key: own.get(key) for key in varied} for name, own in full.items()}


def check_name(name: str) -> None:
    """Refuse what is no setting of a part of the configuration.

    Raises:
        ValueError: the message names it.
    """
    if "." not in name or name not in flat(DEFAULTS):
        raise ValueError(f"Expected a setting such as model.dropout, got {name!r}.")


def config_of(settings: Mapping[str, Any]) -> Config:
    """What ``dataclasses.asdict`` made of a configuration, as one; the run adds its models."""
    settings = {name: value for name, value in settings.items() if name != "models"}
    parts = {
        "model": ModelConfig,
        "objective": ObjectiveConfig,
        "categories": CategoryConfig,
        "training": TrainingConfig,
    }
    made = {name: part(**settings.get(name, {})) for name, part in parts.items()}
    unknown = sorted(set(settings) - {field.name for field in fields(Config)})
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}")
    return Config(**{**settings, **made})


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values of some settings."""
    for name in values:
        check_name(name)
    parts = nested(values)
    return replace(
        config, **{part: replace(getattr(config, part), **new) for part, new in parts.items()}
    )
