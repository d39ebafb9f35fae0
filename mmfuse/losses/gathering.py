"""The rows of a batch that is spread over processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmfuse._checks import check_shape
from mmfuse._processes import processes

__all__ = ["all_gather_rows"]


def all_gather_rows(
    x: Tensor,  # (B, ...)
    group: Any = None,
) -> Tensor:  # (B_1 + ... + B_P, ...)
    r"""Gather the rows of all processes, with a gradient.

    .. math::
        \mathbf{Y} = [\mathbf{X}^{(1)}; \ldots; \mathbf{X}^{(P)}], \qquad
        \frac{\partial \mathcal{L}}{\partial \mathbf{X}^{(p)}} = \sum_{r=1}^{P}
        \frac{\partial \mathcal{L}^{(r)}}{\partial \mathbf{Y}^{(p)}}

    Each process may bring another number of rows :math:`B_p`, none included; the rest of the shape
    must agree. The gradient is summed over the losses :math:`\mathcal{L}^{(r)}` of all processes,
    so every one of them must run its backward pass. With one process, or before
    :func:`torch.distributed.init_process_group`, nothing happens.

    .. note::
        :class:`torch.nn.parallel.DistributedDataParallel` then takes the *mean* of the gradients
        over the processes. Where every process gathers both sides and takes the loss of the whole
        batch, that is the gradient of the whole batch: any loss of this module works so, without a
        factor. Where a process takes the loss of its own rows only, it has to be multiplied by
        :math:`P`; :func:`~mmfuse.losses.info_nce` with ``gather=True`` does this by itself.

    Args:
        x: The rows of this process.
        group: A process group; ``None`` means the default one.

    Shape:
        - x: :math:`(B, \ldots)`
        - output: :math:`(B_1 + \ldots + B_P, \ldots)`

    Returns:
        The rows of the first process, then those of the second, and so on.

    Raises:
        ValueError: If ``x`` has no dimension.

    Example:
        >>> import torch
        >>> all_gather_rows(torch.arange(3))  # there is no other process
        tensor([0, 1, 2])
    """
    check_shape("x", x, "B")
    those = processes(True if group is None else group, x)
    return x if those is None else those.rows(x)
