"""Item graphs of nearest neighbours, one a modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmfuse._checks import check_choice
from mmfuse._precision import at_least_float32
from mmfuse.graph.neighbours import nearest_neighbours

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["knn_graph", "knn_graphs"]


def knn_graph(
    features: Tensor,  # (V, D_m)
    k: int,
    *,
    present: Tensor | None = None,  # (V,)
    weight: str = "binary",
    normalize: bool = True,
    block_size: int | None = None,
) -> Data:
    r"""Connect each item to the items most like it (:cite:`zhang2021lattice,zhou2023freedom`).

    .. math::
        \tilde{\mathbf{A}} = \mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}, \qquad
        A_{ij} = \begin{cases} a_{ij} & j \in \mathcal{N}_k(i),\ s_{ij} > 0 \\ 0 & \text{otherwise}
        \end{cases}, \qquad D_{ii} = \sum_j A_{ij}

    where :math:`\mathcal{N}_k` are the :func:`nearest_neighbours` by cosine :math:`s_{ij}`, and
    :math:`a_{ij}` is one as in FREEDOM, or :math:`s_{ij}` as in LATTICE. Only what is alike is
    connected: a neighbour at zero or less gets no edge, by either weight, so that an item may have
    fewer than ``k`` edges; one without features, or with zeros alone, has none. Weights by
    similarity are differentiable in the features.

    Note:
        The papers' released programs count an item among its own neighbours; here it never is. They
        keep the ``k`` best at a negative similarity too, which is rare in a catalogue.

    Args:
        features: Features of the items, finite where present.
        k: Number of neighbours an item.
        present: Boolean, true for items that have features; ``None`` means all of them.
        weight: ``"binary"`` or ``"similarity"``.
        normalize: Whether to divide by the roots of the degrees.
        block_size: As for :func:`nearest_neighbours`.

    Shape:
        - features: :math:`(V, D_m)`
        - present: :math:`(V)`
        - edge_index: :math:`(2, N)`, :math:`N \leq V k`; edge_weight: :math:`(N)`

    Returns:
        ``torch_geometric.data.Data`` with ``num_nodes`` :math:`V`; edges lead from the neighbour
        to the item, and stand in the order of the items and then of their similarities.

    Raises:
        ValueError: If ``weight`` is another word, or what :func:`nearest_neighbours` raises.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> graph = knn_graph(features, k=1)
        >>> graph.edge_index
        tensor([[1, 0, 1],
                [0, 1, 2]])
        >>> graph.edge_weight
        tensor([1., 1., 1.])
    """
    from torch_geometric.data import Data

    check_choice("weight", weight, ("binary", "similarity"))
    with torch.set_grad_enabled(weight == "similarity" and torch.is_grad_enabled()):
        index, similarity = nearest_neighbours(features, k, present=present, block_size=block_size)
    there = similarity > 0  # it is zero beside nobody
    number, nodes = len(index), torch.arange(len(index), device=index.device)
    edge_index = torch.stack([index[there], nodes.unsqueeze(-1).expand_as(index)[there]])
    edge_weight = similarity[there]
    if weight == "binary":
        edge_weight = torch.ones_like(edge_weight)
    if normalize:
        edge_weight = _normalized(edge_index, edge_weight, number)
    return Data(edge_index=edge_index, edge_weight=edge_weight, num_nodes=number)


def knn_graphs(
    features: Mapping[str, Tensor],  # (V, D_m) each
    k: int,
    *,
    present: Mapping[str, Tensor] | None = None,  # (V,) each
    weight: str = "binary",
    normalize: bool = True,
    block_size: int | None = None,
) -> HeteroData:
    r"""Build one item graph a modality, over the same items.

    .. math::
        \tilde{\mathbf{A}}^m = \mathrm{knn\_graph}(\mathbf{F}^m, k)

    Args:
        features: Features by modality, as many rows each.
        k: Number of neighbours an item.
        present: Masks by modality; one that is missing means all items.
        weight: As for :func:`knn_graph`.
        normalize: As for :func:`knn_graph`.
        block_size: As for :func:`nearest_neighbours`.

    Shape:
        - features: :math:`(V, D_m)` each
        - present: :math:`(V)` each

    Returns:
        ``torch_geometric.data.HeteroData`` with nodes ``"item"`` and, for each modality ``name``,
        edges ``("item", name, "item")``.

    Raises:
        ValueError: If features or masks are not by modality, there are none, their numbers of rows
            differ, a mask belongs to no modality, or what :func:`knn_graph` raises.

    Example:
        >>> features = {"text": torch.rand(5, 8), "image": torch.rand(5, 16)}
        >>> knn_graphs(features, k=2)["item", "image", "item"].edge_index.shape
        torch.Size([2, 10])
    """
    from torch_geometric.data import HeteroData

    present = {} if present is None else present
    _check_mappings(features=features, present=present)
    if not features:
        raise ValueError("Expected features of one modality at least, got none.")
    for name in present:
        check_choice("a mask's modality", name, features)
    graphs = HeteroData()
    first, *_ = features
    graphs["item"].num_nodes = len(features[first])
    for name, rows in features.items():
        if len(rows) != len(features[first]):
            raise ValueError(
                f"Expected as many {name!r} as {first!r} items, {len(features[first])}, "
                f"got {len(rows)}."
            )
        graph = knn_graph(
            rows,
            k,
            present=present.get(name),
            weight=weight,
            normalize=normalize,
            block_size=block_size,
        )
        graphs["item", name, "item"].edge_index = graph.edge_index
        graphs["item", name, "item"].edge_weight = graph.edge_weight
    return graphs


def _check_mappings(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise ValueError(f"Expected {name} by modality, as a dict of tensors, got {kind}.")


def _normalized(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    source, target = edge_index
    wide = edge_weight.to(at_least_float32(edge_weight))
    degree = wide.new_zeros(num_nodes).index_add(0, target, wide)
    some = degree > 0
    root = torch.where(some, degree, torch.ones_like(degree)).rsqrt()
    root = torch.where(some, root, torch.zeros_like(root))
    return (root[target] * wide * root[source]).to(edge_weight.dtype)
