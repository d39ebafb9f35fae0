"""Masks that let nothing through: absent values, absent scores, invalid positions."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32

__all__ = ["apply_where", "mask_absent", "masked_product", "masked_softmax", "observed"]


def mask_absent(
    x: Tensor,  # (..., D)
    present: Tensor | None = None,  # (...)
    *,
    fill: float = 0.0,
) -> Tensor:  # (..., D)
    r"""Replace absent vectors by zeros (or another number), whatever they hold.

    .. math::
        y = \begin{cases} x & \text{present} \\ c & \text{absent} \end{cases}

    A selection, not a product: a NaN in an absent vector reaches neither the output nor a
    gradient.

    Args:
        x: Vectors.
        present: Boolean, true where observed; ``None`` means everywhere and costs nothing.
        fill: The number :math:`c`, such as one for a factor of a product.

    Shape:
        - x: :math:`(\ldots, D)`
        - present: :math:`(\ldots)`
        - output: :math:`(\ldots, D)`

    Returns:
        The vectors, ``fill`` where absent.

    Raises:
        ValueError: If ``present`` is not boolean or its shape is not that of the vectors.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])
        >>> mask_absent(x, torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    if present is None:
        return x
    check_mask("present", present, x.shape[:-1])
    absent = torch.full((), fill, dtype=x.dtype, device=x.device)
    return torch.where(present.unsqueeze(-1), x, absent)


def observed(
    x: Tensor,  # (..., L, M, D)
    present: Tensor | None = None,  # (..., L, M)
    valid: Tensor | None = None,  # (..., L)
) -> Tensor | None:  # (..., L, M)
    r"""Where a stream is both present and not padding.

    .. math::
        o_{lm} = p_{lm} \wedge v_l

    Args:
        x: Modality streams.
        present: Boolean, true where observed; ``None`` means everywhere.
        valid: Boolean, true at real positions, false at padding; ``None`` means everywhere.

    Shape:
        - x: :math:`(\ldots, L, M, D)`
        - present, output: :math:`(\ldots, L, M)`
        - valid: :math:`(\ldots, L)`

    Returns:
        The joint mask; ``None`` where neither mask is given.

    Raises:
        ValueError: If a mask is not boolean or does not fit the streams.

    Example:
        >>> observed(torch.zeros(2, 3, 8), valid=torch.tensor([True, False]))
        tensor([[ True,  True,  True],
                [False, False, False]])
    """
    if present is not None:
        check_mask("present", present, x.shape[:-1])
    if valid is None:
        return present
    check_mask("valid", valid, x.shape[:-2])
    everywhere = valid.unsqueeze(-1).expand(x.shape[:-1])
    return everywhere if present is None else present & everywhere


def masked_softmax(
    scores: Tensor,  # (..., M)
    present: Tensor | None = None,  # (..., M)
    *,
    temperature: float = 1.0,
) -> Tensor:  # (..., M)
    r"""Softmax over what is present.

    .. math::
        w_m = \frac{p_m \exp(s_m / \tau)}{\sum_j p_j \exp(s_j / \tau)}

    where :math:`p_m \in \{0, 1\}` tells whether :math:`m` is present and :math:`\tau` is the
    temperature. An absent entry gets weight exactly zero; where nothing is present, all weights
    are zero. Computed in float32 at least, returned in the dtype of the scores.

    Args:
        scores: Unnormalised scores.
        present: Boolean, true where observed; ``None`` means everywhere.
        temperature: Softmax temperature :math:`\tau > 0`.

    Shape:
        - scores, present, output: :math:`(\ldots, M)`

    Returns:
        Weights that sum to one, or to zero where nothing is present.

    Raises:
        ValueError: If ``temperature`` is not positive, or ``present`` does not fit the scores.

    Example:
        >>> masked_softmax(torch.tensor([0.0, 0.0, 9.0]), torch.tensor([True, True, False]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    check_positive(temperature=temperature)
    wide = scores.to(at_least_float32(scores))
    if present is None:
        return torch.softmax(wide / temperature, dim=-1).to(scores.dtype)
    check_mask("present", present, scores.shape)
    zero = torch.zeros((), dtype=wide.dtype, device=wide.device)
    scaled = torch.where(present, wide, zero) / temperature
    counted = present | ~present.any(-1, keepdim=True)  # no row of -inf alone: its softmax is NaN
    weights = torch.softmax(torch.where(counted, scaled, zero - torch.inf), dim=-1)
    return torch.where(present, weights, zero).to(scores.dtype)


def masked_product(
    x: Tensor,  # (..., M, D)
    present: Tensor | None = None,  # (..., M)
) -> Tensor:  # (..., D)
    r"""Product over what is present, entry by entry.

    .. math::
        y_d = \prod_{m : p_m} x_{md}

    Multiplied one by one: unlike :func:`torch.prod`, its gradient needs no look at the data where a
    factor is zero, and can be differentiated again.

    Args:
        x: Factors.
        present: Boolean, true where observed; ``None`` means everywhere.

    Shape:
        - x: :math:`(\ldots, M, D)`, :math:`M \geq 1`
        - present: :math:`(\ldots, M)`
        - output: :math:`(\ldots, D)`

    Returns:
        The product; one where nothing is present.

    Raises:
        ValueError: If ``present`` is not boolean or its shape is not that of the factors.

    Example:
        >>> x = torch.tensor([[2.0, 3.0], [float("nan"), 5.0]])
        >>> masked_product(x, torch.tensor([True, False]))
        tensor([2., 3.])
    """
    check_shape("x", x, "M", "D")
    check_positive(M=x.shape[-2])
    first, *others = mask_absent(x, present, fill=1.0).unbind(-2)
    return functools.reduce(torch.mul, others, first.clone())  # never a view of the input


def apply_where(
    function: Callable[..., Tensor],
    valid: Tensor | None,  # (...)
    *inputs: Tensor,  # (..., *)
) -> Tensor:  # (..., *)
    r"""Apply a row-wise function at valid positions only; zeros elsewhere.

    .. math::
        y_t = \begin{cases} f(x_t) & \text{valid} \\ 0 & \text{otherwise} \end{cases}

    Padding costs nothing: rows are packed before the function and unpacked after it. Under
    :func:`torch.compile` and :func:`torch.vmap`, and on the meta device, where the number of valid
    rows is not known, the function sees every row, zeros where not valid, and the result is masked:
    same numbers, static shapes.

    Args:
        function: Maps tensors of shape :math:`(\ldots, \ast)` to one of shape
            :math:`(\ldots, \ast)`, row by row. It and its gradient must be finite at zeros.
        valid: Boolean, true where the function applies; ``None`` means everywhere.
        inputs: Tensors whose first dimensions are those of ``valid``.

    Shape:
        - valid: :math:`(\ldots)`
        - inputs, output: :math:`(\ldots, \ast)`

    Returns:
        The function's rows, zero where not valid.

    Raises:
        ValueError: If ``valid`` is not boolean or does not fit the inputs.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> apply_where(lambda row: row**2, torch.tensor([True, False, True]), x)
        tensor([[1.],
                [0.],
                [9.]])
    """
    if valid is None:
        return function(*inputs)
    for tensor in inputs:
        check_mask("valid", valid, tensor.shape[: valid.ndim])
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if traced or valid.is_meta:
        return _zero_elsewhere(function(*(_zero_elsewhere(part, valid) for part in inputs)), valid)
    rows = valid.flatten().nonzero().squeeze(-1)
    flat = [part.reshape(valid.numel(), *part.shape[valid.ndim :]) for part in inputs]
    output = function(*(part.index_select(0, rows) for part in flat))
    full = output.new_zeros(valid.numel(), *output.shape[1:])
    return full.index_copy(0, rows, output).reshape(*valid.shape, *output.shape[1:])


def _zero_elsewhere(x: Tensor, valid: Tensor) -> Tensor:
    mask = valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim))
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
