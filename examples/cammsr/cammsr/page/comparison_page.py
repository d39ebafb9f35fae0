"""The page of a comparison: spreads over seeds as bars, and the paired table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cammsr.page.markup import document, note, table
from cammsr.page.pictures import bars
from cammsr.tables import HEAD, Row, cells

__all__ = ["comparison_page"]

Scores = Mapping[str, Mapping[str, Sequence[float]]]  # of a metric, of a model, one value a seed


def comparison_page(title: str, rows: Sequence[Row], models: Sequence[str], scores: Scores) -> str:
    """A page of the rows that the table has, and of all metrics.

    Args:
        title: of the table: what is compared.
        rows: one a floor and model.
        models: which of them are models.
        scores: all metrics of all seeds.
    """
    floors = [row.model for row in rows if row.model not in models]
    picture = bars(
        "Mean over seeds",
        {row.model: row.mean for row in rows},
        floors,
        {row.model: row.std for row in rows if row.std == row.std},
        title.partition(";")[0],
    )
    paired = table(title, HEAD, [cells(row) for row in rows])
    names = list(scores)
    every = [[row.model, *(_spread(scores[name][row.model]) for name in names)] for row in rows]
    parts = [
        ("spread", "Spread", [picture, note("Lines are standard deviations over seeds.")]),
        (
            "pairs",
            "Paired differences",
            [
                paired,
                note(
                    f"Difference: {models[0]} minus the row, seed by seed, with its 95 % interval; "
                    "p is Student's, corrected by Holm for the number of rows."
                ),
            ],
        ),
        ("metrics", "Every metric", [table("Test", ["", *map(str.upper, names)], every)]),
    ]
    return document("Comparison over seeds", title, parts)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.4f}"
