"""Models over seeds: means, spreads, and paired differences with their uncertainty."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cammsr.config import Config
from cammsr.run import run

__all__ = ["Paired", "compare", "format_comparison", "paired"]

T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Two-sided 95 % quantile of Student's t for 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Paired:
    """The mean difference over seeds and the half width of its 95 % confidence interval."""

    mean: float
    half_width: float
    wins: int
    count: int


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """How much more the first scores than the second, seed by seed."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count = len(differences)
    spread = statistics.stdev(differences) if count > 1 else math.inf
    quantile = T_95[min(max(count, 2) - 2, len(T_95) - 1)]
    return Paired(
        mean=statistics.fmean(differences),
        half_width=quantile * spread / math.sqrt(count),
        wins=sum(difference > 0 for difference in differences),
        count=count,
    )


def compare(config: Config, models: list[str], seeds: int) -> dict[str, list[float]]:
    """Run every seed, print the comparison, and write it beside the runs after each seed."""
    scores: dict[str, list[float]] = {}
    for seed in range(config.seed, config.seed + seeds):
        result = run(replace(config, seed=seed), models, progress=False)
        for name, values in result.floors.items():
            scores.setdefault(name, []).append(values["test"]["ndcg@10"])
        for trained in result.models:
            scores.setdefault(trained.name, []).append(trained.test["ndcg@10"])
        if seed == config.seed:
            path = result.folder.with_name(f"comparison-{result.folder.name}.json")
        path.write_text(json.dumps({"test/ndcg@10": scores}, indent=2) + "\n")
    print(format_comparison(scores, models[0]))
    return scores


def format_comparison(scores: dict[str, list[float]], reference: str) -> str:
    """One row a model: mean and spread, and what the reference has over it."""
    count = len(scores[reference])
    lines = [f"test NDCG@10 over {count} seeds; difference: {reference} minus the row"]
    lines.append(f"{'':22}{'mean':>9}{'std':>9}{'difference':>13}{'95 %':>11}{'wins':>8}")
    for name, values in scores.items():
        spread = statistics.stdev(values) if count > 1 else math.nan
        line = f"{name:22}{statistics.fmean(values):>9.4f}{spread:>9.4f}"
        if name != reference:
            pair = paired(scores[reference], values)
            line += f"{pair.mean:>+13.4f}{'± ' + format(pair.half_width, '.4f'):>11}"
            line += f"{f'{pair.wins} of {pair.count}':>8}"
        lines.append(line)
    return "\n".join(lines)
