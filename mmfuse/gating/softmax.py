"""A gate that scores each modality by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse._precision import at_least_float32, without_autocast
from mmfuse.layers import mask_absent, masked_softmax
from mmfuse.types import GateOutput

__all__ = ["SoftmaxGate"]


class SoftmaxGate(nn.Module):
    r"""Weigh modalities by one learned question, the attention of :cite:`bahdanau2015attention`.

    .. math::
        w_m = \frac{p_m \exp(s_m / \tau)}{\sum_j p_j \exp(s_j / \tau)},
        \qquad s_m = \mathbf{v}^\top \mathbf{x}_m

    where :math:`p_m` tells whether modality :math:`m` was observed. Absent modalities get weight
    exactly zero; where none was observed, all weights are zero. All modalities answer the same
    question :math:`\mathbf{v}`, so their number and order do not matter.

    .. note::
        The score is linear: the hidden layer of the paper is left to the projection.

    Args:
        dim: Size :math:`D` of a modality embedding.
        temperature: Softmax temperature :math:`\tau > 0`.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that gates can be exchanged
        - weights: :math:`(\ldots, M)`

    Returns:
        :class:`~mmfuse.types.GateOutput` without losses.

    Raises:
        ValueError: If ``dim`` or ``temperature`` is not positive, or shapes disagree.

    Example:
        >>> gate = SoftmaxGate(8)
        >>> x = torch.ones(3, 8)
        >>> gate(x, torch.tensor([True, True, False])).weights.detach()
        tensor([0.5000, 0.5000, 0.0000])
    """

    def __init__(
        self,
        dim: int,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, temperature=temperature)
        self.dim = dim
        self.temperature = temperature
        self.query = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a fresh question."""
        nn.init.normal_(self.query, std=1 / math.sqrt(self.dim))

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> GateOutput:
        """Return modality weights; shapes are given in the class docstring."""
        check_shape("x", x, "M", self.dim)
        wide = at_least_float32(x)
        with without_autocast(x.device):
            scores = mask_absent(x, present).to(wide) @ self.query.to(wide)
            weights = masked_softmax(scores, present, temperature=self.temperature)
        return GateOutput(weights.to(x.dtype), {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, temperature={self.temperature}"
