"""The models that a run can train, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from cammsr.baselines import fused_recommender, mmmlp, sasrec, unisrec
from cammsr.config import Config
from cammsr.dataset import Dataset, DatasetError
from cammsr.gru4rec import GRU4Rec
from cammsr.hm4sr import HM4SR
from cammsr.items import ID
from cammsr.memory import NEIGHBOURS, Memory
from cammsr.missrec import MISSRec
from cammsr.modalities import features_of, names_of, pairs_of
from cammsr.model import CAMMSR
from cammsr.named import flat
from cammsr.objective import Objective
from cammsr.tedrec import TedRec
from mmfuse.fusion import available

__all__ = ["VARIANTS", "build", "check", "configure", "file_name", "fixed_otherwise"]


def _model(**settings: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, model=replace(config.model, **settings))


def _objective(**settings: Any) -> Callable[[Config], Config]:
    return lambda config: replace(config, objective=replace(config.objective, **settings))


def _unguided(**settings: Any) -> Callable[[Config], Config]:
    """Equal weights, and no category loss: nothing of the model sees a category."""
    change = _model(category_guidance=False, **settings)
    return lambda config: _objective(category_weight=0.0)(change(config))


def _without(modality: str) -> Callable[[Config], Config]:
    return lambda config: _model(leave_out=[*(config.model.leave_out or ()), modality])(config)


def _remembering(change: Callable[[Config], Config]) -> Callable[[Config], Config]:
    """The same beside a memory, of the size that is set, or 200."""
    return lambda config: _model(memory_size=config.model.memory_size or NEIGHBOURS)(change(config))


def _as_configured(config: Config) -> Config:
    return config


VARIANTS: dict[str, tuple[Callable[..., nn.Module], Callable[[Config], Config]]] = {
    "sasrec": (sasrec, _model(norm="layernorm")),  # as its authors have it
    "gru4rec": (GRU4Rec, _as_configured),
    "unisrec": (unisrec, _model(norm="layernorm")),  # likewise
    "missrec": (MISSRec, _as_configured),
    "tedrec": (TedRec, _as_configured),
    "mmmlp": (mmmlp, _as_configured),
    "hm4sr": (HM4SR, _objective(category_weight=1.0)),  # likewise
    **{name: (partial(fused_recommender, fusion=name), _as_configured) for name in available()},
    "cammsr": (CAMMSR, _as_configured),
    "cammsr w/o guidance": (CAMMSR, _unguided()),  # "w/o CG"
    "cammsr w/o MSCL": (CAMMSR, _objective(contrast_weight=0.0)),
    "cammsr w/o Att.": (CAMMSR, _model(router="linear")),
    "cammsr w/o DyT": (CAMMSR, _model(norm="layernorm")),
    "cammsr MoE": (CAMMSR, _unguided(mixture="own", router="linear")),
    "cammsr w/o text": (CAMMSR, _without("text")),
    "cammsr w/o image": (CAMMSR, _without("image")),
    **{
        f"cammsr MSCL {first}-{second}": (CAMMSR, _objective(contrast_pairs=[[first, second]]))
        for first, second in combinations((ID, "text", "image"), 2)
    },
}
VARIANTS |= {
    f"{name} + memory": (VARIANTS[name][0], _remembering(VARIANTS[name][1]))
    for name in ("cammsr", "hm4sr", "sasrec")
}


def file_name(variant: str) -> str:
    """The folder of a variant within a run."""
    return variant.replace("/", "").replace(" ", "-").rstrip(".")  # some systems drop a last dot


def configure(variant: str, config: Config) -> Config:
    """The configuration of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"Expected a model among {list(VARIANTS)}, got {variant!r}.")
    return VARIANTS[variant][1](config)


def fixed_otherwise(variant: str, config: Config) -> dict[str, Any]:
    """Settings that a variant has a value of its own for, where another one is asked for."""
    asked, own = flat(asdict(config)), flat(asdict(configure(variant, config)))
    return {name: value for name, value in own.items() if value != asked[name]}


def check(variant: str, dataset: Dataset, config: Config) -> None:
    """Refuse a variant that the dataset is not for.

    Raises:
        DatasetError: it lacks modalities, which the message names, or its categories are clusters
            of what the model is not to see.
    """
    own = configure(variant, config)
    names = names_of(dataset, own.model)
    _pairs(variant, dataset, own)
    hidden = sorted(set(dataset.features) - set(names))
    if config.categories.source == "virtual" and hidden and own.model.category_guidance:
        raise DatasetError(
            f"Expected categories of the data for {variant}, which does not see {hidden}: virtual "
            "ones are clusters of all features."
        )


def build(
    variant: str, dataset: Dataset, config: Config, counts: Tensor | None = None
) -> tuple[nn.Module, Objective]:
    """A fresh model and its objective, the same for the same seed.

    ``counts`` says how often each item occurs in training; without them nothing can be trained
    whose softmax is estimated.
    """
    config = configure(variant, config)
    torch.manual_seed(config.seed)
    features = features_of(dataset, config.model)
    model = VARIANTS[variant][0](features, dataset.labels, config.model)
    if config.model.memory_size:
        model.memory = Memory(
            dataset.num_items, config.model.memory_size, config.model.memory_decay
        )
    return model, Objective(config.objective, _pairs(variant, dataset, config), counts=counts)


def _pairs(variant: str, dataset: Dataset, config: Config) -> list[tuple[int, int]] | None:
    names = names_of(dataset, config.model)
    contrasts = VARIANTS[variant][0] is CAMMSR
    return pairs_of(config.objective.contrast_pairs, names) if contrasts else None
