"""Supervised contrast: rows of one label are each other's positives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_choice, check_mask, check_positive, check_shape
from mmfuse._contrast import (
    UNKNOWN,
    Reduction,
    check_ids,
    check_reduction,
    masked_log_sum,
    masked_unit,
    reduce_rows,
)
from mmfuse._precision import at_least_float32, without_autocast

__all__ = ["SupervisedContrastiveLoss", "supervised_contrastive_loss"]

Form = Literal["out", "in"]


def supervised_contrastive_loss(
    features: Tensor,  # (B, D) or (B, V, D)
    labels: Tensor,  # (B,)
    *,
    temperature: float = 0.1,
    form: Form = "out",
    reduction: Reduction = "mean",
    valid: Tensor | None = None,  # (B,) or (B, V)
) -> Tensor:  # (), (B,) or (B, V)
    r"""Supervised contrastive loss (:cite:`khosla2020supcon`, Eq. 2 and 3).

    .. math::
        \ell_i^{\mathrm{out}} = -\frac{1}{|\mathcal{P}_i|} \sum_{p \in \mathcal{P}_i}
        \log \frac{\exp(s_{ip} / \tau)}{\sum_{a \neq i} \exp(s_{ia} / \tau)},
        \qquad
        \ell_i^{\mathrm{in}} = -\log \frac{1}{|\mathcal{P}_i|} \sum_{p \in \mathcal{P}_i}
        \frac{\exp(s_{ip} / \tau)}{\sum_{a \neq i} \exp(s_{ia} / \tau)}

    where :math:`i` runs over all views of all rows, :math:`s` is the cosine, and
    :math:`\mathcal{P}_i` holds the other vectors of the same label: other rows, and other views of
    the same row. With labels that are all different and two views this is NT-Xent. Computed in
    float32 at least, under autocast too.

    A row whose label is -100 (unknown) is a class of its own: only its own views are its
    positives, and it is a negative of everybody else. To leave such rows out altogether, give
    ``valid=labels != -100``. A vector without a positive has loss zero and does not count in the
    mean, but is still a negative of the others.

    .. note::
        The paper sums over the vectors, and its code multiplies the mean by a ratio of
        temperatures; here the plain mean is taken over the vectors that have a positive.

    Args:
        features: One vector a row, or several views of each, say its modalities.
        labels: What each row is, as integers; -100 is unknown.
        temperature: Temperature :math:`\tau > 0`.
        form: Whether the mean over the positives is taken outside (``"out"``) of the logarithm,
            as the paper recommends, or inside (``"in"``), which is never larger.
        reduction: ``"mean"`` over the vectors that have a positive, their ``"sum"``, or
            ``"none"``: one loss a vector.
        valid: Boolean, of rows or of single views; what is not valid has loss zero and is nobody's
            positive or negative. Where nobody has a positive the loss is zero and still part of
            the graph.

    Shape:
        - features: :math:`(B, D)` or :math:`(B, V, D)`
        - labels: :math:`(B)`
        - valid: :math:`(B)` or, with views, :math:`(B, V)`
        - output: scalar, or :math:`(B)` or :math:`(B, V)` without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``temperature`` is not positive, ``form`` or ``reduction``
            is unknown, or ``labels`` are not integers.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> labels = torch.tensor([7, 7, 8])
        >>> supervised_contrastive_loss(features, labels, temperature=1.0)  # log(1 + exp(0 - 1))
        tensor(0.3133)
    """
    check_shape("features", features, *"BVD"[:: 1 if features.ndim == 3 else 2], leading=False)
    check_ids("labels", labels, features.shape[0])
    _check_options(temperature, form, reduction)
    there = None if valid is None else _each_view(valid, features)
    with without_autocast(features.device):
        vectors = masked_unit(features, there, at_least_float32(features)).flatten(0, -2)
        logits = vectors @ vectors.mT / temperature
        other, positive = _pairs(labels, logits, there)
        losses, counts = _losses(logits, other, positive, form)
    places = features.shape[:-1]
    return reduce_rows(losses.reshape(places), counts.reshape(places), reduction)


class SupervisedContrastiveLoss(nn.Module):
    r"""Supervised contrastive loss, as a module; see :func:`supervised_contrastive_loss`.

    .. math::
        \ell_i = -\frac{1}{|\mathcal{P}_i|} \sum_{p \in \mathcal{P}_i}
        \log \frac{\exp(s_{ip} / \tau)}{\sum_{a \neq i} \exp(s_{ia} / \tau)}

    Args:
        temperature: Temperature :math:`\tau > 0`.
        form: ``"out"`` or ``"in"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Shape:
        - features: :math:`(B, D)` or :math:`(B, V, D)`
        - labels: :math:`(B)`
        - valid: :math:`(B)` or, with views, :math:`(B, V)`
        - output: scalar, or :math:`(B)` or :math:`(B, V)` without reduction

    Raises:
        ValueError: As :func:`supervised_contrastive_loss`.

    Example:
        >>> loss = SupervisedContrastiveLoss(temperature=1.0)
        >>> loss(torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))  # log(3): told apart by chance
        tensor(1.0986)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        form: Form = "out",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check_options(temperature, form, reduction)
        self.temperature = temperature
        self.form: Form = form
        self.reduction: Reduction = reduction

    def forward(
        self,
        features: Tensor,  # (B, D) or (B, V, D)
        labels: Tensor,  # (B,)
        *,
        valid: Tensor | None = None,  # (B,) or (B, V)
    ) -> Tensor:  # (), (B,) or (B, V)
        """Return the loss; shapes are given in the class docstring."""
        return supervised_contrastive_loss(
            features,
            labels,
            temperature=self.temperature,
            form=self.form,
            reduction=self.reduction,
            valid=valid,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, form={self.form!r}, reduction={self.reduction!r}"


def _check_options(temperature: float, form: str, reduction: str) -> None:
    check_positive(temperature=temperature)
    check_choice("form", form, ("out", "in"))
    check_reduction(reduction)


def _each_view(valid: Tensor, features: Tensor) -> Tensor:
    """A mask of rows or of views, as one of views."""
    if valid.ndim == 1 and features.ndim == 3:
        check_mask("valid", valid, features.shape[:1])
        return valid.unsqueeze(1).expand(features.shape[:-1])
    check_mask("valid", valid, features.shape[:-1])
    return valid


def _pairs(
    labels: Tensor,  # (B,)
    logits: Tensor,  # (T, T), T = B V
    there: Tensor | None,  # (B,) or (B, V)
) -> tuple[Tensor, Tensor]:  # (T, T), (T, T)
    """Who sees whom, and who should find whom."""
    total = logits.shape[0]
    row = torch.arange(labels.shape[0], device=logits.device)
    views = total // max(labels.shape[0], 1)
    row, label = row.repeat_interleave(views), labels.repeat_interleave(views)
    same = (label.unsqueeze(1) == label) & (label != UNKNOWN)
    other = ~torch.eye(total, dtype=torch.bool, device=logits.device)
    if there is not None:
        flat = there.flatten()
        other = other & flat & flat.unsqueeze(1)
    return other, other & (same | (row.unsqueeze(1) == row))


def _losses(
    logits: Tensor,  # (T, T)
    other: Tensor,  # (T, T)
    positive: Tensor,  # (T, T)
    form: Form,
) -> tuple[Tensor, Tensor]:  # (T,), (T,)
    """One loss a vector, and which of them count."""
    number = positive.sum(-1)
    share = number.clamp(min=1).to(logits.dtype)
    if form == "out":
        found = torch.where(positive, logits, torch.zeros_like(logits)).sum(-1) / share
    else:
        found = masked_log_sum(logits, positive) - share.log()
    return masked_log_sum(logits, other) - found, number > 0
