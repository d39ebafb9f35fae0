"""Every setting of a run, typed; the command line and the YAML files are made of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Config", "ModelConfig", "Norm", "ObjectiveConfig", "TrainingConfig"]

Norm = Literal["dyt", "layernorm"]


@dataclass(frozen=True)
class ModelConfig:
    """The model. Equations are those of the CAMMSR paper.

    Args:
        modalities: Which features of the dataset folder to use; all of them by default.
        use_id: Whether the item id is a modality too.
        dim: Width d of a stream.
        num_layers: Transformer layers a stream.
        num_heads: Attention heads.
        hidden_dim: Inner width of a Transformer layer.
        dropout: Dropout probability.
        max_length: How many of a user's last items are read.
        norm: Dynamic tanh (Eq. 13), or LayerNorm: the ablation "w/o DyT".
        init_scale: Standard deviation of every stream at the start.
        num_experts: Experts K for each modality (Eq. 5).
        top_k: How many experts each position keeps; all of them by default, as printed.
        shared_experts: Whether modalities share one bank of experts.
        normalize_experts: Whether expert weights sum to one; as printed (Eq. 7) they do not.
        category_guidance: Whether categories weigh the modalities; otherwise equal weights.
        guidance: Sign of Eq. 10.
        reduction: Mean or sum over the categories in Eq. 9.
        gate_temperature: Temperature of Eq. 10.
        detach_gate: Whether the category gate leaves the embeddings alone.
    """

    modalities: list[str] | None = None
    use_id: bool = True
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    hidden_dim: int = 256
    dropout: float = 0.5
    max_length: int = 20
    norm: Norm = "dyt"
    init_scale: float = 0.25
    num_experts: int = 4
    top_k: int | None = None
    shared_experts: bool = False
    normalize_experts: bool = False
    category_guidance: bool = True
    guidance: Literal["confidence", "difficulty"] = "confidence"
    reduction: Literal["mean", "sum"] = "mean"
    gate_temperature: float = 1.0
    detach_gate: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model can be made of."""
        _check_at_least(1, self, "dim", "num_layers", "num_heads", "hidden_dim", "max_length")
        _check_at_least(1, self, "num_experts")
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"Expected top_k between 1 and num_experts ({self.num_experts}), got {self.top_k}."
            )
        _check_share(self, "dropout")
        if self.dim % self.num_heads:
            raise ValueError(
                f"Expected dim divisible by num_heads, got {self.dim} and {self.num_heads}."
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weighted sum of losses (Eq. 20).

    Args:
        contrast_weight: Weight lambda of modality-swap contrastive learning; 0 leaves it out.
        contrast_temperature: Temperature of its InfoNCE; 1 as printed.
        contrast_symmetric: Whether to take both directions.
        swap_probability: Probability rho of a swap at a position.
        category_weight: Weight of the category loss; 0 as printed, and 1 for HM4SR always.
        id_contrast_weight: Weight of HM4SR's contrast of a user with the next item's id.
        placeholder_weight: Weight of HM4SR's contrast with placeholders made of the time.
        balance_weight: Weight of the losses that even out the load of routed experts.
        z_weight: Weight of the loss that keeps the scores of a router small.
        label_smoothing: Label smoothing of the next-item cross entropy.
    """

    contrast_weight: float = 0.03
    contrast_temperature: float = 0.2
    contrast_symmetric: bool = True
    swap_probability: float = 0.5
    category_weight: float = 0.1
    id_contrast_weight: float = 1.0
    placeholder_weight: float = 1.0
    balance_weight: float = 0.01
    z_weight: float = 0.001
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no objective can be made of."""
        _check_at_least(0, self, "contrast_weight", "category_weight")
        _check_at_least(0, self, "id_contrast_weight", "placeholder_weight")
        _check_at_least(0, self, "balance_weight", "z_weight")
        _check_share(self, "label_smoothing", "swap_probability")


@dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Args:
        batch_size: Sequences a step.
        max_epochs: Most epochs.
        patience: Epochs without a better validation NDCG@10 before the loop stops.
        learning_rate: Adam's step size.
        weight_decay: Decoupled weight decay.
        threads: Processor threads; torch's own choice by default.
        checkpoint_steps: Steps between checkpoints within an epoch; one an epoch by default.
    """

    batch_size: int = 256
    max_epochs: int = 100
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    threads: int | None = None
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no loop can be made of."""
        _check_at_least(1, self, "batch_size", "max_epochs", "patience")
        for name in ("threads", "checkpoint_steps"):
            if getattr(self, name) is not None:
                _check_at_least(1, self, name)


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        data: Dataset folder; the generated catalogue by default.
        output: Where run folders go.
        seed: Seed of every random draw, the generated catalogue's included.
        model: The model.
        objective: The losses.
        training: The loop.
    """

    data: str | None = None
    output: str = "runs"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def _check_at_least(least: float, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise ValueError(f"Expected {name} >= {least}, got {value}.")


def _check_share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise ValueError(f"Expected 0 <= {name} <= 1, got {value}.")
