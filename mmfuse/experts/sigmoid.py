"""A router whose load is balanced by a bias instead of a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mmfuse._checks import check_at_most, check_positive
from mmfuse._precision import at_least_float32
from mmfuse._routing import choose, count_choices, linear_scores, picked
from mmfuse.layers import mask_absent
from mmfuse.losses import load_balance_loss, router_z_loss
from mmfuse.types import RouterOutput

__all__ = ["SigmoidRouter"]


class SigmoidRouter(nn.Module):
    r"""Choose by sigmoid score plus a bias that evens out the load (:cite:`wang2024lossfree`).

    .. math::
        s_e = \sigma\!\left( (\mathbf{W} \mathbf{x})_e \right), \qquad
        \mathcal{K} = \operatorname{top}_K(\mathbf{s} + \mathbf{b}), \qquad
        g_k = \frac{s_k}{\sum_{j \in \mathcal{K}} s_j}

    The bias :math:`\mathbf{b}` decides who is chosen and never how much a choice counts. It has no
    gradient, and stays in float32 at least. :meth:`update_bias`, called after a training step,
    moves it by a fixed step towards an even load:

    .. math::
        b_e \leftarrow b_e + u \operatorname{sign}\!\left( \bar{n} - n_e \right)

    where :math:`n_e` is how many tokens expert :math:`e` got in the step. ``forward`` changes
    nothing: the buffer ``expert_bias`` is written by :meth:`update_bias` alone, and is saved with
    the weights.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        top_k: Number :math:`K` of experts for each token.
        normalize: Whether the weights of a token sum to one; ``None`` means where ``top_k > 1``.
        bias_rate: Step :math:`u > 0` of the bias.

    Shape:
        - x: :math:`(\ldots, D)`
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - expert_weight, expert_index: :math:`(\ldots, K)`; zero and -1 at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput`; its ``router_probs`` are the scores divided by their
        sum. Losses ``"balance"`` and ``"z"`` come along for those who want them as well.

    Raises:
        ValueError: If a size or ``bias_rate`` is not positive, ``top_k`` exceeds ``num_experts``,
            or shapes disagree.

    Example:
        >>> router = SigmoidRouter(8, num_experts=4, top_k=1, bias_rate=0.5)
        >>> routed = router(torch.ones(3, 8))  # all to one expert
        >>> router.update_bias(routed.expert_index)
        >>> router.expert_bias.sort().values
        tensor([-0.5000,  0.5000,  0.5000,  0.5000])
    """

    expert_bias: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        normalize: bool | None = None,
        bias_rate: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, top_k=top_k, bias_rate=bias_rate)
        check_at_most("num_experts", num_experts, top_k=top_k)
        self.dim = dim
        self.num_experts = num_experts
        self.top_k = top_k
        self.normalize = top_k > 1 if normalize is None else normalize
        self.bias_rate = bias_rate
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        wide = at_least_float32(self.weight)
        self.register_buffer("expert_bias", torch.empty(num_experts, device=device, dtype=wide))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier); no expert is preferred."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.expert_bias)

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return the chosen experts; shapes are given in the class docstring."""
        logits = linear_scores(x, self.weight, valid)
        scores = logits.sigmoid()
        index = choose(scores.detach() + self.expert_bias.to(scores.dtype), self.top_k, valid)
        shares = F.logsigmoid(logits)  # their softmax is s / sum(s), even where every s is tiny
        if self.normalize:
            weight = torch.softmax(picked(shares, index), dim=-1)
        else:
            weight = picked(scores, index)
        probs = mask_absent(torch.softmax(shares, dim=-1), valid)
        losses = {
            "balance": load_balance_loss(probs, index, valid),
            "z": router_z_loss(logits, valid),
        }
        weight = mask_absent(weight, valid).to(x.dtype)
        return RouterOutput(weight, losses, index, logits, probs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SigmoidRouter:
        """Move and cast, but keep the bias in float32: half precision swallows its small steps."""
        bias = self.expert_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        if self.expert_bias.dtype in (torch.float16, torch.bfloat16):
            self.expert_bias = bias.to(self.expert_bias.device)
        return self

    @torch.no_grad()
    def update_bias(self, expert_index: Tensor) -> None:
        """Move the bias by one step towards an even load; call it once after a training step.

        Where :mod:`torch.distributed` is initialised, the tokens of all processes count, and every
        process must call.

        Args:
            expert_index: The choices of the step, as ``forward`` returned them; -1 counts for none.
        """
        counts = count_choices(expert_index, self.num_experts)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
        load = counts.to(self.expert_bias.dtype)
        self.expert_bias += self.bias_rate * (load.mean() - load).sign()

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, top_k={self.top_k}, "
            f"normalize={self.normalize}, bias_rate={self.bias_rate}"
        )
