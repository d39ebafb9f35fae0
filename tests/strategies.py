"""What hypothesis draws for the tests: sizes and a seed. torch draws the numbers.

Each strategy seeds torch, so that parameters which a test draws afterwards are part of the example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.types import Streams

__all__ = ["Sequences", "leads", "seeds", "sequences", "sizes", "streams", "with_nan"]

sizes = st.integers(1, 4)
seeds = st.integers(0, 2**16 - 1)
chances = st.sampled_from([0.0, 0.3, 0.7, 1.0])  # how often something is there


class Sequences(NamedTuple):
    """Histories of streams, with padding."""

    x: Tensor  # (..., L, M, D)
    present: Tensor  # (..., L, M)
    valid: Tensor  # (..., L)


def with_nan(x: Tensor, mask: Tensor) -> Tensor:
    """A copy that is NaN wherever the mask, given for the first dimensions, is false."""
    return x.masked_fill(~mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), torch.nan)


@st.composite
def leads(draw: st.DrawFn, most: int = 2) -> tuple[int, ...]:
    """Leading dimensions: (), (B,) or (B, L)."""
    return tuple(draw(st.lists(sizes, max_size=most)))


@st.composite
def streams(
    draw: st.DrawFn,
    *,
    lead: st.SearchStrategy[Sequence[int]] | None = None,
    num_modalities: st.SearchStrategy[int] = sizes,
    dim: st.SearchStrategy[int] = sizes,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Streams:
    """Streams (..., M, D) and which are present; some rows have nothing at all.

    Absent streams hold ordinary numbers: a test that wants worse takes ``with_nan``.
    """
    shape = (*draw(leads() if lead is None else lead), draw(num_modalities))
    width, chance, seed = draw(dim), draw(chances), draw(seeds)
    torch.manual_seed(seed)
    x = scale * torch.randn(*shape, width, dtype=dtype)
    present = torch.rand(shape) < chance
    if draw(st.booleans()):
        present.view(-1, shape[-1])[0] = False
    return Streams(x, present)


@st.composite
def sequences(
    draw: st.DrawFn,
    *,
    lead: st.SearchStrategy[Sequence[int]] | None = None,
    length: st.SearchStrategy[int] = sizes,
    num_modalities: st.SearchStrategy[int] = sizes,
    dim: st.SearchStrategy[int] = sizes,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Sequences:
    """Histories (..., L, M, D), padded on the left, on the right or anywhere, some throughout."""
    lead = leads() if lead is None else lead
    places = st.tuples(lead, length).map(lambda both: (*both[0], both[1]))
    x, present = draw(
        streams(lead=places, num_modalities=num_modalities, dim=dim, scale=scale, dtype=dtype)
    )
    side, chance = draw(st.sampled_from(["left", "right", "anywhere"])), draw(chances)
    places_in_x = x.shape[:-2]
    if side == "anywhere":
        return Sequences(x, present, torch.rand(places_in_x) < chance)
    real = torch.randint(0, places_in_x[-1] + 1, (*places_in_x[:-1], 1))
    valid = torch.arange(places_in_x[-1]) < real
    return Sequences(x, present, valid.flip(-1) if side == "left" else valid)
