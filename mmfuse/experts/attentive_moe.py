"""The attentive mixture of experts: one router and one bank a modality."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_choice, check_positive, check_shape
from mmfuse.experts.attentive import AttentiveRouter
from mmfuse.experts.experts import Experts
from mmfuse.experts.soft import SoftRouter
from mmfuse.experts.top_k import TopKRouter
from mmfuse.layers import apply_where, mask_absent, observed
from mmfuse.types import MixtureOutput, RouterOutput

__all__ = ["AttentiveMoE"]


class AttentiveMoE(nn.Module):
    r"""Attentive mixture of cross-modal experts (:cite:`xu2026cammsr`, Eq. 5-7).

    .. math::
        \hat{\mathbf{e}}_m = \sum_{k=1}^{E} g^m_k \,
        \mathrm{Expert}^m_k([\mathbf{e}_1; \ldots; \mathbf{e}_M]), \qquad
        \mathrm{Expert}(\mathbf{x}) =
        \mathrm{GELU}(\mathbf{x} \mathbf{W}_1 + \mathbf{b}_1) \mathbf{W}_2 + \mathbf{b}_2

    Every modality has its own :class:`AttentiveRouter`, which sees that modality's sequence, and
    its own :class:`Experts`, which read all modalities of one position. Experts compute at valid
    positions only. An absent modality enters the experts as zeros and is not seen by its router;
    its own stream stays zero.

    The paper's ablations are arguments. ``router="linear"`` decides at every position by itself
    ("w/o Att."): a :class:`SoftRouter`, or with ``top_k`` a :class:`TopKRouter`, whose weights sum
    to one and whose losses are left out. ``reads="own"`` gives the experts of a modality its own
    stream alone. Both together are a plain mixture for each stream ("MoE").

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.
        num_experts: Number :math:`E` of experts for each modality.
        hidden_dim: Hidden width of one expert; ``None`` means :math:`4D`.
        router: ``"attentive"`` or ``"linear"``.
        reads: Whether experts read ``"all"`` modalities of a position, or their ``"own"``.
        causal: Whether attentive routers see only the own position and earlier ones.
        normalize: Whether the weights of attentive routers sum to one; as printed they do not.
        shared_experts: Whether the modalities share one bank of experts; each keeps its router.
        top_k: How many experts each token keeps; ``None`` means all, as printed.

    Shape:
        - x: :math:`(\ldots, L, M, D)`
        - present: :math:`(\ldots, L, M)`, boolean, true where observed
        - context: ignored; here so that blocks can be exchanged
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - output: :math:`(\ldots, L, M, D)`, zero at padding and where absent
        - router.expert_weight: :math:`(\ldots, L, M, E)`; with ``top_k``
          :math:`(\ldots, L, M, K)` beside router.expert_index

    Returns:
        :class:`~mmfuse.types.MixtureOutput` without losses.

    Raises:
        ValueError: If a size is not positive, a word is not among the choices, or shapes disagree.

    Example:
        >>> mixture = AttentiveMoE(8, num_modalities=3, num_experts=4)
        >>> mixture(torch.randn(2, 5, 3, 8)).output.shape
        torch.Size([2, 5, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        num_experts: int = 4,
        *,
        hidden_dim: int | None = None,
        router: Literal["attentive", "linear"] = "attentive",
        reads: Literal["all", "own"] = "all",
        causal: bool = True,
        normalize: bool = False,
        shared_experts: bool = False,
        top_k: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(
            dim=dim, num_modalities=num_modalities, num_experts=num_experts, hidden_dim=hidden_dim
        )
        check_choice("router", router, ("attentive", "linear"))
        check_choice("reads", reads, ("all", "own"))
        self.dim = dim
        self.num_modalities = num_modalities
        self.reads = reads
        self.shared_experts = shared_experts
        self.routers = nn.ModuleList(
            AttentiveRouter(
                dim,
                num_experts,
                causal=causal,
                normalize=normalize,
                top_k=top_k,
                device=device,
                dtype=dtype,
            )
            if router == "attentive"
            else _linear_router(dim, num_experts, top_k, device, dtype)
            for _ in range(num_modalities)
        )
        width = dim if reads == "own" else num_modalities * dim
        self.experts = nn.ModuleList(
            Experts(num_experts, width, hidden_dim, dim, device=device, dtype=dtype)
            for _ in range(1 if shared_experts else num_modalities)
        )

    def reset_parameters(self) -> None:
        """Draw fresh routers and experts."""
        for module in (*self.routers, *self.experts):
            module.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, M, D)
        present: Tensor | None = None,  # (..., L, M)
        context: Tensor | None = None,
        *,
        valid: Tensor | None = None,  # (..., L)
    ) -> MixtureOutput:
        """Return what the experts add to each stream; shapes are given in the class docstring."""
        check_shape("x", x, "L", self.num_modalities, self.dim)
        seen = observed(x, present, valid)
        x = mask_absent(x, seen)
        masks = [None] * self.num_modalities if seen is None else seen.unbind(-1)
        routed = [
            router(stream, mask)
            for router, stream, mask in zip(self.routers, x.unbind(-2), masks, strict=True)
        ]
        gates = torch.stack([part.expert_weight for part in routed], dim=-2)  # (..., L, M, K)
        chosen = [part.expert_index for part in routed if part.expert_index is not None]
        index = torch.stack(chosen, dim=-2) if chosen else None
        picks = () if index is None else (index,)
        output = apply_where(self._mix, valid, x, gates, *picks)
        return MixtureOutput(mask_absent(output, seen), RouterOutput(gates, {}, index), {})

    def extra_repr(self) -> str:
        return (
            f"num_modalities={self.num_modalities}, reads={self.reads!r}, "
            f"shared_experts={self.shared_experts}"
        )

    def _mix(
        self,
        x: Tensor,  # (..., M, D)
        gates: Tensor,  # (..., M, K)
        index: Tensor | None = None,  # (..., M, K)
    ) -> Tensor:  # (..., M, D)
        own, joint = self.reads == "own", x.flatten(-2)
        if self.shared_experts:
            rows = x if own else joint.unsqueeze(-2)
            if index is not None:  # a choice of its own for every modality
                rows = rows.expand(*gates.shape[:-1], -1)
            shared: Tensor = self.experts[0](rows, gates, index)
            return shared
        inputs = x.unbind(-2) if own else [joint] * self.num_modalities
        picks = [None] * self.num_modalities if index is None else index.unbind(-2)
        banks = zip(self.experts, inputs, gates.unbind(-2), picks, strict=True)
        return torch.stack([experts(row, gate, pick) for experts, row, gate, pick in banks], dim=-2)


def _linear_router(
    dim: int,
    num_experts: int,
    top_k: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    if top_k is None:
        return SoftRouter(dim, num_experts, device=device, dtype=dtype)
    return TopKRouter(dim, num_experts, top_k, normalize=True, device=device, dtype=dtype)
