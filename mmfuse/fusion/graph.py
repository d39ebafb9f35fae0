"""Graph attention over the modalities of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmfuse._checks import check_divides, check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

if TYPE_CHECKING:
    from torch_geometric.nn import GATv2Conv

__all__ = ["GraphFusion"]


class GraphFusion(nn.Module):
    r"""Graph attention over modality nodes, read by a fusion node (:cite:`brody2022gatv2`, Eq. 7).

    .. math::
        \mathbf{y} = \sum_m w_m \mathbf{W}_S \mathbf{h}_m, \qquad
        w_m = \frac{p_m \exp e(\mathbf{q}, \mathbf{h}_m)}
        {\sum_j p_j \exp e(\mathbf{q}, \mathbf{h}_j)}, \qquad
        e(\mathbf{t}, \mathbf{s}) = \mathbf{a}^\top \operatorname{LeakyReLU}
        (\mathbf{W}_T \mathbf{t} + \mathbf{W}_S \mathbf{s})

    Each row is a small graph: a node a modality, which starts as :math:`\mathbf{h}_m = \mathbf{x}_m
    + \mathbf{k}_m` with a learned embedding of its kind, and a fusion node, a learned vector
    :math:`\mathbf{q}`. In every layer but the last the present modalities attend to all present
    ones of their row, themselves included, and add what they read to what they hold; in the last
    the fusion node reads them. :math:`p_m` tells whether modality :math:`m` was observed: an absent
    one has no edges, so that dropping it equals masking it. Nothing present gives zero. With
    several heads each works on :math:`D / H` entries. The layers are torch_geometric's
    ``GATv2Conv`` without bias.

    Note:
        Edges of absent modalities lead to a spare node that nobody reads. Shapes depend on no
        value, so that the block can be compiled and exported.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_heads: Number :math:`H` of heads.
        num_layers: Number of layers, the last of which is the fusion node's.
        negative_slope: Slope of LeakyReLU below zero. With 1 the scores are linear, and one layer
            is attention pooling.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`, those of the fusion node, the
          mean over the heads

    Returns:
        :class:`~mmfuse.types.FusionOutput` without losses.

    Raises:
        ValueError: If a size is not positive, ``num_heads`` does not divide ``dim``, or shapes
            disagree.

    Example:
        >>> fusion = GraphFusion(8, num_modalities=3, num_heads=2, num_layers=2)
        >>> fusion(torch.randn(2, 3, 8)).weights.sum(-1).round(decimals=4)
        tensor([1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 1,
        num_layers: int = 1,
        negative_slope: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        from torch_geometric.nn import GATv2Conv

        check_positive(dim=dim, num_modalities=num_modalities, num_layers=num_layers)
        check_divides(num_heads=num_heads, dim=dim)
        self.dim = dim
        self.num_modalities = num_modalities
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.negative_slope = negative_slope
        self.kind = nn.Parameter(torch.empty(num_modalities, dim, device=device, dtype=dtype))
        self.query = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.layers = nn.ModuleList(
            GATv2Conv(
                (dim, dim),
                dim // num_heads,
                num_heads,
                negative_slope=negative_slope,
                add_self_loops=False,
                bias=False,
            ).to(device, dtype)
            for _ in range(num_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh nodes (normal; kinds of a tenth of that) and maps (Xavier)."""
        nn.init.normal_(self.kind, std=0.1)
        nn.init.normal_(self.query)
        layer: GATv2Conv
        for layer in self.layers:
            layer.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        nodes = (mask_absent(x, present) + self.kind).reshape(-1, self.dim)
        there = None if present is None else present.reshape(-1, self.num_modalities)
        *inner, last = self.layers
        if inner:
            edges = self._edges(nodes.shape[0], there, among=True)
            for layer in inner:
                nodes = nodes + layer((nodes, _with_sink(nodes)), edges)[:-1]
        rows = nodes.shape[0] // self.num_modalities
        query = self.query.repeat(rows + 1, 1)
        edges = self._edges(nodes.shape[0], there, among=False)
        fused, (_, weights) = last((nodes, query), edges, return_attention_weights=True)
        weights = weights.mean(-1).reshape(x.shape[:-1])
        weights = mask_absent(weights.unsqueeze(-1), present).squeeze(-1)
        return FusionOutput(fused[:-1].reshape(*x.shape[:-2], self.dim), weights, {})

    def _edges(self, count: int, present: Tensor | None, *, among: bool) -> Tensor:
        """Edges (2, N) from modalities to those of their row, or to the fusion node."""
        number = self.num_modalities
        node = torch.arange(count, device=self.query.device).reshape(-1, number)
        if among:
            source, target = node.unsqueeze(-2), node.unsqueeze(-1)
            alive = None if present is None else present.unsqueeze(-2) & present.unsqueeze(-1)
            source, target = torch.broadcast_tensors(source, target)
            sink = count
        else:
            source, target, alive = node, node // number, present
            sink = count // number
        if alive is not None:
            target = torch.where(alive, target, sink)
        return torch.stack([source.flatten(), target.flatten()])

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, num_heads={self.num_heads}, "
            f"num_layers={self.num_layers}, negative_slope={self.negative_slope}"
        )


def _with_sink(nodes: Tensor) -> Tensor:
    return torch.cat([nodes, nodes.new_zeros(1, nodes.shape[-1])])
