"""What a run found, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from operator import itemgetter

from cammsr.training import Trained

__all__ = ["COLUMNS", "format_table"]

COLUMNS = ("ndcg@10", "hr@10", "mrr@10", "masked/ndcg@10")


def format_table(floors: dict[str, dict[str, dict[str, float]]], models: list[Trained]) -> str:
    """One row a floor or model: validation NDCG@10, then the test."""
    head = f"{'':22}{'validation':>12}{'test':>44}\n"
    head += f"{'':22}{'NDCG@10':>12}{'NDCG@10':>11}{'HR@10':>11}{'MRR@10':>11}{'unseen':>11}"
    head += f"{'best':>8}{'seconds':>9}"
    rows = [_row(name, values["validation"], values["test"]) for name, values in floors.items()]
    for trained in models:
        row = _row(trained.name, trained.validation, trained.test)
        rows.append(f"{row}{trained.best_epoch + 1:>8}{trained.seconds:>9.0f}")
    return "\n".join([head, *rows, *_notes(floors, models)])


def _notes(floors: dict[str, dict[str, dict[str, float]]], models: list[Trained]) -> Iterator[str]:
    """What the columns are, and what should be known before a model is used."""
    yield "unseen: test NDCG@10 among the items that the user has not seen; best: the best epoch"
    yield "one seed; compare.py runs several"
    rising = [trained.name for trained in models if trained.best_epoch + 1 == trained.epochs]
    if rising:
        yield f"stopped at their best epoch, --training.max_epochs was reached: {', '.join(rising)}"
    best, floor = max(
        ((name, of["validation"]["ndcg@10"]) for name, of in floors.items()),
        key=itemgetter(1),
        default=("", -inf),
    )
    behind = [trained.name for trained in models if trained.validation["ndcg@10"] < floor]
    if behind:
        yield f"behind {best}, which is not trained, on validation: {', '.join(behind)}"


def _row(name: str, validation: dict[str, float], test: dict[str, float]) -> str:
    numbers = "".join(f"{test[column]:>11.4f}" for column in COLUMNS)
    return f"{name:22}{validation['ndcg@10']:>12.4f}{numbers}"
