"""Every setting of a run, typed; the command line and the YAML files are made of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cammsr.settings import check_at_least, check_choice, check_share

__all__ = [
    "CategoryConfig",
    "Config",
    "Examples",
    "ModelConfig",
    "Norm",
    "ObjectiveConfig",
    "Softmax",
    "SplitName",
    "TrainingConfig",
]

Accelerator = Literal["auto", "cpu", "gpu"]
Candidates = Literal["plain", "enriched"]
CategorySource = Literal["given", "virtual", "none"]
Examples = Literal["sequences", "prefixes"]
Mixture = Literal["cross", "own", "none"]
Norm = Literal["dyt", "affine_dyt", "layernorm"]
Pooling = Literal["max", "joint"]
Precision = Literal["32", "bf16", "16"]
Router = Literal["attentive", "linear"]
Softmax = Literal["full", "chunked", "sampled", "in_batch"]
SplitName = Literal["leave_one_out", "global_time"]
Strategy = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class ModelConfig:
    """The model. Equations are those of the CAMMSR paper.

    Args:
        modalities: Which features of the dataset folder to use; all of them by default.
        leave_out: Which of them the model does not get: "w/o text", "w/o image".
        use_id: Whether the item id is a modality too.
        dim: Width d of a stream.
        num_layers: Transformer layers a stream.
        num_heads: Attention heads.
        hidden_dim: Inner width of a Transformer layer.
        dropout: Dropout probability.
        max_length: How many of a user's last items are read.
        norm: Dynamic tanh as printed (Eq. 13), or with the scale and shift that it learns in its
            own paper; or LayerNorm, the ablation "w/o DyT", which several baselines always have.
        init_scale: Standard deviation of every stream at the start; by default .25 with dynamic
            tanh, and .05 with LayerNorm, which a larger one can keep from learning.
        mixture: Experts that read all modalities (Eq. 5), those that read their own, or none.
        router: Attention along the sequence (Eq. 6-7), or a linear one with a softmax: "w/o Att.".
        num_experts: Experts K for each modality (Eq. 5).
        top_k: How many experts each position keeps; all of them by default, as printed.
        shared_experts: Whether modalities share one bank of experts.
        normalize_experts: Whether expert weights sum to one; as printed (Eq. 7) they do not.
        category_guidance: Whether categories weigh the modalities; otherwise equal weights.
        guidance: Sign of Eq. 10.
        reduction: Mean or sum over the categories in Eq. 9.
        pooling: Several labels of an item in Eq. 9: the largest discrepancy, or one to all of them.
        gate_temperature: Temperature of Eq. 10.
        detach_gate: Whether the category gate leaves the embeddings alone.
        candidates: Items as they are (Eq. 15), or enriched, each as a history of itself alone.
        memory_size: How many neighbours a memory of what users took together keeps for an item,
            beside any model; 0 for no memory, which is not a part of any of the papers.
        memory_decay: By what factor an item of the history counts less there than the next one.
        time_intervals: Whether positions also tell how long after the item before each was taken.
        time_routing: Whether experts of time scale the streams first, as in HM4SR.
    """

    modalities: list[str] | None = None
    leave_out: list[str] | None = None
    use_id: bool = True
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    hidden_dim: int = 256
    dropout: float = 0.5
    max_length: int = 20
    norm: Norm = "affine_dyt"
    init_scale: float | None = None
    mixture: Mixture = "cross"
    router: Router = "attentive"
    num_experts: int = 4
    top_k: int | None = None
    shared_experts: bool = False
    normalize_experts: bool = False
    category_guidance: bool = True
    guidance: Literal["confidence", "difficulty"] = "confidence"
    reduction: Literal["mean", "sum"] = "mean"
    pooling: Pooling = "max"
    gate_temperature: float = 1.0
    detach_gate: bool = False
    candidates: Candidates = "plain"
    memory_size: int = 0
    memory_decay: float = 0.9
    time_intervals: bool = False
    time_routing: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model can be made of."""
        check_at_least(1, self, "dim", "num_layers", "num_heads", "hidden_dim", "max_length")
        check_at_least(1, self, "num_experts")
        check_choice(self, mixture=Mixture, router=Router, pooling=Pooling, candidates=Candidates)
        if self.top_k is not None and not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"Expected top_k between 1 and num_experts ({self.num_experts}), got {self.top_k}."
            )
        check_share(self, "dropout", "memory_decay")
        check_at_least(0, self, "memory_size", "init_scale")
        if self.dim % self.num_heads:
            raise ValueError(
                f"Expected dim divisible by num_heads, got {self.dim} and {self.num_heads}."
            )

    @property
    def first_scale(self) -> float:
        """``init_scale``, or its default."""
        default = 0.05 if self.norm == "layernorm" else 0.25
        return default if self.init_scale is None else self.init_scale


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weighted sum of losses (Eq. 20).

    Args:
        contrast_weight: Weight lambda of modality-swap contrastive learning; 0 leaves it out.
        contrast_pairs: Pairs of modality names to contrast, the id is "id"; all pairs by default.
        contrast_temperature: Temperature of its InfoNCE; 1 as printed.
        contrast_symmetric: Whether to take both directions.
        swap_probability: Probability rho of a swap at a position.
        category_weight: Weight of the category loss; 0 as printed, and 1 for HM4SR always.
        id_contrast_weight: Weight of HM4SR's contrast of a user with the next item's id.
        placeholder_weight: Weight of HM4SR's contrast with placeholders made of the time.
        balance_weight: Weight of the losses that even out the load of routed experts.
        z_weight: Weight of the loss that keeps the scores of a router small.
        label_smoothing: Label smoothing of the next-item cross entropy.
        softmax: Over the whole catalogue; the same in chunks; estimated by a sample or the batch.
        num_sampled: How many items a step draws for the sampled softmax.
    """

    contrast_weight: float = 0.03
    contrast_pairs: list[list[str]] | None = None
    contrast_temperature: float = 0.2
    contrast_symmetric: bool = True
    swap_probability: float = 0.5
    category_weight: float = 0.1
    id_contrast_weight: float = 1.0
    placeholder_weight: float = 1.0
    balance_weight: float = 0.01
    z_weight: float = 0.001
    label_smoothing: float = 0.0
    softmax: Softmax = "full"
    num_sampled: int = 4096

    def __post_init__(self) -> None:
        """Refuse what no objective can be made of."""
        check_at_least(0, self, "contrast_weight", "category_weight")
        check_at_least(0, self, "id_contrast_weight", "placeholder_weight")
        check_at_least(0, self, "balance_weight", "z_weight")
        check_share(self, "label_smoothing", "swap_probability")
        check_at_least(1, self, "num_sampled")
        check_choice(self, softmax=Softmax)
        if self.label_smoothing and self.softmax in {"sampled", "in_batch"}:
            raise ValueError(
                f"Expected label_smoothing 0 with softmax {self.softmax!r}, which does not score "
                f"all items, got {self.label_smoothing}."
            )
        for pair in self.contrast_pairs or ():
            if len(set(pair)) != 2 or len(pair) != 2:
                raise ValueError(
                    f"Expected contrast_pairs of two different modalities each, got {pair}."
                )


@dataclass(frozen=True)
class CategoryConfig:
    """What is known of the categories of items, drawn by the seed of the run.

    Args:
        source: Those of the dataset folder, virtual ones, which are clusters of features, or none.
        clusters: How many virtual ones.
        removed: Share of the items with a category that lose it.
        noise: Share of the items with a category, the removed ones aside, that get a wrong one.
    """

    source: CategorySource = "given"
    clusters: int = 20
    removed: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no categories can be made of."""
        check_choice(self, source=CategorySource)
        check_at_least(1, self, "clusters")
        check_share(self, "removed", "noise")
        if self.source == "none" and (self.removed or self.noise):
            raise ValueError(
                "Expected removed and noise of 0 without categories, got "
                f"{self.removed} and {self.noise}."
            )


@dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Args:
        batch_size: Sequences a step.
        max_epochs: Most epochs.
        examples: Whole sequences with a target at every position, or, as papers often have it,
            every prefix of a sequence with one target at its end.
        patience: Epochs without a better validation NDCG@10 before the loop stops.
        learning_rate: Adam's step size.
        weight_decay: Decoupled weight decay.
        average: Decay of the moving average of the weights, which is evaluated; 0 for none.
        threads: Processor threads; torch's own choice by default.
        checkpoint_steps: Steps between checkpoints within an epoch; one an epoch by default.
        precision: Numbers of the model's products: 32 bits, or half of them where that is safe.
        compile: Whether torch compiles the model.
        accelerator: What to train on; a GPU if there is one by default.
        devices: Processes on each machine, which torchrun starts; as many as it says by default.
        num_nodes: Machines; as many as torchrun says by default.
        strategy: Each process has the whole model, "ddp" (and "auto"), or a part of it, "fsdp".
    """

    batch_size: int = 256
    examples: Examples = "sequences"
    max_epochs: int = 100
    patience: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    average: float = 0.99
    threads: int | None = None
    checkpoint_steps: int | None = None
    precision: Precision = "32"
    compile: bool = False
    accelerator: Accelerator = "auto"
    devices: int | None = None
    num_nodes: int | None = None
    strategy: Strategy = "auto"

    def __post_init__(self) -> None:
        """Refuse what no loop can be made of."""
        check_at_least(1, self, "batch_size", "max_epochs", "patience")
        check_choice(self, examples=Examples, precision=Precision)
        check_choice(self, accelerator=Accelerator, strategy=Strategy)
        if not 0 <= self.average < 1:
            raise ValueError(f"Expected 0 <= average < 1, got {self.average}.")
        check_at_least(1, self, "threads", "checkpoint_steps", "devices", "num_nodes")


@dataclass(frozen=True)
class Config:
    """A run.

    Args:
        data: Dataset folder; the generated catalogue by default.
        output: Where run folders go.
        split: Each user's last items held out, or all that is later than a time.
        time_share: Of the interactions, how many lie before the time; the rest is half validation.
        seed: Seed of every random draw, the generated catalogue's included.
        model: The model.
        objective: The losses.
        categories: What is known of the items' categories.
        training: The loop.
    """

    data: str | None = None
    output: str = "runs"
    split: SplitName = "leave_one_out"
    time_share: float = 0.8
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    categories: CategoryConfig = field(default_factory=CategoryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Refuse what no split can be made of."""
        check_choice(self, split=SplitName)
        if not 0 < self.time_share < 1:
            raise ValueError(f"Expected 0 < time_share < 1, got {self.time_share}.")
        if self.model.memory_size and self.objective.softmax != "full":
            raise ValueError(
                f"Expected softmax 'full' with a memory (memory_size {self.model.memory_size}), "
                f"got {self.objective.softmax!r}."
            )
