"""Tests for cammsr.gru4rec."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.batches import training_loader
from cammsr.config import ModelConfig
from cammsr.gru4rec import GRU4Rec
from cammsr.objective import Objective
from cammsr.scoring import ModelScorer
from cammsr.training import train

SMALL = ModelConfig(dim=4, hidden_dim=5, num_layers=2, max_length=6, dropout=0.0)
HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


@pytest.fixture
def model(tiny):
    made = GRU4Rec(tiny.features, tiny.labels, SMALL).double().eval()
    for value in made.gru.parameters():  # no bias is zero, no gate like another
        torch.nn.init.normal_(value)
    return made


def cell(x, h, gru, layer):
    """Read aloud: the new state is between the old one and a proposal, as the update gate says."""
    weight, recurrent, bias, recurrent_bias = (
        getattr(gru, f"{name}_l{layer}").chunk(3)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    told = [w @ x + b for w, b in zip(weight, bias, strict=True)]
    kept = [w @ h + b for w, b in zip(recurrent, recurrent_bias, strict=True)]
    reset = torch.sigmoid(told[0] + kept[0])
    update = torch.sigmoid(told[1] + kept[1])
    proposal = torch.tanh(told[2] + reset * kept[2])
    return (1 - update) * proposal + update * h


def test_states_are_those_of_a_gru_step_by_step(model):
    output = model(HISTORY, VALID)
    ids = model.items.embedding.weight
    for row in range(2):
        hidden = [torch.zeros(5, dtype=torch.float64) for _ in range(2)]
        for position, item in enumerate(HISTORY[row].tolist()):
            x = ids[item]
            for layer in range(2):
                x = hidden[layer] = cell(x, hidden[layer], model.gru, layer)
            expected = model.out.weight @ x + model.out.bias
            torch.testing.assert_close(output.states[row, position], expected)


def test_scores_are_products_with_the_embeddings(model):
    scores = ModelScorer(model).scores(HISTORY, VALID)
    states = model(HISTORY, VALID).states
    expected = torch.stack([states[0, 5], states[1, 3]]) @ model.items.embedding.weight.T
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("position", range(6))
def test_changing_a_later_item_never_changes_an_earlier_state(model, position):
    changed = HISTORY.clone()
    changed[:, position:] = (changed[:, position:] + 7) % 15
    before, after = model(HISTORY, VALID).states, model(changed, VALID).states
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


def test_every_weight_is_trained(tiny, split, config):
    model = GRU4Rec(tiny.features, tiny.labels, replace(config.model, dropout=0.0))
    batch = next(iter(training_loader(split.train, 6, 8, seed=0)))
    losses = Objective(config.objective)(model, batch)
    assert set(losses) == {"loss", "next_item"}
    losses["loss"].backward()
    for name, value in model.named_parameters():
        assert name == "positions" or value.grad.any(), name


def test_it_trains_by_the_same_loop(tiny, split, config, tmp_path):
    one = replace(config, training=replace(config.training, max_epochs=2))
    trained = train("gru4rec", tiny, split, one, tmp_path, progress=False)
    assert isinstance(trained.model, GRU4Rec)
    assert len(trained.model.positions) == config.model.max_length
    assert len(trained.curve) == 2
    assert trained.model.gru.hidden_size == config.model.hidden_dim
