"""Tests for cammsr.insight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.insight import insight
from cammsr.model import CAMMSR

EXPERTS = 4


def make(dataset, config, **settings):
    config = replace(config.model, num_experts=EXPERTS, **settings)
    return CAMMSR(dataset.features, dataset.labels, config).eval()


def naive(model, dataset, split):
    """One history at a time, position by position, in the words of the docstring."""
    sums, counts = torch.zeros(3, 3), torch.zeros(3)
    sizes = torch.zeros(3, EXPERTS)
    for user in range(len(split.validation.item)):
        items = split.validation.history[user][-model.config.max_length :]
        with torch.no_grad():
            enriched = model(items[None], torch.ones(1, len(items), dtype=torch.bool)).enriched
        for position, item in enumerate(items.tolist()):
            for category in dataset.labels[item].nonzero().flatten().tolist():
                sums[category] += enriched.weights[0, position]
                counts[category] += 1
            for modality in range(3):
                weights = enriched.router.expert_weight[0, position, modality].tolist()
                chosen = range(EXPERTS)
                if enriched.router.expert_index is not None:
                    chosen = enriched.router.expert_index[0, position, modality].tolist()
                for expert, weight in zip(chosen, weights, strict=True):
                    sizes[modality, expert] += abs(weight)
    return sums / counts[:, None], counts.long(), sizes / sizes.sum(1, keepdim=True)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_means_over_the_positions_of_all_histories(tiny, split, config, top_k):
    model = make(tiny, config, top_k=top_k)
    found = insight(model, split.validation, tiny.labels)
    weights, positions, use = naive(model, tiny, split)
    torch.testing.assert_close(found.weights.float(), weights)
    torch.testing.assert_close(found.positions, positions)
    torch.testing.assert_close(found.use.float(), use)


def test_batches_change_nothing(tiny, split, config):
    model = make(tiny, config)
    whole = insight(model, split.validation, tiny.labels)
    for one, other in zip(
        insight(model, split.validation, tiny.labels, batch_size=5), whole, strict=True
    ):
        torch.testing.assert_close(one.float(), other.float())


def test_a_category_that_never_occurs_has_no_weights(tiny, split, config):
    labels = torch.cat([tiny.labels, torch.zeros(tiny.num_items, 1, dtype=torch.bool)], dim=1)
    found = insight(make(tiny, config), split.validation, labels)
    assert found.weights[3].isnan().all()
    assert found.positions[3] == 0
