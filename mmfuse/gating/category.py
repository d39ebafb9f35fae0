"""A gate guided by what is already known about an item: its category."""

from __future__ import annotations

from typing import Literal

import torch
from einops import einsum
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_choice, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32, without_autocast
from mmfuse.layers import mask_absent, masked_softmax
from mmfuse.types import GateOutput

__all__ = ["UNKNOWN", "CategoryGuidedGate", "category_discrepancy"]

UNKNOWN = -100  #: the label of an item whose category is not known

Pooling = Literal["max", "joint"]
Reduction = Literal["mean", "sum"]


def category_discrepancy(
    logits: Tensor,  # (..., M, C)
    labels: Tensor,  # (..., C)
    *,
    reduction: Reduction = "mean",
    pooling: Pooling = "max",
) -> Tensor:  # (..., M)
    r"""How far each modality's category prediction is from the label (Eq. 9).

    For one label this is the binary cross entropy over the :math:`C` categories,

    .. math::
        \delta^m = -\sum_c \left[ y_c \log \sigma(z^m_c)
        + (1 - y_c) \log(1 - \sigma(z^m_c)) \right]
        = \sum_c \log(1 + e^{z^m_c}) - \sum_c y_c z^m_c .

    An item with several labels takes either the largest discrepancy over its labels, each as if
    it were the only one (``pooling="max"``, :cite:`xu2026cammsr`), or the cross entropy to the
    multi-hot vector itself (``"joint"``). Rows without a label have discrepancy
    :math:`\sum_c \log(1 + e^{z_c})`; :class:`CategoryGuidedGate` does not use them.

    Args:
        logits: Category logits :math:`z` of each modality.
        labels: Multi-hot :math:`y`, boolean.
        reduction: ``"sum"`` over the categories as printed, or their ``"mean"``, which keeps a
            softmax over :math:`\delta` from saturating when :math:`C` is large.
        pooling: What to do with several labels.

    Shape:
        - logits: :math:`(\ldots, M, C)`
        - labels: :math:`(\ldots, C)`
        - output: :math:`(\ldots, M)`

    Returns:
        One discrepancy a modality, not negative.

    Raises:
        ValueError: If ``labels`` are not boolean, a shape does not fit, or a word is not among
            the choices.

    Example:
        >>> logits = torch.tensor([[[2.0, -2.0], [0.0, 0.0]]])  # right; undecided
        >>> category_discrepancy(logits, torch.tensor([[True, False]]))
        tensor([[0.1269, 0.6931]])
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    check_choice("pooling", pooling, ("max", "joint"))
    check_shape("logits", logits, "M", "C")
    check_mask("labels", labels, (*logits.shape[:-2], logits.shape[-1]))
    of_label = labels.unsqueeze(-2)
    zero = torch.zeros((), dtype=logits.dtype, device=logits.device)
    if pooling == "joint":
        reward = torch.where(of_label, logits, zero).sum(-1)
    else:
        reward = torch.where(of_label, logits, zero + torch.inf).amin(-1)
        reward = torch.where(of_label.any(-1), reward, zero)
    discrepancy = F.softplus(logits).sum(-1) - reward
    return discrepancy / logits.shape[-1] if reduction == "mean" else discrepancy


class CategoryGuidedGate(nn.Module):
    r"""Weigh modalities by how they explain the item's category (:cite:`xu2026cammsr`, Eq. 8-10).

    .. math::
        \mathbf{z}^m = \mathbf{W}_c^m \mathbf{x}_m + \mathbf{b}_c^m, \qquad
        w^m = \frac{p_m \exp(\pm \delta^m / \tau)}{\sum_n p_n \exp(\pm \delta^n / \tau)}

    where :math:`\delta^m` is the :func:`category_discrepancy` between :math:`\mathbf{z}^m` and
    the label and :math:`p_m` tells whether modality :math:`m` was observed. Absent modalities get
    weight exactly zero. Where the category is unknown, the weights are equal over what is
    present; where nothing is present, all are zero.

    The returned loss ``"category"`` is the mean discrepancy over the known items and their
    present modalities: the classifiers' own training signal, for an objective that wants it.

    .. note::
        The paper prints :math:`+\delta` (``guidance="difficulty"``: the modality that predicts the
        category worst takes the largest weight) and argues for the opposite
        (``"confidence"``, :math:`-\delta`); it sums over the categories without a sigmoid.
        Here the cross entropy is taken with logits; each choice is an argument.

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.
        num_categories: Number :math:`C` of categories.
        guidance: ``"confidence"`` (:math:`-\delta`) or ``"difficulty"`` (:math:`+\delta`).
        reduction: ``"mean"`` or ``"sum"`` over the categories.
        pooling: ``"max"`` or ``"joint"`` over several labels of one item.
        temperature: Softmax temperature :math:`\tau > 0`.
        detach: Whether the embeddings are constants for this gate: then neither its weights nor
            its loss move them, only the classifiers.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: the categories: :math:`(\ldots)` int64 with -100 for unknown, or
          :math:`(\ldots, C)` multi-hot, all zero for unknown; ``None`` means all unknown
        - weights: :math:`(\ldots, M)`

    Returns:
        :class:`~mmfuse.types.GateOutput` with the loss ``"category"``.

    Raises:
        ValueError: If a size or the temperature is not positive, a word is not among the choices,
            or shapes disagree.

    Example:
        >>> gate = CategoryGuidedGate(8, num_modalities=3, num_categories=5)
        >>> weights, losses = gate(torch.randn(2, 3, 8), context=torch.tensor([4, -100]))
        >>> weights[1].detach()  # category unknown: equal weights
        tensor([0.3333, 0.3333, 0.3333])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        num_categories: int,
        *,
        guidance: Literal["confidence", "difficulty"] = "confidence",
        reduction: Reduction = "mean",
        pooling: Pooling = "max",
        temperature: float = 1.0,
        detach: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            dim=dim,
            num_modalities=num_modalities,
            num_categories=num_categories,
            temperature=temperature,
        )
        check_choice("guidance", guidance, ("confidence", "difficulty"))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("pooling", pooling, ("max", "joint"))
        self.dim = dim
        self.num_modalities = num_modalities
        self.num_categories = num_categories
        self.guidance = guidance
        self.reduction: Reduction = reduction
        self.pooling: Pooling = pooling
        self.temperature = temperature
        self.detach = detach
        shape = (num_modalities, num_categories)
        self.weight = nn.Parameter(torch.empty(*shape, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh classifiers (Xavier), without bias."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,  # (...) or (..., C)
    ) -> GateOutput:
        """Return modality weights; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x.detach() if self.detach else x, present)
        wide = at_least_float32(x)
        with without_autocast(x.device):
            logits = einsum(x.to(wide), self.weight.to(wide), "... m d, m c d -> ... m c")
        logits = logits + self.bias
        labels = self._multi_hot(context, x)
        known = labels.any(-1, keepdim=True)  # (..., 1)
        delta = category_discrepancy(logits, labels, reduction=self.reduction, pooling=self.pooling)
        sign = 1.0 if self.guidance == "difficulty" else -1.0
        scores = torch.where(known, sign * delta, torch.zeros_like(delta))
        weights = masked_softmax(scores, present, temperature=self.temperature)
        counted = known.expand_as(delta) if present is None else known & present
        return GateOutput(weights.to(x.dtype), {"category": _masked_mean(delta, counted)})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, "
            f"num_categories={self.num_categories}, guidance={self.guidance!r}"
        )

    def _multi_hot(self, context: Tensor | None, x: Tensor) -> Tensor:  # (..., C)
        lead = x.shape[:-2]
        if context is None:
            return torch.zeros(*lead, self.num_categories, dtype=torch.bool, device=x.device)
        if context.shape == (*lead, self.num_categories):
            return context != 0
        if context.shape != lead or context.dtype != torch.int64:
            raise ValueError(
                f"Expected context of shape {tuple(lead)} and dtype torch.int64, or multi-hot "
                f"of shape {(*lead, self.num_categories)}, "
                f"got {tuple(context.shape)} and {context.dtype}."
            )
        known = (context != UNKNOWN).unsqueeze(-1)
        index = torch.where(
            known, context.unsqueeze(-1), torch.zeros_like(known, dtype=torch.int64)
        )
        blank = torch.zeros(*lead, self.num_categories, dtype=torch.bool, device=x.device)
        return blank.scatter(-1, index, known)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask; zero, and still part of the graph, where the mask is empty."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)
