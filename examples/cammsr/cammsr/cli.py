"""The command line: every field of the configuration, from YAML and from flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cammsr.config import Config
from cammsr.variants import configure
from mmfuse.fusion import available

__all__ = ["make_parser", "parse", "parse_given", "parse_report", "parse_tuning", "read"]

PLANTED = ["cammsr", "cammsr w/o guidance", "cammsr w/o MSCL", "concat", "sasrec"]
REAL = ["cammsr", "sasrec"]
PLANTED_CONFIG = Path(__file__).parents[1] / "configs" / "planted.yaml"
SPACE = Path(__file__).parents[1] / "configs" / "space.yaml"


def parse(arguments: Sequence[str] | None = None) -> tuple[Config, list[str], Path | None]:
    """The configuration, the names of the models to train, and the run to go on with."""
    parser = make_parser("Train CAMMSR beside its floors and baselines.")
    parser.add_argument(
        "--resume",
        type=Path | None,
        default=None,
        help="a run folder to go on with; beside it, only --data, if the data lie elsewhere now",
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parser.parse_args(given)
    folder: Path | None = chosen.resume
    if folder is not None:
        moved = [] if chosen.data is None else ["--data", chosen.data]
        parts = [part for one in given for part in one.split("=", 1 if one[:2] == "--" else 0)]
        if len(parts) > 2 + len(moved):
            parser.error(
                f"Expected --resume with --data at most, the run has its settings: {given}."
            )
        if not (folder / "config.yaml").is_file():
            parser.error(f"Expected a run folder after --resume, {folder} has no config.yaml.")
        given = ["--config", str(folder / "config.yaml"), *moved]
    return (*read(parser, parse_given(parser, given)), folder)


def parse_tuning(
    arguments: Sequence[str] | None = None,
) -> tuple[Config, list[str], int, Path, int | None]:
    """The same, the number of trials for each model, the search space, and their most epochs."""
    parser = make_parser("Search settings on validation; the test split is not looked at.")
    parser.add_argument("--trials", type=int, default=20, help="trials for each model")
    parser.add_argument("--space", type=Path, default=SPACE, help="a YAML file of what to search")
    parser.add_argument(
        "--epochs", type=int | None, default=None, help="most epochs of a trial, if fewer"
    )
    given = parse_given(parser, arguments)
    for name in ("trials", "epochs"):
        if given[name] is not None and given[name] < 1:
            parser.error(f"Expected --{name} >= 1, got {given[name]}.")
    if not given.space.is_file():
        parser.error(f"Expected a YAML file after --space, {given.space} is none.")
    return (*read(parser, given), given.trials, given.space, given.epochs)


def parse_report(arguments: Sequence[str] | None = None) -> tuple[str, str | None]:
    """A run folder, and where its dataset folder lies now."""
    parser = ArgumentParser(description="Write the page of a run anew.")
    parser.add_argument("run", type=str, help="the run folder that train.py left")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the dataset folder, if it has moved"
    )
    given = parser.parse_args(arguments)
    return given.run, given.data


def make_parser(description: str) -> ArgumentParser:
    """The settings of a run, and what to train."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", action="config", help="a YAML file of the settings below")
    parser.add_argument(
        "--models",
        type=list[str] | None,
        default=None,
        help=f"what to train; without --data {PLANTED}, with it {REAL}",
    )
    parser.add_argument(
        "--fusion",
        default=None,
        help=f"instead of --models: one Transformer behind one of {list(available())}",
    )
    parser.add_class_arguments(Config)
    return parser


def parse_given(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """Without data the generated catalogue's settings lie below all others that are given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed: Namespace = parser.parse_args(given)
    if parsed.data is None:
        parsed = parser.parse_args(["--config", str(PLANTED_CONFIG), *given])
    return parsed


def read(parser: ArgumentParser, given: Namespace) -> tuple[Config, list[str]]:
    """Whatever is wrong with the settings is said before anything is computed."""
    try:
        made = parser.instantiate(given)
        config = Config(**{field.name: made[field.name] for field in fields(Config)})
        if given.fusion is not None and given.models is not None:
            raise ValueError(
                f"Expected --fusion or --models, got {given.fusion!r} and {given.models}."
            )
        if given.fusion is not None and given.fusion not in available():
            raise ValueError(f"Expected --fusion among {list(available())}, got {given.fusion!r}.")
        default = PLANTED if config.data is None else REAL
        models = [given.fusion] if given.fusion else given.models or default
        if len(set(models)) < len(models):
            raise ValueError(f"Expected every model once in --models, got {models}.")
        for model in models:
            configure(model, config)
    except ValueError as error:
        parser.error(str(error))
    return config, models
