"""Tests for cammsr.hm4sr, cammsr.hm4sr_losses, and times on their way to a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.batches import target_loader, training_loader
from cammsr.config import Config, ModelConfig, ObjectiveConfig
from cammsr.hm4sr import HM4SR
from cammsr.hm4sr_losses import (
    category_loss,
    choose_positions,
    id_contrast,
    placeholder_contrast,
)
from cammsr.metrics import evaluate, expected_rank, ranking_values, target_ranks
from cammsr.module import RecommenderModule
from cammsr.objective import Objective
from cammsr.scoring import ModelScorer
from cammsr.split import Ragged, leave_one_out
from cammsr.training import train
from cammsr.variants import configure
from mmfuse.types import Streams

SMALL = ModelConfig(dim=4, hidden_dim=6, num_experts=3, max_length=6, num_layers=1, dropout=0.0)
HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
TIMES = 1_600_000_000 + torch.tensor(
    [[0, 0, 7, 90_000, 5_000_000, 5_000_001], [5, 60, 61, 86_461, 0, 0]]
)
TIMES[1, 4:] = 0
TARGETS = torch.tensor([[1, 4, 1, 5, 9, 7], [6, 5, 3, 7, 0, 0]])


def shaken(model):
    """With noise on every weight, so that nothing is zero or one by initialisation."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return shaken(HM4SR(tiny.features, tiny.labels, SMALL).double().eval())


# -- the model ------------------------------------------------------------------------------------


def naive_streams(model, row, time):
    """The six streams of one history, position by position, by the formulas."""
    x, present = model.items()
    mixture = model.interactive
    gates, offsets = mixture.gate.parameters()
    code = model.time_code(time[None])[0]
    rows = []
    for place, item in enumerate(row):
        e = [(x[item, m] + model.positions[place]) * bool(present[item, m]) for m in range(3)]
        together = torch.cat(e)
        made = [
            mixture.experts.weight[k * 12 : (k + 1) * 12] @ together
            + mixture.experts.bias[k * 12 : (k + 1) * 12]
            for k in range(3)
        ]
        enriched = []
        for m in range(3):
            share = (gates[m] @ e[m] + offsets[m]).softmax(0)
            told = sum(share[k] * made[k][4 * m : 4 * m + 4] for k in range(3))
            enriched.append((e[m] + mixture.amount[m] * told) * bool(present[item, m]))
        gate = (model.temporal.gate.weight @ code[place] + model.temporal.gate.bias).softmax(0)
        scale = sum(gate[k] * model.temporal.experts[k] for k in range(4))
        rows.append(torch.stack(enriched) * scale)
    return torch.stack(rows)  # (L, M, D)


def test_states_and_scores_are_those_of_the_formulas(model):
    output = model(HISTORY, VALID, times=TIMES)
    scores = ModelScorer(model).scores(HISTORY, VALID, TIMES)
    x, _ = model.items()
    for row, length in enumerate((6, 4)):
        streams = naive_streams(model, HISTORY[row, :length].tolist(), TIMES[row, :length])
        states = [model.encoders[m](streams[None, :, m])[0] for m in range(3)]
        torch.testing.assert_close(output.states[row, :length], torch.cat(states, -1))
        for item in range(15):
            expected = sum(states[m][-1] @ x[item, m] for m in range(3))
            assert scores[row, item].item() == pytest.approx(expected.item())


def test_it_starts_with_streams_that_hardly_change(tiny):
    model = HM4SR(tiny.features, tiny.labels, SMALL)
    assert model.interactive.amount.tolist() == [0, 1, 1]
    torch.testing.assert_close(
        model.temporal.experts, torch.ones_like(model.temporal.experts), atol=0.6, rtol=0
    )
    assert "LayerNorm" in str(model.encoders)
    assert "DynamicTanh" not in str(model.encoders)


@pytest.mark.parametrize("position", range(6))
def test_the_future_is_not_read(model, position):
    changed, later = HISTORY.clone(), TIMES.clone()
    changed[:, position:] = (changed[:, position:] + 7) % 15
    later[:, position:] += 12_345
    before = model(HISTORY, VALID, times=TIMES).states
    after = model(changed, VALID, times=later).states
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


def test_padding_never_reaches_a_real_position(model):
    states = model(HISTORY, VALID, times=TIMES).states
    alone = model(HISTORY[1:, :4], VALID[1:, :4], times=TIMES[1:, :4]).states
    torch.testing.assert_close(alone[0], states[1, :4])


