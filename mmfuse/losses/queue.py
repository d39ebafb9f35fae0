"""A queue of past keys: more negatives than a batch has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._contrast import UNKNOWN, check_ids

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    r"""The last keys of past batches, first in, first out, as in MoCo (:cite:`he2019moco`).

    .. math::
        \mathcal{Q}_{t+1} = \text{the last } S \text{ of } (\mathcal{Q}_t, \mathbf{k}_1, \ldots,
        \mathbf{k}_B)

    The keys are negatives of :func:`info_nce` or :func:`debiased_info_nce`, as ``negative_keys``,
    and their ids tell which of them are none, as ``key_ids``. A training step takes the loss
    first and enqueues its keys then, so that no query meets its own key. The queue is no part of
    any ``forward``: it changes where :meth:`enqueue` is called and nowhere else.

    Everything is a buffer of the state dict, so that a run that is resumed has the same queue.

    .. note::
        Under distributed training each process should keep the keys of its own batches: wrap the
        model with ``broadcast_buffers=False``, or the first process overwrites all others, and
        give the keys to a loss with ``gather=True``, which takes those of all processes together.
        Queues that are already the same on every process would count once for each.

    Args:
        size: How many keys :math:`S` to keep.
        dim: Size :math:`D` of a key.

    Shape:
        - keys: :math:`(B, D)`
        - ids, valid: :math:`(B)`
        - output: keys :math:`(n, D)` and ids :math:`(n)` for the :math:`n \leq S` that are filled

    Raises:
        ValueError: If ``size`` or ``dim`` is not positive, shapes disagree, ``ids`` are not
            integers, or ``valid`` is not boolean.

    Example:
        >>> queue = KeyQueue(3, 2)
        >>> queue.enqueue(torch.eye(2), ids=torch.tensor([4, 5]))
        >>> queue.enqueue(torch.eye(2), ids=torch.tensor([6, 7]))
        >>> queue.ids()  # oldest first
        tensor([5, 6, 7])
        >>> queue.keys()
        tensor([[0., 1.],
                [1., 0.],
                [0., 1.]])
    """

    key_buffer: Tensor
    id_buffer: Tensor
    place: Tensor
    filled: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(size=size, dim=dim)
        self.size = size
        self.dim = dim
        self.register_buffer("key_buffer", torch.zeros(size, dim, device=device, dtype=dtype))
        self.register_buffer("id_buffer", torch.full((size,), UNKNOWN, device=device))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all keys."""
        self.key_buffer.zero_()
        self.id_buffer.fill_(UNKNOWN)
        self.place.zero_()
        self.filled.zero_()

    @torch.no_grad()
    def enqueue(
        self,
        keys: Tensor,  # (B, D)
        ids: Tensor | None = None,  # (B,)
        valid: Tensor | None = None,  # (B,)
    ) -> None:
        """Append the valid keys, in order, without gradient; the oldest make room.

        Keys without ids have the id -100, unknown, which is no other row's.
        """
        check_shape("keys", keys, "B", self.dim, leading=False)
        if ids is None:
            ids = torch.full_like(keys[:, 0], UNKNOWN, dtype=self.id_buffer.dtype)
        check_ids("ids", ids, keys.shape[0])
        if valid is not None:
            check_mask("valid", valid, keys.shape[:1])
            keys, ids = keys[valid], ids[valid]
        number = keys.shape[0]
        # of more keys than there is room for, the last ones: no place is written twice
        steps = torch.arange(max(number - self.size, 0), number, device=self.place.device)
        places = (self.place + steps) % self.size
        self.key_buffer[places] = keys[-self.size :].to(self.key_buffer)
        self.id_buffer[places] = ids[-self.size :].to(self.id_buffer)
        self.place.copy_((self.place + number) % self.size)
        self.filled.copy_((self.filled + number).clamp(max=self.size))

    def keys(self) -> Tensor:  # (n, D)
        """Return a copy of the keys that are filled, oldest first."""
        return self.key_buffer[self._order()]

    def ids(self) -> Tensor:  # (n,)
        """Return a copy of their ids."""
        return self.id_buffer[self._order()]

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}"

    def _order(self) -> Tensor:  # (n,)
        """Places from the oldest key to the newest."""
        filled = int(self.filled)
        steps = torch.arange(filled, device=self.place.device)
        return (self.place - filled + steps) % self.size
