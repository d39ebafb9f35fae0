"""Attention over modalities by learned questions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_divides, check_positive, check_shape
from mmfuse.layers import mask_absent, masked_softmax
from mmfuse.types import FusionOutput

__all__ = ["AttentionPoolingFusion"]


class AttentionPoolingFusion(nn.Module):
    r"""Attention pooling by learned queries (:cite:`lee2019settransformer`, Section 3.2).

    .. math::
        \mathbf{y} = \mathbf{W}_O \left[ \ldots; \sum_m w_{hm} \mathbf{W}_{V,h} \mathbf{x}_m;
        \ldots \right], \qquad
        w_{hm} = \frac{p_m \exp(\mathbf{q}_h^\top \mathbf{W}_{K,h} \mathbf{x}_m / \sqrt{D / H})}
        {\sum_j p_j \exp(\mathbf{q}_h^\top \mathbf{W}_{K,h} \mathbf{x}_j / \sqrt{D / H})}

    where :math:`p_m` tells whether modality :math:`m` was observed: attention runs over modalities,
    never over time, and an absent one has weight zero, so that dropping it equals masking it.
    Modalities share the maps: a permutation of them changes nothing. Nothing present gives zero.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_heads: Number :math:`H` of queries, each on :math:`D / H` entries.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`, the
          mean over the heads

    Returns:
        :class:`~mmfuse.types.FusionOutput` without losses.

    Raises:
        ValueError: If a size is not positive, ``num_heads`` does not divide ``dim``, or shapes
            disagree.

    Example:
        >>> fusion = AttentionPoolingFusion(8, num_modalities=3, num_heads=2)
        >>> fusion(torch.randn(2, 3, 8)).weights.sum(-1).round(decimals=4)
        tensor([1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_divides(num_heads=num_heads, dim=dim)
        self.dim = dim
        self.num_modalities = num_modalities
        self.num_heads = num_heads
        self.query = nn.Parameter(
            torch.empty(num_heads, dim // num_heads, device=device, dtype=dtype)
        )
        self.key = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh queries and maps (Xavier)."""
        nn.init.normal_(self.query)
        for part in (self.key, self.value, self.out):
            nn.init.xavier_uniform_(part.weight)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        heads = (self.num_heads, -1)
        keys, values = (part(x).unflatten(-1, heads) for part in (self.key, self.value))
        scale = keys.shape[-1] ** -0.5
        scores = scale * torch.einsum("hd,...mhd->...hm", self.query, keys)
        there = None if present is None else present.unsqueeze(-2).expand(scores.shape)
        weights = masked_softmax(scores, there)
        pooled = torch.einsum("...hm,...mhd->...hd", weights, values).flatten(-2)
        return FusionOutput(self.out(pooled), weights.mean(-2), {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, num_heads={self.num_heads}"
