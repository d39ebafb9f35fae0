"""Modalities that talk through a few tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse._transformer import make_layer
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["BottleneckFusion"]


class BottleneckFusion(nn.Module):
    r"""Attention bottlenecks, the MBT (:cite:`nagrani2021attention`, Equation 8 and 9).

    .. math::
        [\mathbf{x}_m^{l+1}; \mathbf{Z}_m^{l+1}] =
        \mathrm{Layer}_m^l([\mathbf{x}_m^l; \mathbf{Z}^l]), \qquad
        \mathbf{Z}^{l+1} = \operatorname{mean}_{m : p_m} \mathbf{Z}_m^{l+1}, \qquad
        \mathbf{y} = \operatorname{mean}_{m : p_m} \mathrm{LN}_m(\mathbf{x}_m^{\Lambda})

    where :math:`p_m` tells whether modality :math:`m` was observed. Each modality has
    :math:`\Lambda` Transformer layers of its own (attention and a network, each after a LayerNorm
    and with a residual), and knows of the others only what the bottleneck tokens :math:`\mathbf{Z}`
    carry from one layer to the next: with one layer, nothing. An absent modality takes no part in
    the means, so that dropping it equals masking it. Nothing present gives zero.

    .. note::
        In the paper a modality is many tokens, and a class token is read out. Here it is one token,
        which is read out.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_bottlenecks: Number of bottleneck tokens.
        num_layers: Number :math:`\Lambda` of layers.
        num_heads: Number :math:`H` of attention heads.
        hidden_dim: Inner width of a layer; ``None`` means :math:`4 D`.
        dropout: Dropout probability of the attention weights and after each part of a layer.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``num_heads`` does not divide ``dim``, ``dropout`` is
            no probability, or shapes disagree.

    Example:
        >>> fusion = BottleneckFusion(8, num_modalities=3, num_bottlenecks=2)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_bottlenecks: int = 4,
        num_layers: int = 2,
        num_heads: int = 1,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_positive(num_bottlenecks=num_bottlenecks, num_layers=num_layers)
        self.dim = dim
        self.num_modalities = num_modalities
        self.bottlenecks = nn.Parameter(
            torch.empty(num_bottlenecks, dim, device=device, dtype=dtype)
        )
        self.layers = nn.ModuleList(
            nn.ModuleList(
                make_layer(dim, num_heads, hidden_dim, dropout, device=device, dtype=dtype)
                for _ in range(num_modalities)
            )
            for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim, device=device, dtype=dtype) for _ in range(num_modalities)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh bottleneck tokens and layers."""
        nn.init.normal_(self.bottlenecks, std=0.02)
        layers: Any = self.layers
        for part in (*(layer for row in layers for layer in row), *self.norms):
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        tokens: Any = mask_absent(x, present).unsqueeze(-2).unbind(-3)  # (..., 1, D) each
        shared = self.bottlenecks.expand(*x.shape[:-2], *self.bottlenecks.shape)
        layers: Any = self.layers
        for row in layers:
            pairs = zip(row, tokens, strict=True)
            states = [layer(torch.cat([token, shared], dim=-2)) for layer, token in pairs]
            tokens = [state[..., :1, :] for state in states]
            shared = _mean(torch.stack([state[..., 1:, :] for state in states], -3), present)
        read = [norm(token) for norm, token in zip(self.norms, tokens, strict=True)]
        return FusionOutput(_mean(torch.stack(read, -3), present).squeeze(-2), None, {})

    def extra_repr(self) -> str:
        num_bottlenecks = len(self.bottlenecks)
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, "
            f"num_bottlenecks={num_bottlenecks}, num_layers={len(self.layers)}"
        )


def _mean(x: Tensor, present: Tensor | None) -> Tensor:  # (..., M, N, D), (..., M) -> (..., N, D)
    """Of what is present; zero where nothing is."""
    if present is None:
        return x.mean(-3)
    total = mask_absent(x, present.unsqueeze(-1).expand(x.shape[:-1])).sum(-3)
    return total / present.sum(-1)[..., None, None].clamp_min(1)
