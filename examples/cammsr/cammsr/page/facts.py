"""What was run: the dataset, the settings that are not the defaults, versions, times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from cammsr.chosen_split import ChosenSplit
from cammsr.config import Config
from cammsr.dataset import UNKNOWN, Dataset
from cammsr.named import differences
from cammsr.page.markup import Markup, element, note, table

__all__ = ["changed", "facts"]

PLACES = frozenset({"data", "output"})  # folders of a machine: they are left out


def facts(
    config: Config, metrics: Mapping[str, Any], data: tuple[Dataset, ChosenSplit] | None
) -> Iterator[Markup]:
    """A list of names and values, what is to say of the split, then the settings."""
    known = {"Dataset": metrics.get("dataset", "–"), **({} if data is None else _data(*data))}
    models = metrics.get("models", {})
    seconds = [found["seconds"] for found in models.values() if "seconds" in found]
    known |= {
        "Models": ", ".join(models) or "–",
        "Seed": str(config.seed),
        "Training": f"{sum(seconds):,.0f} seconds" if seconds else "–",
        "Versions": ", ".join(f"{n} {v}" for n, v in metrics.get("versions", {}).items()) or "–",
    }
    pairs = [(element("dt", name), element("dd", value)) for name, value in known.items()]
    yield element("dl", *(Markup(f"\n{name}{value}") for name, value in pairs))
    if data is not None:
        yield note(data[1].note)
    rows = [[name, str(value), str(default)] for name, (value, default) in changed(config).items()]
    if rows:
        yield table("Settings that are not the defaults", ["setting", "here", "default"], rows)
    else:
        yield note("All settings are the defaults.")


def changed(config: Config) -> dict[str, tuple[Any, Any]]:
    """Every setting that differs from its default, with both values; no folders."""
    return {
        name: (own, default)
        for name, (default, own) in differences({}, asdict(config), but=PLACES).items()
    }


def _data(dataset: Dataset, chosen: ChosenSplit) -> dict[str, str]:
    has = {name: (raw != 0).any(-1).double().mean() for name, raw in dataset.features.items()}
    has["category"] = (dataset.category != UNKNOWN).double().mean()
    count = len(dataset.item_ids)
    dense = count / (dataset.num_users * dataset.num_items)
    return {
        "Users": f"{dataset.num_users:,}",
        "Items": f"{dataset.num_items:,}",
        "Interactions": f"{count:,} ({dense:.2%} of all pairs)",
        "Split": chosen.name,
        "Categories": f"{len(dataset.categories):,}",
        "Items that have": ", ".join(f"{name} {share:.1%}" for name, share in has.items()),
    }
