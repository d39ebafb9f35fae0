"""Models over seeds: means, spreads, and paired differences with their uncertainty."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import stats

from cammsr.config import Config
from cammsr.metrics import METRIC_NAMES
from cammsr.page import comparison_page
from cammsr.run import Result, run
from cammsr.tables import TABLES, Row

__all__ = ["Paired", "adjusted", "compare", "paired", "rows"]

Scores = dict[str, list[float]]  # of each model, one value a seed


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
    config: Config,
    models: list[str],
    seeds: int,
    metric: str = "ndcg@10",
    varied: Mapping[str, Config] | None = None,
) -> dict[str, Scores]:
    """Run every seed, print the comparison, and write it beside the runs after each seed.

    The first of the models is run again, in a run of its own, with every configuration of
    ``varied``, whose names are those of the rows.
    """
    varied = varied or {}
    scores: dict[str, Scores] = {name: {} for name in METRIC_NAMES}
    for seed in range(config.seed, config.seed + seeds):
        result = run(replace(config, seed=seed), models, progress=False)
        tests = _tests(result)
        for name, other in varied.items():
            if other == config:  # the same numbers again
                tests[name] = tests[models[0]]
            else:
                again = run(replace(other, seed=seed), models[:1], progress=False)
                tests[name] = again.models[0].test
        _add(scores, tests)
        if seed == config.seed:
            path = result.folder.with_name(f"comparison-{result.folder.name}.json")
        of_tests = {f"test/{name}": values for name, values in scores.items()}
        path.write_text(json.dumps(of_tests, indent=2) + "\n")
    title = f"test {metric} over {seeds} seeds; difference: {models[0]} minus the row"
    found = rows(scores[metric], models[0])
    for ending, table in TABLES.items():
        path.with_suffix(f".{ending}").write_text(table(title, found) + "\n")
    page = comparison_page(title, found, [*models, *varied], scores)
    path.with_suffix(".html").write_text(page, encoding="utf-8")
    print(TABLES["txt"](title, found))
    print(f"This table, also for Markdown, LaTeX and browsers, is in {path.with_suffix('.*')}")
    return scores


def _tests(result: Result) -> dict[str, dict[str, float]]:
    floors = {name: values["test"] for name, values in result.floors.items()}
    return floors | {trained.name: trained.test for trained in result.models}


def _add(scores: Mapping[str, Scores], tests: Mapping[str, Mapping[str, float]]) -> None:
    for metric, values in scores.items():
        for name, test in tests.items():
            values.setdefault(name, []).append(test[metric])
