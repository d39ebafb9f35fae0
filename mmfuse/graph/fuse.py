"""One item graph out of those of the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from mmfuse._checks import check_choice, check_index, check_probability

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["LearnedGraph", "WeightedEdges", "fuse_graphs", "mix_graphs"]


class WeightedEdges(NamedTuple):
    r"""Edges between items, and how much each counts.

    .. math::
        A_{ij} = \sum_{n : (j_n, i_n) = (j, i)} a_n

    Two tensors, which may come and go in compiled code. Wherever one graph is wanted, they and
    ``torch_geometric.data.Data`` replace each other.

    Args:
        edge_index: Edges, from a neighbour :math:`j_n` (first row) to an item :math:`i_n`, int64.
        edge_weight: Their weights :math:`a_n`.

    Shape:
        - edge_index: :math:`(2, N)`
        - edge_weight: :math:`(N)`; so is the output of :func:`mix_graphs`

    Raises:
        AttributeError: If a field is assigned to.

    Example:
        >>> WeightedEdges(torch.tensor([[1], [0]]), torch.tensor([0.5])).edge_weight
        tensor([0.5000])
    """

    edge_index: Tensor
    edge_weight: Tensor


# By this name torch.export.save writes it, as those of mmfuse.types.
_pytree._register_namedtuple(WeightedEdges, serialized_type_name="mmfuse.graph.WeightedEdges")


def fuse_graphs(
    graphs: HeteroData,
    weights: Mapping[str, float | Tensor] | None = None,
) -> Data:
    r"""Add the item graphs of the modalities by fixed weights (:cite:`zhou2023freedom`).

    .. math::
        \mathbf{A} = \sum_m \alpha_m \tilde{\mathbf{A}}^m

    An edge that several modalities have occurs once, with the sum of its weights. Differentiable in
    the weights of the edges, and in :math:`\alpha` where these are tensors.

    Args:
        graphs: Item graphs, such as those of :func:`knn_graphs`.
        weights: :math:`\alpha` by modality; ``None`` means :math:`1 / M` each.

    Shape:
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`

    Returns:
        ``torch_geometric.data.Data``, its edges in the order of the items and then of their
        neighbours.

    Raises:
        ValueError: If ``graphs`` is no ``HeteroData`` or holds none, or the weights are not by the
            same modalities.

    Example:
        >>> from mmfuse.graph import knn_graphs
        >>> text = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> graphs = knn_graphs({"text": text, "image": image}, k=1, normalize=False)
        >>> graph = fuse_graphs(graphs, {"text": 0.25, "image": 0.75})
        >>> graph.edge_index
        tensor([[1, 2, 0, 2, 1],
                [0, 0, 1, 1, 2]])
        >>> graph.edge_weight
        tensor([0.2500, 0.7500, 0.2500, 0.7500, 1.0000])
    """
    from torch_geometric.data import Data

    parts = _parts(graphs)
    if weights is None:
        weights = dict.fromkeys(parts, 1 / len(parts))
    if not isinstance(weights, Mapping):
        raise ValueError(f"Expected weights by modality, as a dict, got {type(weights).__name__}.")
    if set(weights) != set(parts):
        raise ValueError(
            f"Expected weights of the modalities {sorted(parts)}, got those of {sorted(weights)}."
        )
    edge_index, edge_weight = _sum(
        [(edges.edge_index, weights[name] * edges.edge_weight) for name, edges in parts.items()]
    )
    number = graphs["item"].num_nodes
    return Data(edge_index=edge_index, edge_weight=edge_weight, num_nodes=number)


def mix_graphs(
    first: Data | WeightedEdges, second: Data | WeightedEdges, share: float | Tensor
) -> WeightedEdges:
    r"""Mix two item graphs, such as a frozen and a learned one (:cite:`zhang2021lattice`).

    .. math::
        \mathbf{A} = \lambda \mathbf{A}_1 + (1 - \lambda) \mathbf{A}_2

    LATTICE keeps the share :math:`\lambda` of the graph of the raw features, so that the graph of
    the learned features cannot lose what is known. Differentiable in all weights.

    Args:
        first: A graph: ``Data`` or :class:`WeightedEdges`.
        second: Another one, over the same items.
        share: :math:`\lambda`, from zero to one.

    Shape:
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`

    Returns:
        :class:`WeightedEdges`: each edge of either graph once, in the order of the items and then
        of their neighbours.

    Raises:
        ValueError: If ``share`` is not between zero and one, a graph is none or has no weighted
            edges, or they are over different numbers of items, where both are known.

    Example:
        >>> frozen = WeightedEdges(torch.tensor([[1], [0]]), torch.tensor([1.0]))
        >>> learned = WeightedEdges(torch.tensor([[1, 2], [0, 0]]), torch.tensor([0.5, 0.5]))
        >>> mix_graphs(frozen, learned, share=0.8).edge_weight
        tensor([0.9000, 0.1000])
    """
    if not isinstance(share, Tensor):
        check_probability(share=share)
    one, other = _checked("first", first), _checked("second", second)
    number, others = _num_nodes(first), _num_nodes(second)
    if number is None or others is None:
        _check_within("first", one, others)
        _check_within("second", other, number)
    elif number != others:
        raise ValueError(f"Expected second over {number} items, as first, got {others}.")
    return _sum(
        [
            (one.edge_index, share * one.edge_weight),
            (other.edge_index, (1 - share) * other.edge_weight),
        ]
    )


class LearnedGraph(nn.Module):
    r"""Add the item graphs of the modalities by learned weights (:cite:`zhang2021lattice`).

    .. math::
        \mathbf{A} = \sum_m \alpha_m \tilde{\mathbf{A}}^m, \qquad
        \boldsymbol{\alpha} = \operatorname{softmax}(\mathbf{a})

    where :math:`\mathbf{a}` holds one learned logit a modality, zero at first. The union of the
    edges is found once and kept, so the graphs that the module is made of stay as they are. Only
    the logits are state: the kept graph moves with the module but is not in ``state_dict``, so that
    what was learned loads into a module made of other graphs, with another ``k`` or more items; the
    graphs are made again from the features. Graphs that change, such as those of learned features,
    are given to ``forward`` and take the same weights; :func:`mix_graphs` then joins both.

    Args:
        graphs: Frozen item graphs, such as those of :func:`knn_graphs`.

    Shape:
        - graphs: ``None`` for the frozen ones, or others of the same modalities
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`

    Returns:
        :class:`WeightedEdges`, in the order of the items and then of their neighbours.

    Raises:
        ValueError: If ``graphs`` is no ``HeteroData`` or holds none, or those given later have
            other modalities.

    Example:
        >>> from mmfuse.graph import knn_graphs
        >>> features = {"text": torch.randn(5, 8), "image": torch.randn(5, 16)}
        >>> graph = LearnedGraph(knn_graphs(features, k=2))
        >>> edge_index, edge_weight = graph()
        >>> edge_weight.requires_grad
        True
    """

    edge_index: Tensor
    weight_by_modality: Tensor

    def __init__(
        self,
        graphs: HeteroData,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        parts = _parts(graphs)
        self.names = tuple(parts)
        self.num_nodes = int(graphs["item"].num_nodes)
        edges = torch.cat([part.edge_index for part in parts.values()], 1)
        weights = torch.block_diag(*(part.edge_weight.detach() for part in parts.values()))
        union, place = _union(edges)
        apart = weights.new_zeros(len(parts), union.shape[1]).index_add(1, place, weights)
        apart = apart.to(device, dtype)  # (M, N)
        self.register_buffer("edge_index", union.to(device), persistent=False)
        self.register_buffer("weight_by_modality", apart, persistent=False)
        self.logits = nn.Parameter(apart.new_empty(len(parts)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give every modality the same weight."""
        nn.init.zeros_(self.logits)

    def forward(self, graphs: HeteroData | None = None) -> WeightedEdges:
        """Return the sum of the graphs; shapes are given in the class docstring."""
        weights = self.logits.softmax(0)
        if graphs is None:
            return WeightedEdges(self.edge_index, weights @ self.weight_by_modality)
        shares = dict(zip(self.names, weights.unbind(), strict=True))
        fused = _checked("graphs", fuse_graphs(graphs, shares))
        _check_within("graphs", fused, self.num_nodes)
        return fused

    def extra_repr(self) -> str:
        return f"modalities={self.names}, items={self.num_nodes}, edges={self.edge_index.shape[1]}"


def _parts(graphs: HeteroData) -> dict[str, WeightedEdges]:
    """The weighted edges of each modality."""
    from torch_geometric.data import HeteroData

    if not isinstance(graphs, HeteroData):
        raise ValueError(
            f"Expected graphs as HeteroData, such as knn_graphs makes, got {type(graphs).__name__}."
        )
    if not graphs.edge_types:
        raise ValueError("Expected a graph of one modality at least, got none.")
    for ends in graphs.edge_types:
        check_choice("edges between items", f"{ends[0]} to {ends[2]}", ("item to item",))
    return {name: _checked(name, graphs[a, name, b]) for a, name, b in graphs.edge_types}


def _checked(name: str, graph: Data | WeightedEdges) -> WeightedEdges:
    if not hasattr(graph, "edge_index"):
        kind = type(graph).__name__
        raise ValueError(f"Expected {name} as one graph, Data or WeightedEdges, got {kind}.")
    index, weight = graph.edge_index, getattr(graph, "edge_weight", None)
    if index is None or weight is None or index.shape != (2, *weight.shape):
        got = [None if part is None else tuple(part.shape) for part in (index, weight)]
        raise ValueError(
            f"Expected {name} with edge_index (2, N) and edge_weight (N,), got {got[0]} and "
            f"{got[1]}."
        )
    return WeightedEdges(index, weight)


def _num_nodes(graph: Data | WeightedEdges) -> int | None:
    """The number of items where a graph says it; torch_geometric would guess and warn."""
    if isinstance(graph, WeightedEdges) or "num_nodes" not in graph:
        return None
    return int(graph["num_nodes"])


def _check_within(name: str, edges: WeightedEdges, num_nodes: int | None) -> None:
    if num_nodes is not None:
        check_index(f"edges of {name}", edges.edge_index, "num_nodes", num_nodes, least=0)


def _union(edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Each edge once, by target and then by source; and the place of each that was given."""
    number = edge_index.max() + 1 if edge_index.numel() else 1
    code, place = torch.unique(edge_index[1] * number + edge_index[0], return_inverse=True)
    return torch.stack([code % number, code // number]), place


def _sum(parts: Sequence[tuple[Tensor, Tensor]]) -> WeightedEdges:
    union, place = _union(torch.cat([index for index, _ in parts], 1))
    weight = torch.cat([weight for _, weight in parts])
    return WeightedEdges(union, weight.new_zeros(union.shape[1]).index_add(0, place, weight))
