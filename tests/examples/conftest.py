"""A dataset small enough to train on within a test."""

from __future__ import annotations

import pytest
import torch

from cammsr.config import Config, ModelConfig, ObjectiveConfig, TrainingConfig
from cammsr.dataset import UNKNOWN, Dataset
from cammsr.split import Split, leave_one_out

USERS, ITEMS = 24, 15


@pytest.fixture
def tiny() -> Dataset:
    """Users of five to nine steps through a small catalogue; some images and categories lack."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(5, 10, (USERS,), generator=generator)
    features = {
        "text": torch.randn(ITEMS, 6, generator=generator),
        "image": torch.randn(ITEMS, 4, generator=generator),
    }
    features["image"][::4] = 0
    category = torch.arange(ITEMS) % 3
    category[1] = UNKNOWN
    labels = category.unsqueeze(1) == torch.arange(3)
    labels[2, 0] = True  # an item of two labels
    return Dataset(
        name="tiny",
        user_ids=torch.arange(USERS).repeat_interleave(lengths),
        item_ids=torch.randint(0, ITEMS, (int(lengths.sum()),), generator=generator),
        timestamps=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        features=features,
        categories=("a", "b", "c"),
        labels=labels,
        category=category,
        titles=tuple(f"item {i}" for i in range(ITEMS)),
    )


@pytest.fixture
def split(tiny: Dataset) -> Split:
    return leave_one_out(tiny)


@pytest.fixture
def config() -> Config:
    return Config(
        model=ModelConfig(dim=8, hidden_dim=16, num_experts=2, max_length=6, dropout=0.1),
        objective=ObjectiveConfig(contrast_weight=0.1, category_weight=0.1),
        training=TrainingConfig(batch_size=8, max_epochs=3, patience=5, learning_rate=0.01),
    )
