"""Use a trained model: load a run, recommend, say why, export.

recommender = load("runs/planted-...")
for choice in recommender.recommend(user=17, k=5):
    print(choice.title, choice.score, choice.parts)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from cammsr.dataset import UNKNOWN, Dataset
from cammsr.hm4sr import HM4SR
from cammsr.index import Index, IndexKind, recall
from cammsr.ranking import BLOCK, Reader, Reading, Scoring, TopK, top_k
from cammsr.saved import Catalogue, ServingError, read_catalogue, read_run, restore
from cammsr.split import Ragged, keep_last
from cammsr.titles import resolve

__all__ = ["Recommendation", "Recommender", "ServingError", "load"]

ROWS = 256  # histories read at a time


@dataclass(frozen=True)
class Recommendation:
    """One item, and what speaks for it.

    Attributes:
        item: its id in the dataset folder.
        title: its title.
        category: its category; None where that is unknown.
        score: the product of the history's state with the item (Eq. 15).
        parts: what each modality adds to the score, by name, and may take from it; they sum to the
            score. None for a model that fuses an item's modalities to one vector.
        weights: how much the gate counts each modality: that of CAMMSR at the last item of the
            history (Eq. 10), so the same for all choices; that of a fusion which weighs, in the
            recommended item. None for a model without.
    """

    item: int
    title: str
    category: str | None
    score: float
    parts: dict[str, float] | None
    weights: dict[str, float] | None


def load(run: str | Path, model: str | None = None, data: str | Path | None = None) -> Recommender:
    """A model of a run folder, ready to recommend.

    Args:
        run: the folder that ``train.py`` left.
        model: which of its models; the first one by default.
        data: the dataset folder, if it has moved since.

    Raises:
        ServingError: it is no run folder, has no such model, or the dataset does not fit it.
        DatasetError: the dataset folder does not keep to its format.
    """
    saved = read_run(run)
    name = saved.choose(model)
    catalogue = read_catalogue(saved, data)
    trained = restore(saved, name, catalogue.dataset)
    if isinstance(trained, HM4SR):
        raise ServingError(
            f"{name} reads when each item was taken, which is not known here. Give another model."
        )
    return Recommender(trained, catalogue, name=name)


class Recommender:
    """The best items for a history, by a model as it is now.

    There are two numberings. ``recommend`` speaks to people, in the ids of the dataset folder and
    in titles. ``top_k`` and what ``export`` writes speak to programs, in rows of
    ``catalogue.dataset``, which are the model's own numbers: a run leaves out users and items with
    fewer than five interactions. ``catalogue.item_ids`` leads from a row to an id.

    Args:
        model: any of :data:`cammsr.variants.VARIANTS`; it is copied.
        catalogue: its items and users; a dataset of which nothing was left out also is one.
        name: what to call the model.
    """

    def __init__(
        self, model: nn.Module, catalogue: Catalogue | Dataset, *, name: str = "model"
    ) -> None:
        if isinstance(catalogue, Dataset):
            catalogue = Catalogue.whole(catalogue)
        self.name = name
        self.catalogue = catalogue
        self.modalities: tuple[str, ...] = model.get_submodule("items").names  # type: ignore[assignment]
        self.reader = Reader(model).eval()
        dataset = catalogue.dataset
        counts = torch.bincount(dataset.user_ids, minlength=dataset.num_users)
        self.histories = Ragged.from_lengths(dataset.item_ids, counts)
        if not self.reader.x.isfinite().all():
            raise ServingError(f"{name} has weights that are not finite. Train it again.")

    def history(self, user: int) -> list[int]:
        """The ids of all items that a user took, in the order of time."""
        row = self.catalogue.user_row(user)
        ids: list[int] = self.catalogue.item_ids[self.histories[row]].tolist()
        return ids

    def recommend(
        self,
        history: Sequence[int | str] | None = None,
        k: int = 10,
        *,
        user: int | None = None,
        unseen: bool = True,
        index: Index | None = None,
    ) -> list[Recommendation]:
        """The k best items after a history, the best first; of equal ones the lower id first.

        Args:
            history: what was taken so far, the latest last: item ids, or parts of titles.
            k: how many; fewer come back where the catalogue has no more.
            user: instead of a history, a user of the dataset, with all that is known of them.
            unseen: whether to leave out what the history has already.
            index: looks up candidates instead of scoring all of them.

        Raises:
            ServingError: there is no history, or an item or user that the model does not know.
        """
        items, valid = self.encode(history, user=user)
        found = self.top_k(items, valid, k, unseen=unseen, index=index)
        keep = found.items[0] >= 0
        rows = found.items[:, keep]
        parts, weights = self._reasons(self.read(items, valid), rows)
        return [
            Recommendation(
                item=int(self.catalogue.item_ids[row]),
                title=self.catalogue.dataset.titles[row],
                category=self._category(row),
                score=score,
                parts=self._by_name(parts, place),
                weights=self._by_name(weights, place),
            )
            for place, (row, score) in enumerate(
                zip(rows[0].tolist(), found.scores[0, keep].tolist(), strict=True)
            )
        ]

    def encode(
        self, history: Sequence[int | str] | None = None, *, user: int | None = None
    ) -> tuple[Tensor, Tensor]:  # (1, L), (1, L)
        """A history as the rows that :meth:`top_k` takes."""
        if (history is None) == (user is None):
            raise ServingError("Give a history or a user: item ids or titles, or a user id.")
        ids = self.history(user) if user is not None else resolve(history or (), self.catalogue)
        if not ids:
            raise ServingError(
                "The history is empty. Give at least one item, by its id or a part of its title."
            )
        items = self.catalogue.item_rows(torch.tensor(ids)).unsqueeze(0)
        return items, torch.ones_like(items, dtype=torch.bool)

    def top_k(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L) bool
        k: int = 10,
        *,
        unseen: bool = True,
        index: Index | None = None,
        block: int = BLOCK,
    ) -> TopK:
        """The k best rows of the catalogue for each history, exactly unless there is an index.

        Memory is bounded: no more than 256 histories and ``block`` items are scored at a time.

        Args:
            items: histories of any length, in the order of time, padded on the right.
            valid: which positions are real, at least one a row.
            k: how many; all where the catalogue has fewer.
            unseen: whether to leave out what a history has already.
            index: looks up candidates instead of scoring all of them.
            block: how many items to score at a time.
        """
        self._check(items, valid)
        if k < 1 or block < 1:
            raise ServingError(f"Expected k >= 1 and block >= 1, got {k} and {block}.")
        found = []
        for rows, real in zip(items.split(ROWS), valid.split(ROWS), strict=True):
            reading = self.read(rows, real)
            seen = torch.where(real, rows, -1).to(reading.states.device) if unseen else None
            if index is None:
                best = top_k(reading.states, reading.candidates, k, seen=seen, block=block)
            else:
                best = index.top_k(reading.states, k, seen=seen)
            found.append(best)
        return TopK(*(torch.cat(part).cpu() for part in zip(*found, strict=True)))

    @torch.no_grad()
    def read(self, items: Tensor, valid: Tensor) -> Reading:  # (B, L), (B, L)
        """What the model makes of histories: only their end, as far as it reads."""
        items, valid = keep_last(torch.where(valid, items, 0), valid, self.reader.max_length)
        device = self.reader.x.device
        reading: Reading = self.reader(items.to(device), valid.to(device))
        if not reading.states.isfinite().all():
            raise ServingError(f"{self.name} makes a state that is not finite of a history.")
        return reading

    def index(self, kind: IndexKind = "ivf", *, effort: int = 64) -> Index:
        """An approximate index of the candidates; needs the extra ``ann``."""
        return Index(self._some().candidates, kind, effort=effort)

    def recall(self, index: Index, items: Tensor, valid: Tensor, k: int = 10) -> float:
        """The share of the exact k best items of some histories that an index finds."""
        self._check(items, valid)
        reading = self.read(items, valid)
        return recall(index, reading.states, reading.candidates, k)

    def latency(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        k: int = 10,
        *,
        index: Index | None = None,
        repeats: int = 30,
    ) -> float:
        """The median time of :meth:`top_k`, in seconds, over some calls after two others."""
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            self.top_k(items, valid, k, index=index)
            times.append(time.perf_counter() - start)
        return median(times[2:])

    def export(self, path: str | Path, k: int = 10, *, unseen: bool = True) -> None:
        """Write scoring as a program of :mod:`torch.export`, which runs without this code.

        It takes ``items`` and ``valid`` as :meth:`top_k` does, any number of histories of any
        length, and returns scores and items. ``k`` and ``unseen`` are fixed.
        """
        scoring = Scoring(self.reader, min(k, self.catalogue.dataset.num_items), unseen=unseen)
        example = torch.zeros(3, 5, dtype=torch.int64, device=self.reader.x.device)
        batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
        shape = {0: batch, 1: length}
        with torch.no_grad():
            program = torch.export.export(
                scoring, (example, example == 0), dynamic_shapes=(shape, shape)
            )
        torch.export.save(program, path)

    def _check(self, items: Tensor, valid: Tensor) -> None:
        if items.ndim != 2 or items.shape != valid.shape:
            raise ServingError(
                "Expected items and valid of one shape (B, L), got "
                f"{tuple(items.shape)} and {tuple(valid.shape)}."
            )
        if not len(items):
            raise ServingError("Expected at least one history, got none.")
        empty = (~valid.any(1)).nonzero().flatten()
        if len(empty):
            raise ServingError(f"The history in row {int(empty[0])} is empty. Give it an item.")
        if (valid[:, 1:] & ~valid[:, :-1]).any():
            raise ServingError("Expected histories padded on the right, got a gap before an item.")
        real = items[valid]
        num_items = self.catalogue.dataset.num_items
        if int(real.min()) < 0 or int(real.max()) >= num_items:
            raise ServingError(
                f"Expected items from 0 to {num_items - 1}, got {int(real.min())} to "
                f"{int(real.max())}."
            )

    def _some(self) -> Reading:
        one = torch.zeros(1, 1, dtype=torch.int64)
        return self.read(one, one == 0)

    def _category(self, row: int) -> str | None:
        category = int(self.catalogue.dataset.category[row])
        return None if category == UNKNOWN else self.catalogue.dataset.categories[category]

    def _reasons(self, reading: Reading, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Parts and weights (k, M) of the items that were chosen for one history."""
        rows = rows.to(reading.states.device)
        parts = self.reader.parts(reading.states, rows)
        weights = self.reader.item_weights
        if reading.weights is not None:
            weights = reading.weights.expand(rows.shape[1], -1)
        elif weights is not None:
            weights = weights[rows[0]]
        return None if parts is None else parts[0], weights

    def _by_name(self, values: Tensor | None, place: int) -> dict[str, float] | None:
        if values is None:
            return None
        return dict(zip(self.modalities, values[place].tolist(), strict=True))
