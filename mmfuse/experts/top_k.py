"""Routers that send a token to its K best experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_at_most, check_positive
from mmfuse._routing import choose, linear_scores, log_sum, picked, spread
from mmfuse.layers import mask_absent
from mmfuse.losses import cv_squared_loss, load_balance_loss, router_z_loss
from mmfuse.types import RouterOutput

__all__ = ["NoisyTopKRouter", "TopKRouter"]

_LEAST_DEVIATION = 0.01


class TopKRouter(nn.Module):
    r"""Send a token to its K most probable experts (:cite:`fedus2022switch,jiang2024mixtral`).

    .. math::
        \mathbf{p} = \operatorname{softmax}(\mathbf{W} \mathbf{x}), \qquad
        \mathcal{K} = \operatorname{top}_K(\mathbf{p}), \qquad
        g_k = \frac{p_k}{\sum_{j \in \mathcal{K}} p_j} \quad (k \in \mathcal{K})

    or :math:`g_k = p_k` without ``normalize``. Computed in float32 at least; the same in training
    and evaluation.

    .. note::
        A normalised weight of a single expert is always one and teaches the router nothing, so
        ``normalize=None`` normalises where :math:`K > 1` only: Mixtral's way there, Switch's
        for :math:`K = 1`.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        top_k: Number :math:`K` of experts for each token.
        normalize: Whether the weights of a token sum to one; ``None`` means where ``top_k > 1``.

    Shape:
        - x: :math:`(\ldots, D)`
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - expert_weight, expert_index: :math:`(\ldots, K)`; zero and -1 at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput` with the losses ``"balance"``
        (:func:`~mmfuse.losses.load_balance_loss`) and ``"z"``
        (:func:`~mmfuse.losses.router_z_loss`).

    Raises:
        ValueError: If a size is not positive, ``top_k`` exceeds ``num_experts``, or shapes
            disagree.

    Example:
        >>> router = TopKRouter(8, num_experts=4, top_k=2)
        >>> router(torch.randn(5, 8)).expert_index.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        normalize: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, top_k=top_k)
        check_at_most("num_experts", num_experts, top_k=top_k)
        self.dim = dim
        self.num_experts = num_experts
        self.top_k = top_k
        self.normalize = top_k > 1 if normalize is None else normalize
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier)."""
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,
    ) -> RouterOutput:
        """Return the chosen experts; shapes are given in the class docstring."""
        logits = linear_scores(x, self.weight, valid)
        probs = torch.softmax(logits, dim=-1)
        index = choose(logits, self.top_k, valid)
        # The log-sum of one number is that number, so the loss of log-sums is that of the logits.
        z_loss = router_z_loss(log_sum(logits, probs, index), valid)
        probs = mask_absent(probs, valid)
        if self.normalize:
            weight = torch.softmax(picked(logits, index), dim=-1)
        else:
            weight = picked(probs, index)
        losses = {"balance": load_balance_loss(probs, index, valid), "z": z_loss}
        weight = mask_absent(weight, valid).to(x.dtype)
        return RouterOutput(weight, losses, index, logits, probs)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_experts={self.num_experts}, top_k={self.top_k}, "
            f"normalize={self.normalize}"
        )


class NoisyTopKRouter(nn.Module):
    r"""Send a token to its K best experts after noise (:cite:`shazeer2017moe`, Eq. 3-5, 8-11).

    .. math::
        h_e = (\mathbf{W} \mathbf{x})_e + \varepsilon_e \sigma_e, \qquad
        \boldsymbol{\sigma} = \operatorname{softplus}(\mathbf{W}_n \mathbf{x}) + 0.01, \qquad
        \varepsilon_e \sim \mathcal{N}(0, 1), \qquad
        \mathbf{g} = \operatorname{softmax}(\operatorname{top}_K(\mathbf{h}))

    The noise is drawn in training only; the 0.01 is the floor of the authors' code, without which
    the load below has no finite gradient. The load of an expert is smooth, so that it has a
    gradient: the probability that the expert is among the K best when its own noise is drawn
    again,

    .. math::
        P_e = \Phi\!\left( \frac{(\mathbf{W} \mathbf{x})_e - \kappa_e}{\sigma_e} \right)

    where :math:`\kappa_e` is the K-th highest of the other experts' noisy scores, compared as
    scores, before any softmax. In evaluation the load is a count.

    Args:
        dim: Size :math:`D` of a token.
        num_experts: Number :math:`E` of experts.
        top_k: Number :math:`K` of experts for each token.

    Shape:
        - x: :math:`(\ldots, D)`
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: ignored; here so that routers can be exchanged
        - generator: draws the noise; ``None`` means torch's own
        - expert_weight, expert_index: :math:`(\ldots, K)`; zero and -1 at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput` with the losses ``"importance"`` and ``"load"``
        (:func:`~mmfuse.losses.cv_squared_loss`) and ``"z"``.

    Raises:
        ValueError: If a size is not positive, ``top_k`` exceeds ``num_experts``, or shapes
            disagree.

    Example:
        >>> router = NoisyTopKRouter(8, num_experts=4, top_k=2).eval()
        >>> x = torch.randn(5, 8)
        >>> torch.equal(router(x).expert_index, router(x).expert_index)
        True
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_experts=num_experts, top_k=top_k)
        check_at_most("num_experts", num_experts, top_k=top_k)
        self.dim = dim
        self.num_experts = num_experts
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.noise_weight = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier); the noise starts with the deviation log 2 + 0.01."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.noise_weight)

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> RouterOutput:
        """Return the chosen experts; shapes are given in the class docstring."""
        clean = noisy = linear_scores(x, self.weight, valid)
        deviation = F.softplus(linear_scores(x, self.noise_weight, valid)) + _LEAST_DEVIATION
        if self.training:
            draw = torch.randn(
                clean.shape, generator=generator, device=clean.device, dtype=clean.dtype
            )
            noisy = clean + draw * deviation
        probs, index = torch.softmax(noisy, dim=-1), choose(noisy, self.top_k, valid)
        weight = mask_absent(torch.softmax(picked(noisy, index), dim=-1), valid)
        if self.training:
            load = _chance_of_being_chosen(clean, noisy, deviation, self.top_k)
        else:
            load = spread(torch.ones_like(weight), index, self.num_experts)
        losses = {
            "importance": cv_squared_loss(spread(weight, index, self.num_experts), valid),
            "load": cv_squared_loss(load, valid),
            "z": router_z_loss(log_sum(noisy, probs, index), valid),
        }
        return RouterOutput(weight.to(x.dtype), losses, index, noisy, mask_absent(probs, valid))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, top_k={self.top_k}"


def _chance_of_being_chosen(clean: Tensor, noisy: Tensor, deviation: Tensor, top_k: int) -> Tensor:
    """P(e is among the K best) if only the noise of e is drawn again."""
    if top_k == noisy.shape[-1]:
        return torch.ones_like(clean)  # everybody is
    best = noisy.topk(top_k + 1, dim=-1).values
    last_in, first_out = best[..., top_k - 1 : top_k], best[..., top_k:]
    threshold = torch.where(noisy >= last_in, first_out, last_in)
    chance: Tensor = torch.special.ndtr((clean - threshold) / deviation)
    return chance
