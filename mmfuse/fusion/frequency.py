"""The sequence of the id and those of the others, multiplied frequency by frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_below, check_positive
from mmfuse._history import close_history, open_history
from mmfuse._precision import at_least_float32
from mmfuse.types import FusionOutput

__all__ = ["FrequencyFusion"]


class FrequencyFusion(nn.Module):
    r"""Fusion in the frequency domain, as in TedRec (:cite:`xu2024tedrec`).

    .. math::
        \mathbf{Y} = \sigma(\mathbf{A}_t \mathbf{w}_t + b_t) \odot \mathbf{A}_t +
        \sum_{m \neq t} \sigma(\mathbf{A}_m \mathbf{w}_m + b_m) \odot \mathbf{A}_m, \qquad
        \mathbf{A}_t = \mathcal{F}^{-1}(\mathcal{F}(\mathbf{X}_t) \odot \mathcal{F}(\mathbf{K})),
        \quad
        \mathbf{A}_m = \frac{1}{\sqrt{N}}
        \mathcal{F}^{-1}(\mathcal{F}(\mathbf{X}_m) \odot \mathcal{F}(\mathbf{X}_t))

    where :math:`\mathbf{X}_m` is the sequence of a modality, :math:`t` the one that the others are
    multiplied with (the item id), and :math:`\mathcal{F}` the discrete Fourier transform along the
    sequence. A product of spectra is a convolution: :math:`\mathbf{K}` is a learned filter of
    :math:`N` positions, and each other modality is convolved with the id.

    What is absent is zero in its sequence and adds nothing to a convolution; a position where
    nothing is present still hears the others. Where the target is absent throughout, zeros are
    left; with :math:`M = 1`, the filter alone. Positions :math:`i` and :math:`j` of two modalities
    meet at :math:`i + j`, counted from the first: padding belongs after a sequence.

    .. note::
        With ``causal=False`` sequences are filled up to :math:`N` and the convolution runs round in
        a circle, as printed: every position hears every other one. ``causal`` is ours: enough
        zeros are added that a position hears itself and earlier ones only, up to the rounding of
        the transform. The paper learns
        :math:`\mathcal{F}(\mathbf{K})` instead of :math:`\mathbf{K}`, which says the same.
        :math:`1 / \sqrt{N}` is what its orthonormal transform amounts to. The authors' code
        doubles the sum, so that a gate starts at one. Compiled by inductor, torch warns that it
        leaves complex numbers as they are; the numbers are the same.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        target: Which modality :math:`t` is filtered and multiplied with the others.
        max_length: Most positions :math:`N` of a sequence.
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
        ValueError: If a size is not positive, ``target`` is no modality, a sequence is longer than
            ``max_length``, or shapes disagree.

    Example:
        >>> fusion = FrequencyFusion(8, num_modalities=2, max_length=20)
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
        causal: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, max_length=max_length)
        check_below("num_modalities", num_modalities, target=target)
        self.dim = dim
        self.num_modalities = num_modalities
        self.target = target
        self.max_length = max_length
        self.causal = causal
        self.kernel = nn.Parameter(torch.empty(max_length, dim, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(num_modalities, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_modalities, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a filter that passes its input, a little noise, and fresh gates (Xavier)."""
        nn.init.normal_(self.kernel, std=0.02)
        with torch.no_grad():
            self.kernel[0] += 1
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

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
        mixed = self._convolve(history.x)
        gates = torch.sigmoid((mixed * self.weight).sum(-1) + self.bias)
        fused = (gates.unsqueeze(-1) * mixed).sum(-2)
        return FusionOutput(close_history(fused, history), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, target={self.target}, "
            f"max_length={self.max_length}, causal={self.causal}"
        )

    def _convolve(self, x: Tensor) -> Tensor:  # (..., L, M, D) -> (..., L, M, D)
        """Each modality with the target, and the target with the filter."""
        wide = x.to(at_least_float32(x))
        kernel = self.kernel.to(wide.dtype)
        if x.numel() == 0:  # which a Fourier transform refuses
            return (wide * kernel.sum()).to(x.dtype)
        size = 2 * self.max_length if self.causal else self.max_length
        places = torch.arange(x.shape[-3], device=x.device)
        # Copied to their places, and read from there: slices would export one length only.
        filled = wide.new_zeros(*x.shape[:-3], size, *x.shape[-2:])
        spectra = torch.fft.rfft(filled.index_copy(-3, places, wide), dim=-3)
        own = torch.fft.rfft(kernel, n=size, dim=0)
        factor = (spectra[..., self.target, :] * self.max_length**-0.5).unsqueeze(-2)
        factors = [factor] * self.num_modalities
        factors[self.target] = own.unsqueeze(-2).expand_as(factor)
        mixed: Tensor = torch.fft.irfft(spectra * torch.cat(factors, dim=-2), n=size, dim=-3)
        return mixed.index_select(-3, places).to(x.dtype)
