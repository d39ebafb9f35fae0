"""A router in which experts pick tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse._routing import ROUNDING, linear_scores
from mmfuse.layers import mask_absent
from mmfuse.losses import router_z_loss
from mmfuse.types import ChosenTokens, RouterOutput

__all__ = ["ExpertChoiceRouter"]


class ExpertChoiceRouter(nn.Module):
    r"""Let every expert pick its tokens (:cite:`zhou2022expertchoice`).

    .. math::
        \mathbf{p}_l = \operatorname{softmax}(\mathbf{W} \mathbf{x}_l), \qquad
        \mathcal{T}_e = \operatorname{top}_S(p_{1e}, \ldots, p_{Le}), \qquad
        S = \lceil c\, n / E \rceil

    Expert :math:`e` processes the :math:`S` tokens of a sequence with its highest probabilities,
    each with the weight :math:`p_{le}`; :math:`n` counts the valid tokens of the sequence, so that
    padding changes nothing. The load is even by construction; a token may get several experts, or
    none.

    .. note::
        A choice depends on later tokens of the sequence: not for causal models. For a choice over
        the whole batch, as in the paper, hand in one sequence: ``x.flatten(0, -2).unsqueeze(0)``.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        capacity_factor: Mean number :math:`c > 0` of experts for a token.

    Shape:
        - x: :math:`(\ldots, L, D)`
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - slots.token_index, slots.token_weight: :math:`(\ldots, E, S)`
        - expert_weight: :math:`(\ldots, L, E)`, zero where an expert did not pick the token

    Returns:
        :class:`~mmfuse.types.RouterOutput` with the loss ``"z"``.

    Raises:
        ValueError: If a size or ``capacity_factor`` is not positive, or shapes disagree.

    Example:
        >>> router = ExpertChoiceRouter(8, num_experts=4, capacity_factor=1.0)
        >>> routed = router(torch.randn(1, 12, 8))
        >>> (routed.expert_weight > 0).sum(-2)  # three tokens for each expert
        tensor([[3, 3, 3, 3]])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        capacity_factor: float = 2.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, capacity_factor=capacity_factor)
        self.dim = dim
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier)."""
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self,
        x: Tensor,  # (..., L, D)
        valid: Tensor | None = None,  # (..., L)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return what each expert picked; shapes are given in the class docstring."""
        check_shape("x", x, "L", self.dim)
        logits = linear_scores(x, self.weight, valid)
        probs = mask_absent(torch.softmax(logits, dim=-1), valid)
        length = x.shape[-2]
        slots = min(math.ceil(self.capacity_factor * length / self.num_experts - ROUNDING), length)
        scores = probs.mT if valid is None else probs.mT.masked_fill(~valid.unsqueeze(-2), -1)
        index = scores.topk(slots, dim=-1).indices
        weight = probs.mT.gather(-1, index)
        if valid is not None:
            real = valid.sum(-1).double()
            filled = (self.capacity_factor * real / self.num_experts - ROUNDING).ceil()
            filled = filled[..., None, None]
            rank = torch.arange(slots, device=x.device)
            weight = torch.where(rank < filled, weight, weight.new_zeros(()))
        wide = torch.zeros_like(probs.mT).scatter(-1, index, weight).mT
        chosen = ChosenTokens(index, weight.to(x.dtype))
        losses = {"z": router_z_loss(logits, valid)}
        return RouterOutput(wide.to(x.dtype), losses, None, logits, probs, chosen)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, "
            f"capacity_factor={self.capacity_factor}"
        )
