"""One Transformer a modality, and their states together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive
from mmfuse._history import close_history, open_history
from mmfuse._transformer import make_layer, through
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["FDSAFusion"]


class FDSAFusion(nn.Module):
    r"""Late fusion of one Transformer a modality, as in FDSA (:cite:`zhang2019fdsa`, Equation 8).

    .. math::
        \mathbf{Y} = [\mathrm{Transformer}_1(\mathbf{X}_1 + \mathbf{P}); \ldots;
        \mathrm{Transformer}_M(\mathbf{X}_M + \mathbf{P})] \, \mathbf{W}^\top + \mathbf{b}

    where :math:`\mathbf{X}_m` is the sequence of a modality and :math:`\mathbf{P}` are learned
    positions. A layer is attention and a network, with a LayerNorm before each and a residual
    around it; a LayerNorm ends each Transformer.

    A position where a modality is absent is no key, and enters :math:`\mathbf{W}` as zeros; where
    nothing is present, :math:`\mathbf{b}` is left.

    .. note::
        The paper has two streams, items and features, the LayerNorm after the residual, and first
        pools the features of an item by attention, as
        :class:`~mmfuse.fusion.AttentionPoolingFusion` does.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        max_length: Most positions of a sequence.
        num_layers: Number of layers of each Transformer.
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
            no probability, a sequence is longer than ``max_length``, or shapes disagree.

    Example:
        >>> fusion = FDSAFusion(8, num_modalities=2, max_length=20)
        >>> fusion(torch.randn(3, 5, 2, 8)).fused.shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
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
        self.dim = dim
        self.num_modalities = num_modalities
        self.max_length = max_length
        self.causal = causal
        self.positions = nn.Parameter(torch.empty(max_length, dim, device=device, dtype=dtype))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                make_layer(dim, num_heads, hidden_dim, dropout, device=device, dtype=dtype)
                for _ in range(num_layers)
            )
            for _ in range(num_modalities)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim, device=device, dtype=dtype) for _ in range(num_modalities)
        )
        self.out = nn.Linear(num_modalities * dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh positions and layers."""
        nn.init.normal_(self.positions, std=0.02)
        layers: Any = self.layers
        for part in (*(layer for stack in layers for layer in stack), *self.norms, self.out):
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
        streams = (history.x + self.positions[: history.x.shape[-3], None]).unbind(-2)
        masks = [None] * len(streams) if history.seen is None else history.seen.unbind(-1)
        layers: Any = self.layers
        read = []
        for stack, norm, stream, mask in zip(layers, self.norms, streams, masks, strict=True):
            state = through(stack, stream, seen=mask, causal=self.causal)
            read.append(mask_absent(norm(state), mask))
        return FusionOutput(close_history(self.out(torch.cat(read, dim=-1)), history), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, "
            f"max_length={self.max_length}, causal={self.causal}"
        )
