"""What each modality contributes to a fused vector or to a score, for any fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmfuse._checks import check_floating, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = [
    "leave_one_out",
    "gradient_contributions",
]


def leave_one_out(
    fusion: Callable[..., FusionOutput],
    x: Tensor,  # (..., M, D)
    present: Tensor | None = None,  # (..., M)
    context: Tensor | None = None,
    *,
    score: Callable[[Tensor], Tensor] | None = None,  # (..., D) -> (...)
    keywords: Mapping[str, Any] | None = None,
) -> Tensor:  # (..., M)
    r"""What is lost when one modality is hidden.

    .. math::
        c_m = s\bigl(\mathbf{y}(P)\bigr) - s\bigl(\mathbf{y}(P \setminus \{m\})\bigr), \qquad
        c_m = \bigl\lVert \mathbf{y}(P) - \mathbf{y}(P \setminus \{m\}) \bigr\rVert_2
        \text{ without a score}

    where :math:`\mathbf{y}(P)` is the fused vector of the modalities :math:`P` that are present.
    Two modalities that say the same replace each other, so that both may get little. Runs without
    gradients, one modality after the other: :math:`M + 1` calls, the memory of one.

    .. note::
        Training mode is refused, since each call would draw its own dropout, and a batch norm
        would learn. A mode is never switched here; a plain function around the fusion is not
        asked for its mode.

    Args:
        fusion: Any fusion, or a function called like one.
        x: Modality streams.
        present: Boolean, true where observed; ``None`` means everywhere.
        context: What the fusion takes as ``context``.
        score: What counts, such as the logit of the target; of the fused vectors, one number each.
        keywords: More arguments of the fusion, such as ``valid``.

    Shape:
        - x: :math:`(\ldots, M, D)`; present, output: :math:`(\ldots, M)`

        Where a fusion looks along a sequence, the modality is hidden at all positions together.

    Returns:
        Contributions in float32 at least, without a graph; exactly zero where absent.

    Raises:
        ValueError: If the fusion is in training mode, or a kind, shape or dtype does not fit.

    Example:
        >>> from mmfuse.fusion import SumFusion
        >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> leave_one_out(SumFusion(2, num_modalities=2).eval(), x)
        tensor([5., 1.])
    """
    _check_inputs(fusion, x, present)
    with torch.no_grad():
        x, modality = mask_absent(x, present), torch.arange(x.shape[-2], device=x.device)
        everyone = x.new_ones(x.shape[:-1], dtype=torch.bool) if present is None else present

        def fused(mask: Tensor) -> Tensor:
            return _fused(fusion, x, mask, context, keywords)

        def change(part: Tensor) -> Tensor:
            if score is None:
                return _norm(whole.to(at_least_float32(whole)) - part)
            return _scored(score, whole) - _scored(score, part)

        whole = fused(everyone)
        changes = [change(fused(everyone & (modality != left_out))) for left_out in modality]
        return torch.stack(changes, -1).masked_fill(~everyone, 0)


def gradient_contributions(
    fusion: Callable[..., FusionOutput],
    x: Tensor,  # (..., M, D)
    present: Tensor | None = None,  # (..., M)
    context: Tensor | None = None,
    *,
    score: Callable[[Tensor], Tensor],  # (..., D) -> (...)
    keywords: Mapping[str, Any] | None = None,
    steps: int = 1,
) -> Tensor:  # (..., M)
    r"""Gradient times input, or integrated gradients (:cite:`sundararajan2017axiomatic`).

    .. math::
        c_m = \sum_d x_{md} \, \frac{1}{S} \sum_{k=1}^{S}
        \frac{\partial s(\mathbf{y}(\alpha_k \mathbf{x}))}{\partial x_{md}}, \qquad
        \alpha_k = \frac{k - 1/2}{S}

    For :math:`S = 1` the gradient is taken at the input itself, :math:`\alpha = 1`. For a smooth
    fusion, as the number of steps grows, the contributions sum to
    :math:`s(\mathbf{y}(\mathbf{x})) - s(\mathbf{y}(\mathbf{0}))`: the baseline is streams of zeros
    that count as present, which is not the absence of :func:`leave_one_out`. No gradient is left
    on parameters, and it works under :class:`torch.no_grad` and :class:`torch.inference_mode` too.
    Training mode is refused, as in :func:`leave_one_out`.

    .. warning::
        A fusion that normalises jumps near zero. A layer norm inside (``transformer``,
        ``bottleneck``) can need a thousand steps where others need ten. Where the fused vector does
        not change with the length of the streams at all (``mfb``, ``mfh``), contributions sum to
        zero, however many steps are taken. Compare the sum with the difference of the scores, or
        use :func:`leave_one_out`.

    .. note::
        There is no score by default: the length of the fused vector, which would suggest itself, is
        constant in all fusions that end in a norm, and its gradient rounding noise.

    Args:
        fusion: Any fusion, or a function called like one.
        x: Modality streams.
        present: Boolean, true where observed; ``None`` means everywhere.
        context: What the fusion takes as ``context``; not explained, it only conditions.
        score: What counts, such as the logit of the target, differentiable; of the fused vectors,
            one number each.
        keywords: More arguments of the fusion, such as ``valid``.
        steps: Number :math:`S` of gradients, one after the other in the memory of one.

    Shape:
        - x: :math:`(\ldots, M, D)`; present, output: :math:`(\ldots, M)`

        Scores of all rows are summed before they are differentiated. Where a fusion looks along a
        sequence, a contribution is therefore the effect on all positions together.

    Returns:
        Contributions in float32 at least, without a graph; exactly zero where absent.

    Raises:
        ValueError: If the fusion is in training mode, a kind, shape or dtype does not fit,
            ``steps`` is not positive, or the score is no function or has no gradient.

    Example:
        >>> from mmfuse.fusion import ProductFusion
        >>> x, fusion = torch.tensor([[2.0], [3.0]]), ProductFusion(1, num_modalities=2).eval()
        >>> gradient_contributions(fusion, x, score=lambda fused: fused[..., 0])
        tensor([6., 6.])
        >>> gradient_contributions(fusion, x, score=lambda fused: fused[..., 0], steps=8)
        tensor([3., 3.])
    """
    _check_inputs(fusion, x, present)
    _check_score(score)
    check_positive(steps=steps)
    scales = [1.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]
    with torch.inference_mode(False), torch.enable_grad():
        x, present, context, keywords = pytree.tree_map(_usable, (x, present, context, keywords))
        x = mask_absent(x.detach(), present)
        gradient = torch.zeros_like(x, dtype=at_least_float32(x))
        for scale in scales:
            point = (scale * x).requires_grad_()
            total = _scored(score, _fused(fusion, point, present, context, keywords)).sum()
            if not total.requires_grad:
                raise ValueError("Expected a score with a gradient, got one without.")
            gradient += torch.autograd.grad(total, point, materialize_grads=True)[0]
        contributions = (x * gradient).sum(-1).detach() / steps
        return contributions if present is None else contributions.masked_fill(~present, 0)


def _check_inputs(fusion: object, x: object, present: Tensor | None) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(
            f"Expected x as a tensor of streams (..., M, D), got {type(x).__name__}; "
            "ModalityProjection makes it of raw features."
        )
    check_floating("x", x)
    check_shape("x", x, "M", "D")
    if present is not None:
        check_mask("present", present, x.shape[:-1])
    if isinstance(fusion, nn.Module) and any(part.training for part in fusion.modules()):
        raise ValueError("Expected a fusion in eval mode, got one in training mode.")


def _check_score(score: object) -> None:
    if not callable(score):
        kind = type(score).__name__
        raise ValueError(f"Expected score as a function of the fused vectors, got {kind}.")


def _fused(
    fusion: Callable[..., FusionOutput],
    x: Tensor,
    present: Tensor | None,
    context: Tensor | None,
    keywords: Mapping[str, Any] | None,
) -> Tensor:
    fused = fusion(x, present, context, **(keywords or {})).fused
    check_shape("fused", fused, *x.shape[:-2], "D", leading=False)
    return fused


def _scored(score: Callable[[Tensor], Tensor], fused: Tensor) -> Tensor:
    value = score(fused)
    check_shape("score", value, *fused.shape[:-1], leading=False)
    return value.to(at_least_float32(value))


def _norm(fused: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(fused.to(at_least_float32(fused)), dim=-1)
    return length


def _usable(leaf: Any) -> Any:
    """Autograd cannot save a tensor that was made in inference mode, but a copy of it."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf
