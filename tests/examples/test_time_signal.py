"""CAMMSR with times: by the formula, causal, nothing when off, and starting where it is without."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cammsr.batches import training_loader
from cammsr.objective import Objective
from cammsr.scoring import ModelScorer
from cammsr.split import leave_one_out
from cammsr.training import train
from cammsr.variants import build

ITEMS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
TIMES = 1_600_000_000 + torch.tensor(
    [[0, 0, 7, 90_000, 5_000_000, 5_000_001], [5, 60, 61, 86_461, 0, 0]]
)
SETTINGS = [{"time_intervals": True}, {"time_routing": True}]
PARTS = ("intervals", "time_code", "temporal")
BOTH = {"time_intervals": True, "time_routing": True}


def make(tiny, config, shake=0.0, **settings):
    model, _ = build("cammsr", tiny, replace(config, model=replace(config.model, **settings)))
    model = model.double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=shake)
    return model


@pytest.fixture
def dated(tiny):
    """Days, and more of them between the steps of every second user."""
    return replace(tiny, timestamps=86_400 * tiny.timestamps * (1 + 5 * (tiny.user_ids % 2)))


def test_without_the_settings_times_are_not_looked_at(tiny, config):
    model = make(tiny, config)
    assert not model.reads_times
    states = model(ITEMS, VALID).states
    assert torch.equal(model(ITEMS, VALID, times=TIMES).states, states)
    for name, _ in model.named_parameters():
        assert name.split(".")[0] not in PARTS


@pytest.mark.parametrize("settings", [*SETTINGS, BOTH])
def test_it_starts_as_the_model_without(settings, tiny, config):
    plain, timed = make(tiny, config), make(tiny, config, **settings)
    known = plain.state_dict()
    assert len(timed.state_dict()) > len(known)
    for name, value in known.items():
        assert torch.equal(timed.state_dict()[name], value), name
    torch.testing.assert_close(
        timed(ITEMS, VALID, times=TIMES).states, plain(ITEMS, VALID).states, atol=1e-6, rtol=1e-6
    )


def test_the_experts_read_streams_of_the_formula(tiny, config):
    model, read = make(tiny, config, shake=0.3, **BOTH), []
    model.enrichment.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(ITEMS, VALID, times=TIMES)
    x, _ = model.items()
    for row, length in enumerate((6, 4)):
        times = TIMES[row].tolist()
        code = model.time_code(TIMES[row : row + 1])[0]
        for place in range(length):
            passed = max(times[place] - times[place - 1], 0) if place else 0
            interval = model.intervals.weight[math.floor(100 * math.log2(passed + 1))]
            scores = model.temporal.gate.weight @ code[place] + model.temporal.gate.bias
            share = scores.exp() / scores.exp().sum()
            for m in range(3):
                told = x[ITEMS[row, place], m] + model.positions[place] + interval
                expected = sum(share[e] * model.temporal.experts[e, m] * told for e in range(4))
                torch.testing.assert_close(read[0][row, place, m], expected)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("position", range(1, 6))
def test_the_future_is_not_read(settings, position, tiny, config):
    model, later = make(tiny, config, shake=0.3, **settings), TIMES.clone()
    later[:, position:] += 12_345
    before, after = (model(ITEMS, VALID, times=times).states for times in (TIMES, later))
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[0, position], after[0, position])


@pytest.mark.parametrize("settings", SETTINGS)
def test_padding_and_batches_change_nothing(settings, tiny, config):
    model = make(tiny, config, shake=0.3, **settings)
    states = model(ITEMS, VALID, times=TIMES).states
    alone = model(ITEMS[1:, :4], VALID[1:, :4], times=TIMES[1:, :4]).states
    torch.testing.assert_close(alone[0], states[1, :4])
    count = torch.arange(6).expand(2, 6)
    assert torch.equal(model(ITEMS, VALID).states, model(ITEMS, VALID, times=count).states)


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_train_all_that_reads_times(settings, dated, config):
    config = replace(config, model=replace(config.model, dropout=0.0, **settings))
    model, objective = build("cammsr", dated, config)
    assert isinstance(objective, Objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batch = next(iter(training_loader(leave_one_out(dated).train, 6, 24, seed=0)))
    for _ in range(2):  # experts that are all alike leave the first step nothing to choose
        optimizer.zero_grad()
        objective(model, batch)["loss"].backward()
        optimizer.step()
    parts = [(n, v) for n, v in model.named_parameters() if n.split(".")[0] in PARTS]
    assert parts
    for name, value in parts:
        assert value.grad.any(), name


def test_it_trains_and_is_scored_with_times(dated, config, tmp_path):
    short = replace(config.training, max_epochs=1, batch_size=24)
    config = replace(config, model=replace(config.model, num_layers=1, **BOTH), training=short)
    split = leave_one_out(dated)
    trained = train("cammsr", dated, split, config, tmp_path, progress=False)
    scorer = ModelScorer(trained.model)
    assert scorer.reads_times
    history = split.test.history
    padded, times = history.padded(torch.arange(24)), history.padded_times(torch.arange(24))
    assert not torch.allclose(scorer.scores(*padded, times), scorer.scores(*padded))
    assert max(trained.curve) == pytest.approx(trained.validation["ndcg@10"], rel=1e-5)
