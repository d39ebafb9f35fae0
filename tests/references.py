"""Formulas read aloud in plain Python, and raw features by name, for more than one test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.outcomes import places
from tests.strategies import Sequences, leads, seeds, sizes

__all__ = [
    "Raw",
    "assert_each_history",
    "attend",
    "cosine",
    "gelu",
    "linear",
    "mixed",
    "naive_attention",
    "naive_info_nce",
    "naive_layer",
    "naive_linear",
    "naive_network",
    "norm",
    "plus",
    "raw_features",
    "seen_by",
]

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


# -- a Transformer layer: what a query does not see is left out, not masked ------------------------


def plus(*vectors: Vector) -> list[float]:
    """The sum, entry by entry."""
    return [sum(entries) for entries in zip(*vectors, strict=True)]


def linear(layer: nn.Linear, vector: Vector) -> list[float]:
    """A matrix times a vector, and the bias."""
    return plus(naive_linear(layer.weight.tolist(), vector), layer.bias.tolist())


def norm(layer: nn.LayerNorm, vector: Vector) -> list[float]:
    """A LayerNorm of one vector."""
    mean = sum(vector) / len(vector)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in vector) / len(vector) + layer.eps)
    scaled = zip(((v - mean) / deviation for v in vector), layer.weight.tolist(), strict=True)
    return plus([v * w for v, w in scaled], layer.bias.tolist())


def gelu(value: float) -> float:
    """The exact one."""
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


def mixed(scores: Vector, values: Sequence[Vector], width: int) -> list[float]:
    """Values in the shares that a softmax makes of their scores; zeros where there is none."""
    powers = [math.exp(score) for score in scores]
    shares = [power / sum(powers) for power in powers]
    return [sum(s * v[d] for s, v in zip(shares, values, strict=True)) for d in range(width)]


def attend(query: Vector, keys: Sequence[Vector], values: Sequence[Vector]) -> list[float]:
    """What one query reads; values are as wide as keys."""
    width = len(query)
    scores = [naive_linear([query], key)[0] / math.sqrt(width) for key in keys]
    return mixed(scores, values, width)


def seen_by(asking: Sequence[int], keys: Sequence[int], *, causal: bool) -> list[list[int]]:
    """For each asking position, where in ``keys`` those stand that it sees."""
    return [[j for j, key in enumerate(keys) if not causal or key <= ask] for ask in asking]


def naive_attention(
    attention: Any, rows: Sequence[Vector], told: Sequence[Vector], seen: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Head by head; query i is row i and sees the keys ``told[j]`` for j in ``seen[i]``."""
    dim, width = attention.dim, attention.dim // attention.num_heads
    asked = [linear(attention.query, row) for row in rows]
    keys = [linear(attention.told, row)[:dim] for row in told]
    values = [linear(attention.told, row)[dim:] for row in told]
    output = []
    for query, visible in zip(asked, seen, strict=True):
        read: list[float] = []
        for start in range(0, dim, width):
            head = slice(start, start + width)
            there = [keys[j][head] for j in visible], [values[j][head] for j in visible]
            read += attend(query[head], *there)
        output.append(linear(attention.out, read))
    return output


def naive_network(layer: Any, row: Vector) -> list[float]:
    """The second part of a layer and its residual."""
    inner = linear(layer.hidden, norm(layer.norm, row))
    return plus(row, linear(layer.out, [gelu(value) for value in inner]))


def naive_layer(
    layer: Any,
    rows: Sequence[Vector],
    seen: Sequence[Sequence[int]],
    told: Sequence[Vector] | None = None,
) -> list[list[float]]:
    """Attention among the rows, or to what is told, and then the network."""
    asking = [norm(layer.attention_norm, row) for row in rows]
    read = naive_attention(layer.attention, asking, asking if told is None else told, seen)
    return [naive_network(layer, plus(row, got)) for row, got in zip(rows, read, strict=True)]


def assert_each_history(
    fusion: Callable[..., Any],
    case: Sequences,
    naive: Callable[[list[list[list[float]]], list[list[bool]]], list[list[float]]],
) -> None:
    """Each history is what a formula, read aloud, says of it, and zero at padding.

    The formula maps streams (L, M, D) and where they are there (L, M) to vectors (L, D). A first
    position that comes alone, (M, D), is a history of one.
    """
    present, valid = case.present, case.valid
    there = present & valid.unsqueeze(-1)
    fused = fusion(case.x, present, valid=valid).fused
    for place in places(valid.shape[:-1]):
        x, seen = case.x[place], there[place]
        wanted = torch.tensor(naive(x.tolist(), seen.tolist()), dtype=fused.dtype)
        wanted[~valid[place]] = 0
        torch.testing.assert_close(fused[place], wanted)
    alone = fusion(x[0], present[place][0], valid=valid[place][0]).fused
    wanted = torch.tensor(naive([x[0].tolist()], [seen[0].tolist()])[0], dtype=fused.dtype)
    torch.testing.assert_close(alone, wanted * valid[place][0])


# -- raw features ----------------------------------------------------------------------------------


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
