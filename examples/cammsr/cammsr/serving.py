"""Use a trained model: load a run, recommend, say why, export.

recommender = load("runs/planted-...")
for choice in recommender.recommend(user=17, k=5):
    print(choice.title, choice.score, choice.parts)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from cammsr.dataset import UNKNOWN, Dataset
from cammsr.export import Scoring, write_program
from cammsr.histories import History, check_histories, typed_history, user_histories
from cammsr.index import Index, IndexKind, recall
from cammsr.memory import added_at
from cammsr.ranking import BLOCK, Reader, Reading, TopK, best_of
from cammsr.recommendation import MEMORY, Recommendation
from cammsr.saved import Catalogue, ServingError, read_catalogue, read_run, restore
from cammsr.split import keep_last

__all__ = ["Recommendation", "Recommender", "ServingError", "load"]

ROWS = 256  # histories read at a time


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
    return Recommender(restore(saved, name, catalogue.dataset), catalogue, name=name)


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
        self.histories = user_histories(catalogue.dataset)
        if not self.reader.x.isfinite().all():
            raise ServingError(f"{name} has weights that are not finite. Train it again.")

    def history(self, user: int | str) -> list[int]:
        """The ids of all items that a user took, in the order of time."""
        row = self.catalogue.user_row(user)
        ids: list[int] = self.catalogue.item_ids[self.histories[row]].tolist()
        return ids

    def recommend(
        self,
        history: Sequence[int | str] | None = None,
        k: int = 10,
        *,
        user: int | str | None = None,
        times: Sequence[int] | None = None,
        unseen: bool = True,
        index: Index | None = None,
    ) -> list[Recommendation]:
        """The k best items after a history, the best first; of equal ones the lower id first.

        Args:
            history: what was taken so far, the latest last: item ids, raw identifiers, or parts of
                titles.
            k: how many; fewer come back where the catalogue has no more.
            user: instead of a history, a user of the dataset, by id or raw identifier, with all
                that is known of them.
            times: when each item of the history was taken, in the unit of the dataset's timestamps,
                which their size tells.
                Only models that read times look at them; they read positions where there are none.
            unseen: whether to leave out what the history has already.
            index: looks up candidates instead of scoring all of them.

        Raises:
            ServingError: there is no history, or an item or user that the model does not know.
        """
        given = self.encode(history, user=user, times=times)
        items, valid, known = given
        found = self.top_k(items, valid, k, times=known, unseen=unseen, index=index)
        keep = found.items[0] >= 0
        rows = found.items[:, keep]
        parts, weights = self._reasons(self.read(*given), rows, found.scores[:, keep])
        return [
            Recommendation(
                item=int(self.catalogue.item_ids[row]),
                title=self.catalogue.dataset.titles[row],
                category=self._category(row),
                score=score,
                parts=self._by_name(parts, place),
                weights=self._by_name(weights, place),
                name=self.catalogue.item_names.name(int(self.catalogue.item_ids[row])),
            )
            for place, (row, score) in enumerate(
                zip(rows[0].tolist(), found.scores[0, keep].tolist(), strict=True)
            )
        ]

    def encode(
        self,
        history: Sequence[int | str] | None = None,
        *,
        user: int | str | None = None,
        times: Sequence[int] | None = None,
    ) -> History:  # one row
        """A history as the rows that :meth:`top_k` takes; the times of a user are known."""
        if (history is None) == (user is None):
            raise ServingError("Give a history or a user: item ids or titles, or a user id.")
        if user is None:
            return typed_history(history or (), self.catalogue, times)
        if times is not None:
            raise ServingError("Expected times beside a typed history; those of a user are known.")
        row = torch.tensor([self.catalogue.user_row(user)])
        return History(*self.histories.padded(row), self.histories.padded_times(row))

    def top_k(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L) bool
        k: int = 10,
        *,
        times: Tensor | None = None,  # (B, L)
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
            times: when the items were taken, if that is known, for a model that reads times.
            unseen: whether to leave out what a history has already.
            index: looks up candidates instead of scoring all of them.
            block: how many items to score at a time.
        """
        self._check(items, valid, times)
        if k < 1 or block < 1:
            raise ServingError(f"Expected k >= 1 and block >= 1, got {k} and {block}.")
        found = []
        for start in range(0, len(items), ROWS):
            part = slice(start, start + ROWS)
            rows, real = items[part], valid[part]
            reading = self.read(rows, real, None if times is None else times[part])
            seen = torch.where(real, rows, -1).to(reading.states.device) if unseen else None
            if index is None:
                best = best_of(reading, k, seen=seen, block=block)
            else:
                best = index.top_k(reading.states, k, seen=seen)
            found.append(best)
        return TopK(*(torch.cat(part).cpu() for part in zip(*found, strict=True)))

    @torch.no_grad()
    def read(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L)
    ) -> Reading:
        """What the model makes of histories: only their end, as far as it reads."""
        device, length = self.reader.x.device, self.reader.max_length
        if times is not None:
            times = keep_last(times, valid, length)[0].to(device)
        items, valid = keep_last(torch.where(valid, items, 0), valid, length)
        reading: Reading = self.reader(items.to(device), valid.to(device), times)
        if not reading.states.isfinite().all():
            raise ServingError(f"{self.name} makes a state that is not finite of a history.")
        return reading

    def index(self, kind: IndexKind = "ivf", *, effort: int = 64) -> Index:
        """An approximate index of the candidates; needs the extra ``ann``."""
        reading = self._some()
        if reading.blend is not None or reading.added is not None:
            raise ServingError(
                f"{self.name} has scores that are no products, which an index cannot look up. "
                "Leave the index out."
            )
        return Index(reading.candidates, kind, effort=effort)

    def recall(
        self,
        index: Index,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        k: int = 10,
        *,
        times: Tensor | None = None,  # (B, L)
    ) -> float:
        """The share of the exact k best items of some histories that an index finds."""
        self._check(items, valid, times)
        reading = self.read(items, valid, times)
        return recall(index, reading.states, reading.candidates, k)

    def latency(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        k: int = 10,
        *,
        times: Tensor | None = None,  # (B, L)
        index: Index | None = None,
        repeats: int = 30,
    ) -> float:
        """The median time of :meth:`top_k`, in seconds, over some calls after two others."""
        taken = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            self.top_k(items, valid, k, times=times, index=index)
            taken.append(time.perf_counter() - start)
        return median(taken[2:])

    def export(self, path: str | Path, k: int = 10, *, unseen: bool = True) -> None:
        """Write scoring as a program of :mod:`torch.export`, which runs without this code.

        It takes ``items`` and ``valid`` as :meth:`top_k` does, and ``times`` if the model reads
        them, any number of histories of any length, and returns scores and items. ``k`` and
        ``unseen`` are fixed.
        """
        kept = min(k, self.catalogue.dataset.num_items)
        write_program(path, Scoring(self.reader, kept, unseen=unseen))

    def _check(self, items: Tensor, valid: Tensor, times: Tensor | None) -> None:
        check_histories(History(items, valid, times), self.catalogue.dataset.num_items)

    def _some(self) -> Reading:
        one = torch.zeros(1, 1, dtype=torch.int64)
        return self.read(one, one == 0)

    def _category(self, row: int) -> str | None:
        category = int(self.catalogue.dataset.category[row])
        return None if category == UNKNOWN else self.catalogue.dataset.categories[category]

    def _reasons(
        self, reading: Reading, rows: Tensor, scores: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Parts and weights (k, M) of the items that were chosen for one history."""
        rows = rows.to(reading.states.device)
        parts = self.reader.parts(reading.states, rows)
        if reading.added is not None and (parts is not None or len(self.modalities) == 1):
            told = added_at(reading.added, torch.zeros_like(rows[0]), rows[0]).view(1, -1, 1)
            if parts is None:  # the rest is of the only modality
                parts = scores.to(told.device).unsqueeze(-1) - told
            parts = torch.cat([parts, told], dim=-1)
        weights = self.reader.item_weights
        if reading.weights is not None:
            weights = reading.weights.expand(rows.shape[1], -1)
        elif weights is not None:
            weights = weights[rows[0]]
        return None if parts is None else parts[0], weights

    def _by_name(self, values: Tensor | None, place: int) -> dict[str, float] | None:
        if values is None:
            return None
        names = (*self.modalities, MEMORY)[: values.shape[1]]
        return dict(zip(names, values[place].tolist(), strict=True))
