"""What blocks take and return: output NamedTuples and the protocols of the families.

Every block follows one contract, ``block(x, present=None, context=None)``, for any leading
dimensions. The NamedTuples are plain pytrees: they pass :func:`torch.compile` and
:func:`torch.export.export`. Losses come back unweighted; only an objective multiplies them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torch.utils import _pytree

__all__ = [
    "ChosenTokens",
    "DispatchPlan",
    "Enrichment",
    "EnrichmentOutput",
    "Fusion",
    "FusionOutput",
    "Gate",
    "GateOutput",
    "MixtureOutput",
    "Router",
    "RouterOutput",
    "SequenceFusion",
    "SoftSlots",
    "Streams",
    "TableOutput",
]


class Streams(NamedTuple):
    """Modality streams side by side, and which of them were observed."""

    x: Tensor  #: ``(..., M, D)``, zero where absent
    present: Tensor  #: ``(..., M)``, boolean, true where observed


class TableOutput(NamedTuple):
    """Rows of a feature table."""

    features: Tensor  #: ``(..., D_m)``
    present: Tensor  #: ``(...)``, boolean, true where the item has the feature


class GateOutput(NamedTuple):
    """How much each modality counts."""

    weights: Tensor  #: ``(..., M)``, zero where absent
    losses: dict[str, Tensor]  #: unweighted auxiliary losses, by name


class DispatchPlan(NamedTuple):
    """Where the K choices of each of T tokens lie once they are sorted by expert."""

    order: Tensor  #: ``(T * K,)``, int64: the choice at each sorted place, nobody's choices last
    inverse: Tensor  #: ``(T, K)``, int64: the sorted place of each choice
    offsets: Tensor  #: ``(E,)``, int32: where the rows of each expert end


class ChosenTokens(NamedTuple):
    """Tokens that experts picked for their slots."""

    token_index: Tensor  #: ``(..., E, S)``, int64, positions along the sequence
    token_weight: Tensor  #: ``(..., E, S)``, how much each counts; zero where a slot stays empty


class SoftSlots(NamedTuple):
    """Slots that hold mixtures of tokens."""

    dispatch: Tensor  #: ``(..., L, E, S)``, how much of each token enters a slot
    combine: Tensor  #: ``(..., L, E, S)``, how much of each slot a token gets back


class RouterOutput(NamedTuple):
    """Which experts process a token, and how much each of them counts.

    Routers that choose give an index; those that score give logits and probabilities; those whose
    experts choose or mix tokens give slots. What a router has not is ``None``.
    """

    expert_weight: Tensor  #: ``(..., K)`` beside ``expert_index``, ``(..., E)`` without it
    losses: dict[str, Tensor]  #: unweighted auxiliary losses, by name
    #: ``(..., K)``, int64; -1 is nobody (padding, or dropped); ``None``: every expert takes part
    expert_index: Tensor | None = None
    router_logits: Tensor | None = None  #: ``(..., E)``, float32 at least
    router_probs: Tensor | None = None  #: ``(..., E)``, float32 at least, zero at padding
    #: where experts are fed by slots instead; ``expert_weight`` then says what came of it
    slots: ChosenTokens | SoftSlots | None = None


class MixtureOutput(NamedTuple):
    """What a mixture of experts made of its tokens."""

    output: Tensor  #: same leading dimensions as the input
    router: RouterOutput
    losses: dict[str, Tensor]  #: unweighted auxiliary losses, by name


class EnrichmentOutput(NamedTuple):
    """Streams after an enrichment; there are as many as before."""

    x: Tensor  #: ``(..., M, D)``, zero where absent
    weights: Tensor  #: ``(..., M)``, how much was added to each stream
    router: RouterOutput
    losses: dict[str, Tensor]  #: unweighted auxiliary losses, by name


class FusionOutput(NamedTuple):
    """One vector made of the streams."""

    fused: Tensor  #: ``(..., D)``
    #: ``(..., M)`` where the operator weighs modalities, else ``None``; of a mean or a softmax they
    #: sum to one, of other operators they need not
    weights: Tensor | None
    losses: dict[str, Tensor]  #: unweighted auxiliary losses, by name


@runtime_checkable
class Gate(Protocol):
    """Weighs modalities: ``(..., M, D) -> (..., M)``."""

    def __call__(
        self, x: Tensor, present: Tensor | None = None, context: Tensor | None = None
    ) -> GateOutput: ...


@runtime_checkable
class Router(Protocol):
    """Weighs experts for every token: ``(..., D) -> (..., E)``, or ``(..., K)`` of them."""

    def __call__(
        self, x: Tensor, valid: Tensor | None = None, context: Tensor | None = None
    ) -> RouterOutput: ...


@runtime_checkable
class Enrichment(Protocol):
    """Keeps the streams: ``(..., M, D) -> (..., M, D)``."""

    def __call__(
        self, x: Tensor, present: Tensor | None = None, context: Tensor | None = None
    ) -> EnrichmentOutput: ...


@runtime_checkable
class Fusion(Protocol):
    """Ends the streams: ``(..., M, D) -> (..., D)``."""

    def __call__(
        self, x: Tensor, present: Tensor | None = None, context: Tensor | None = None
    ) -> FusionOutput: ...


@runtime_checkable
class SequenceFusion(Protocol):
    """Ends the streams of a sequence, whose positions may see each other.

    ``(..., L, M, D) -> (..., L, D)``; ``valid``, ``(..., L)``, is false at padding.
    """

    def __call__(
        self,
        x: Tensor,
        present: Tensor | None = None,
        context: Tensor | None = None,
        *,
        valid: Tensor | None = None,
    ) -> FusionOutput: ...


# By these names torch.export.save writes them; torch has no public way to say so.
for _kind in (
    Streams,
    TableOutput,
    GateOutput,
    DispatchPlan,
    ChosenTokens,
    SoftSlots,
    RouterOutput,
    MixtureOutput,
    EnrichmentOutput,
    FusionOutput,
):
    _pytree._register_namedtuple(_kind, serialized_type_name=f"mmfuse.types.{_kind.__name__}")
