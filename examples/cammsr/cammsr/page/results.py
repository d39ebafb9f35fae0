"""Floors and models beside each other, as a run measured them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cammsr.page.markup import Markup, command, element, note, table
from cammsr.page.pictures import bars

__all__ = ["Row", "all_metrics", "read_rows", "results"]

COLUMNS: Mapping[str, tuple[str, str]] = {
    "validation NDCG@10": ("validation", "ndcg@10"),
    "test NDCG@10": ("test", "ndcg@10"),
    "test HR@10": ("test", "hr@10"),
    "test MRR@10": ("test", "mrr@10"),
    "unseen NDCG@10": ("test", "masked/ndcg@10"),
}


@dataclass(frozen=True)
class Row:
    """What is known of a floor or a model."""

    name: str
    floor: bool
    found: Mapping[str, Any]

    def value(self, split: str, metric: str) -> float | None:
        """A metric of a split, if it was measured."""
        value: float | None = self.found.get(split, {}).get(metric)
        return value


def read_rows(metrics: Mapping[str, Any]) -> list[Row]:
    """The floors, then the models, of the content of ``metrics.json``."""
    return [
        Row(name, floor, found)
        for part, floor in (("floors", True), ("models", False))
        for name, found in metrics.get(part, {}).items()
    ]


def results(rows: Sequence[Row]) -> Iterator[Markup]:
    """The table with the best value of each column marked, and the test as bars."""
    best = {
        head: max((row.value(*column) or 0.0 for row in rows), default=0.0)
        for head, column in COLUMNS.items()
    }
    cells = []
    for row in rows:
        numbers = (_cell(row.value(*column), best[head]) for head, column in COLUMNS.items())
        cells.append([row.name, *numbers, *_training(row)])
    yield table(
        "Ranking of all items. The best of each column is bold and underlined.",
        ["", *COLUMNS, "best epoch", "epochs", "seconds"],
        cells,
        ["floor" if row.floor else "" for row in rows],
    )
    yield note(
        "Grey rows learn nothing. Unseen: among the items that the user has not seen. This is one "
        "seed; ",
        command("python examples/cammsr/compare.py --seeds 5"),
        " runs several, and writes a page with spreads and paired differences.",
    )
    tests = {row.name: row.value("test", "ndcg@10") for row in rows}
    known = {name: value for name, value in tests.items() if value is not None}
    if known:
        grey = [row.name for row in rows if row.floor]
        yield bars("Test beside the floors", known, grey, {}, "test NDCG@10")


def all_metrics(rows: Sequence[Row]) -> Markup:
    """Every metric of the test, a column a floor or model."""
    names = list(dict.fromkeys(name for row in rows for name in row.found.get("test", {})))
    values = {name: [row.value("test", name) for row in rows] for name in names}
    cells = [
        [
            name.replace("masked/", "unseen ").upper().replace("UNSEEN", "unseen"),
            *(_cell(value, max(v or 0.0 for v in of_rows)) for value in of_rows),
        ]
        for name, of_rows in values.items()
    ]
    return table("Test, every metric", ["", *(row.name for row in rows)], cells)


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return element("strong", text) if value == best > 0 else text


def _training(row: Row) -> list[str]:
    epoch, seconds = row.found.get("best_epoch"), row.found.get("seconds")
    return [
        "" if epoch is None else str(epoch + 1),
        str(row.found.get("epochs", "")),
        "" if seconds is None else f"{seconds:.0f}",
    ]