def test_nan_of_what_is_absent_reaches_nothing(model):
    clean = Streams(*(part.detach() for part in model.items()))
    assert not clean.present.all()
    x = clean.x.masked_fill(~clean.present.unsqueeze(-1), torch.nan).requires_grad_()
    found = []
    for given in (clean.x, x):
        torch.manual_seed(1)  # of the placeholders
        catalogue = Streams(given, clean.present)
        output = model(HISTORY, VALID, catalogue, times=TIMES, targets=TARGETS)
        found.append((output.states, output.candidates, *output.losses.values()))
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)
    sum(part.sum() for part in found[1]).backward()
    assert x.grad.isfinite().all()
    assert (x.grad[~clean.present] == 0).all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_without_times_positions_stand_in(model):
    count = torch.arange(6).expand(2, 6)
    expected = model(HISTORY, VALID, times=count).states
    assert torch.equal(model(HISTORY, VALID).states, expected)
    assert not torch.allclose(model(HISTORY, VALID, times=TIMES).states, expected)


@pytest.mark.parametrize(("use_id", "names"), [(False, ["text"]), (True, []), (True, ["text"])])
def test_any_modalities_will_do(tiny, use_id, names):
    features = {name: tiny.features[name] for name in names}
    bare = replace(SMALL, use_id=use_id)
    model = HM4SR(features, tiny.labels[:, :0], bare)  # and no categories either
    output = model(HISTORY, VALID, times=TIMES, targets=TARGETS)
    expected = {"id_contrast"} if use_id else set()
    assert set(output.losses) == expected | ({"placeholder_contrast"} if names else set())
    assert output.states.shape[-1] == output.candidates.shape[-1] == 4 * (use_id + len(names))


# -- losses ---------------------------------------------------------------------------------------


def naive_contrast(query, key, target, temperature, rows):
    """Cosines; whoever has the same target leaves the denominator."""
    losses = []
    for i in rows:
        scores = {
            j: torch.cosine_similarity(query[i], key[j], dim=0) / temperature
            for j in rows
            if j == i or target[j] != target[i]
        }
        losses.append(torch.stack(list(scores.values())).logsumexp(0) - scores[i])
    return torch.stack(losses).mean()


def test_id_contrast_leaves_the_same_targets_out():
    state, ids = torch.randn(5, 4).double(), torch.randn(9, 4).double()
    target = torch.tensor([3, 8, 3, 1, 3])
    expected = naive_contrast(state, ids[target], target, 0.2, range(5))
    torch.testing.assert_close(id_contrast(state, ids, target), expected)


def test_id_contrast_leaves_out_rows_that_are_nobody():
    state, ids = torch.randn(5, 4).double(), torch.randn(9, 4).double()
    target, valid = torch.tensor([3, 8, 2, 1, 7]), torch.tensor([True, True, False, True, True])
    expected = naive_contrast(state, ids[target], target, 0.2, [0, 1, 3, 4])
    torch.testing.assert_close(id_contrast(state, ids, target, valid), expected)


def test_placeholders_stand_at_the_chosen_positions_of_what_is_present():
    streams = torch.randn(4, 3, 2, 2).double()
    holders = torch.randn(4, 3, 2, 2).double()
    states = torch.randn(4, 2, 2).double()
    present = torch.rand(4, 3, 2) < 0.7
    present[1, :, 0] = False  # takes no part in the first stream's contrast
    present[0, 0] = present[2, 0] = present[3, 0] = present[1, 0, 1] = True
    chosen, target = torch.rand(4, 3) < 0.5, torch.tensor([5, 6, 5, 2])
    valid = torch.ones(4, 3, dtype=torch.bool)

    def encode(stream, s):
        return (stream * torch.arange(1, 4)[:, None]).sum(1) + s

    got = placeholder_contrast(
        Streams(streams, present),
        states,
        holders,
        encode,
        chosen=chosen,
        valid=valid,
        target=target,
    )
    expected = 0.0
    for s, rows in ((0, (0, 2, 3)), (1, (0, 1, 2, 3))):
        changed = torch.zeros(4, 2).double()
        for b in range(4):
            for place in range(3):
                replaced = chosen[b, place] and present[b, place, s]
                there = holders if replaced else streams
                changed[b] += (place + 1) * there[b, place, s]
        expected += naive_contrast(states[:, s], changed + s, target, 1.0, rows) / 2
    torch.testing.assert_close(got, torch.as_tensor(expected))


