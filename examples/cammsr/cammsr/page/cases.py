"""Some users: what they took, what is recommended to them, and what they took next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cammsr.page.markup import Markup, element, note, table
from cammsr.recommend_cli import describe_parts, shares
from cammsr.serving import Recommendation, Recommender
from cammsr.split import Target
from cammsr.titles import cut

__all__ = ["Case", "choose", "show"]

FOUND = 10  # a target is found in a list of so many
EACH = 3  # users whose target was found, and as many whose was not
SHOWN = 5  # items of the history, and recommendations
READ = 256  # users looked at together
TITLE = 60  # letters


@dataclass(frozen=True)
class Case:
    """A user of the split, and the place of their target among what they have not seen."""

    user: int  # row of the split
    place: int | None  # None: it is seen already, so it is in no list


def choose(recommender: Recommender, target: Target, each: int = EACH) -> list[Case]:
    """The first users whose target is among the best ten, then the first whose is not."""
    found, missed = [], []
    for rows in torch.arange(len(target.item)).split(READ):
        items, valid = target.history.padded(rows)
        best = recommender.top_k(items, valid, FOUND, times=target.history.padded_times(rows)).items
        hit = (best == target.item[rows, None]).any(1)
        found += rows[hit].tolist()
        missed += rows[~hit].tolist()
        if min(len(found), len(missed)) >= each:
            break
    users = [*found[:each], *missed[:each]]
    return [Case(user, _place(recommender, target, user)) for user in users]


def show(recommender: Recommender, target: Target, cases: list[Case]) -> Iterator[Markup]:
    """What the numbers of the modalities are, then an article a user."""
    if cases:
        best = _recommend(recommender, target, cases[0].user, 1)
        yield from (note(describe_parts(choice).splitlines()[0]) for choice in best)
    yield from (_article(recommender, target, case) for case in cases)


def _article(recommender: Recommender, target: Target, case: Case) -> Markup:
    catalogue = recommender.catalogue
    history = target.history[case.user]
    taken = int(target.item[case.user])
    choices = _recommend(recommender, target, case.user, SHOWN)
    user = int(catalogue.user_ids[target.user(case.user)])
    last = [
        element("li", _title(catalogue.dataset.titles[row], int(catalogue.item_ids[row])))
        for row in history[-SHOWN:].tolist()
    ]
    before = len(history) - len(last)
    true = int(catalogue.item_ids[taken])
    return element(
        "article",
        element("h3", f"User {user}: {_headline(case)}"),
        element(
            "div",
            element(
                "p", f"Took {len(history)} items, the latest last{', at the end' * (before > 0)}:"
            ),
            element("ol", *last, start=str(before + 1)),
            element(
                "p", "Took next: ", element("strong", _title(catalogue.dataset.titles[taken], true))
            ),
        ),
        _choices(choices, true, f"The best {len(choices)} for user {user}; modalities in %"),
    )


def _choices(choices: list[Recommendation], true: int, caption: str) -> Markup:
    explained = (shares(choices[0]) if choices else None) or {}
    head = ["place", "title", "category", "score", *explained]
    rows, classes = [], []
    for place, choice in enumerate(choices, start=1):
        mark = " ← taken next" if choice.item == true else ""
        title = element("span", _title(choice.title, choice.item), mark)
        parts = [str(round(value)) for value in (shares(choice) or {}).values()]
        category = cut(choice.category or "–", TITLE // 2)
        rows.append([str(place), title, category, f"{choice.score:.3f}", *parts])
        classes.append("taken" if mark else "")
    return element("div", table(caption, head, rows, classes), class_="words")


def _headline(case: Case) -> str:
    if case.place is None:
        return "the next item was taken before, so it is in no list"
    where = "among" if case.place <= FOUND else "not among"
    return f"the next item came at place {case.place:,}, {where} the best {FOUND}"


def _recommend(recommender: Recommender, target: Target, user: int, k: int) -> list[Recommendation]:
    ids = recommender.catalogue.item_ids[target.history[user]].tolist()
    times = target.history.padded_times(torch.tensor([user]))
    return recommender.recommend(ids, k, times=None if times is None else times[0].tolist())


def _place(recommender: Recommender, target: Target, user: int) -> int | None:
    row, size = torch.tensor([user]), recommender.catalogue.dataset.num_items
    items, valid = target.history.padded(row)
    times = target.history.padded_times(row)
    every = recommender.top_k(items, valid, size, times=times).items[0]
    at = (every == target.item[user]).nonzero().flatten().tolist()
    return at[0] + 1 if at else None


def _title(title: str, item: int) -> Markup:
    """A title in its own direction of writing; the id where there is none."""
    return element("bdi", cut(title, TITLE) if title.strip() else f"item {item}")
