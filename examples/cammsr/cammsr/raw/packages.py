"""Packages that only preparing needs, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from cammsr.validate import DatasetError

__all__ = ["require"]


def require(name: str, purpose: str, instead: str = "") -> ModuleType:
    """Import a package of the extra ``prepare``.

    Raises:
        DatasetError: it is not installed; the message says what would help, and what does
            without it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):  # something that it needs itself
            raise
        raise DatasetError(
            f"{purpose} needs the package {name}, which is not installed. "
            'Install it with: python -m pip install -c constraints.txt -e ".[prepare]"' + instead
        ) from error
