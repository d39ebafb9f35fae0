"""What a router did: loads, dead experts, entropy, dropped choices, experts of categories."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._checks import check_index, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32, without_autocast
from mmfuse._routing import count_choices, spread
from mmfuse.layers import mask_absent
from mmfuse.losses import cv_squared_loss, router_entropy_loss
from mmfuse.types import RouterOutput

__all__ = [
    "tokens_per_expert",
    "dead_experts",
    "load_cv",
    "RoutingEntropy",
    "routing_entropy",
    "dropped_share",
    "category_expert_use",
    "category_expert_overlap",
]


def tokens_per_expert(
    routed: RouterOutput, num_experts: int, valid: Tensor | None = None
) -> Tensor:  # valid (...) -> (E,)
    r"""How many tokens each expert processes.

    .. math::
        n_e = \sum_{t, k} [\, i_{tk} = e \,], \qquad
        n_e = \sum_t [\, w_{te} \neq 0 \,] \text{ where there is no index}

    over the valid tokens: a dense router uses every expert, experts that pick use what they picked.

    Args:
        routed: What the router returned.
        num_experts: Number :math:`E` of experts.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - valid: :math:`(\ldots)`, the tokens of ``routed``; output: :math:`(E)`

    Returns:
        The counts, int64.

    Raises:
        ValueError: If a number is not positive, ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> routed = RouterOutput(torch.ones(3, 1), {}, torch.tensor([[0], [2], [2]]))
        >>> tokens_per_expert(routed, num_experts=3)
        tensor([1, 0, 2])
    """
    check_positive(num_experts=num_experts)
    weight, index = _choices(routed, valid)
    if index is not None:
        check_index("expert_index", index, "num_experts", num_experts)
        return count_choices(index, num_experts)
    check_shape("expert_weight", weight, num_experts)
    return (weight != 0).reshape(-1, num_experts).sum(0)


def dead_experts(tokens_per_expert: Tensor) -> Tensor:  # (E,) -> (E,)
    r"""Experts that process no token.

    .. math::
        d_e = [\, n_e = 0 \,]

    Args:
        tokens_per_expert: Tokens of each expert, summed over as many batches as you like.

    Shape:
        - tokens_per_expert, output: :math:`(E)`

    Returns:
        Boolean, true where dead.

    Raises:
        ValueError: If there is another number of dimensions than one.

    Example:
        >>> dead_experts(torch.tensor([1, 0, 2]))
        tensor([False,  True, False])
    """
    check_shape("tokens_per_expert", tokens_per_expert, "E", leading=False)
    return tokens_per_expert == 0


def load_cv(tokens_per_expert: Tensor) -> Tensor:  # (E,) -> ()
    r"""Coefficient of variation of the load, the root of :func:`~mmfuse.losses.cv_squared_loss`.

    .. math::
        c = \frac{\operatorname{Std}_e(n_e)}{\operatorname{Mean}_e(n_e)}

    Args:
        tokens_per_expert: Tokens of each expert.

    Shape:
        - tokens_per_expert: :math:`(E)`; output: :math:`()`

    Returns:
        Zero (even load, or no token) to :math:`\sqrt{E - 1}` (one busy expert), in float32.

    Raises:
        ValueError: If there is another number of dimensions than one.

    Example:
        >>> load_cv(torch.tensor([3, 0]))
        tensor(1.)
    """
    check_shape("tokens_per_expert", tokens_per_expert, "E", leading=False)
    return cv_squared_loss(tokens_per_expert).sqrt()


class RoutingEntropy(NamedTuple):
    r"""Entropies of routing in nats; their difference is what the expert says about the token.

    .. math::
        I(t; e) = h_{\text{marginal}} - h_{\text{token}} \geq 0

    Args:
        token: Mean entropy of a token's probabilities; low where the router is sure.
        marginal: Entropy of the mean probabilities; high where all experts are used.

    Shape:
        - token, marginal, the output of :func:`routing_entropy`: :math:`()`

    Raises:
        AttributeError: If a field is assigned to.

    Example:
        >>> RoutingEntropy(token=torch.tensor(0.0), marginal=torch.tensor(0.5)).marginal
        tensor(0.5000)
    """

    token: Tensor
    marginal: Tensor


def routing_entropy(
    router_probs: Tensor,  # (..., E)
    valid: Tensor | None = None,  # (...)
) -> RoutingEntropy:
    r"""Entropy of a token's routing, and of the routing of all tokens together.

    .. math::
        h_{\text{token}} = \frac{1}{T} \sum_t H(\mathbf{p}_t), \qquad
        h_{\text{marginal}} = H\Bigl( \frac{1}{T} \sum_t \mathbf{p}_t \Bigr), \qquad
        H(\mathbf{p}) = -\sum_e p_e \log p_e

    Args:
        router_probs: Probabilities of the router.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - router_probs: :math:`(\ldots, E)`; valid: :math:`(\ldots)`
        - output: :math:`()` each

    Returns:
        Both, from zero to :math:`\log E`, in float32 at least; zero where no token is valid.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> routing_entropy(torch.eye(2))
        RoutingEntropy(token=tensor(0.), marginal=tensor(0.6931))
    """
    token = router_entropy_loss(router_probs, valid)
    probs = mask_absent(router_probs.to(token.dtype), valid).reshape(-1, router_probs.shape[-1])
    count = probs.new_tensor(len(probs)) if valid is None else valid.sum()
    return RoutingEntropy(token, router_entropy_loss(probs.sum(0) / count.clamp_min(1)))


def dropped_share(routed: RouterOutput, valid: Tensor | None = None) -> Tensor:  # valid (...) -> ()
    r"""Share of the choices that came to nothing, such as for want of capacity.

    .. math::
        s = \frac{1}{T K} \sum_{t, k} [\, i_{tk} = -1 \,]

    where :math:`t` runs over the valid tokens; padding without ``valid`` counts as dropped.

    Args:
        routed: What the router returned, or the same with choices replaced.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - valid: :math:`(\ldots)`, the tokens of ``routed``; output: :math:`()`

    Returns:
        The share, float32; without an index, that of the tokens that no expert took.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> dropped_share(RouterOutput(torch.ones(2, 2), {}, torch.tensor([[0, 1], [1, -1]])))
        tensor(0.2500)
    """
    weight, index = _choices(routed, valid)
    lost = (weight == 0).all(-1, keepdim=True) if index is None else index < 0
    asked = mask_absent(torch.ones_like(lost), valid)
    return (asked & lost).sum() / asked.sum().clamp_min(1)


def category_expert_use(
    routed: RouterOutput,
    num_experts: int,
    categories: Tensor,  # (...)
    num_categories: int,
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # (C, E)
    r"""How the tokens of each category spread over the experts.

    .. math::
        u_{ce} = \frac{\sum_{t : c_t = c} |w_{te}|}{\sum_{e'} \sum_{t : c_t = c} |w_{te'}|}

    where :math:`w_{te}` is zero for an expert that token :math:`t` did not choose.

    Args:
        routed: What the router returned, with weights of all experts or of the chosen ones.
        num_experts: Number :math:`E` of experts.
        categories: Category of each token, int64; -100 where unknown, which counts for none.
        num_categories: Number :math:`C` of categories.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - categories, valid: :math:`(\ldots)`, the tokens of ``routed``; output: :math:`(C, E)`

    Returns:
        Shares, in float32 at least; a category without tokens (or weights) has a row of zeros.

    Raises:
        ValueError: If a number is not positive, ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> routed = RouterOutput(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), {})
        >>> category_expert_use(routed, 2, torch.tensor([0, 1, 1]), num_categories=2)
        tensor([[1.0000, 0.0000],
                [0.2000, 0.8000]])
    """
    check_positive(num_experts=num_experts, num_categories=num_categories)
    weight, index = _choices(routed, valid)
    check_shape("categories", categories, *weight.shape[:-1], leading=False)
    amount = weight.to(at_least_float32(weight))
    amount = amount if index is None else spread(amount, index, num_experts)
    check_shape("expert_weight", amount, num_experts)
    known = categories != -100 if valid is None else valid & (categories != -100)
    amount = mask_absent(amount.abs(), known).reshape(-1, num_experts)
    rows = torch.where(known, categories, 0).flatten()
    use = amount.new_zeros(num_categories, num_experts).index_add(0, rows, amount)
    return F.normalize(use, p=1.0, dim=-1)


def category_expert_overlap(category_expert_use: Tensor) -> Tensor:  # (C, E) -> (C, C)
    r"""How alike categories are in the experts they use: zero where they share none.

    .. math::
        o_{cd} = \cos(\mathbf{u}_c, \mathbf{u}_d)

    Args:
        category_expert_use: What :func:`category_expert_use` returned.

    Shape:
        - category_expert_use: :math:`(C, E)`; output: :math:`(C, C)`

    Returns:
        Cosines, in float32 at least; zero in the row and column of a category without tokens.

    Raises:
        ValueError: If there is another number of dimensions than two.

    Example:
        >>> category_expert_overlap(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """
    check_shape("category_expert_use", category_expert_use, "C", "E", leading=False)
    unit = F.normalize(category_expert_use.to(at_least_float32(category_expert_use)), dim=-1)
    with without_autocast(unit.device):
        return unit @ unit.mT


def _choices(routed: RouterOutput, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights and index, zero and -1 where not valid."""
    weight, index = routed.expert_weight, routed.expert_index
    check_shape("expert_weight", weight, "E" if index is None else "K")
    if index is not None:
        check_shape("expert_index", index, *weight.shape, leading=False)
    if valid is None:
        return weight, index
    check_mask("valid", valid, weight.shape[:-1])
    chosen = None if index is None else index.masked_fill(~valid.unsqueeze(-1), -1)
    return mask_absent(weight, valid), chosen
