"""A router that learns nothing: experts by category."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfuse._checks import check_at_most, check_index, check_mask, check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import RouterOutput

__all__ = ["HashRouter"]


class HashRouter(nn.Module):
    r"""Send a token to the experts of its category (:cite:`roller2021hash`).

    .. math::
        \mathcal{K}(x) = \left\{ h_1(c_x), \ldots, h_K(c_x) \right\}, \qquad g_k = \frac{1}{K}

    where :math:`c_x` is the category of the token and the :math:`h_k` are fixed, drawn once, and
    never the same expert twice for one category. Unknown categories (-100, or any negative number)
    share one hash of their own. The experts are spread evenly over the categories, or, with
    ``counts``, over the tokens: categories in order of frequency go to the experts with the least
    load so far (the paper's balanced assignment).

    Args:
        num_categories: Number :math:`C` of categories.
        num_experts: Number :math:`E` of experts.
        top_k: Number :math:`K` of experts for each token.
        counts: How often each category occurs, for an even load; ``None`` means equally often.
        seed: Draws the assignment.

    Shape:
        - x: :math:`(\ldots, D)`, read for its dtype only
        - valid: :math:`(\ldots)`, boolean, false at padding
        - context: the categories, :math:`(\ldots)`, int64, -100 where unknown
        - expert_weight, expert_index: :math:`(\ldots, K)`; zero and -1 at padding

    Returns:
        :class:`~mmfuse.types.RouterOutput` without losses: there is nothing to learn.

    Raises:
        ValueError: If a size is not positive, ``top_k`` exceeds ``num_experts``, ``counts`` has
            another length than ``num_categories``, the categories are missing, no integers, or (on
            the CPU) :math:`C` and more, or shapes disagree.

    Example:
        >>> router = HashRouter(num_categories=6, num_experts=3)
        >>> routed = router(torch.randn(6, 8), context=torch.arange(6))
        >>> routed.expert_index.flatten().bincount()  # two categories for each expert
        tensor([2, 2, 2])
    """

    table: Tensor

    def __init__(
        self,
        num_categories: int,
        num_experts: int,
        top_k: int = 1,
        *,
        counts: Sequence[float] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_categories=num_categories, num_experts=num_experts, top_k=top_k)
        check_at_most("num_experts", num_experts, top_k=top_k)
        if counts is not None and len(counts) != num_categories:
            raise ValueError(
                f"Expected counts of {num_categories} categories, got {len(counts)} counts."
            )
        self.num_categories = num_categories
        self.num_experts = num_experts
        self.top_k = top_k
        self.seed = seed
        self.counts = (1.0,) * num_categories if counts is None else tuple(counts)
        table = torch.empty(num_categories + 1, top_k, dtype=torch.int64, device=device)
        self.register_buffer("table", table)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Assign the experts again, as they were: the seed says how."""
        self.table.copy_(_assign(self.counts, self.num_experts, self.top_k, self.seed))

    def forward(
        self,
        x: Tensor,  # (..., D)
        valid: Tensor | None = None,  # (...)
        context: Tensor | None = None,  # (...)
    ) -> RouterOutput:
        """Return the experts of each category; shapes are given in the class docstring."""
        check_shape("x", x, "D")
        if context is None:
            raise ValueError("Expected context of categories (...), got None.")
        check_shape("context", context, *x.shape[:-1], leading=False)
        if valid is not None:
            check_mask("valid", valid, x.shape[:-1])
            context = context.masked_fill(~valid, -100)
        check_index("context", context, "num_categories", self.num_categories)
        known = self.table[: self.num_categories][context.clamp_min(0).long()]
        index = torch.where(context.unsqueeze(-1) < 0, self.table[self.num_categories], known)
        weight = x.new_full(index.shape, 1 / self.top_k)
        if valid is not None:
            index = index.masked_fill(~valid.unsqueeze(-1), -1)
        return RouterOutput(mask_absent(weight, valid), {}, index)

    def extra_repr(self) -> str:
        return (
            f"num_categories={self.num_categories}, num_experts={self.num_experts}, "
            f"top_k={self.top_k}, seed={self.seed}"
        )


def _assign(counts: Sequence[float], num_experts: int, top_k: int, seed: int) -> Tensor:
    """Experts of each category, the unknown one last: the least loaded ones, frequent first."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randperm(len(counts), generator=generator, device="cpu").tolist()
    order = sorted(drawn, key=lambda category: -counts[category])
    load = [0.0] * num_experts
    table = torch.empty(len(counts) + 1, top_k, dtype=torch.int64, device="cpu")
    for category in [*order, len(counts)]:
        tie = torch.rand(num_experts, generator=generator, device="cpu").tolist()
        experts = sorted(range(num_experts), key=lambda e: (load[e], tie[e]))[:top_k]
        table[category] = torch.tensor(experts, device="cpu")
        for expert in experts:
            load[expert] += counts[category] if category < len(counts) else 0.0
    return table
