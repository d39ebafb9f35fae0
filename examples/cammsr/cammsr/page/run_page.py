"""The page of a run, made of its folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cammsr.chosen_split import ChosenSplit, choose_split
from cammsr.dataset import DatasetError
from cammsr.evaluate_cli import FILE
from cammsr.page.cases import choose, show
from cammsr.page.evaluation import groups, lists, robustness
from cammsr.page.facts import facts
from cammsr.page.inside import inside
from cammsr.page.learning import learning
from cammsr.page.markup import Markup, command, document, note
from cammsr.page.results import all_metrics, read_rows, results
from cammsr.saved import Catalogue, SavedRun, ServingError, read_catalogue, read_run, restore
from cammsr.serving import Recommender, load

__all__ = ["PAGE", "write_report"]

PAGE = "report.html"


@dataclass(frozen=True, eq=False)
class _Opened:
    """The data of a run, if they are where they were, and its models."""

    run: SavedRun
    data: str | Path | None
    catalogue: Catalogue
    chosen: ChosenSplit


def write_report(folder: str | Path, data: str | Path | None = None) -> Path:
    """Write the page of a run folder into it; what is not there to show says how it comes.

    Args:
        folder: the run folder that ``train.py`` left.
        data: the dataset folder, if it has moved.

    Raises:
        ServingError: it is no run folder.
    """
    run = read_run(folder)
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    file = run.folder / FILE
    evaluation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    opened = _open(run, data)
    known = None if opened is None else (opened.catalogue.dataset, opened.chosen)
    rows = read_rows(metrics)
    parts = [
        ("run", "The run", facts(run.config, metrics, known)),
        ("results", "Results", results(rows)),
        ("learning", "Learning", learning(run.folder, metrics)),
        ("inside", "Inside the model", _with_data(opened, _inside)),
        ("robustness", "What it rests on", robustness(evaluation)),
        ("groups", "Whom it is good for", groups(evaluation)),
        ("lists", "What the lists are like", lists(evaluation)),
        ("users", "Some users", _with_data(opened, _users)),
        ("metrics", "Every metric", [all_metrics(rows)]),
    ]
    title = f"A run on {metrics.get('dataset', 'data without a name')}"
    lead = "What a run of train.py found. RUN stands for the folder of this page."
    page = document(title, lead, [(name, heading, [*part]) for name, heading, part in parts])
    path = run.folder / PAGE
    beside = path.with_suffix(".part")  # complete, or as it was
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    return path


def _open(run: SavedRun, data: str | Path | None) -> _Opened | None:
    try:
        catalogue = read_catalogue(run, data)
        chosen = choose_split(catalogue.dataset, run.config)
    except (ServingError, DatasetError):
        return None
    return _Opened(run, data, catalogue, chosen)


def _with_data(
    opened: _Opened | None, part: Callable[[_Opened], Iterable[Markup]]
) -> Iterator[Markup]:
    """A part that needs the dataset and trained models."""
    if opened is None:
        yield note(
            "The dataset folder is not where it was, or not as it was: ",
            command("python examples/cammsr/report.py RUN --data FOLDER"),
            " says where it lies now.",
        )
        return
    try:
        yield from part(opened)
    except ServingError as error:
        yield note(_plain(error, opened.run))


def _inside(opened: _Opened) -> Iterator[Markup]:
    dataset = opened.catalogue.dataset
    models: dict[str, nn.Module] = {
        name: restore(opened.run, name, dataset) for name in opened.run.models
    }
    yield from inside(models, dataset, opened.chosen.split.validation)


def _users(opened: _Opened) -> Iterator[Markup]:
    found = _recommender(opened)
    if isinstance(found, Recommender):
        yield note(
            f"Recommended by {found.name} on the test, to the first users whose next item is among "
            "the best ten of those that they have not seen, and to the first for whom it is not."
        )
        target = opened.chosen.split.test
        yield from show(found, target, choose(found, target))
    else:
        yield from found


def _recommender(opened: _Opened) -> Recommender | list[Markup]:
    """The run's first model that can be served, or why none can."""
    refused = []
    for name in opened.run.models:
        try:
            return load(opened.run.folder, name, opened.data)
        except ServingError as error:
            refused.append(note(_plain(error, opened.run)))
    return refused or [note("The run has no trained model yet. Let train.py finish one.")]


def _plain(error: ServingError, run: SavedRun) -> str:
    return str(error).replace(str(run.folder), "RUN")
