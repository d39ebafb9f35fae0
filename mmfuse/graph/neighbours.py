"""Which items are most alike: exact nearest neighbours, block by block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from mmfuse._checks import check_choice, check_floating, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32, unit, without_autocast
from mmfuse.layers import mask_absent

__all__ = ["Neighbours", "nearest_neighbours"]

_SCORES = 2**24  # a block of scores in float32 takes 64 MiB,
_ROWS = 128  # or more where that would be fewer rows, which products are slow for
_CHUNK = 32  # scores whose largest one is compared first


class Neighbours(NamedTuple):
    r"""The items most alike to each item, the best first.

    .. math::
        s_{i 1} \geq s_{i 2} \geq \ldots \geq s_{i k}

    Args:
        item_index: Numbers of the items, int64; -1 is nobody.
        similarity: How alike they are, zero beside nobody.

    Shape:
        - item_index, similarity, the output of :func:`nearest_neighbours`: :math:`(V, k)`

    Raises:
        AttributeError: If a field is assigned to.

    Example:
        >>> near = nearest_neighbours(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), k=1)
        >>> near.item_index.flatten()
        tensor([1, 2, 1])
        >>> near.similarity.flatten()
        tensor([0.6000, 0.8000, 0.8000])
    """

    item_index: Tensor
    similarity: Tensor


# By this name torch.export.save writes it, as those of mmfuse.types.
_pytree._register_namedtuple(Neighbours, serialized_type_name="mmfuse.graph.Neighbours")


def nearest_neighbours(
    features: Tensor,  # (V, D_m)
    k: int,
    *,
    present: Tensor | None = None,  # (V,)
    similarity: str = "cosine",
    block_size: int | None = None,
) -> Neighbours:
    r"""Find the most similar other items, as for the graphs of :cite:t:`zhang2021lattice`.

    .. math::
        \mathcal{N}_k(i) = \operatorname*{top\text{-}k}_{j \neq i,\, p_j} s_{ij}, \qquad
        s_{ij} = \frac{\mathbf{f}_i^\top \mathbf{f}_j}
        {\lVert \mathbf{f}_i \rVert \, \lVert \mathbf{f}_j \rVert}

    where :math:`p_j` tells whether item :math:`j` has features. The search is exact: all pairs are
    compared, in float32 at least, some rows at a time. An item is never its own neighbour.
    An absent item has no neighbours and is nobody's. By cosine, an item of zeros alone counts as
    absent, as it does in :class:`~mmfuse.projection.FeatureTable`: it has no direction. Of equally
    similar items the one with the lowest number comes first. Similarities are differentiable in the
    features, which then takes :math:`V \times k \times D_m` numbers of memory; the choice of
    neighbours is not.

    Args:
        features: Features of the items, finite where present.
        k: Number of neighbours an item.
        present: Boolean, true for items that have features; ``None`` means all of them.
        similarity: ``"cosine"``, or ``"dot"`` for the product without division by the lengths, by
            which an item of zeros is at zero from all others.
        block_size: Items compared with all others at a time; ``None`` means as many as make 64 MiB
            of scores in float32, and 128 at least. Another size may round the last digit
            differently.

    Shape:
        - features: :math:`(V, D_m)`
        - present: :math:`(V)`
        - item_index, similarity: :math:`(V, k)`

    Returns:
        :class:`Neighbours`: numbers of the items, -1 where there are fewer than ``k``, and their
        similarities in the dtype of the features, zero beside -1.

    Raises:
        ValueError: If the features are not a matrix of finite floating numbers, ``k`` is not
            between one and ``V - 1``, or another argument does not fit.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> nearest_neighbours(features, k=2).item_index
        tensor([[1, 2],
                [0, 2],
                [1, 0],
                [2, 1]])
    """
    _check(features, k, present, similarity, block_size)
    with without_autocast(features.device):
        vectors = mask_absent(features, present).to(at_least_float32(features))
        if similarity == "cosine":
            there = vectors.any(-1)  # what is absent is zero by now
            present = None if there.all() else there
            vectors = unit(vectors)
        index, scores = _search(vectors.detach(), k, present, block_size)
        if vectors.requires_grad:
            others = vectors[index.clamp(min=0)]
            scores = torch.einsum("vd,vkd->vk", vectors, others)
            scores = torch.where(index >= 0, scores, torch.zeros_like(scores))
    return Neighbours(index, scores.to(features.dtype))


def _check(
    features: Tensor, k: int, present: Tensor | None, similarity: str, block_size: int | None
) -> None:
    check_shape("features", features, "V", "D_m", leading=False)
    check_floating("features", features)
    check_choice("similarity", similarity, ("cosine", "dot"))
    check_positive(k=k)
    if k >= features.shape[0]:
        raise ValueError(f"Expected k < V = {features.shape[0]}, got {k}.")
    if block_size is not None:
        check_positive(block_size=block_size)
    finite, hint = features.isfinite().all(-1), "; pass present=, false where an item has none"
    if present is not None:
        check_mask("present", present, features.shape[:1])
        finite, hint = finite | ~present, ", which is present"
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise ValueError(f"Expected finite features, got NaN or infinity in row {row}{hint}.")


@torch.no_grad()
def _search(
    vectors: Tensor, k: int, present: Tensor | None, block_size: int | None
) -> tuple[Tensor, Tensor]:
    """Compare some rows at a time with all present ones."""
    items = None if present is None else present.nonzero().squeeze(-1)
    some = vectors if items is None else vectors[items]
    count, device = len(some), vectors.device
    height = max(_SCORES // max(count, 1), _ROWS) if block_size is None else block_size
    width = max(-(-count // _CHUNK) * _CHUNK, k)  # whole chunks
    scores = some.new_full((min(height, count), width), -torch.inf)
    index = torch.full((count, k), -1, device=device)
    best = some.new_full((count, k), -torch.inf)
    for start in range(0, count, height):
        rows = some[start : start + height]
        block = scores[: len(rows)]
        torch.mm(rows, some.T, out=block[:, :count])
        block.diagonal(start).fill_(-torch.inf)  # nobody is a neighbour of its own
        values, columns = _top(block, k)
        columns, order = columns.sort(dim=-1)
        values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        index[start : start + height] = columns.gather(-1, order)
        best[start : start + height] = values
    nobody = best == -torch.inf
    best.masked_fill_(nobody, 0)
    if items is None:
        return index.masked_fill_(nobody, -1), best
    index = items[index.clamp_(max=count - 1)].masked_fill_(nobody, -1) if count else index
    whole = torch.full((len(vectors), k), -1, device=device).index_copy_(0, items, index)
    return whole, best.new_zeros(len(vectors), k).index_copy_(0, items, best)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in any order; of equal ones those that come first."""
    width = scores.shape[-1]
    more = min(k + 1, width)  # one more tells whether the last place was drawn among equals
    if more * 2 * _CHUNK > width:
        values, index = scores.topk(more)
    else:  # the largest scores lie in the chunks with the largest maxima
        chunks = scores.unflatten(-1, (-1, _CHUNK))
        chosen = chunks.amax(-1).topk(more, sorted=False).indices
        places = chosen.unsqueeze(-1).expand(-1, -1, _CHUNK)
        values, within = chunks.gather(1, places).flatten(1).topk(more)
        index = chosen.gather(-1, within // _CHUNK) * _CHUNK + within % _CHUNK
    if more > k:
        drawn = (values[:, k] == values[:, k - 1]) & (values[:, k] > -torch.inf)
        values, index = values[:, :k], index[:, :k].contiguous()
        rows = drawn.nonzero().squeeze(-1)
        if len(rows):
            some = scores[rows]
            index[rows] = _first(some, values[rows, -1:], k)
            values = values.index_copy(0, rows, some.gather(-1, index[rows]))
    return values, index


def _first(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """All above the last value, and of those equal to it the first ones."""
    place = torch.arange(scores.shape[-1], 0, -1, device=scores.device)
    rank = torch.where(scores > last, place + scores.shape[-1], place)
    return rank.masked_fill(scores < last, 0).topk(k).indices
