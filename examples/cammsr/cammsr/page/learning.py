"""How the models learnt: validation after each epoch, and every loss that the logs have."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cammsr.page.markup import Markup, note
from cammsr.page.pictures import Points, figures, lines
from cammsr.variants import file_name

__all__ = ["learning", "read_losses"]

PREFIX = "train/"


def learning(folder: Path, metrics: Mapping[str, Any]) -> Iterator[Markup]:
    """Validation NDCG@10 of all models with the best floor, then a picture a loss."""
    models = metrics.get("models", {})
    curves = {name: found["curve"] for name, found in models.items() if found.get("curve")}
    pictures = []
    if curves:
        points = {name: list(enumerate(curve, start=1)) for name, curve in curves.items()}
        pictures.append(
            lines("Validation", points, "epoch", "validation NDCG@10", level=_best_floor(metrics))
        )
    losses: dict[str, dict[str, Points]] = {}
    for name in models:
        for loss, of_epochs in read_losses(folder / file_name(name)).items():
            losses.setdefault(loss, {})[name] = of_epochs
    for loss in sorted(losses, key=lambda loss: (loss != "loss", loss)):
        title = "The whole loss" if loss == "loss" else f"Loss: {loss}"
        pictures.append(lines(title, losses[loss], "epoch", "mean of the epoch"))
    if pictures:
        yield figures(*pictures)
    if not curves:
        yield note("No curve is known: metrics.json has none. train.py writes it.")
    if not losses:
        yield note("No losses are known: the logs of train.py are not in the folder.")
    else:
        yield note("Losses are unweighted, but for the whole one, which is their weighted sum.")


def read_losses(folder: Path) -> dict[str, Points]:
    """The losses of a model by epoch, from 1; of an epoch that was run twice, the later one."""
    found: dict[str, dict[int, float]] = {}
    files = folder.glob("logs/csv/run-*/metrics.csv")
    for path in sorted(files, key=lambda path: int(path.parent.name.removeprefix("run-"))):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name.startswith(PREFIX) and value:
                        epochs = found.setdefault(name.removeprefix(PREFIX), {})
                        epochs[int(row["epoch"]) + 1] = float(value)
    return {name: sorted(epochs.items()) for name, epochs in found.items()}


def _best_floor(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    floors = {
        name: found["validation"]["ndcg@10"]
        for name, found in metrics.get("floors", {}).items()
        if "ndcg@10" in found.get("validation", {})
    }
    if not floors:
        return None
    best = max(floors, key=floors.__getitem__)
    return f"floor: {best}", floors[best]
