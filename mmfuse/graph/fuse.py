"""One item graph out of those of the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mmfuse._checks import check_choice, check_probability

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["LearnedGraph", "WeightedEdges", "fuse_graphs", "mix_graphs"]


class WeightedEdges(NamedTuple):
    """Data | WeightedEdges from a neighbour to an item, and how much each counts."""

    edge_index: Tensor  #: ``(2, N)``, int64
    edge_weight: Tensor  #: ``(N,)``


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
        ValueError: If there are no graphs, or the modalities of the weights are not theirs.

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
        ValueError: If ``share`` is not between zero and one, or a graph has no weighted edges.

    Example:
        >>> frozen = WeightedEdges(torch.tensor([[1], [0]]), torch.tensor([1.0]))
        >>> learned = WeightedEdges(torch.tensor([[1, 2], [0, 0]]), torch.tensor([0.5, 0.5]))
        >>> mix_graphs(frozen, learned, share=0.8).edge_weight
        tensor([0.9000, 0.1000])
    """
    if not isinstance(share, Tensor):
        check_probability(share=share)
    one, other = _checked("first", first), _checked("second", second)
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
    edges is found once and kept as buffers, so the graphs that the module is made of stay as they
    are. Graphs that change, such as those of learned features, are given to ``forward`` and take
    the same weights; :func:`mix_graphs` then joins both.

    Args:
        graphs: Frozen item graphs, such as those of :func:`knn_graphs`.

    Shape:
        - graphs: ``None`` for the frozen ones, or others of the same modalities
        - edge_index: :math:`(2, N)`; edge_weight: :math:`(N)`

    Returns:
        :class:`WeightedEdges`, in the order of the items and then of their neighbours.

    Raises:
        ValueError: If there are no graphs, or those given later have other modalities.

    Example:
        >>> from mmfuse.graph import knn_graphs
        >>> features = {"text": torch.randn(5, 8), "image": torch.randn(5, 16)}
        >>> graph = LearnedGraph(knn_graphs(features, k=2))
        >>> edge_index, edge_weight = graph()
        >>> edge_weight.requires_grad
        True
    """

    edge_index: Tensor
    edge_weight: Tensor

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
        self.register_buffer("edge_index", union.to(device))
        self.register_buffer("edge_weight", apart.to(device, dtype))  # (M, N)
        self.logits = nn.Parameter(
            torch.empty(len(parts), device=self.edge_weight.device, dtype=self.edge_weight.dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give every modality the same weight."""
        nn.init.zeros_(self.logits)

    def forward(self, graphs: HeteroData | None = None) -> WeightedEdges:
        """Return the sum of the graphs; shapes are given in the class docstring."""
        weights = self.logits.softmax(0)
        if graphs is None:
            return WeightedEdges(self.edge_index, weights @ self.edge_weight)
        shares = dict(zip(self.names, weights.unbind(), strict=True))
        fused = fuse_graphs(graphs, shares)
        return _checked("graphs", fused)

    def extra_repr(self) -> str:
        return f"modalities={self.names}, items={self.num_nodes}, edges={self.edge_index.shape[1]}"


def _parts(graphs: HeteroData) -> dict[str, WeightedEdges]:
    """The weighted edges of each modality."""
    if not graphs.edge_types:
        raise ValueError("Expected a graph of one modality at least, got none.")
    for ends in graphs.edge_types:
        check_choice("edges between items", f"{ends[0]} to {ends[2]}", ("item to item",))
    return {name: _checked(name, graphs[a, name, b]) for a, name, b in graphs.edge_types}


def _checked(name: str, graph: Data | WeightedEdges) -> WeightedEdges:
    index, weight = graph.edge_index, getattr(graph, "edge_weight", None)
    if index is None or weight is None or index.shape != (2, *weight.shape):
        got = [None if part is None else tuple(part.shape) for part in (index, weight)]
        raise ValueError(
            f"Expected {name} with edge_index (2, N) and edge_weight (N,), got {got[0]} and "
            f"{got[1]}."
        )
    return WeightedEdges(index, weight)


def _union(edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Each edge once, by target and then by source; and the place of each that was given."""
    number = edge_index.max() + 1 if edge_index.numel() else 1
    code, place = torch.unique(edge_index[1] * number + edge_index[0], return_inverse=True)
    return torch.stack([code % number, code // number]), place


def _sum(parts: Sequence[tuple[Tensor, Tensor]]) -> WeightedEdges:
    union, place = _union(torch.cat([index for index, _ in parts], 1))
    weight = torch.cat([weight for _, weight in parts])
    return WeightedEdges(union, weight.new_zeros(union.shape[1]).index_add(0, place, weight))
