"""The command line of ``recommend.py``: one question, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from cammsr.index import Index, IndexKind
from cammsr.recommendation import MEMORY, Recommendation
from cammsr.serving import Recommender, load
from cammsr.titles import cut, number_or_text, split_history

__all__ = ["Question", "answer", "describe_parts", "format_choices", "parse_question", "shares"]

TITLE = 40  # columns
LAST = 3  # items of the history that are shown


@dataclass(frozen=True)
class Question:
    """What the command line asks for."""

    run: str
    user: int | str | None
    history: str | None
    k: int
    model: str | None
    data: str | None
    seen: bool
    index: IndexKind | None
    export: str | None
    threads: int


def parse_question(arguments: Sequence[str] | None = None) -> Question:
    """Read the arguments; exactly one of --user and --history is needed."""
    parser = ArgumentParser(description="The best items for a user or a history, and why.")
    parser.add_argument("run", type=str, help="the run folder that train.py left")
    parser.add_argument(
        "--user",
        type=str,  # and nothing else: "null" may be a name
        default=None,
        help="a user_id of the dataset folder, or the raw identifier that prepare.py read",
    )
    parser.add_argument(
        "--history",
        type=str,  # and nothing else: "null" may be a title
        default=None,
        help="instead: items, the latest last, with ; between them: ids, raw identifiers or parts "
        "of titles",
    )
    parser.add_argument("-k", "--k", type=int, default=10, help="how many items")
    parser.add_argument("--model", type=str | None, default=None, help="default: the run's first")
    parser.add_argument(
        "--data", type=str | None, default=None, help="the dataset folder, if it has moved"
    )
    parser.add_argument(
        "--seen", action="store_true", help="do not leave out what the history has already"
    )
    parser.add_argument(
        "--index",
        type=IndexKind | None,
        default=None,
        help=f"look candidates up in an approximate index, one of {list(get_args(IndexKind))}",
    )
    parser.add_argument(
        "--export", type=str | None, default=None, help="also write scoring as a program, a .pt2"
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    given = parser.parse_args(arguments)
    if (given.user is None) == (given.history is None):
        parser.error("Expected one of --user ID and --history 'ITEM; ITEM'.")
    for name in ("k", "threads"):
        if given[name] < 1:
            parser.error(f"Expected {name} >= 1, got {given[name]}.")
    user = None if given.user is None else number_or_text(given.user)
    return Question(**{**given.as_dict(), "user": user})


def answer(question: Question) -> None:
    """Print the table, why, and how long one user takes."""
    torch.set_num_threads(question.threads)
    recommender = load(question.run, question.model, question.data)
    history = None if question.history is None else split_history(question.history)
    items, valid, times = recommender.encode(history, user=question.user)
    index = None if question.index is None else recommender.index(question.index)
    choices = recommender.recommend(
        history, question.k, user=question.user, unseen=not question.seen, index=index
    )
    print(_heading(recommender, question, items))
    if times is None and recommender.reader.reads_times:
        print("the model reads when items were taken; of a typed history it reads positions")
    print(format_choices(choices))
    seconds = recommender.latency(items, valid, question.k, times=times, index=index)
    size = f"{len(recommender.catalogue.item_ids):,} items, threads: {torch.get_num_threads()}"
    print(f"latency: {1000 * seconds:.2f} ms for one user, the median of 30 calls ({size})")
    if index is not None:
        print(_recall(recommender, index, question))
    if question.export is not None:
        path = Path(question.export)
        recommender.export(path, question.k, unseen=not question.seen)
        print(f"{path}: scoring as a program, {path.stat().st_size / 1e6:.1f} MB")


def format_choices(choices: Sequence[Recommendation]) -> str:
    """Rank, id, title, category, score, and in per cent what each modality has to do with it.

    Where items have raw identifiers, they stand beside the id. A memory has a column of its own
    beside the modalities.
    """
    if not choices:
        return "nothing is left to recommend: the history has every item (--seen shows them)"
    found = [shares(choice) for choice in choices]
    kinds = [cut(choice.category or "-", TITLE) for choice in choices]
    wide = max(len("category"), *map(len, kinds))
    long = min(TITLE, max(len("title"), *(len(choice.title) for choice in choices)))
    raw_head, *raw = _raw_names(choices)
    head = f"{'rank':>4}{'id':>8}{raw_head}  {'title':{long}}  {'category':{wide}}{'score':>10}"
    lines = [head + "".join(f"{name:>{_width(name)}}" for name in found[0] or ())]
    for rank, (choice, share) in enumerate(zip(choices, found, strict=True), start=1):
        row = f"{rank:>4}{choice.item:>8}{raw[rank - 1]}  {cut(choice.title, long):{long}}  "
        row += f"{kinds[rank - 1]:{wide}}{choice.score:>10.3f}"
        for name, value in (share or {}).items():
            row += f"{value:>{_width(name) - 2}.0f} %"
        lines.append(row)
    return "\n".join([*lines, describe_parts(choices[0])])


def _raw_names(choices: Sequence[Recommendation]) -> list[str]:
    """A column with its head; nothing in it where no item has a raw identifier."""
    if all(choice.name is None for choice in choices):
        return [""] * (1 + len(choices))
    cells = ["item", *(cut(choice.name or "-", TITLE // 2) for choice in choices)]
    width = max(map(len, cells))
    return [f"  {cell:{width}}" for cell in cells]


def shares(choice: Recommendation) -> dict[str, float] | None:
    """Per cent: of the sizes of all parts, or of the weights where a score has no parts."""
    values = choice.parts or choice.weights
    if values is None:
        return None
    size = sum(abs(value) for value in values.values())
    return {name: 100 * value / size if size else 0.0 for name, value in values.items()}


def describe_parts(choice: Recommendation) -> str:
    """What the numbers of the modalities are; on a line of its own the gate, if there is one."""
    if choice.parts is not None:
        note = "per modality: its part of the score, in % of the sizes of all parts; below 0 it "
        note += "speaks against the item"
        if MEMORY in choice.parts:
            note += f"\n{MEMORY}: the part of what users took together with the history"
        if choice.weights is None:
            return note
        gate = ", ".join(f"{name} {weight:.0%}" for name, weight in choice.weights.items())
        return f"{note}\nthe gate after the last item of the history: {gate}"
    if choice.weights is not None:
        return "per modality: how much the fusion counts it in the item, in %"
    return "no modalities are shown: this model makes one vector of an item and does not weigh"


def _heading(recommender: Recommender, question: Question, items: Tensor) -> str:
    titles = [_called(recommender, row) for row in items[0].tolist()]
    who = "a typed history" if question.user is None else f"user {question.user}"
    shown = "; ".join(titles[-LAST:])
    count = f"{len(titles)} item{'s' * (len(titles) != 1)}"
    return f"{recommender.name} for {who}: {count}, at the end {shown}"


def _called(recommender: Recommender, row: int) -> str:
    """An item's title, or its id if it has none."""
    catalogue = recommender.catalogue
    return catalogue.dataset.titles[row] or f"item {int(catalogue.item_ids[row])}"


def _recall(recommender: Recommender, index: Index, question: Question) -> str:
    users = torch.arange(min(256, len(recommender.histories)))
    histories = recommender.histories
    share = recommender.recall(
        index, *histories.padded(users), question.k, times=histories.padded_times(users)
    )
    return (
        f"index {index.kind}: finds {share:.1%} of the exact {question.k} best items "
        f"({len(users)} users)"
    )


def _width(name: str) -> int:
    return max(9, len(name) + 2)
