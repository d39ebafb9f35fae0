"""The models that a run can train, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from cammsr.baselines import fused_recommender, mmmlp, sasrec, unisrec
from cammsr.config import Config
from cammsr.dataset import Dataset
from cammsr.gru4rec import GRU4Rec
from cammsr.hm4sr import HM4SR
from cammsr.model import CAMMSR
from cammsr.objective import Objective
from mmfuse.fusion import available

__all__ = ["VARIANTS", "build", "configure", "file_name"]


def _without_guidance(config: Config) -> Config:
    """Equal weights, and no category loss: nothing of the model sees a category."""
    return replace(
        config,
        model=replace(config.model, category_guidance=False),
        objective=replace(config.objective, category_weight=0.0),
    )


def _without_contrast(config: Config) -> Config:
    return replace(config, objective=replace(config.objective, contrast_weight=0.0))


def _all_losses_alike(config: Config) -> Config:
    """The categories weigh 1, as HM4SR's authors have it."""
    return replace(config, objective=replace(config.objective, category_weight=1.0))


def _as_configured(config: Config) -> Config:
    return config


VARIANTS: dict[str, tuple[Callable[..., nn.Module], Callable[[Config], Config]]] = {
    "sasrec": (sasrec, _as_configured),
    "gru4rec": (GRU4Rec, _as_configured),
    "unisrec": (unisrec, _as_configured),
    "mmmlp": (mmmlp, _as_configured),
    "hm4sr": (HM4SR, _all_losses_alike),
    **{name: (partial(fused_recommender, fusion=name), _as_configured) for name in available()},
    "cammsr": (CAMMSR, _as_configured),
    "cammsr w/o guidance": (CAMMSR, _without_guidance),
    "cammsr w/o MSCL": (CAMMSR, _without_contrast),
}


def file_name(variant: str) -> str:
    """The folder of a variant within a run."""
    return variant.replace("/", "").replace(" ", "-")


def configure(variant: str, config: Config) -> Config:
    """The configuration of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"Expected a model among {list(VARIANTS)}, got {variant!r}.")
    return VARIANTS[variant][1](config)


def build(variant: str, dataset: Dataset, config: Config) -> tuple[nn.Module, Objective]:
    """A fresh model and its objective, the same for the same seed."""
    config = configure(variant, config)
    torch.manual_seed(config.seed)
    model = VARIANTS[variant][0](dataset.features, dataset.labels, config.model)
    return model, Objective(config.objective)
