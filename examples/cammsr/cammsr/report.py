"""What a run found, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cammsr.batches import target_loader
from cammsr.dataset import Dataset
from cammsr.model import CAMMSR, RecommenderOutput
from cammsr.split import Target
from cammsr.training import Trained

__all__ = ["draw_report", "expert_use", "format_table", "modality_weights"]

COLUMNS = ("ndcg@10", "hr@10", "mrr@10", "masked/ndcg@10")


def format_table(floors: dict[str, dict[str, dict[str, float]]], models: list[Trained]) -> str:
    """One row a floor or model: validation NDCG@10, then the test."""
    head = f"{'':22}{'validation':>12}{'test':>44}\n"
    head += f"{'':22}{'NDCG@10':>12}{'NDCG@10':>11}{'HR@10':>11}{'MRR@10':>11}{'unseen':>11}"
    head += f"{'best':>8}{'seconds':>9}"
    rows = [_row(name, values["validation"], values["test"]) for name, values in floors.items()]
    for trained in models:
        row = _row(trained.name, trained.validation, trained.test)
        rows.append(f"{row}{trained.best_epoch + 1:>8}{trained.seconds:>9.0f}")
    note = (
        "unseen: test NDCG@10 among the items that the user has not seen; best: the best epoch\n"
        "one seed; compare.py runs several"
    )
    return "\n".join([head, *rows, note])


def _row(name: str, validation: dict[str, float], test: dict[str, float]) -> str:
    numbers = "".join(f"{test[column]:>11.4f}" for column in COLUMNS)
    return f"{name:22}{validation['ndcg@10']:>12.4f}{numbers}"


@torch.no_grad()
def _read(model: CAMMSR, target: Target, batch_size: int = 256) -> list[tuple[Tensor, ...]]:
    """Gate and expert weights at every real position of the histories, with the items there."""
    rows: list[tuple[Tensor, ...]] = []
    catalogue = model.items()
    for batch in target_loader(target, model.config.max_length, batch_size):
        output: RecommenderOutput = model(batch.items, batch.valid, catalogue)
        assert output.enriched is not None  # CAMMSR always enriches
        weights = output.enriched.weights[batch.valid]
        experts = output.enriched.router.expert_weight[batch.valid]
        rows.append((batch.items[batch.valid], weights, experts))
    return rows


def modality_weights(model: CAMMSR, target: Target, dataset: Dataset) -> Tensor:  # (C, M)
    """The mean weight of each modality by category; NaN for a category that never occurs."""
    items, weights, _ = (torch.cat(part) for part in zip(*_read(model, target), strict=True))
    labels = dataset.labels[items].double()  # (T, C)
    return labels.T @ weights.double() / labels.sum(0).unsqueeze(1)


def expert_use(model: CAMMSR, target: Target) -> Tensor:  # (M, E)
    """The share of each expert in the size of its modality's expert weights."""
    experts = torch.cat([part for _, _, part in _read(model, target)])
    size = experts.abs().mean(0)
    return size / size.sum(-1, keepdim=True)


def draw_report(
    path: Path,
    floors: dict[str, dict[str, dict[str, float]]],
    models: list[Trained],
    dataset: Dataset,
    target: Target,
) -> None:
    """Learning curves, the test beside the floors, modality weights by category, expert use."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(dataset.name, parse_math=False)
    _draw_curves(axes[0, 0], floors, models)
    _draw_test(axes[0, 1], floors, models)
    shown = [trained.model for trained in models if trained.name == "cammsr"]
    for model in shown[:1]:
        assert isinstance(model, CAMMSR)  # the variant of that name is one
        names = list(model.items.names)
        weights = modality_weights(model, target, dataset)
        experts = [f"expert {e + 1}" for e in range(model.config.num_experts)]
        if dataset.categories:
            _draw_matrix(
                axes[1, 0], weights, list(dataset.categories), names, "modality weights by category"
            )
        _draw_matrix(axes[1, 1], expert_use(model, target), names, experts, "expert use")
    if not shown:
        axes[1, 0].set_axis_off()
        axes[1, 1].set_axis_off()
    figure.savefig(path, dpi=110)


def _draw_curves(
    axes: Axes, floors: dict[str, dict[str, dict[str, float]]], models: list[Trained]
) -> None:
    for trained in models:
        axes.plot(range(1, len(trained.curve) + 1), trained.curve, marker=".", label=trained.name)
    best = max(floors, key=lambda name: floors[name]["validation"]["ndcg@10"])
    axes.axhline(
        floors[best]["validation"]["ndcg@10"], color="grey", linestyle="--", label=f"floor: {best}"
    )
    axes.set(title="validation", xlabel="epoch", ylabel="NDCG@10")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _draw_test(
    axes: Axes, floors: dict[str, dict[str, dict[str, float]]], models: list[Trained]
) -> None:
    values = {name: entry["test"]["ndcg@10"] for name, entry in floors.items()}
    values |= {trained.name: trained.test["ndcg@10"] for trained in models}
    colours = ["silver"] * len(floors) + ["tab:blue"] * len(models)
    bars = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(bars, fmt="%.4f", padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title="test", xlabel="NDCG@10")


def _draw_matrix(
    axes: Axes, values: Tensor, rows: list[str], columns: list[str], title: str
) -> None:
    image = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_title(title)
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes)
