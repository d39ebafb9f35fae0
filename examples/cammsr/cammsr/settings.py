"""What is wrong with a setting, in the same words for all of them."""

from __future__ import annotations

from typing import Any, get_args

__all__ = ["check_at_least", "check_choice", "check_share"]


def check_at_least(least: float, settings: object, *names: str) -> None:
    """Refuse a setting below its least value; None is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"Expected {name} >= {least}, got {value}.")


def check_choice(settings: object, **choices: Any) -> None:
    """Refuse a setting that is none of the words of its ``Literal``."""
    for name, choice in choices.items():
        value = getattr(settings, name)
        if value not in get_args(choice):
            raise ValueError(f"Expected {name} among {list(get_args(choice))}, got {value!r}.")


def check_share(settings: object, *names: str) -> None:
    """Refuse a setting that is no share."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise ValueError(f"Expected 0 <= {name} <= 1, got {value}.")
