"""What evaluate.py measured: what a model rests on, whom it suits, what its lists are like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cammsr.evaluate_cli import HEADS
from cammsr.page.markup import Markup, command, note, table
from cammsr.page.pictures import figures, lines

__all__ = ["groups", "lists", "robustness"]

Evaluation = Mapping[str, Mapping[str, Any]]  # of each model that was evaluated

MOST = 25  # groups of a table
HOW = "python examples/cammsr/evaluate.py RUN --model MODEL"


def robustness(evaluation: Evaluation) -> Iterator[Markup]:
    """A picture a model: NDCG@10 by the share of items that are changed."""
    curves = {name: found["curves"] for name, found in evaluation.items() if found.get("curves")}
    if not curves:
        yield _missing(f"{HOW} --curves")
        return
    highest = max(
        point["ndcg@10"]
        for of_model in curves.values()
        for points in of_model.values()
        for point in points
    )
    pictures = []
    for name, of_model in curves.items():
        series = {
            change: [(point["share"], point["ndcg@10"]) for point in points]
            for change, points in of_model.items()
        }
        pictures.append(
            lines(name, series, "share of items", "test NDCG@10", top=1.1 * highest or 1.0)
        )
    yield figures(*pictures)
    yield note("A line that stays flat says that the model does not rest on what was changed.")


def groups(evaluation: Evaluation) -> Iterator[Markup]:
    """A table a grouping: users, and NDCG@10 and HR@10 of each model."""
    parts = {part: None for found in evaluation.values() for part in found.get("by", {})}
    if not parts:
        yield _missing(HOW)
        return
    for part in parts:
        models = {
            name: found["by"][part] for name, found in evaluation.items() if part in found["by"]
        }
        users: dict[str, int] = {}
        for of_groups in models.values():
            users |= {group: values["users"] for group, values in of_groups.items()}
        shown = sorted(users, key=lambda group: -users[group])[:MOST]
        head = [HEADS[part], "users"]
        head += [f"{name} {metric}" for name in models for metric in ("NDCG@10", "HR@10")]
        rows = [
            [group, f"{users[group]:,}", *_cells(models, group)]
            for group in users
            if group in shown
        ]
        yield table(f"Test, by {HEADS[part]}", head, rows)
        if len(users) > MOST:
            yield note(f"The {MOST} groups with the most users, of {len(users)}.")


def lists(evaluation: Evaluation) -> Iterator[Markup]:
    """Coverage, inequality, novelty and diversity of each model's lists."""
    measured: dict[str, dict[str, float | None]] = {}
    for name, found in evaluation.items():
        for key in (key for key in found if key.startswith("lists@")):
            for measure, value in found[key].items():
                row = f"{measure}, lists of {key.removeprefix('lists@')}"
                measured.setdefault(row, {})[name] = value
    if not measured:
        yield _missing(HOW)
        return
    rows = [
        [measure, *(_number(values.get(name)) for name in evaluation)]
        for measure, values in measured.items()
    ]
    yield table("Lists of the best unseen items", ["", *evaluation], rows)
    yield note(
        "Coverage: the share of the catalogue in any list. Gini: 0 if all items come as often, "
        "near 1 if few take all. Novelty: mean bits of an item's share of the training "
        "interactions. Diversity: within a list, the share of pairs of other categories, and one "
        "minus the cosine of a pair's features."
    )


def _cells(models: Mapping[str, Mapping[str, Mapping[str, float]]], group: str) -> list[str]:
    return [
        _number(models[name].get(group, {}).get(metric))
        for name in models
        for metric in ("ndcg@10", "hr@10")
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _missing(text: str) -> Markup:
    return note("Not measured yet: ", command(text), " does, and writes this page anew.")
