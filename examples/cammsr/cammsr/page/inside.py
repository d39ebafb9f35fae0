"""The CAMMSR models of a run from inside: modality weights by category, and expert use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from cammsr.dataset import Dataset
from cammsr.insight import insight
from cammsr.model import CAMMSR
from cammsr.page.markup import Markup, note
from cammsr.page.pictures import figures, heat
from cammsr.split import Target

__all__ = ["inside"]

MOST = 20  # categories of a picture


def inside(models: Mapping[str, nn.Module], dataset: Dataset, target: Target) -> Iterator[Markup]:
    """Two pictures a model that is a CAMMSR, over all positions of the histories."""
    shown = {name: model for name, model in models.items() if isinstance(model, CAMMSR)}
    pictures = []
    for name, model in shown.items():
        found = insight(model, target, dataset.labels)
        columns = list(model.items.names)
        order = found.positions.argsort(descending=True, stable=True)[:MOST].sort().values
        rows = [row for row in order.tolist() if found.positions[row]]
        if rows:
            pictures.append(
                heat(
                    f"{name}: modality weights by category",
                    found.weights[rows].tolist(),
                    [dataset.categories[row] for row in rows],
                    columns,
                )
            )
        if not found.use.isnan().any():  # of a model without experts
            experts = [f"expert {place + 1}" for place in range(found.use.shape[1])]
            pictures.append(heat(f"{name}: expert use", found.use.tolist(), columns, experts))
    if not pictures:
        yield note("No model of this run is a CAMMSR, so there are no gates and experts to show.")
        return
    yield figures(*pictures)
    yield note(
        "Means over all positions of the validation histories. Weights are how much of the "
        "experts' output each modality takes; expert use is the share of each expert in the size "
        "of its modality's expert weights."
    )
    if len(dataset.categories) > MOST:
        yield note(f"The {MOST} most frequent categories, of {len(dataset.categories)}.")
