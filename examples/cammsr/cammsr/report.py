"""What a run found, as a table."""

from __future__ import annotations

from cammsr.training import Trained

__all__ = ["format_table"]

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
    note = (
        "unseen: test NDCG@10 among the items that the user has not seen; best: the best epoch\n"
        "one seed; compare.py runs several"
    )
    return "\n".join([head, *rows, note])


def _row(name: str, validation: dict[str, float], test: dict[str, float]) -> str:
    numbers = "".join(f"{test[column]:>11.4f}" for column in COLUMNS)
    return f"{name:22}{validation['ndcg@10']:>12.4f}{numbers}"
