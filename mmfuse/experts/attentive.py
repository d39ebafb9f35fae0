"""A router that looks at the sequence before it decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_at_most, check_mask, check_positive, check_shape
from mmfuse._precision import without_autocast
from mmfuse._routing import choose, linear_scores, picked
from mmfuse.layers import mask_absent
from mmfuse.types import RouterOutput

__all__ = ["AttentiveRouter", "attentive_routing"]


def attentive_routing(
    query: Tensor,  # (..., L, E)
    key: Tensor,  # (..., L, E)
    value: Tensor,  # (..., L, E)
    valid: Tensor | None = None,  # (..., L)
    *,
    causal: bool = True,
) -> Tensor:  # (..., L, E)
    r"""Expert weights by self-attention over the sequence (Eq. 7).

    .. math::
        \mathbf{G} = \operatorname{softmax}\!\left(
        \frac{\mathbf{Q} \mathbf{K}^\top}{\sqrt{E}} \right) \mathbf{V}

    The softmax runs over the valid positions, the earlier ones and the own one only if
    ``causal``. The weights at a position that is not valid are zero.

    Args:
        query: What each position asks.
        key: What each position answers to.
        value: What each position votes for.
        valid: Boolean, true at real positions, false at padding; ``None`` means all.
        causal: Whether a position sees only itself and earlier ones.

    Shape:
        - query, key, value, output: :math:`(\ldots, L, E)`
        - valid: :math:`(\ldots, L)`

    Returns:
        Unnormalised expert weights.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> value = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> zeros = torch.zeros(1, 2, 2)  # nothing to prefer: the mean of what is seen
        >>> attentive_routing(zeros, zeros, value)
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000]]])
    """
    check_shape("query", query, "L", "E")
    check_shape("key", key, *query.shape, leading=False)
    check_shape("value", value, *query.shape, leading=False)
    if valid is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    check_mask("valid", valid, query.shape[:-1])
    query, key, value = (mask_absent(part, valid) for part in (query, key, value))
    length = query.shape[-2]
    square = torch.ones(length, length, dtype=torch.bool, device=query.device)
    seen = valid.unsqueeze(-2) & (square.tril() if causal else square)
    itself = torch.eye(length, dtype=torch.bool, device=query.device)  # no row without a key
    weights = F.scaled_dot_product_attention(query, key, value, attn_mask=seen | itself)
    return mask_absent(weights, valid)


class AttentiveRouter(nn.Module):
    r"""Weigh experts by self-attention over the sequence (:cite:`xu2026cammsr`, Eq. 6-7).

    .. math::
        \mathbf{G} = \operatorname{softmax}\!\left(
        \frac{\mathbf{Q} \mathbf{K}^\top}{\sqrt{E}} \right) \mathbf{V}, \qquad
        \mathbf{Q}, \mathbf{K}, \mathbf{V} = \mathbf{X} \mathbf{W}_{Q, K, V}

    with :math:`\mathbf{W}_{Q, K, V} \in \mathbb{R}^{D \times E}`. See :func:`attentive_routing`
    for causality and padding. Computed in float32 at least.

    .. note::
        As printed, the weights are not normalised: they may be negative and need not sum to one.
        ``normalize=True`` takes a softmax over the experts. ``top_k`` is ours: it keeps the
        weights that are largest in magnitude, before that softmax.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        causal: Whether a position sees only itself and earlier ones.
        normalize: Whether the weights of a token sum to one.
        top_k: How many experts each token keeps; ``None`` means all.

    Shape:
        - x: :math:`(\ldots, L, D)`
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - expert_weight: :math:`(\ldots, L, E)`, zero at padding; with ``top_k``
          :math:`(\ldots, L, K)` beside expert_index, -1 at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput` without losses.

    Raises:
        ValueError: If a size is not positive, ``top_k`` exceeds ``num_experts``, or shapes
            disagree.

    Example:
        >>> router = AttentiveRouter(8, num_experts=4)
        >>> router(torch.randn(2, 5, 8)).expert_weight.shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        causal: bool = True,
        normalize: bool = False,
        top_k: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            dim=dim, num_experts=num_experts, top_k=num_experts if top_k is None else top_k
        )
        check_at_most("num_experts", num_experts, top_k=top_k or 1)
        self.dim = dim
        self.num_experts = num_experts
        self.causal = causal
        self.normalize = normalize
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(3, num_experts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier) for query, key and value."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        valid: Tensor | None = None,  # (..., L)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return expert weights; shapes are given in the class docstring."""
        check_shape("x", x, "L", self.dim)
        joint = linear_scores(x, self.weight.flatten(0, 1), valid)
        query, key, value = joint.unflatten(-1, (3, self.num_experts)).unbind(-2)
        with without_autocast(x.device):
            weights = attentive_routing(query, key, value, valid, causal=self.causal)
        index = None
        if self.top_k is not None:
            index = choose(weights.abs(), self.top_k, valid)
            weights = picked(weights, index)
        if self.normalize:
            weights = torch.softmax(weights, dim=-1)
        weights = mask_absent(weights, valid)
        return RouterOutput(weights.to(x.dtype), {}, index)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, causal={self.causal}, "
            f"normalize={self.normalize}, top_k={self.top_k}"
        )
