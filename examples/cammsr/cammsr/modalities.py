"""Which modalities of a dataset a model gets, and which pairs of them are contrasted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cammsr.config import ModelConfig
from cammsr.dataset import Dataset, DatasetError
from cammsr.items import ID

__all__ = ["features_of", "names_of", "pairs_of"]


def features_of(dataset: Dataset, config: ModelConfig) -> dict[str, Tensor]:
    """The features that the model gets.

    Raises:
        DatasetError: one that is to be left out is not there.
    """
    left_out = config.leave_out or []
    for name in left_out:
        if name not in dataset.features:
            raise DatasetError(
                f"Expected leave_out among {list(dataset.features)} of '{dataset.name}', "
                f"got {name!r}."
            )
    return {name: raw for name, raw in dataset.features.items() if name not in left_out}


def names_of(dataset: Dataset, config: ModelConfig) -> tuple[str, ...]:
    """The modalities in the order of the model's streams: the id comes first."""
    return (*((ID,) if config.use_id else ()), *features_of(dataset, config))


def pairs_of(
    pairs: Sequence[Sequence[str]] | None, names: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Pairs of names as pairs of places; None stands for all.

    Raises:
        DatasetError: a name is not among them.
    """
    for name in (name for pair in pairs or () for name in pair):
        if name not in names:
            raise DatasetError(f"Expected contrast_pairs of {list(names)}, got {name!r}.")
    if pairs is None:
        return None
    return [(names.index(first), names.index(second)) for first, second in pairs]