def test_three_in_ten_real_positions_are_drawn():
    valid = torch.arange(20) < torch.tensor([[20], [10], [9], [4], [3], [1], [0]])
    drawn = [choose_positions(valid) for _ in range(200)]
    for chosen in drawn:
        assert chosen.sum(1).tolist() == [6, 3, 2, 1, 0, 0, 0]
        assert not (chosen & ~valid).any()
    share = torch.stack(drawn).double().mean(0)
    torch.testing.assert_close(share[0], torch.full((20,), 0.3).double(), atol=0.15, rtol=0)


def test_category_loss_is_the_mean_over_known_items_and_categories(tiny):
    head = torch.nn.Linear(6, 3).double()
    streams = torch.randn(15, 2, 3).double()
    total, count = 0.0, 0
    for item in HISTORY[VALID].tolist():
        if not tiny.labels[item].any():
            continue
        for c in range(3):
            chance = torch.sigmoid(head.weight[c] @ streams[item].flatten() + head.bias[c])
            total -= torch.log(chance if tiny.labels[item, c] else 1 - chance).item()
            count += 1
    assert count < 3 * VALID.sum()  # item 1 has no category
    loss = category_loss(head, streams, tiny.labels, HISTORY, VALID)
    assert loss.item() == pytest.approx(total / count)
    nothing = category_loss(head, streams, tiny.labels, torch.ones_like(HISTORY), VALID)
    nothing.backward()
    assert nothing.item() == 0


def test_losses_come_from_the_last_position_and_all_items(model, tiny):
    torch.manual_seed(3)
    losses = model(HISTORY, VALID, times=TIMES, targets=TARGETS).losses
    catalogue, goal = model.items(), torch.tensor([7, 7])  # one target: nobody's negative
    assert losses["id_contrast"].item() == pytest.approx(0, abs=1e-12)
    assert losses["placeholder_contrast"].item() == pytest.approx(0, abs=1e-12)
    other = TARGETS.clone()
    other[1, 3] = goal[1] = 8
    torch.manual_seed(3)
    losses = model(HISTORY, VALID, times=TIMES, targets=other).losses
    states = model(HISTORY, VALID, times=TIMES).states.unflatten(-1, (3, 4))
    last = torch.stack([states[0, 5], states[1, 3]])
    expected = naive_contrast(last[:, 0], catalogue.x[goal, 0], goal, 0.2, range(2))
    torch.testing.assert_close(losses["id_contrast"], expected)
    expected = category_loss(model.head, catalogue.x, tiny.labels, HISTORY, VALID)
    torch.testing.assert_close(losses["category"], expected)

    torch.manual_seed(3)
    chosen, total = choose_positions(VALID), 0.0
    for m in (1, 2):
        changed = []
        for row, length in enumerate((6, 4)):
            stream = naive_streams(model, HISTORY[row, :length].tolist(), TIMES[row, :length])
            code = model.time_code(TIMES[row : row + 1])[0]
            for place in chosen[row].nonzero().flatten().tolist():
                if catalogue.present[HISTORY[row, place], m]:
                    stream[place, m] = model.placeholders[m - 1](code[place])
            changed.append(model.encoders[m](stream[None, :, m])[0, -1])
        total += naive_contrast(last[:, m], torch.stack(changed), goal, 1.0, range(2)) / 2
    torch.testing.assert_close(losses["placeholder_contrast"], total)


# -- training -------------------------------------------------------------------------------------


@pytest.fixture
def dated(tiny):
    """Days, and more of them between the steps of every second user."""
    return replace(tiny, timestamps=86_400 * tiny.timestamps * (1 + 5 * (tiny.user_ids % 2)))


def test_the_objective_weighs_every_loss(dated, config):
    torch.manual_seed(0)
    model = HM4SR(dated.features, dated.labels, config.model).eval()
    batch = next(iter(training_loader(leave_one_out(dated).train, 6, 8, seed=0)))
    weights = ObjectiveConfig(category_weight=5.0, id_contrast_weight=2.0, placeholder_weight=3.0)
    losses = Objective(weights)(model, batch)
    expected = losses["next_item"] + 5 * losses["category"]
    expected = expected + 2 * losses["id_contrast"] + 3 * losses["placeholder_contrast"]
    torch.testing.assert_close(losses["loss"], expected)
    alone = Objective(ObjectiveConfig())
    timeless = alone(model, batch._replace(times=None))
    assert losses["next_item"].item() != timeless["next_item"].item()


