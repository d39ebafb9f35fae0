"""The sigmoid loss: every pair is a yes or a no by itself, and no row waits for the others."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_choice, check_mask, check_positive, check_shape
from mmfuse._contrast import (
    Reduction,
    check_ids,
    check_reduction,
    check_temperature,
    masked_unit,
    reduce_rows,
    same_ids,
)
from mmfuse._precision import at_least_float32, without_autocast

__all__ = ["SigmoidContrastiveLoss", "sigmoid_contrastive_loss"]

SameId = Literal["ignore", "positive"]


def sigmoid_contrastive_loss(
    query: Tensor,  # (B, D)
    positive_key: Tensor,  # (B, D)
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    same_id: SameId = "ignore",
    valid: Tensor | None = None,  # (B,)
    present: Tensor | None = None,  # (B, 2)
) -> Tensor:  # () or (B,)
    r"""Sigmoid loss of SigLIP (:cite:`zhai2023siglip`, Sec. 3.2), with cosine similarity.

    .. math::
        \ell_i = -\sum_j \log \sigma\bigl( z_{ij} (s_{ij} / \tau + b) \bigr),
        \qquad z_{ij} = \begin{cases} 1 & i = j \\ -1 & i \neq j \end{cases}

    No pair depends on another one, so that a row of which only one side is observed still takes
    part: its query is compared with the keys of others, or its key with their queries. Computed in
    float32 at least, under autocast too.

    .. note::
        The paper writes :math:`t` for :math:`1 / \tau`. Where ids repeat in the batch, it counts
        pairs of one id as negatives; here they leave, or are positives.

    Args:
        query: One side of the pairs.
        positive_key: The other; row :math:`i` belongs to query :math:`i`.
        temperature: Temperature :math:`\tau > 0`; a tensor of one number may have a gradient.
        bias: Bias :math:`b`, which weighs against the many negatives.
        reduction: ``"mean"`` over the rows that count, as in the paper, their ``"sum"``, or
            ``"none"``: one loss a query. A row counts where it is valid and one of its sides is
            present.
        ids: What each row is about, as integers; -100 is unknown, and nobody else's.
        same_id: What pairs of one id but different rows are: left out (``"ignore"``) or
            ``"positive"``.
        valid: Boolean; a row that is not valid is in no pair. Where none is valid the loss is zero
            and still part of the graph.
        present: Boolean; whether the query and whether the key is observed.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - temperature, bias: :math:`()`
        - ids, valid: :math:`(B)`
        - present: :math:`(B, 2)`
        - output: scalar, or :math:`(B)` without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``temperature`` is not positive, ``reduction`` or
            ``same_id`` is unknown, ``ids`` are not integers, or a mask is not boolean.

    Example:
        >>> query = torch.eye(2)
        >>> sigmoid_contrastive_loss(query, query, temperature=1.0, bias=0.0)
        tensor(1.0064)
    """
    check_shape("query", query, "B", "D", leading=False)
    check_shape("positive_key", positive_key, *query.shape, leading=False)
    temperature = _number("temperature", temperature, query)
    bias = _number("bias", bias, query)
    check_reduction(reduction)
    check_choice("same_id", same_id, ("ignore", "positive"))
    if ids is not None:
        check_ids("ids", ids, query.shape[0])
    asks, answers = _sides(valid, present, query.shape[0])
    with without_autocast(query.device):
        dtype = at_least_float32(query, positive_key)
        one, other = masked_unit(query, asks, dtype), masked_unit(positive_key, answers, dtype)
        logits = one @ other.mT / temperature + bias
        positive, kept = _pairs(logits, ids, same_id, asks, answers)
        losses = -F.logsigmoid(torch.where(positive, logits, -logits))
        losses = torch.where(kept, losses, torch.zeros_like(losses)).sum(-1)
    counts = None if asks is None or answers is None else asks | answers
    return reduce_rows(losses, counts, reduction)


class SigmoidContrastiveLoss(nn.Module):
    r"""Sigmoid loss of SigLIP (:cite:`zhai2023siglip`) with learned temperature and bias.

    .. math::
        \ell_i = -\sum_j \log \sigma\bigl( z_{ij} (s_{ij} e^{-\theta} + b) \bigr)

    where :math:`\theta = \log \tau` and :math:`b` are parameters; see
    :func:`sigmoid_contrastive_loss`. They start as in the paper: :math:`1 / \tau = 10` and
    :math:`b = -10`, where nearly all pairs are rightly taken for negatives.

    Args:
        temperature: Where the temperature :math:`\tau > 0` starts.
        bias: Where the bias starts.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        same_id: What pairs of one id but different rows are: ``"ignore"`` or ``"positive"``.

    Shape:
        - query, positive_key: :math:`(B, D)`
        - ids, valid: :math:`(B)`
        - present: :math:`(B, 2)`
        - output: scalar, or :math:`(B)` without reduction

    Raises:
        ValueError: As :func:`sigmoid_contrastive_loss`.

    Example:
        >>> loss = SigmoidContrastiveLoss()
        >>> loss(torch.eye(2), torch.eye(2))
        tensor(0.6932, grad_fn=<DivBackward0>)
        >>> loss.temperature()
        tensor(0.1000, grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        *,
        reduction: Reduction = "mean",
        same_id: SameId = "ignore",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_reduction(reduction)
        check_choice("same_id", same_id, ("ignore", "positive"))
        self.first_temperature = temperature
        self.first_bias = bias
        self.reduction: Reduction = reduction
        self.same_id: SameId = same_id
        self.log_temperature = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to where temperature and bias start."""
        nn.init.constant_(self.log_temperature, math.log(self.first_temperature))
        nn.init.constant_(self.bias, self.first_bias)

    def temperature(self) -> Tensor:  # ()
        """Return the temperature as it is now, in float32 at least."""
        wide = self.log_temperature.to(at_least_float32(self.log_temperature))
        return wide.squeeze(0).exp()

    def forward(
        self,
        query: Tensor,  # (B, D)
        positive_key: Tensor,  # (B, D)
        *,
        ids: Tensor | None = None,  # (B,)
        valid: Tensor | None = None,  # (B,)
        present: Tensor | None = None,  # (B, 2)
    ) -> Tensor:  # () or (B,)
        """Return the loss; shapes are given in the class docstring."""
        return sigmoid_contrastive_loss(
            query,
            positive_key,
            temperature=self.temperature(),
            bias=self.bias.squeeze(0),
            reduction=self.reduction,
            ids=ids,
            same_id=self.same_id,
            valid=valid,
            present=present,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.first_temperature}, bias={self.first_bias}, "
            f"reduction={self.reduction!r}, same_id={self.same_id!r}"
        )


def _number(name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number as it is; a tensor of one, in float32 at least."""
    if name == "temperature":
        check_temperature(value)
    if isinstance(value, Tensor):
        check_shape(name, value, leading=False)
        return value.to(at_least_float32(like))
    return value


def _sides(
    valid: Tensor | None,  # (B,)
    present: Tensor | None,  # (B, 2)
    rows: int,
) -> tuple[Tensor, Tensor] | tuple[None, None]:  # (B,), (B,)
    """Where there is a query, and where a key."""
    if valid is not None:
        check_mask("valid", valid, (rows,))
    if present is None:
        return (None, None) if valid is None else (valid, valid)
    check_mask("present", present, (rows, 2))
    asks, answers = present.unbind(-1)
    return (asks, answers) if valid is None else (asks & valid, answers & valid)


def _pairs(
    logits: Tensor,  # (B, B)
    ids: Tensor | None,  # (B,)
    same_id: SameId,
    asks: Tensor | None,  # (B,)
    answers: Tensor | None,  # (B,)
) -> tuple[Tensor, Tensor]:  # (B, B), (B, B)
    """Which pairs belong together, and which take part."""
    positive = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    kept = torch.ones_like(positive)
    if ids is not None:
        same = same_ids(ids, ids)
        if same_id == "positive":
            positive = positive | same
        else:
            kept = positive | ~same
    if asks is not None and answers is not None:
        kept = kept & asks.unsqueeze(1) & answers
    return positive, kept
