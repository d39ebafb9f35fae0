"""Experts spread over processes: each holds some of them, tokens travel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from mmfuse._checks import check_shape
from mmfuse.experts.dispatch import combine_rows, gather_rows, plan_dispatch
from mmfuse.experts.experts import GROUPED, Experts
from mmfuse.experts.rows import expert_rows

__all__ = ["ExpertParallel"]


class ExpertParallel(nn.Module):
    r"""Hold a share of the experts in each process, and send tokens to them.

    .. math::
        \mathbf{y} = \sum_k g_k \, \mathrm{Expert}_k(\mathbf{x}), \qquad
        \mathrm{Expert}_k \text{ in process } \lfloor k / \lceil E / P \rceil \rfloor

    Expert parallelism as in :cite:`lepikhin2021gshard`, dropless: the rows of each process travel
    to the experts by an all-to-all of exactly their number, and back. The parameters become
    :class:`torch.distributed.tensor.DTensor`, sharded over the experts; all processes start from
    the values of the first. Takes the place of the wrapped experts, in
    :class:`~mmfuse.experts.MixtureOfExperts` too. Every process must call ``forward`` and
    ``backward`` equally often; any of them may have no token.

    .. note::
        Gradients of the experts are those of the *mean* of the processes' losses, the convention
        of :class:`torch.nn.parallel.DistributedDataParallel`, so that one learning rate fits all.
        Leave these parameters out of whatever averages the gradients of the others, as in
        ``fully_shard(model, ignored_params=set(experts.parameters()))``.

    Args:
        experts: The experts, which are sharded in place.
        mesh: A :class:`torch.distributed.device_mesh.DeviceMesh` of one dimension.

    Shape:
        - x: :math:`(\ldots, D)`, the tokens of this process
        - expert_weight: :math:`(\ldots, E)`, or :math:`(\ldots, K)` beside an index
        - expert_index: :math:`(\ldots, K)`, over all :math:`E` experts; -1 is nobody
        - output: :math:`(\ldots, O)`

    Raises:
        ValueError: If the mesh has more than one dimension, or shapes disagree.

    Example:
        >>> import torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> experts = ExpertParallel(Experts(4, 8, 16), init_device_mesh("cpu", (1,)))
        >>> experts(torch.randn(5, 8), torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int64)).shape
        torch.Size([5, 8])
        >>> dist.destroy_process_group()
    """

    def __init__(self, experts: Experts, mesh: Any) -> None:
        super().__init__()
        if mesh.ndim != 1:
            raise ValueError(f"Expected a mesh of one dimension, got {mesh.ndim} dimensions.")
        self.num_experts = experts.num_experts
        self.dim = experts.dim
        self.experts = experts
        self.mesh = mesh
        for name, parameter in list(experts.named_parameters()):
            setattr(experts, name, nn.Parameter(self._shard(parameter)))

    def reset_parameters(self) -> None:
        """Draw fresh experts: those of the first process, for all."""
        bank = self.experts
        fresh = Experts(
            bank.num_experts,
            bank.dim,
            bank.hidden_dim,
            bank.out_dim,
            activation=bank.activation,
            bias=bank.in_bias is not None,
            device=bank.in_weight.device,
            dtype=bank.in_weight.dtype,
        )
        with torch.no_grad():
            for name, parameter in bank.named_parameters():
                parameter.copy_(self._shard(fresh.get_parameter(name)))

    def forward(
        self,
        x: Tensor,  # (..., D)
        expert_weight: Tensor,  # (..., E) or (..., K)
        expert_index: Tensor | None = None,  # (..., K)
    ) -> Tensor:  # (..., O)
        """Return the weighted sum of the experts; shapes are given in the class docstring."""
        check_shape("x", x, self.dim)
        if expert_index is None:  # every expert
            everyone = torch.arange(self.num_experts, device=x.device)
            expert_index = everyone.expand(*x.shape[:-1], -1)
        check_shape("expert_index", expert_index, *x.shape[:-1], "K", leading=False)
        check_shape("expert_weight", expert_weight, *expert_index.shape, leading=False)
        top_k = expert_index.shape[-1]
        plan = plan_dispatch(expert_index.reshape(-1, top_k), self.num_experts)
        rows = gather_rows(x.reshape(-1, self.dim), plan)
        there = int(plan.offsets[-1])  # the rest is nobody's, and stays here as zeros
        back = self._visit(rows[:there], plan.offsets.diff(prepend=plan.offsets.new_zeros(1)))
        back = torch.cat([back, back.new_zeros(len(rows) - there, back.shape[-1])])
        output = combine_rows(back, expert_weight.reshape(-1, top_k), plan)
        return output.reshape(*x.shape[:-1], output.shape[-1])

    def on_slots(
        self,
        slots: Tensor,  # (..., E, S, D)
    ) -> Tensor:  # (..., E, S, O)
        """Return what each expert makes of its own slots, unweighted."""
        check_shape("slots", slots, self.num_experts, "S", self.dim)
        by_expert = slots.movedim(-3, 0)  # (E, ..., S, D)
        rows = by_expert.reshape(-1, self.dim)
        each = len(rows) // self.num_experts
        counts = torch.full((self.num_experts,), each, dtype=torch.int32, device=rows.device)
        rows = self._visit(rows, counts)
        return rows.reshape(*by_expert.shape[:-1], rows.shape[-1]).movedim(0, -3)

    def _shard(self, parameter: Tensor) -> Tensor:
        # Imported here: it takes long, and few need it.
        from torch.distributed.tensor import Shard, distribute_tensor  # noqa: PLC0415 - see above

        return distribute_tensor(parameter.detach(), self.mesh, [Shard(0)])

    def _visit(
        self,
        rows: Tensor,  # (n, D), sorted by expert
        counts: Tensor,  # (E,)
    ) -> Tensor:  # (n, O)
        """Send rows to the processes of their experts, and fetch what these made of them."""
        group = self.mesh.get_group()
        processes, own = distributed.get_world_size(group), self.mesh.get_local_rank()
        share = -(-self.num_experts // processes)
        shares = [len(part) for part in torch.arange(self.num_experts).split(share)]
        shares += [0] * (processes - len(shares))
        came = counts.new_empty(processes * shares[own])
        distributed.all_to_all_single(came, counts, [shares[own]] * processes, shares, group)
        sent = [int(part.sum()) for part in counts.split(shares)]
        received = came.unflatten(0, (processes, shares[own])).sum(1).tolist()
        rows = _exchange(rows, received, sent, group)
        expert = torch.arange(shares[own], device=rows.device).repeat(processes)
        index = expert.repeat_interleave(came, output_size=len(rows)).unsqueeze(-1)
        plan = plan_dispatch(index, shares[own])
        rows = self._process(gather_rows(rows, plan), plan.offsets, processes)
        rows = combine_rows(rows, rows.new_ones(len(rows), 1), plan)
        return _exchange(rows, sent, received, group)

    def _process(self, rows: Tensor, offsets: Tensor, processes: int) -> Tensor:
        bank = self.experts
        mean: Any = _MeanGradient.apply
        parameters: tuple[Any, ...] = bank.in_weight, bank.in_bias, bank.out_weight, bank.out_bias
        local: list[Any] = [
            None if part is None else mean(part.to_local().to(rows.dtype), processes)
            for part in parameters
        ]
        if not len(offsets):  # more processes than experts
            nothing = torch.stack([part.sum() for part in local if part is not None]).sum()
            return rows.new_empty(0, bank.out_dim) + nothing
        return expert_rows(
            rows, offsets, *local, activation=bank.activation, grouped=GROUPED[bank.backend]
        )


def _exchange(rows: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
    """All-to-all with a gradient that travels back."""
    # What torch.distributed.nn.functional points to; imported here, as it takes long.
    from torch.distributed import _functional_collectives as collectives  # noqa: PLC0415 - see above

    output: Tensor = collectives.all_to_all_single_autograd(
        rows.contiguous(), received, sent, group
    )
    return output


class _MeanGradient(torch.autograd.Function):
    """The identity, whose gradient is divided by the number of processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: int) -> Tensor:
        ctx.processes = processes
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return grad[0] / ctx.processes, None