def test_its_authors_weigh_all_losses_alike():
    config = configure("hm4sr", Config())
    objective = config.objective
    assert objective.category_weight == 1
    assert objective.id_contrast_weight == objective.placeholder_weight == 1
    assert config.model == Config().model


def test_steps_lower_the_loss_and_train_every_weight(dated, config):
    torch.manual_seed(0)
    model = HM4SR(dated.features, dated.labels, replace(config.model, dropout=0.0))
    batch = next(iter(training_loader(leave_one_out(dated).train, 6, 24, seed=0)))
    objective = Objective(configure("hm4sr", config).objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = objective(model, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found == sorted(found, reverse=True)
    for name, value in model.named_parameters():
        assert value.grad.any(), name


def test_it_trains_by_the_same_loop(dated, config, tmp_path):
    short = replace(config, training=replace(config.training, max_epochs=2))
    split = leave_one_out(dated)
    trained = train("hm4sr", dated, split, short, tmp_path, progress=False)
    assert max(trained.curve) == pytest.approx(trained.validation["ndcg@10"], rel=1e-5)
    assert evaluate(ModelScorer(trained.model), split.test) == trained.test


# -- times on their way ---------------------------------------------------------------------------


def test_times_go_beside_the_items(dated):
    split = leave_one_out(dated)
    times = {user: dated.timestamps[dated.user_ids == user].tolist() for user in range(24)}
    for batch in target_loader(split.test, 3, 5):
        assert batch.times.shape == batch.items.shape
        for row, valid in zip(batch.times, batch.valid, strict=True):
            read = row[valid].tolist()
            assert any(own[:-1][-len(read) :] == read for own in times.values())
    everyone = torch.arange(24)
    padded = split.validation.history.padded_times(everyone, 3)
    _, valid = split.validation.history.padded(everyone, 3)
    for user in range(24):
        assert padded[user, valid[user]].tolist() == times[user][:-2][-3:]
        assert (padded[user, ~valid[user]] == 0).all()


def test_training_reads_the_times_of_the_items_not_of_the_targets():
    lengths = torch.tensor([3, 1, 5])
    values = torch.arange(9)
    sequences = Ragged.from_lengths(values, lengths, 1000 + 7 * values)
    for batch in training_loader(sequences, 3, 2, seed=0):
        assert torch.equal(batch.times[batch.valid], 1000 + 7 * batch.items[batch.valid])
    for batch in training_loader(Ragged.from_lengths(values, lengths), 3, 2, seed=0):
        assert batch.times is None


def test_scorers_cut_times_with_the_items(dated):
    torch.manual_seed(0)
    model = shaken(HM4SR(dated.features, dated.labels, SMALL).double().eval())
    history = leave_one_out(dated).test.history
    everyone = torch.arange(24)
    scorer = ModelScorer(model)
    whole = scorer.scores(*history.padded(everyone), history.padded_times(everyone))
    cut = scorer.scores(*history.padded(everyone, 6), history.padded_times(everyone, 6))
    torch.testing.assert_close(whole, cut)
    assert not torch.allclose(scorer.scores(*history.padded(everyone)), whole)


def test_validation_and_evaluation_read_times(dated, config):
    torch.manual_seed(0)
    model = shaken(HM4SR(dated.features, dated.labels, SMALL).double().eval())
    target = leave_one_out(dated).validation
    everyone = torch.arange(24)
    padded, scorer = target.history.padded(everyone), ModelScorer(model)
    timed = expected_rank(
        scorer.scores(*padded, target.history.padded_times(everyone)), target.item
    )
    assert not torch.equal(timed, expected_rank(scorer.scores(*padded), target.item))
    assert torch.equal(target_ranks(scorer, target, batch_size=7).plain, timed)
    module = RecommenderModule(model, Objective(config.objective), config.training)
    module.on_validation_epoch_start()
    for number, batch in enumerate(target_loader(target, 6, 7)):
        module.validation_step(batch, number)
    ndcg = ranking_values(timed)["ndcg@10"].mean().item()
    assert module.metrics.compute()["ndcg@10"].item() == pytest.approx(ndcg)
