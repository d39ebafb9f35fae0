"""The command line of ``evaluate.py``: tables of one trained model, and a file of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentParser
from torch import nn

from cammsr.blockwise import model_ranks
from cammsr.breakdown import GROUPINGS, breakdown
from cammsr.chosen_split import ChosenSplit, choose_split
from cammsr.coverage import describe_lists, recommended
from cammsr.dataset import Dataset
from cammsr.metrics import summarise
from cammsr.ranking import BLOCK, Reader
from cammsr.robustness import can_be_wrong, curve, with_wrong_categories, without
from cammsr.saved import read_catalogue, read_run, restore
from cammsr.split import Target
from cammsr.titles import WIDEST, cut

__all__ = [
    "FILE",
    "HEADS",
    "Request",
    "evaluation",
    "examine",
    "format_evaluation",
    "parse_request",
]

By = Literal["category", "popularity", "length", "cold"]
FILE = "evaluation.json"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = ("ndcg@10", "hr@10", "mrr@10", "masked/ndcg@10")
HEADS = {
    "category": "category of the target",
    "popularity": "popularity of the target",
    "length": "items in the history",
    "cold": "target",
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    run: str
    model: str | None
    by: list[By]
    curves: bool
    k: int
    seed: int
    data: str | None
    batch_size: int
    block: int
    threads: int


def parse_request(arguments: Sequence[str] | None = None) -> Request:
    """Read the arguments."""
    parser = ArgumentParser(description="What a trained model is good at, and what it rests on.")
    parser.add_argument("run", type=str, help="the run folder that train.py left")
    parser.add_argument("--model", type=str | None, default=None, help="default: the run's first")
    parser.add_argument(
        "--by",
        type=By,
        nargs="+",
        default=list(get_args(By)),
        help=f"groups of users, default all of {list(get_args(By))}",
    )
    parser.add_argument(
        "--curves",
        action="store_true",
        help="also drop each modality, and change categories, for none to all of the items",
    )
    parser.add_argument("-k", "--k", type=int, default=10, help="how long recommended lists are")
    parser.add_argument("--seed", type=int, default=0, help="which items the curves change")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the dataset folder, if it has moved"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="users ranked at a time")
    parser.add_argument("--block", type=int, default=BLOCK, help="items scored at a time")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    given = parser.parse_args(arguments)
    for name in ("k", "batch_size", "block", "threads"):
        if given[name] < 1:
            parser.error(f"Expected {name} >= 1, got {given[name]}.")
    return Request(**given.as_dict())


def examine(request: Request) -> dict[str, Any]:
    """Print the tables, and write them into the run folder beside those of its other models."""
    torch.set_num_threads(request.threads)
    run = read_run(request.run)
    name = run.choose(request.model)
    dataset = read_catalogue(run, request.data).dataset
    chosen = choose_split(dataset, run.config)
    found = evaluation(restore(run, name, dataset), dataset, chosen, request)
    print(f"{name} on the test of '{dataset.name}': {dataset.num_items:,} items, {chosen.name}")
    print(format_evaluation(found, request.k))
    path = run.folder / FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    beside = path.with_suffix(".part")  # complete, or as it was
    beside.write_text(json.dumps({**known, name: found}, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)
    print(f"\nwritten to {path}")
    return found


def evaluation(
    model: nn.Module, dataset: Dataset, chosen: ChosenSplit, request: Request
) -> dict[str, Any]:
    """Everything that was asked for, of a model in eval mode."""
    reader, split = Reader(model), chosen.split
    ranks = model_ranks(reader, split.test, batch_size=request.batch_size, block=request.block)
    lists = recommended(reader, split.test, request.k, block=request.block)
    found: dict[str, Any] = {
        "dataset": dataset.name,
        "split": chosen.name,
        "time_leak": None if chosen.leak is None else asdict(chosen.leak),
        "note": chosen.note,
        "all": {"users": len(split.test.item), **summarise(ranks)},
        "by": {by: breakdown(ranks, GROUPINGS[by](dataset, split)) for by in request.by},
        f"lists@{request.k}": {
            name: None if math.isnan(value) else value  # JSON has no NaN
            for name, value in describe_lists(lists, dataset, split.train).items()
        },
    }
    if request.curves:
        found["curves"] = _curves(model, dataset, split.test, request)
    return found


def format_evaluation(found: Mapping[str, Any], k: int) -> str:
    """All tables, and what the split is blind to."""
    parts = [_table("", {"all users": found["all"]})]
    parts += [_table(HEADS[by], groups) for by, groups in found["by"].items()]
    lists = found[f"lists@{k}"]
    rows = [f"{n:32}{'-' if v is None else format(v, '.4f'):>9}" for n, v in lists.items()]
    parts.append("\n".join([f"lists of {k} unseen items", *rows]))
    if "curves" in found:
        parts += [_curve_table(name, points) for name, points in found["curves"].items()]
    notes = "unseen: NDCG@10 among the items that the user has not seen"
    return "\n\n".join([*parts, f"{notes}\n{found['note']}"])


def _curves(
    model: nn.Module, dataset: Dataset, target: Target, request: Request
) -> dict[str, list[dict[str, float]]]:
    seed, found = request.seed, {}
    for modality in dataset.features:
        found[f"items that lose {modality}"] = curve(
            model,
            lambda share, modality=modality: without(dataset, modality, share, seed),  # type: ignore[misc]
            target,
            SHARES,
            block=request.block,
        )
    if len(dataset.categories) > 1 and can_be_wrong(dataset).any():
        for noise, title in (("wrong", "a wrong category"), ("lost", "no category")):
            found[f"items with {title}"] = curve(
                model,
                lambda share, noise=noise: with_wrong_categories(  # type: ignore[misc]
                    dataset, share, seed, noise=noise
                ),
                target,
                SHARES,
                block=request.block,
            )
    return found


def _table(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    groups = {cut(name, WIDEST): values for name, values in groups.items()}
    wide = max(32, *(len(name) + 2 for name in groups))
    head = f"{title:{wide}}{'users':>8}{'NDCG@10':>10}{'HR@10':>10}{'MRR@10':>10}{'unseen':>10}"
    rows = [
        f"{name:{wide}}{values['users']:>8}" + "".join(f"{values[c]:>10.4f}" for c in COLUMNS)
        for name, values in groups.items()
    ]
    return "\n".join([head, *rows])


def _curve_table(name: str, points: Sequence[Mapping[str, float]]) -> str:
    head = f"{name:40}{'NDCG@10':>10}{'HR@10':>10}{'MRR@10':>10}{'unseen':>10}"
    rows = [
        f"{format(point['share'], '.0%'):40}" + "".join(f"{point[c]:>10.4f}" for c in COLUMNS)
        for point in points
    ]
    return "\n".join([head, *rows])
