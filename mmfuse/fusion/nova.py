"""Side information in queries and keys only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_below, check_positive
from mmfuse._history import close_history, open_history
from mmfuse._transformer import SideAttention, TransformerLayer
from mmfuse.types import FusionOutput

__all__ = ["NOVAFusion"]


class NOVAFusion(nn.Module):
    r"""Non-invasive attention, the NOVA (:cite:`liu2021nova`).

    .. math::
        \mathbf{Y}^{l+1} = \mathrm{Layer}^l(\mathbf{Y}^l, \mathbf{F}^l), \qquad
        \mathrm{Attention}^l = \operatorname{softmax}\Bigl( \frac{
        (\mathbf{F}^l \mathbf{W}_Q^\top) (\mathbf{F}^l \mathbf{W}_K^\top)^\top}{\sqrt{D / H}} \Bigr)
        \, \mathrm{LN}(\mathbf{Y}^l) \mathbf{W}_V^\top, \qquad
        \mathbf{F}^l = \mathrm{LN}\Bigl( \mathbf{Y}^l + \mathbf{P} +
        \sum_{m \neq t} p_m \mathbf{X}_m \Bigr)

    where :math:`\mathbf{X}_m` is the sequence of a modality, :math:`t` the item itself,
    :math:`\mathbf{Y}^0 = \mathbf{X}_t`, and :math:`\mathbf{P}` are learned positions. Side
    information enters queries and keys only; a layer goes on with a network, each part with a
    LayerNorm before and a residual around it. A LayerNorm ends the last layer.

    A position where :math:`t` is absent has nothing to tell and is no key; it still asks. An absent
    other modality adds nothing, so that masking it equals dropping it. With :math:`M = 1` it is a
    Transformer whose positions enter the attention only.

    .. note::
        The paper has the LayerNorm after the residual, and offers concatenation and gating beside
        the sum.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        target: Which modality :math:`t` is the item itself; the others are side information.
        max_length: Most positions of a sequence.
        num_layers: Number of layers.
        num_heads: Number :math:`H` of attention heads.
        hidden_dim: Inner width of a layer; ``None`` means :math:`4 D`.
        dropout: Dropout probability of the attention weights and after each part of a layer.
        causal: Whether a position sees only itself and earlier ones.

    Shape:
        - x: :math:`(\ldots, L, M, D)`; a single :math:`(M, D)` is a sequence of one
        - present: :math:`(\ldots, L, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - fused: :math:`(\ldots, L, D)`, zero at padding

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``num_heads`` does not divide ``dim``, ``dropout`` is
            no probability, ``target`` is no modality, a sequence is longer than ``max_length``, or
            shapes disagree.

    Example:
        >>> fusion = NOVAFusion(8, num_modalities=2, max_length=20)
        >>> fusion(torch.randn(3, 5, 2, 8)).fused.shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        target: int = 0,
        max_length: int = 50,
        num_layers: int = 1,
        num_heads: int = 1,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_positive(max_length=max_length, num_layers=num_layers)
        check_below("num_modalities", num_modalities, target=target)
        self.dim = dim
        self.num_modalities = num_modalities
        self.target = target
        self.max_length = max_length
        self.causal = causal
        place: Any = {"device": device, "dtype": dtype}
        self.positions = nn.Parameter(torch.empty(max_length, dim, **place))
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        self.layers = nn.ModuleList(
            TransformerLayer(
                SideAttention(1, dim, num_heads, dropout, **place),
                dim,
                hidden_dim,
                dropout,
                **place,
            )
            for _ in range(num_layers)
        )
        self.side_norms = nn.ModuleList(nn.LayerNorm(dim, **place) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, **place)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh positions and layers."""
        nn.init.normal_(self.positions, std=0.02)
        parts: Any = (*self.layers, *self.side_norms, self.norm)
        for part in parts:
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, M, D)
        present: Tensor | None = None,  # (..., L, M)
        context: Tensor | None = None,
        *,
        valid: Tensor | None = None,  # (..., L)
    ) -> FusionOutput:
        """Return the fused vectors; shapes are given in the class docstring."""
        history = open_history(
            x,
            present,
            valid,
            num_modalities=self.num_modalities,
            dim=self.dim,
            max_length=self.max_length,
        )
        state = history.x[..., self.target, :]
        seen = None if history.seen is None else history.seen[..., self.target]
        side = history.x.sum(-2) - state + self.positions[: state.shape[-2]]
        for layer, norm in zip(self.layers, self.side_norms, strict=True):
            together = norm(state + side).unsqueeze(-2)
            state = layer(state, together, seen=seen, causal=self.causal)
        return FusionOutput(close_history(self.norm(state), history), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, target={self.target}, "
            f"max_length={self.max_length}, causal={self.causal}"
        )
