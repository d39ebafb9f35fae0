"""The command line: every field of the configuration, from YAML and from flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace

from cammsr.config import Config
from cammsr.metrics import METRIC_NAMES
from cammsr.variants import configure
from mmfuse.fusion import available

__all__ = ["parse", "parse_comparison", "parse_report", "parse_tuning"]

PLANTED = ["cammsr", "cammsr w/o guidance", "cammsr w/o MSCL", "concat", "sasrec"]
REAL = ["cammsr", "sasrec"]
PLANTED_CONFIG = Path(__file__).parents[1] / "configs" / "planted.yaml"
SPACE = Path(__file__).parents[1] / "configs" / "space.yaml"


def parse(arguments: Sequence[str] | None = None) -> tuple[Config, list[str], Path | None]:
    """The configuration, the names of the models to train, and the run to go on with."""
    parser = _parser("Train CAMMSR beside its floors and baselines.")
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
        if len(given) > 2 + len(moved):
            parser.error(
                f"Expected --resume with --data at most, the run has its settings: {given}."
            )
        if not (folder / "config.yaml").is_file():
            parser.error(f"Expected a run folder after --resume, {folder} has no config.yaml.")
        given = ["--config", str(folder / "config.yaml"), *moved]
    return (*_read(parser, _parse(parser, given)), folder)


def parse_comparison(
    arguments: Sequence[str] | None = None,
) -> tuple[Config, list[str], int, str, dict[str, Config]]:
    """The same, the number of seeds, the metric of the table, and the rows of other settings."""
    parser = _parser("Compare models over seeds.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from --seed on")
    parser.add_argument("--metric", default="ndcg@10", help=f"of the table: {METRIC_NAMES}")
    parser.add_argument(
        "--vary",
        type=str,
        nargs="*",
        default=[],
        help="settings such as model.num_experts=1,2,4: a row of the first model for each value",
    )
    given = _parse(parser, arguments)
    if given.seeds < 1:
        parser.error(f"Expected --seeds >= 1, got {given.seeds}.")
    if given.metric not in METRIC_NAMES:
        parser.error(f"Expected --metric among {METRIC_NAMES}, got {given.metric!r}.")
    config, models = _read(parser, given)
    varied = _vary(parser, arguments, given.vary, models[0])
    return config, models, given.seeds, given.metric, varied


def parse_tuning(
    arguments: Sequence[str] | None = None,
) -> tuple[Config, list[str], int, Path]:
    """The same, the number of trials for each model, and the file of the search space."""
    parser = _parser("Search settings on validation; the test split is not looked at.")
    parser.add_argument("--trials", type=int, default=20, help="trials for each model")
    parser.add_argument("--space", type=Path, default=SPACE, help="a YAML file of what to search")
    given = _parse(parser, arguments)
    if given.trials < 1:
        parser.error(f"Expected --trials >= 1, got {given.trials}.")
    if not given.space.is_file():
        parser.error(f"Expected a YAML file after --space, {given.space} is none.")
    return (*_read(parser, given), given.trials, given.space)


def parse_report(arguments: Sequence[str] | None = None) -> tuple[str, str | None]:
    """A run folder, and where its dataset folder lies now."""
    parser = ArgumentParser(description="Write the page of a run anew.")
    parser.add_argument("run", type=str, help="the run folder that train.py left")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the dataset folder, if it has moved"
    )
    given = parser.parse_args(arguments)
    return given.run, given.data


def _vary(
    parser: ArgumentParser, arguments: Sequence[str] | None, settings: list[str], model: str
) -> dict[str, Config]:
    """A configuration for each value of each setting, by the name of its row."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    found = {}
    for setting in settings:
        name, _, listed = setting.partition("=")
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            values = []
        if "." not in name or not values:
            parser.error(f"Expected --vary such as model.num_experts=1,2,4, got {setting!r}.")
        for value in values:
            text = value if isinstance(value, str) else json.dumps(value)
            other = _parse(parser, [*given, f"--{name}={text}"])
            found[f"{model} {name}={text}"] = _read(parser, other)[0]
    return found


def _parser(description: str) -> ArgumentParser:
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


def _parse(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """Without data the generated catalogue's settings lie below all others that are given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed: Namespace = parser.parse_args(given)
    if parsed.data is None:
        parsed = parser.parse_args(["--config", str(PLANTED_CONFIG), *given])
    return parsed


def _read(parser: ArgumentParser, given: Namespace) -> tuple[Config, list[str]]:
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
