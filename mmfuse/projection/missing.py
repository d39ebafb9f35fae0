"""Absent modalities: practise for them, and stand in for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_probability, check_shape
from mmfuse.types import Streams

__all__ = ["LearnedStandIn", "ModalityDropout"]


class ModalityDropout(nn.Module):
    r"""Hide whole modalities at random while training, after ModDrop (:cite:`neverova2016moddrop`).

    .. math::
        p'_m = p_m \wedge \left( u_m \ge p \;\vee\; u_m = \max_{j: p_j} u_j \right),
        \qquad u_m \sim \mathcal{U}(0, 1)

    Every present modality is hidden with probability :math:`p`, except that a row keeps at least
    one: if all were to go, one of them, drawn uniformly, stays. In eval mode nothing changes.

    .. note::
        The paper may hide every modality of a row; here a row never ends up empty.

    Args:
        p: Probability :math:`p \in [0, 1]` of hiding a modality.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean; ``None`` means all present
        - output: :math:`(\ldots, M)`, the new ``present``

    Raises:
        ValueError: If ``p`` is not a probability, or shapes disagree.

    Example:
        >>> dropout = ModalityDropout(1.0)  # all but one
        >>> dropout(torch.randn(2, 3, 8)).sum(-1)
        tensor([1, 1])
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        check_probability(p=p)
        self.p = p

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # (..., M)
        """Return what is left; shapes are given in the class docstring."""
        check_shape("x", x, "M", "D")
        if present is None:
            present = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        check_mask("present", present, x.shape[:-1])
        if not self.training or self.p == 0:
            return present
        draw = torch.rand(present.shape, generator=generator, device=x.device)
        draw = torch.where(present, draw, torch.full_like(draw, -1.0))
        return present & ((draw >= self.p) | (draw == draw.amax(-1, keepdim=True)))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LearnedStandIn(nn.Module):
    r"""Put a learned vector in the place of an absent modality.

    .. math::
        \mathbf{x}'_m = \begin{cases} \mathbf{x}_m & \text{present} \\
        \mathbf{s}_m & \text{absent} \end{cases}

    Whether it is there or not, the modality takes part in everything behind: the returned
    ``present`` is true everywhere. Use it where the absence itself is information.

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean; ``None`` means all present
        - output x: :math:`(\ldots, M, D)`; present: :math:`(\ldots, M)`, all true

    Returns:
        :class:`~mmfuse.types.Streams`.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> stand_in = LearnedStandIn(8, num_modalities=2)
        >>> x, present = stand_in(torch.randn(2, 8), torch.tensor([True, False]))
        >>> torch.equal(x[1], stand_in.vectors[1]), present
        (True, tensor([True, True]))
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        self.dim = dim
        self.num_modalities = num_modalities
        self.vectors = nn.Parameter(torch.empty(num_modalities, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh vectors."""
        nn.init.normal_(self.vectors, std=1 / math.sqrt(self.dim))

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
    ) -> Streams:
        """Return complete streams; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        everywhere = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        if present is None:
            return Streams(x, everywhere)
        check_mask("present", present, x.shape[:-1])
        return Streams(torch.where(present.unsqueeze(-1), x, self.vectors.to(x.dtype)), everywhere)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
