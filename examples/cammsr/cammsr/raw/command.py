"""The command line of ``prepare.py``: one subcommand for each kind of raw data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from cammsr.raw.amazon2014 import Amazon2014
from cammsr.raw.amazon2023 import Amazon2023
from cammsr.raw.movielens import MovieLens
from cammsr.raw.prepare import Settings
from cammsr.raw.source import Source
from cammsr.raw.table import Table

__all__ = ["parse"]

SOURCES: Mapping[str, Any] = {
    "amazon2014": Amazon2014,
    "amazon2023": Amazon2023,
    "movielens": MovieLens,
    "table": Table,
}


def parse(arguments: Sequence[str] | None = None) -> tuple[Source, Settings]:
    """The source of the raw data, and the settings. ``--k-core`` and ``--k_core`` are the same."""
    given = [_underscore(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    parser = ArgumentParser(description="From raw data to a dataset folder; see PREPARE.md.")
    commands = parser.add_subcommands(dest="kind")
    for name, kind in SOURCES.items():
        command = ArgumentParser(description=kind.__doc__.splitlines()[0])
        command.add_argument("--config", action="config", help="a YAML file of the settings below")
        command.add_class_arguments(kind)
        command.add_class_arguments(Settings)
        commands.add_subcommand(name, command, help=kind.__doc__.splitlines()[0])
    parsed = parser.parse_args(given)
    made = parser.instantiate(parsed)[parsed.kind]
    kind = SOURCES[parsed.kind]
    source: Source = kind(**{field.name: made[field.name] for field in fields(kind)})
    return source, Settings(**{field.name: made[field.name] for field in fields(Settings)})


def _underscore(argument: str) -> str:
    """``--k-core=5`` as ``--k_core=5``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
