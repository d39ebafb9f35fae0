"""A run folder as train.py leaves one, with weights that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from safetensors.torch import save_file

from cammsr.config import Config
from cammsr.dataset import k_core, read_folder
from cammsr.keeper import weights
from cammsr.variants import build, file_name

__all__ = ["save_run"]


def save_run(config: Config, folder: Path, models: Sequence[str]) -> Path:
    """Write the settings, and fresh models on the dataset folder that they name."""
    assert config.data is not None
    dataset = k_core(read_folder(config.data))
    for name in models:
        (folder / file_name(name)).mkdir(parents=True)
        model, _ = build(name, dataset, config)
        save_file(weights(model.state_dict()), folder / file_name(name) / "weights.safetensors")
    metrics = {"models": {name: {} for name in models}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    settings = {**asdict(config), "models": list(models)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder
