"""Models over seeds: means, spreads, and paired differences with their uncertainty."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from scipy import stats

from cammsr.config import Config
from cammsr.joined import IDLE, Scores, read_runs
from cammsr.metrics import METRIC_NAMES
from cammsr.named import unlike
from cammsr.page import comparison_page
from cammsr.run import Result, run
from cammsr.tables import TABLES, Row
from cammsr.variants import configure

__all__ = ["Paired", "adjusted", "compare", "join", "paired", "rows"]


@dataclass(frozen=True)
class Paired:
    """The mean difference over seeds, the half width of its 95 % interval, and Student's p."""

    mean: float
    half_width: float
    p_value: float
    wins: int
    count: int


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """How much more the first scores than the second, seed by seed.

    The interval and the two-sided p are those of Student's t of the differences. One seed says
    nothing of the spread: then the interval is infinite, and p is one.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else math.inf
    if error > 0:
        quantile = float(stats.t.ppf(0.975, max(count - 1, 1)))
        p_value = float(2 * stats.t.sf(abs(mean) / error, max(count - 1, 1)))
    else:  # all alike
        quantile, p_value = 0.0, float(mean == 0)
    return Paired(
        mean=mean,
        half_width=quantile * error,
        p_value=p_value,
        wins=sum(difference > 0 for difference in differences),
        count=count,
    )


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's p: the chance that any of several true null hypotheses is rejected stays below it."""
    found, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = highest
    return found


def rows(scores: Scores, reference: str) -> list[Row]:
    """One row a model: mean and spread, and what the reference has over it."""
    others = [name for name in scores if name != reference]
    pairs = {name: paired(scores[reference], scores[name]) for name in others}
    holm = dict(zip(others, adjusted([pairs[name].p_value for name in others]), strict=True))
    found = []
    for name, values in scores.items():
        row = Row(
            model=name,
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else math.nan,
        )
        if name in pairs:
            pair = pairs[name]
            row = replace(
                row,
                difference=pair.mean,
                half_width=pair.half_width,
                p_value=holm[name],
                wins=f"{pair.wins} of {pair.count}",
            )
        found.append(row)
    return found


def compare(
    settings: Mapping[str, tuple[str, Config]], seeds: int, metric: str = "ndcg@10"
) -> dict[str, Scores]:
    """Run every seed, print the comparison, and write it beside the runs after each seed.

    Args:
        settings: of each row of the table its model and its configuration; models of one
            configuration share a run. The first row is compared with the others.
        seeds: how many, from the one of the first configuration on.
        metric: of the table.
    """
    scores: dict[str, Scores] = {name: {} for name in METRIC_NAMES}
    (_, first), *_ = settings.values()
    for seed in range(first.seed, first.seed + seeds):
        folder, tests = _measure(settings, seed)
        for name, values in scores.items():
            for row, test in tests.items():
                values.setdefault(row, []).append(test[name])
        if seed == first.seed:
            path = folder.with_name(f"comparison-{folder.name}.json")
        write_scores(path, scores)
    of_rows = {row: asdict(configure(*of_row)) for row, of_row in settings.items()}
    write_comparison(path, scores, of_rows, metric)
    return scores


def join(runs: Sequence[Path], metric: str = "ndcg@10", models: list[str] | None = None) -> None:
    """Compare what finished runs found, as if it had been measured together.

    The tables lie beside the first run, under a name of their own.
    """
    joined = read_runs(runs, models)
    path = runs[0].resolve().with_name(f"comparison-{datetime.now():%Y%m%d-%H%M%S-%f}.json")
    write_scores(path, joined.scores)
    write_comparison(path, joined.scores, joined.models, metric)


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Every metric of every row and seed."""
    of_tests = {f"test/{name}": values for name, values in scores.items()}
    path.write_text(json.dumps(of_tests, indent=2) + "\n")


def write_comparison(
    path: Path, scores: Mapping[str, Scores], models: Mapping[str, dict[str, Any]], metric: str
) -> None:
    """The table of a metric: printed, for Markdown and LaTeX, and as a page.

    Args:
        path: of the scores; the others lie beside it.
        scores: all metrics of all seeds, by row.
        models: the rows that are trained, with their settings; the first is the reference.
        metric: of the table.
    """
    reference = next(iter(models))
    found = rows(scores[metric], reference)
    seeds = len(scores[metric][reference])
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    title = f"test {metric} over {over}; difference: {reference} minus the row"
    own = unlike(models, but=IDLE)
    for ending, table in TABLES.items():
        path.with_suffix(f".{ending}").write_text(table(title, found) + "\n")
    page = comparison_page(title, found, own, scores)
    path.with_suffix(".html").write_text(page, encoding="utf-8")
    print(TABLES["txt"](title, found))
    if any(own.values()):
        print("settings in which the models differ:")
        for model, settings in own.items():
            print(f"  {model}: {', '.join(f'{key} {value}' for key, value in settings.items())}")
    print(f"This table, also for Markdown, LaTeX and browsers, is in {path.with_suffix('.*')}")


def _measure(
    settings: Mapping[str, tuple[str, Config]], seed: int
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The first run's folder, and the test of every floor and row."""
    results: list[tuple[Config, Result]] = []
    for config, models in _groups(settings):
        results.append((config, run(replace(config, seed=seed), models, progress=False)))
    _, first = results[0]
    tests = {name: values["test"] for name, values in first.floors.items()}
    for row, (model, config) in settings.items():
        (result,) = [result for other, result in results if other == config]
        (tests[row],) = [trained.test for trained in result.models if trained.name == model]
    return first.folder, tests


def _groups(settings: Mapping[str, tuple[str, Config]]) -> list[tuple[Config, list[str]]]:
    """The models of each configuration, every one of them once."""
    groups: list[tuple[Config, list[str]]] = []
    for model, config in settings.values():
        same = [models for other, models in groups if other == config]
        if not same:
            groups.append((config, [model]))
        elif model not in same[0]:
            same[0].append(model)
    return groups
