"""The page of a comparison: spreads over seeds as bars, and the paired table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cammsr.page.markup import document, note, table
from cammsr.page.pictures import bars
from cammsr.tables import HEAD, Row, cells

__all__ = ["comparison_page"]

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # of a metric, of a model, one value a seed


def comparison_page(
    title: str, rows: Sequence[Row], models: Mapping[str, Mapping[str, Any]], scores: Scores
) -> str:
    """A page of the rows that the table has, and of all metrics.

    Args:
        title: of the table: what is compared.
        rows: one a floor and model.
        models: which of them are models, with the settings that differ between them.
        scores: all metrics of all seeds.
    """
    first, names = next(iter(models)), list(scores)
    floors = [row.model for row in rows if row.model not in models]
    picture = bars(
        "Mean over seeds",
        {row.model: row.mean for row in rows},
        floors,
        {row.model: row.std for row in rows if row.std == row.std},
        title.partition(";")[0],
    )
    paired = table(title, HEAD, [cells(row) for row in rows])
    every = [[row.model, *(_spread(scores[name][row.model]) for name in names)] for row in rows]
    parts = [
        ("spread", "Spread", [picture, note("Lines are standard deviations over seeds.")]),
        (
            "pairs",
            "Paired differences",
            [
                paired,
                note(
                    f"Difference: {first} minus the row, seed by seed, with its 95 % interval; "
                    "p is Student's, corrected by Holm for the number of rows."
                ),
            ],
        ),
        ("metrics", "Every metric", [table("Test", ["", *map(str.upper, names)], every)]),
    ]
    if of_first := models[first]:
        own = [[model, *map(str, settings.values())] for model, settings in models.items()]
        differing = table("In which the models differ", ["", *of_first], own)
        parts.append(("settings", "Settings", [differing]))
    return document("Comparison over seeds", title, parts)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"
