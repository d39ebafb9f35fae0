"""Formulas read aloud in plain Python, and raw features by name, for more than one test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import leads, seeds, sizes

__all__ = ["Raw", "cosine", "naive_info_nce", "naive_linear", "raw_features"]

Vector = Sequence[float]


def cosine(a: Vector, b: Vector) -> float:
    """The cosine of two vectors; nothing is similar to a zero vector."""
    lengths = math.sqrt(sum(u * u for u in a)) * math.sqrt(sum(v * v for v in b))
    return sum(u * v for u, v in zip(a, b, strict=True)) / lengths if lengths else 0.0


def naive_info_nce(
    query: Sequence[Vector],
    key: Sequence[Vector],
    negatives: Sequence[Sequence[Vector]],
    temperature: float,
) -> list[float]:
    """One loss a row; ``negatives[i]`` is what row i should not find."""
    losses = []
    for q, k, others in zip(query, key, negatives, strict=True):
        found = math.exp(cosine(q, k) / temperature)
        missed = sum(math.exp(cosine(q, other) / temperature) for other in others)
        losses.append(-math.log(found / (found + missed)))
    return losses


def naive_linear(weight: Sequence[Vector], vector: Vector) -> list[float]:
    """A matrix times a vector."""
    return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in weight]


class Raw(NamedTuple):
    """Features by name, as a user hands them in."""

    widths: dict[str, int | None]
    dim: int
    features: dict[str, Tensor]  # (..., D_m) each; a modality may be missing
    present: dict[str, Tensor]  # (...) each; of some of the modalities that are there


@st.composite
def raw_features(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> Raw:
    """One to four modalities of different widths, some missing, some with a mask."""
    dim, lead = draw(sizes), draw(leads())
    drawn = draw(st.lists(st.none() | sizes, min_size=1, max_size=4))
    widths = dict(zip("abcd", drawn, strict=False))
    given = draw(st.lists(st.sampled_from(sorted(widths)), min_size=1, unique=True))
    masked = draw(st.lists(st.sampled_from(sorted(given)), unique=True))
    torch.manual_seed(draw(seeds))
    features = {name: torch.randn(*lead, widths[name] or dim, dtype=dtype) for name in given}
    present = {name: torch.rand(lead) < 0.5 for name in masked}
    return Raw(widths, dim, features, present)
