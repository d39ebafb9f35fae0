"""One MLP-Mixer a modality, and their states together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_probability
from mmfuse._history import close_history, open_history
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["MixerFusion"]


class MixerFusion(nn.Module):
    r"""One MLP-Mixer a modality, as in MMMLP (:cite:`liang2023mmmlp`).

    .. math::
        \mathbf{Y} = \mathrm{LN}([\mathrm{Mixer}_1(\mathbf{X}_1); \ldots;
        \mathrm{Mixer}_M(\mathbf{X}_M)]) \, \mathbf{W}^\top + \mathbf{b}

    where :math:`\mathbf{X}_m` is the sequence of a modality. A layer of a mixer is, with a
    LayerNorm before each and a residual around it, a network along the sequence, alike for every
    feature, and one along the features, alike for every position:

    .. math::
        \mathbf{U} = \mathbf{X} + \mathbf{W}_2 \operatorname{GELU}(\mathbf{W}_1
        \mathrm{LN}(\mathbf{X}) + \mathbf{b}_1) + \mathbf{b}_2, \qquad
        \mathbf{V} = \mathbf{U} + \operatorname{GELU}(\mathrm{LN}(\mathbf{U}) \mathbf{W}_3^\top
        + \mathbf{b}_3) \mathbf{W}_4^\top + \mathbf{b}_4

    A position where a modality is absent is zero along the sequence and in what comes out, so that
    nobody hears it; where nothing is present, a constant is left. A sequence shorter than
    ``max_length`` is one that is padded.

    .. note::
        As printed (``causal=False``) every position hears every other one. ``causal`` is ours: the
        matrices along the sequence keep their lower triangles.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        max_length: Most positions of a sequence; also the inner width of the network along it.
        num_layers: Number of layers of each mixer.
        hidden_dim: Inner width of the network along the features; ``None`` means :math:`4 D`.
        dropout: Dropout probability after each network.
        causal: Whether a position hears only itself and earlier ones.

    Shape:
        - x: :math:`(\ldots, L, M, D)`; a single :math:`(M, D)` is a sequence of one
        - present: :math:`(\ldots, L, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - fused: :math:`(\ldots, L, D)`, zero at padding

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``dropout`` is no probability, a sequence is longer
            than ``max_length``, or shapes disagree.

    Example:
        >>> fusion = MixerFusion(8, num_modalities=2, max_length=20)
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
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim)
        check_positive(max_length=max_length, num_layers=num_layers)
        check_probability(dropout=dropout)
        self.dim = dim
        self.num_modalities = num_modalities
        self.max_length = max_length
        self.causal = causal
        place: Any = {"device": device, "dtype": dtype}
        self.mixers = nn.ModuleList(
            nn.ModuleList(
                _Layer(max_length, dim, hidden_dim, dropout, causal, **place)
                for _ in range(num_layers)
            )
            for _ in range(num_modalities)
        )
        self.norm = nn.LayerNorm(num_modalities * dim, **place)
        self.out = nn.Linear(num_modalities * dim, dim, **place)

    def reset_parameters(self) -> None:
        """Draw fresh layers."""
        mixers: Any = self.mixers
        for part in (*(layer for mixer in mixers for layer in mixer), self.norm, self.out):
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
        masks = [None] * self.num_modalities if history.seen is None else history.seen.unbind(-1)
        mixers: Any = self.mixers
        read = []
        for mixer, stream, mask in zip(mixers, history.x.unbind(-2), masks, strict=True):
            state = stream
            for layer in mixer:
                state = layer(state, mask)
            read.append(mask_absent(state, mask))
        fused = self.out(self.norm(torch.cat(read, dim=-1)))
        return FusionOutput(close_history(fused, history), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, "
            f"max_length={self.max_length}, causal={self.causal}"
        )


class _Layer(nn.Module):
    """A network along the sequence, then one along the features."""

    def __init__(
        self,
        max_length: int,
        dim: int,
        hidden_dim: int,
        dropout: float,
        causal: bool,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.time_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.time_hidden = nn.Linear(max_length, max_length, device=device, dtype=dtype)
        self.time_out = nn.Linear(max_length, max_length, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.hidden = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for part in (self.time_norm, self.time_hidden, self.time_out):
            part.reset_parameters()
        for part in (self.norm, self.hidden, self.out):
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        seen: Tensor | None,  # (..., L)
    ) -> Tensor:  # (..., L, D)
        length = x.shape[-2]
        units = length if self.causal else None  # a later unit hears what nobody may hear yet
        along = mask_absent(self.time_norm(x), seen).mT
        along = F.gelu(F.linear(along, *self._part(self.time_hidden, units, length)))
        along = F.linear(along, *self._part(self.time_out, length, units))
        x = x + self.dropout(along.mT)
        output: Tensor = x + self.dropout(self.out(F.gelu(self.hidden(self.norm(x)))))
        return output

    def _part(self, layer: nn.Linear, rows: int | None, columns: int | None) -> tuple[Tensor, ...]:
        """The first rows and columns; by index, since slices would export one length only."""
        bias: Tensor = layer.bias
        weight: Tensor = layer.weight.tril() if self.causal else layer.weight
        if rows is not None:
            first = torch.arange(rows, device=weight.device)
            weight, bias = weight.index_select(0, first), bias.index_select(0, first)
        if columns is not None:
            weight = weight.index_select(1, torch.arange(columns, device=weight.device))
        return weight, bias
