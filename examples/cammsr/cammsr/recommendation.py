"""One item of a list of recommendations."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEMORY", "Recommendation"]

MEMORY = "memory"  # the name of a memory's part


@dataclass(frozen=True)
class Recommendation:
    """One item, and what speaks for it.

    Attributes:
        item: its id in the dataset folder.
        title: its title.
        category: its category; None where that is unknown.
        score: the product of the history's state with the item (Eq. 15), and what a memory adds.
        parts: what each modality adds to the score, by name, and may take from it, and what a
            memory adds, as "memory"; they sum to the score. None for a model that fuses an item's
            modalities to one vector, unless it has one modality and a memory.
        weights: how much the gate counts each modality: that of CAMMSR at the last item of the
            history (Eq. 10), so the same for all choices; that of a fusion which weighs, in the
            recommended item. None for a model without.
        name: its raw identifier, such as a SKU; None where the folder has none.
    """

    item: int
    title: str
    category: str | None
    score: float
    parts: dict[str, float] | None
    weights: dict[str, float] | None
    name: str | None = None
