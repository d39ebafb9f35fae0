"""Tests for cammsr.objective."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.baselines import fused_recommender, sasrec
from cammsr.batches import training_loader
from cammsr.config import ObjectiveConfig
from cammsr.model import CAMMSR
from cammsr.objective import Objective
from mmfuse.fusion import available


@pytest.fixture
def batch(split, config):
    return next(iter(training_loader(split.train, config.model.max_length, 8, seed=0)))


@pytest.fixture
def model(tiny, config):
    return CAMMSR(tiny.features, tiny.labels, config.model).eval()


def test_next_item_loss_is_the_mean_cross_entropy_over_real_positions(model, batch):
    output = model(batch.items, batch.valid)
    total, count = 0.0, 0
    for row, position in batch.valid.nonzero().tolist():
        scores = output.candidates @ output.states[row, position]
        total -= scores.log_softmax(0)[batch.targets[row, position]].item()
        count += 1
    losses = Objective(ObjectiveConfig())(model, batch)
    assert losses["next_item"].item() == pytest.approx(total / count, rel=1e-5)


def test_loss_is_the_weighted_sum(model, batch):
    losses = Objective(ObjectiveConfig(contrast_weight=0.5, category_weight=2.0))(model, batch)
    expected = losses["next_item"] + 0.5 * losses["contrast"] + 2 * losses["category"]
    torch.testing.assert_close(losses["loss"], expected)


def test_as_printed_the_category_loss_counts_nothing(model, batch):
    losses = Objective(ObjectiveConfig(contrast_weight=0.0, category_weight=0.0))(model, batch)
    torch.testing.assert_close(losses["loss"], losses["next_item"])
    assert "contrast" not in losses


def test_contrast_without_swaps_is_info_nce_between_the_modalities_own_states(model, batch):
    config = ObjectiveConfig(swap_probability=0.0, contrast_symmetric=False, contrast_temperature=1)
    got = Objective(config)(model, batch)["contrast"].item()
    output = model(batch.items, batch.valid)
    last = batch.valid.sum(1) - 1
    goal = batch.targets[torch.arange(len(last)), last]
    total = 0.0
    for m, n in ((0, 1), (0, 2), (1, 2)):
        both = (output.present[..., m] & output.present[..., n] & batch.valid).any(1)
        states = [model.encode(output.enriched.x[..., k, :], k) for k in (m, n)]
        a, b = (s[torch.arange(len(last)), last] for s in states)
        similarity = torch.cosine_similarity(a[:, None], b[None], dim=-1)
        losses = []
        for i in range(len(last)):
            kept = [j for j in range(len(last)) if j == i or (both[j] and goal[j] != goal[i])]
            losses.append(similarity[i, kept].logsumexp(0) - similarity[i, i])
        total += torch.stack(losses)[both].mean().item()
    assert got == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", available())
def test_every_fusion_has_losses_that_are_weighed(name, tiny, config, batch):
    model = fused_recommender(tiny.features, tiny.labels, config.model, fusion=name)
    weights = {"next_item": 1.0, "importance": 0.5, "load": 0.5, "balance": 0.5, "z": 0.25}
    objective = Objective(replace(config.objective, balance_weight=0.5, z_weight=0.25))
    losses = objective(model.eval(), batch)
    expected = sum(weights[name] * loss for name, loss in losses.items() if name != "loss")
    torch.testing.assert_close(losses["loss"], expected)


def test_a_loss_without_a_weight_is_an_error(tiny, config, batch):
    model = sasrec(tiny.features, tiny.labels, config.model)
    output = model(batch.items, batch.valid)
    unknown = output._replace(losses={"novel": output.states.sum()})
    with pytest.raises(ValueError, match=r"Expected losses among \['balance', .*\], got 'novel'\."):
        Objective(config.objective)(lambda items, valid: unknown, batch)


def test_baselines_have_the_next_item_loss_alone(tiny, config, batch):
    objective = Objective(replace(config.objective, contrast_weight=1.0))
    losses = objective(sasrec(tiny.features, tiny.labels, config.model), batch)
    assert set(losses) == {"loss", "next_item"}
    torch.testing.assert_close(losses["loss"], losses["next_item"])
