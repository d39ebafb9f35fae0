"""Values that flow along the edges of an item graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmfuse._checks import (
    check_floating,
    check_index,
    check_mask,
    check_positive,
    check_shape,
    check_tensors,
)
from mmfuse._precision import at_least_float32
from mmfuse.layers import mask_absent
from mmfuse.types import Streams

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from mmfuse.graph.fuse import WeightedEdges

__all__ = ["borrow", "propagate"]


def propagate(
    x: Tensor,  # (V, ...)
    edge_index: Tensor | Data | WeightedEdges,  # (2, N)
    edge_weight: Tensor | None = None,  # (N,)
    *,
    num_layers: int = 1,
    present: Tensor | None = None,  # (V,)
) -> Tensor:  # (V, ...)
    r"""Let values flow along the edges (:cite:`he2020lightgcn`, as :cite:t:`zhou2023freedom` do).

    .. math::
        \mathbf{H}^{(l)} = \mathbf{A} \mathbf{H}^{(l-1)}, \qquad
        \mathbf{h}_i^{(0)} = p_i \mathbf{x}_i

    where :math:`p_i` tells whether item :math:`i` has a value. What an absent item holds, NaN
    included, never flows; what it receives does, in later layers. Only the last layer is returned,
    as item graphs use it; the mean over layers of LightGCN is left to the caller. An item without
    edges gets zero.

    Args:
        x: A value an item.
        edge_index: Edges, from a neighbour (first row) to an item (second row), or a graph in their
            place, which brings its weights: ``torch_geometric.data.Data`` or
            :class:`WeightedEdges`.
        edge_weight: How much each edge counts; ``None`` means one, or what the graph says.
        num_layers: How often values flow.
        present: Boolean, true for items that have a value; ``None`` means all of them.

    Shape:
        - x, output: :math:`(V, \ldots)`
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`
        - present: :math:`(V)`

    Returns:
        What has reached each item.

    Raises:
        ValueError: If ``num_layers`` is not positive, a graph and weights beside it are given, or
            kinds, dtypes or shapes disagree.

    Example:
        >>> edges = torch.tensor([[1, 2], [0, 1]])  # 1 -> 0, 2 -> 1
        >>> propagate(torch.tensor([1.0, 10.0, 100.0]), edges)
        tensor([ 10., 100.,   0.])
        >>> propagate(torch.tensor([1.0, 10.0, 100.0]), edges, num_layers=2)
        tensor([100.,   0.,   0.])
    """
    from torch_geometric.nn import LGConv

    check_tensors(x=x)
    check_floating("x", x)
    if not x.ndim:
        raise ValueError("Expected x of shape (V, ...), got ().")
    check_positive(num_layers=num_layers)
    edge_index, edge_weight = _edges(edge_index, edge_weight, x.shape[0])
    flat = mask_absent(x.reshape(x.shape[0], x.shape[1:].numel()), present)
    step = LGConv(normalize=False)
    for _ in range(num_layers):
        flat = step(flat, edge_index, None if edge_weight is None else edge_weight.to(x.dtype))
    return flat.reshape(x.shape)


def borrow(
    x: Tensor,  # (V, M, D)
    present: Tensor,  # (V, M)
    edge_index: Tensor | Data | WeightedEdges,  # (2, N)
    edge_weight: Tensor | None = None,  # (N,)
    *,
    num_layers: int = 1,
) -> Streams:
    r"""Fill absent modalities of an item by those of its neighbours.

    .. math::
        \mathbf{y}_{im} = \begin{cases} \mathbf{x}_{im} & p_{im} \\
        \dfrac{\sum_j A_{ij} p_{jm} \mathbf{x}_{jm}}{\sum_j A_{ij} p_{jm}} &
        \neg p_{im},\ \sum_j A_{ij} p_{jm} > 0 \end{cases}

    A weighted mean over the neighbours :math:`j` that have the modality: a neighbour without it
    takes no weight. What is present stays untouched. An item that no neighbour can help stays
    absent, and zero. With more layers, what was borrowed is lent on: a layer fills what is still
    absent, and keeps what earlier layers have filled. Differentiable in ``x`` and in the weights.

    Args:
        x: Streams of the items.
        present: Boolean, true where observed.
        edge_index: Edges, or a graph in their place, as for :func:`propagate`.
        edge_weight: How much each edge counts, not negative; ``None`` means one, or what the graph
            says. Only ratios matter.
        num_layers: How far values are lent on.

    Shape:
        - x: :math:`(V, M, D)`
        - present: :math:`(V, M)`
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`

    Returns:
        :class:`~mmfuse.types.Streams`: the filled streams, and which of them have something now.

    Raises:
        ValueError: As for :func:`propagate`.

    Example:
        >>> x = torch.tensor([[[1.0]], [[3.0]], [[float("nan")]]])
        >>> present = torch.tensor([[True], [True], [False]])
        >>> edges = torch.tensor([[0, 1], [2, 2]])  # 0 -> 2, 1 -> 2
        >>> borrow(x, present, edges, torch.tensor([0.75, 0.25])).x.flatten()
        tensor([1.0000, 3.0000, 1.5000])

        A graph of another modality, or of several, goes in as it is:

        >>> from mmfuse.graph import knn_graph
        >>> graph = knn_graph(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]), k=1)
        >>> borrow(x, present, graph).x.flatten()
        tensor([1., 3., 3.])
    """
    check_shape("x", x, "V", "M", "D", leading=False)
    check_floating("x", x)
    check_mask("present", present, x.shape[:-1])
    check_positive(num_layers=num_layers)
    edge_index, edge_weight = _edges(edge_index, edge_weight, x.shape[0])
    wide = mask_absent(x, present).to(at_least_float32(x))
    for _ in range(num_layers):
        lent = torch.cat([wide, present.unsqueeze(-1).to(wide.dtype)], -1)
        got, weight = propagate(lent, edge_index, edge_weight).split([x.shape[-1], 1], -1)
        helped = (weight > 0) & ~present.unsqueeze(-1)
        mean = got / torch.where(helped, weight, torch.ones_like(weight))
        wide = torch.where(helped, mean, wide)
        present = present | helped.squeeze(-1)
    return Streams(wide.to(x.dtype), present)


def _edges(
    edge_index: Tensor | Data | WeightedEdges, edge_weight: Tensor | None, num_nodes: int
) -> tuple[Tensor, Tensor | None]:
    """Edges and their weights, out of a graph or side by side."""
    if not isinstance(edge_index, Tensor):
        graph, kind = edge_index, type(edge_index).__name__
        if not hasattr(graph, "edge_index"):
            raise ValueError(
                f"Expected edge_index as a tensor or one graph, Data or WeightedEdges, got {kind}."
            )
        if edge_weight is not None:
            raise ValueError(f"Expected no edge_weight beside a graph, {kind}, which has its own.")
        edge_index, edge_weight = graph.edge_index, getattr(graph, "edge_weight", None)
    check_shape("edge_index", edge_index, 2, "N", leading=False)
    if edge_index.dtype != torch.int64:
        raise ValueError(f"Expected edge_index of dtype torch.int64, got {edge_index.dtype}.")
    check_index("edge_index", edge_index, "V", num_nodes, least=0)
    if edge_weight is not None:
        check_shape("edge_weight", edge_weight, edge_index.shape[1], leading=False)
    return edge_index, edge_weight
