"""Losses that keep routing healthy: nobody overworked, nobody idle, logits small, experts apart."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfuse._checks import check_index, check_mask, check_shape
from mmfuse._precision import at_least_float32, unit, without_autocast
from mmfuse._routing import count_choices

__all__ = [
    "cv_squared_loss",
    "expert_diversity_loss",
    "load_balance_loss",
    "router_entropy_loss",
    "router_z_loss",
]


def load_balance_loss(
    router_probs: Tensor,  # (..., E)
    expert_index: Tensor,  # (..., K)
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # ()
    r"""Load balance of the Switch Transformer (:cite:`fedus2022switch`, Eq. 4-6), for any K.

    .. math::
        \mathcal{L} = E \sum_{e=1}^{E} f_e P_e, \qquad
        f_e = \frac{1}{T K} \sum_{t, k} [\, i_{tk} = e \,], \qquad
        P_e = \frac{1}{T} \sum_t p_{te}

    where :math:`f_e` is the share of choices that fell on expert :math:`e` and :math:`P_e` its
    mean probability; only :math:`P_e` has a gradient. One where the load is uniform, up to
    :math:`E / K` where it is not.

    Args:
        router_probs: Probabilities of the router.
        expert_index: Chosen experts; -1 (nobody) is no choice, and :math:`T K` leaves it out too.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - router_probs: :math:`(\ldots, E)`
        - expert_index: :math:`(\ldots, K)`
        - valid: :math:`(\ldots)`
        - output: :math:`()`

    Returns:
        The loss, in float32 at least; zero, with its graph, where no token is valid.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        >>> load_balance_loss(probs, torch.tensor([[0], [1]]))
        tensor(1.)
    """
    num_experts = router_probs.shape[-1]
    check_shape("expert_index", expert_index, *router_probs.shape[:-1], "K", leading=False)
    probs = _real("router_probs", router_probs, valid)
    if valid is not None:
        expert_index = expert_index.masked_fill(~valid.unsqueeze(-1), -1)
    check_index("expert_index", expert_index, "num_experts", num_experts)
    counts = count_choices(expert_index, num_experts).to(probs.dtype)
    share = counts / counts.sum().clamp_min(1)
    return num_experts * (share * _mean(probs, valid)).sum()


def cv_squared_loss(
    amount: Tensor,  # (..., E)
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # ()
    r"""Squared coefficient of variation over the experts (:cite:`shazeer2017moe`, Eq. 6-11).

    .. math::
        \mathcal{L} = \frac{\operatorname{Var}_e(a_e)}{\operatorname{Mean}_e(a_e)^2},
        \qquad a_e = \sum_t a_{te}

    The *importance loss* where the amounts are expert weights; the *load loss* where they are
    probabilities of being chosen. Zero where all experts get the same.

    .. note::
        The variance divides by :math:`E`, so that one expert has none.

    Args:
        amount: What each token gives to each expert; not negative.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - amount: :math:`(\ldots, E)`
        - valid: :math:`(\ldots)`
        - output: :math:`()`

    Returns:
        The loss, in float32 at least; zero, with its graph, where no token is valid.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> cv_squared_loss(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        tensor(1.)
    """
    total = _real("amount", amount, valid).reshape(-1, amount.shape[-1]).sum(0)
    mean = total.mean()
    scale = torch.where(mean == 0, torch.ones_like(mean), mean)  # nothing given: no variation
    return (total / scale).var(unbiased=False)


def router_z_loss(
    router_logits: Tensor,  # (..., E)
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # ()
    r"""Keep router logits small (:cite:`zoph2022stmoe`, Eq. 5).

    .. math::
        \mathcal{L} = \frac{1}{T} \sum_t \Bigl( \log \sum_e \exp z_{te} \Bigr)^2

    Args:
        router_logits: Logits of the router.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - router_logits: :math:`(\ldots, E)`
        - valid: :math:`(\ldots)`
        - output: :math:`()`

    Returns:
        The loss, in float32 at least; zero, with its graph, where no token is valid.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> router_z_loss(torch.zeros(3, 1))
        tensor(0.)
    """
    log_sum = _real("router_logits", router_logits, valid).logsumexp(-1, keepdim=True)
    return _mean(_real("log_sum", log_sum.square(), valid), valid).sum()


def router_entropy_loss(
    router_probs: Tensor,  # (..., E)
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # ()
    r"""Mean entropy of a token's routing; low where the router is sure.

    .. math::
        \mathcal{L} = -\frac{1}{T} \sum_t \sum_e p_{te} \log p_{te}

    in nats, from zero to :math:`\log E`. A probability of zero adds nothing, and no gradient.

    Args:
        router_probs: Probabilities of the router.
        valid: Boolean, true at real tokens; ``None`` means all.

    Shape:
        - router_probs: :math:`(\ldots, E)`
        - valid: :math:`(\ldots)`
        - output: :math:`()`

    Returns:
        The loss, in float32 at least; zero, with its graph, where no token is valid.

    Raises:
        ValueError: If ``valid`` is not boolean, or shapes disagree.

    Example:
        >>> router_entropy_loss(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor(0.3466)
    """
    probs = _real("router_probs", router_probs, valid)
    surprise = torch.where(probs > 0, probs, torch.ones_like(probs)).log().neg()
    return _mean(probs * surprise, valid).sum()


def expert_diversity_loss(
    weight: Tensor,  # (E, *)
) -> Tensor:  # ()
    r"""Keep experts from becoming the same: mean squared cosine between their weights.

    .. math::
        \mathcal{L} = \frac{1}{E (E - 1)} \sum_{i \neq j}
        \left( \frac{\langle \mathbf{w}_i, \mathbf{w}_j \rangle}
        {\lVert \mathbf{w}_i \rVert \lVert \mathbf{w}_j \rVert} \right)^2

    Zero where all are orthogonal, one where all are parallel; the orthogonality that
    :cite:`liu2023omoe` ask of experts, as a penalty. Outputs of experts at the same tokens can be
    given instead of weights.

    Args:
        weight: One tensor an expert, stacked, such as ``experts.in_weight``.

    Shape:
        - weight: :math:`(E, \ast)`
        - output: :math:`()`

    Returns:
        The loss, in float32 at least; zero for one expert. A zero vector is similar to nothing.

    Raises:
        ValueError: If there is no dimension behind the first one.

    Example:
        >>> expert_diversity_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))
        tensor(0.3333)
    """
    check_shape("weight", weight, "E", "D")
    direction = unit(weight.flatten(1).to(at_least_float32(weight)))
    with without_autocast(weight.device):
        cosine = direction @ direction.mT
    pairs = max(len(direction) * (len(direction) - 1), 1)
    return 2 * cosine.triu(1).square().sum() / pairs


def _real(name: str, values: Tensor, valid: Tensor | None) -> Tensor:
    """The values in float32 at least, zero where not valid."""
    check_shape(name, values, "E")
    wide = values.to(at_least_float32(values))
    if valid is None:
        return wide
    check_mask("valid", valid, values.shape[:-1])
    return torch.where(valid.unsqueeze(-1), wide, wide.new_zeros(()))


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid tokens of values that are zero elsewhere."""
    flat = values.reshape(-1, values.shape[-1])
    count = torch.sym_max(flat.shape[0], 1) if valid is None else valid.sum().clamp_min(1)
    return flat.sum(0) / count
