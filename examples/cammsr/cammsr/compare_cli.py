"""The command line of ``compare.py``: which models, each with which settings, over which seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from cammsr.cli import make_parser, parse_given, read
from cammsr.config import Config
from cammsr.metrics import METRIC_NAMES
from cammsr.tuning import best_file
from cammsr.variants import fixed_otherwise

__all__ = ["Request", "parse_comparison"]


@dataclass(frozen=True)
class Request:
    """What is asked for: models to train, by the names of their rows, or runs to read."""

    rows: dict[str, tuple[str, Config]]
    seeds: int
    metric: str
    runs: list[Path]
    models: list[str] | None  # of the runs; all of them by default


def parse_comparison(arguments: Sequence[str] | None = None) -> Request:
    """What to compare; whatever is wrong with it is said before anything is trained."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(one.partition("=")[0] == "--runs" for one in given):
        return _parse_runs(given)
    parser = _parser()
    parsed = parse_given(parser, given)
    if parsed.seeds < 1:
        parser.error(f"Expected --seeds >= 1, got {parsed.seeds}.")
    _check_metric(parser, parsed.metric)
    config, models = read(parser, parsed)
    rows = {model: (model, config) for model in models}
    if parsed.tuned is not None:
        if config.data is None:
            parser.error(
                "Expected --data beside --tuned: the generated catalogue has its settings."
            )
        rows = {model: (model, _tuned(parser, given, parsed.tuned, model)) for model in models}
        given = [*given, "--config", str(best_file(parsed.tuned, models[0]))]
    rows |= _vary(parser, given, parsed.vary, models[0])
    return Request(rows, parsed.seeds, parsed.metric, [], None)


def _parse_runs(given: list[str]) -> Request:
    """Runs have their settings: what would change them is refused as unknown."""
    parser = ArgumentParser(description="Compare finished runs.")
    parser.add_argument("--models", type=list[str] | None, default=None, help="which of theirs")
    _add_runs(parser)
    parsed = parser.parse_args(given)
    _check_metric(parser, parsed.metric)
    if not parsed.runs:
        parser.error("Expected a run or more after --runs, got none.")
    if parsed.models is not None and len(set(parsed.models)) < len(parsed.models):
        parser.error(f"Expected every model once in --models, got {parsed.models}.")
    return Request({}, 0, parsed.metric, parsed.runs, parsed.models)


def _check_metric(parser: ArgumentParser, metric: str) -> None:
    if metric not in METRIC_NAMES:
        parser.error(f"Expected --metric among {METRIC_NAMES}, got {metric!r}.")


def _add_runs(parser: ArgumentParser) -> None:
    parser.add_argument("--metric", default="ndcg@10", help=f"of the table: {METRIC_NAMES}")
    parser.add_argument(
        "--runs",
        type=list[Path],
        default=[],
        help="finished runs to compare instead of training; beside it --models and --metric only",
    )


def _parser() -> ArgumentParser:
    parser = make_parser("Compare models over seeds.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from --seed on")
    _add_runs(parser)
    parser.add_argument(
        "--vary",
        type=str,
        nargs="*",
        default=[],
        help="settings such as model.num_experts=1,2,4: a row of the first model for each value",
    )
    parser.add_argument(
        "--tuned",
        type=Path | None,
        default=None,
        help="a folder of tune.py: each model gets its best settings there, above all others",
    )
    return parser


def _tuned(parser: ArgumentParser, given: list[str], folder: Path, model: str) -> Config:
    file = best_file(folder, model)
    if not file.is_file():
        parser.error(f"Expected the best settings of every model in {folder}, {file.name} lacks.")
    return read(parser, parse_given(parser, [*given, "--config", str(file)]))[0]


def _vary(
    parser: ArgumentParser, given: list[str], settings: list[str], model: str
) -> dict[str, tuple[str, Config]]:
    """A row of the model for each value of each setting."""
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
            other = read(parser, parse_given(parser, [*given, f"--{name}={text}"]))[0]
            fixed = fixed_otherwise(model, other)
            if name in fixed:
                parser.error(
                    f"Expected a setting that {model} leaves open, it has {name} {fixed[name]}."
                )
            found[f"{model} {name}={text}"] = (model, other)
    return found
