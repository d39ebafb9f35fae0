"""Each modality reads the sequences of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive
from mmfuse._history import close_history, open_history
from mmfuse._transformer import make_layer, sinusoids, through
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["MulTFusion"]


class MulTFusion(nn.Module):
    r"""Crossmodal Transformer, the MulT, over sequences (:cite:`tsai2019multimodal`).

    .. math::
        \mathbf{Z}_{j \to m} = \mathrm{Cross}_{j \to m}(\hat{\mathbf{X}}_m, \hat{\mathbf{X}}_j),
        \qquad
        \mathbf{H}_m = \mathrm{Self}_m([\ldots; \mathbf{Z}_{j \to m}; \ldots]_{j \neq m}), \qquad
        \mathbf{Y} = [\mathbf{H}_1; \ldots; \mathbf{H}_M] \mathbf{W}^\top + \mathbf{b}

    where :math:`\hat{\mathbf{X}}_m = \sqrt{D} \, \mathbf{X}_m + \mathbf{P}` is the sequence of a
    modality and of its positions, the sines and cosines of :cite:t:`vaswani2017attention`. A layer
    of :math:`\mathrm{Cross}` lets the positions of :math:`m` attend to those of :math:`j`, a layer
    of :math:`\mathrm{Self}` to their own, :math:`(M - 1) D` wide; either ends in a network, with a
    LayerNorm before each part and a residual around it.

    A position where a modality is absent is no key for anybody, and zero in :math:`\mathbf{H}_m`;
    a position that sees no key reads zeros. So an absent value has no influence, but a
    modality that is absent throughout is not the same as a model without it, whose maps are
    smaller. With :math:`M = 1` there is nobody to read, and :math:`\mathrm{Self}` alone is left.

    .. note::
        The paper reads the whole sequence and takes the last position; ``causal`` is ours, so that
        every position can be read out and trained at once. Its convolution over time before all
        this is left to the projection, and so is a different length of each modality.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_layers: Number of layers of each crossmodal Transformer.
        num_self_layers: Number of layers of each Transformer that follows.
        num_heads: Number :math:`H` of attention heads.
        hidden_dim: Inner width of a crossmodal layer; ``None`` means :math:`4 D`. The layers that
            follow are as many times wider as their input.
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
            no probability, or shapes disagree.

    Example:
        >>> fusion = MulTFusion(8, num_modalities=3, num_heads=2)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_layers: int = 1,
        num_self_layers: int = 1,
        num_heads: int = 1,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_positive(num_layers=num_layers, num_self_layers=num_self_layers)
        self.dim = dim
        self.num_modalities = num_modalities
        self.causal = causal
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        place: Any = {"device": device, "dtype": dtype}
        pairs = [_pair(s, t) for t in range(num_modalities) for s in _others(t, num_modalities)]
        self.source_norms = nn.ModuleDict({pair: nn.LayerNorm(dim, **place) for pair in pairs})
        self.cross = nn.ModuleDict(
            {
                pair: nn.ModuleList(
                    make_layer(dim, num_heads, hidden_dim, dropout, **place)
                    for _ in range(num_layers)
                )
                for pair in pairs
            }
        )
        width = max(num_modalities - 1, 1)
        self.own = nn.ModuleList(
            nn.ModuleList(
                make_layer(width * dim, num_heads, width * hidden_dim, dropout, **place)
                for _ in range(num_self_layers)
            )
            for _ in range(num_modalities)
        )
        self.out = nn.Linear(num_modalities * width * dim, dim, **place)

    def reset_parameters(self) -> None:
        """Draw fresh layers."""
        stacks: Any = (*self.cross.values(), *self.own)
        for part in (*(layer for stack in stacks for layer in stack), self.out):
            part.reset_parameters()
        norms: Any = self.source_norms.values()
        for norm in norms:
            norm.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, M, D)
        present: Tensor | None = None,  # (..., L, M)
        context: Tensor | None = None,
        *,
        valid: Tensor | None = None,  # (..., L)
    ) -> FusionOutput:
        """Return the fused vectors; shapes are given in the class docstring."""
        history = open_history(x, present, valid, num_modalities=self.num_modalities, dim=self.dim)
        length = history.x.shape[-3]
        positions = sinusoids(length, self.dim, device=x.device).to(x.dtype).unsqueeze(-2)
        streams = (self.dim**0.5 * history.x + positions).unbind(-2)
        masks = [None] * len(streams) if history.seen is None else history.seen.unbind(-1)
        own: Any = self.own
        read = []
        for target, (stream, mask) in enumerate(zip(streams, masks, strict=True)):
            others = _others(target, self.num_modalities)
            told = [self._cross(stream, streams[s], masks[s], _pair(s, target)) for s in others]
            joint = torch.cat(told or [stream], dim=-1)
            state = through(own[target], joint, seen=mask, causal=self.causal)
            read.append(mask_absent(state, mask))
        return FusionOutput(close_history(self.out(torch.cat(read, dim=-1)), history), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, causal={self.causal}"

    def _cross(self, x: Tensor, source: Tensor, seen: Tensor | None, pair: str) -> Tensor:
        """What the positions of one modality read in another."""
        layers: Any = self.cross[pair]
        norm: Any = self.source_norms[pair]
        return through(layers, x, norm(source), seen=seen, causal=self.causal)


def _others(target: int, num_modalities: int) -> list[int]:
    return [source for source in range(num_modalities) if source != target]


def _pair(source: int, target: int) -> str:
    return f"{source}_to_{target}"
