"""Tests for cammsr.next_item and cammsr.negatives, and for the objective with them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from cammsr import next_item
from cammsr.batches import NOTHING, Batch, training_loader
from cammsr.config import ObjectiveConfig
from cammsr.missrec import UserAdaptiveBlend
from cammsr.negatives import Negatives, NegativeSampler, log_inclusion, read_part
from cammsr.next_item import chunked_cross_entropy, full_cross_entropy, sampled_cross_entropy
from cammsr.objective import Objective
from cammsr.variants import build, configure

MODELS = ["cammsr", "sasrec", "gru4rec", "unisrec", "missrec", "mmmlp", "concat", "tedrec"]


@pytest.fixture
def batch(split, config):
    return next(iter(training_loader(split.train, config.model.max_length, 8, seed=0)))


@pytest.fixture
def counts(split, tiny):
    return torch.bincount(split.train.values, minlength=tiny.num_items)


def leaves(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def slopes(loss, *tensors):
    return loss.item(), *torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("blended", [False, True])
def test_chunks_have_the_value_and_the_gradient_of_the_whole(monkeypatch, label_smoothing, blended):
    monkeypatch.setattr(next_item, "CHUNK", 3 * 11)  # three states at a time
    states, candidates = leaves((10, 4), (11, 12 if blended else 4))
    targets = torch.arange(10) % 7
    options = {
        "blend": UserAdaptiveBlend(3).double() if blended else None,
        "label_smoothing": label_smoothing,
    }
    whole = full_cross_entropy(states, candidates, targets, **options)
    parts = chunked_cross_entropy(states, candidates, targets, **options)
    for one, other in zip(
        slopes(3 * parts, states, candidates), slopes(3 * whole, states, candidates), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_all_items_sampled_are_the_whole_catalogue():
    states, candidates = leaves((10, 4), (11, 4))
    targets = torch.arange(10) % 7
    sampler = NegativeSampler(torch.arange(11), num_sampled=11)
    estimate = sampled_cross_entropy(states, candidates, targets, sampler(targets))
    whole = full_cross_entropy(states, candidates, targets)
    for one, other in zip(
        slopes(estimate, states, candidates), slopes(whole, states, candidates), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_sampled_loss_is_the_formula_of_the_docstring():
    states, candidates = leaves((3, 4), (9, 4))
    targets, items = torch.tensor([2, 5, 8]), torch.tensor([0, 2, 3, 8])
    probability = torch.tensor([0.5, 0.9, 0.1, 0.3], dtype=torch.float64)
    got = sampled_cross_entropy(states, candidates, targets, Negatives(items, probability.log()))
    expected = 0.0
    for state, target in zip(states, targets.tolist(), strict=True):
        score = [(state @ candidate).item() for candidate in candidates]
        total = math.exp(score[target])
        for item, there in zip(items.tolist(), probability.tolist(), strict=True):
            total += math.exp(score[item]) / there if item != target else 0.0
        expected += (math.log(total) - score[target]) / 3
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("num_sampled", [6, 0])
def test_corrected_negatives_estimate_the_sum_over_the_catalogue_without_bias(num_sampled):
    torch.manual_seed(0)
    counts = torch.tensor([1, 2, 3, 5, 8, 13, 21])
    values = torch.tensor([9.0, 1.0, 4.0, 2.0, 8.0, 3.0, 1.0], dtype=torch.float64)
    sampler = NegativeSampler(counts, num_sampled)
    totals = []
    for _ in range(4000):
        targets = torch.multinomial(counts.double(), 12, replacement=True)
        items, log_probability = sampler(targets)
        totals.append((values[items] / log_probability.exp()).sum())
    error = torch.stack(totals).std() / len(totals) ** 0.5
    assert abs(torch.stack(totals).mean() - values.sum()) < 4 * error
    assert error < 0.02 * values.sum()


def test_a_target_that_was_never_counted_still_makes_a_loss():
    """Its probability would be 0, and the correction infinite."""
    sampler = NegativeSampler(torch.tensor([3, 0, 2]), 0)
    states, candidates, targets = torch.randn(4, 2), torch.randn(3, 2), torch.tensor([0, 1, 1, 2])
    loss = sampled_cross_entropy(states, candidates, targets, sampler(targets))
    assert loss.isfinite()


def test_popular_items_are_drawn_more_often_and_all_may_be():
    torch.manual_seed(0)
    sampler = NegativeSampler(torch.tensor([0, 15, 255]), num_sampled=2)
    drawn = torch.stack(
        [torch.bincount(sampler(torch.tensor([0])).items, minlength=3) for _ in range(3000)]
    )
    weights = torch.tensor([1.0, 16**0.75, 256**0.75], dtype=torch.float64)
    expected = log_inclusion(weights / weights.sum(), 2).exp()
    torch.testing.assert_close(drawn.double().mean(0), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_says_the_same_of_a_part_of_the_catalogue(name, tiny, config, batch):
    model, _ = build(name, tiny, config)
    model.eval()
    labels = dict(model.named_buffers()).get("labels")
    targets = batch.targets.masked_fill(torch.arange(batch.targets.shape[1]) == 0, NOTHING)
    given = Batch(batch.items, batch.valid, targets, batch.times)
    whole = model(batch.items, batch.valid)
    negatives = torch.tensor([1, 4, 9])
    part = read_part(model, given, negatives, {})
    torch.testing.assert_close(part.output.states[batch.valid], whole.states[batch.valid])
    torch.testing.assert_close(part.output.candidates[part.negatives], whole.candidates[negatives])
    trained = batch.valid & (targets != NOTHING)
    torch.testing.assert_close(
        part.output.candidates[part.batch.targets[trained]], whole.candidates[targets[trained]]
    )
    assert (part.batch.targets[~trained & batch.valid] == NOTHING).all()
    assert dict(model.named_buffers()).get("labels") is labels


@pytest.mark.parametrize("name", ["cammsr", "sasrec", "hm4sr", "missrec", "unisrec"])
def test_sampling_all_items_is_the_full_objective(name, tiny, config, batch, counts):
    model, full = build(name, tiny, config)
    model.eval()
    settings = configure(name, config).objective
    settings = replace(settings, softmax="sampled", num_sampled=tiny.num_items)
    sampled = Objective(settings, counts=counts)
    torch.manual_seed(1)
    expected = full(model, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(sampled(model, batch), expected)


def test_in_batch_negatives_are_the_other_targets(tiny, config, batch, counts):
    model, _ = build("sasrec", tiny, config)
    model.eval()
    settings = ObjectiveConfig(softmax="in_batch")
    got = Objective(settings, counts=counts)(model, batch)["next_item"]
    output = model(batch.items, batch.valid)
    states, targets = output.states[batch.valid], batch.targets[batch.valid]
    share = counts.double() / counts.sum()
    expected = []
    for state, target in zip(states, targets, strict=True):
        score = output.candidates @ state
        total = score[target].exp().double()
        for item in set(targets.tolist()) - {int(target)}:
            total += score[item].exp() / (1 - (1 - share[item]) ** len(targets))
        expected.append(total.log() - score[target])
    assert got.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("softmax", ["chunked", "sampled", "in_batch"])
def test_only_the_items_of_the_step_get_a_gradient_where_the_softmax_is_estimated(
    softmax, tiny, config, batch, counts
):
    model, _ = build("sasrec", tiny, config)
    torch.manual_seed(4)
    objective = Objective(ObjectiveConfig(softmax=softmax, num_sampled=2), counts=counts)
    objective(model, batch)["loss"].backward()
    touched = model.items.embedding.weight.grad.any(-1).nonzero().flatten().tolist()
    here = {*batch.items.flatten().tolist(), *batch.targets[batch.valid].tolist()}
    if softmax == "chunked":
        assert touched == list(range(tiny.num_items))
    else:
        assert len(set(touched) - here) <= (2 if softmax == "sampled" else 0)


def test_without_counts_an_estimated_softmax_is_refused(tiny, config, batch):
    model, _ = build("sasrec", tiny, config)
    objective = Objective(ObjectiveConfig(softmax="in_batch"))
    with pytest.raises(ValueError, match=r"Expected counts with softmax 'in_batch', got None\."):
        objective(model, batch)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"softmax": "some"}, r"Expected softmax among \['full', .*\], got 'some'"),
        ({"num_sampled": 0}, r"Expected num_sampled >= 1, got 0"),
        ({"softmax": "sampled", "label_smoothing": 0.1}, r"Expected label_smoothing 0 .*, got 0.1"),
    ],
)
def test_settings_that_make_no_loss_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        ObjectiveConfig(**settings)


def test_default_is_the_plain_cross_entropy_bit_for_bit(tiny, config, batch):
    model, objective = build("sasrec", tiny, config)
    output = model.eval()(batch.items, batch.valid)
    scores = output.states[batch.valid] @ output.candidates.T
    expected = F.cross_entropy(scores, batch.targets[batch.valid])
    assert torch.equal(objective(model, batch)["next_item"], expected)
