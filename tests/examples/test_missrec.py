"""Tests for cammsr.missrec and cammsr.blend: a score that is no single product."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cammsr.batches import training_loader
from cammsr.blend import paired_scores, scores_of
from cammsr.blockwise import BlockRanker, model_ranks
from cammsr.config import ModelConfig
from cammsr.metrics import evaluate, target_ranks
from cammsr.missrec import MISSRec, UserAdaptiveBlend
from cammsr.ranking import Reader, top_k
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, ServingError
from cammsr.training import train
from cammsr.variants import build
from mmfuse.types import Streams

SMALL = ModelConfig(dim=4, hidden_dim=5, max_length=6, num_layers=2, dropout=0.3)
HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


@pytest.fixture
def lacking(tiny):
    """Item 4 has neither text nor image, others lack one of them."""
    text = tiny.features["text"].clone()
    text[[4, 7]] = 0
    return replace(tiny, features={**tiny.features, "text": text})


@pytest.fixture
def model(lacking):
    torch.manual_seed(2)
    return sharp(MISSRec(lacking.features, lacking.labels, SMALL).double().eval())


def sharp(model, value=3.0):
    """As if it had learned to tell modalities apart."""
    with torch.no_grad():
        model.blend.sharpness.fill_(value)
    return model


# -- the formula ----------------------------------------------------------------------------------


def naive_score(state, item, present, sharpness, use_id=True):
    """Cosines with what is there; features by their softmax, twice as much as the id."""
    cosines = [float(torch.cosine_similarity(state, part, dim=0)) for part in item]
    features = [m for m in range(int(use_id), len(item)) if present[m]]
    told = 0.0
    if features:
        raised = {m: math.exp(sharpness * cosines[m]) for m in features}
        told = sum(cosines[m] * raised[m] for m in features) / sum(raised.values())
    if use_id:
        told = (cosines[0] + 2 * told) / 3 if features else cosines[0]
    return told / 0.07


@torch.no_grad()
@pytest.mark.parametrize("use_id", [True, False])
@pytest.mark.parametrize("names", [["text", "image"], ["image"], []])
def test_states_and_scores_are_those_of_the_formulas(lacking, use_id, names):
    if not (use_id or names):
        return
    features = {name: lacking.features[name] for name in names}
    config = replace(SMALL, use_id=use_id)
    model = sharp(MISSRec(features, lacking.labels, config).double().eval())
    x, present = model.items()
    scores = ModelScorer(model).scores(HISTORY, VALID)
    for row, length in enumerate((6, 4)):
        stream = []
        for place, item in enumerate(HISTORY[row, :length].tolist()):
            there = [x[item, m] for m in range(x.shape[1]) if present[item, m]]
            stream.append(sum(there, model.positions[place]))
        state = model.encoder(torch.stack(stream)[None])[0, -1]
        for item in range(15):
            expected = naive_score(state, x[item], present[item].tolist(), 3.0, use_id)
            assert scores[row, item].item() == pytest.approx(expected, abs=1e-12)


def test_the_encoder_has_layer_norm(model):
    assert "LayerNorm" in str(model.encoder)
    assert "DynamicTanh" not in str(model.encoder)


def test_features_count_alike_at_first_and_the_best_alone_at_last():
    blend = UserAdaptiveBlend(3).double()
    products = [torch.tensor([value]).double() for value in (0.5, 0.4, -0.2)]
    there = [torch.tensor([True])] * 3
    first = sum(blend(products, there)).item()
    assert first == pytest.approx((0.5 + 2 * 0.1) / 3 / 0.07)
    blend.sharpness.data.fill_(1e6)
    assert sum(blend(products, there)).item() == pytest.approx((0.5 + 2 * 0.4) / 3 / 0.07)
    blend.sharpness.data.fill_(-1e6)
    assert sum(blend(products, there)).item() == pytest.approx((0.5 - 2 * 0.2) / 3 / 0.07)


def test_what_a_candidate_lacks_leaves_the_softmax():
    blend = UserAdaptiveBlend(3).double()
    products = [torch.tensor([value]).double() for value in (0.5, 0.4, 0.0)]
    absent = [torch.tensor([flag]) for flag in (True, True, False)]
    parts = blend(products, absent)
    assert [part.item() for part in parts] == pytest.approx([0.5 / 0.21, 0.8 / 0.21, 0])
    nothing = blend(products, [torch.tensor([flag]) for flag in (True, False, False)])
    assert [part.item() for part in nothing] == pytest.approx([0.5 / 0.07, 0, 0])
    without_id = UserAdaptiveBlend(2, use_id=False).double()
    products = [product.requires_grad_() for product in products[1:]]
    empty = sum(without_id(products, [torch.tensor([False])] * 2))
    empty.backward()
    assert empty.item() == 0
    assert all(product.grad.item() == 0 for product in products)
    assert without_id.sharpness.grad.item() == 0


def test_gradients_are_those_of_differences():
    blend = UserAdaptiveBlend(3).double()
    there = torch.tensor([True, True, False])

    def scores(states, candidates, sharpness):
        candidates = candidates * there.repeat_interleave(2)
        return torch.func.functional_call(
            Scores(blend), {"blend.sharpness": sharpness}, (states, candidates)
        )

    torch.manual_seed(3)
    drawn = torch.randn(3, 2).double(), torch.randn(4, 6).double(), torch.tensor(2.0).double()
    assert torch.autograd.gradcheck(scores, [value.requires_grad_() for value in drawn])


class Scores(torch.nn.Module):
    def __init__(self, blend):
        super().__init__()
        self.blend = blend

    def forward(self, states, candidates):
        return scores_of(states, candidates, self.blend)


def test_one_pair_scores_as_in_the_table(model):
    output = model(HISTORY, VALID)
    table = scores_of(output.states, output.candidates, output.blend)  # (B, L, V)
    assert table.shape == (2, 6, 15)
    items = torch.tensor([4, 0])
    pairs = paired_scores(output.states[:, 3], output.candidates[items], output.blend)
    torch.testing.assert_close(pairs, table[torch.arange(2), 3, items])


# -- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(6))
def test_the_future_is_not_read(model, position):
    changed = HISTORY.clone()
    changed[:, position:] = (changed[:, position:] + 7) % 15
    before, after = model(HISTORY, VALID).states, model(changed, VALID).states
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


def test_nan_of_what_is_absent_reaches_nothing(model):
    clean = Streams(*(part.detach() for part in model.items()))
    assert not clean.present.all()
    x = clean.x.masked_fill(~clean.present.unsqueeze(-1), torch.nan).requires_grad_()
    found = []
    for given in (clean.x, x):
        output = model(HISTORY, VALID, Streams(given, clean.present))
        found.append(scores_of(output.states[VALID], output.candidates, output.blend))
    assert torch.equal(*found)
    found[1].logsumexp(-1).sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[~clean.present] == 0).all()
    assert model.blend.sharpness.grad.isfinite()
    assert model.blend.sharpness.grad != 0


def test_the_loss_is_the_cross_entropy_of_the_blended_scores(lacking, split, config):
    model, objective = build("missrec", lacking, config)
    model.eval()
    batch = next(iter(training_loader(split.train, 6, 8, seed=0)))
    losses = objective(model, batch)
    assert set(losses) == {"loss", "next_item"}
    total, count = 0.0, 0
    for row in range(8):
        for place in range(int(batch.valid[row].sum())):
            items = batch.items[row : row + 1, : place + 1]
            scores = ModelScorer(model).scores(items, torch.ones_like(items, dtype=torch.bool))[0]
            total += float(scores.logsumexp(0) - scores[batch.targets[row, place]])
            count += 1
    assert losses["loss"].item() == pytest.approx(total / count, rel=1e-5)


def test_it_trains_by_the_same_loop_and_is_restored(lacking, split, config, tmp_path):
    short = replace(config, training=replace(config.training, max_epochs=2))
    trained = train("missrec", lacking, split, short, tmp_path, progress=False)
    assert max(trained.curve) == pytest.approx(trained.validation["ndcg@10"], rel=1e-5)
    assert evaluate(ModelScorer(trained.model), split.test) == trained.test
    assert trained.model.blend.sharpness.item() != 0, "it was learned, and kept"
    again = train("missrec", lacking, split, short, tmp_path, progress=False)
    assert again.model.blend.sharpness.item() == trained.model.blend.sharpness.item()


# -- ranks ----------------------------------------------------------------------------------------


def test_blocks_rank_as_whole_scores(lacking, split, config):
    model = sharp(build("missrec", lacking, config)[0].eval())
    whole = target_ranks(ModelScorer(model), split.test)
    for batch_size, block in ((5, 4), (1, 1), (24, 15)):
        ranks = model_ranks(Reader(model), split.test, batch_size=batch_size, block=block)
        assert torch.equal(ranks.plain, whole.plain)
        assert torch.equal(ranks.masked, whole.masked)


def real(rows, size, lacks=0.3):
    """States and candidates of three modalities, some absent, all drawn anew."""
    states = torch.nn.functional.normalize(torch.randn(rows, 16), dim=-1)
    x = torch.nn.functional.normalize(torch.randn(size, 3, 16), dim=-1)
    x[:, 1:][torch.rand(size, 2) < lacks] = 0
    return states, x.flatten(1)


def test_real_numbers_rank_the_same_in_any_batch_and_block():
    torch.manual_seed(4)
    states, candidates = real(60, 150)
    item = torch.arange(60)
    blend = UserAdaptiveBlend(3)
    blend.sharpness.data.fill_(5.0)
    expected = BlockRanker(candidates, block=150, blend=blend).ranks(states, item).plain
    for batch, block in ((1, 150), (7, 33), (60, 7), (13, 64)):
        ranker = BlockRanker(candidates, block=block, blend=blend)
        parts = [
            ranker.ranks(*part).plain
            for part in zip(states.split(batch), item.split(batch), strict=True)
        ]
        assert torch.equal(torch.cat(parts), expected)
    scores = scores_of(states.double(), candidates.double(), blend)
    naive = 1 + (scores > scores.gather(1, item[:, None])).sum(1)
    assert (naive - expected).abs().max() <= 1, "up to what the grid cannot tell apart"
    assert (naive == expected).double().mean() > 0.9


def test_equal_items_tie_wherever_they_stand():
    torch.manual_seed(5)
    states, single = real(29, 29)
    blend, item = UserAdaptiveBlend(3), torch.arange(29)
    blend.sharpness.data.fill_(4.0)
    alone = BlockRanker(single, blend=blend).ranks(states, item).plain
    for block in (1, 5, 16, 87):
        ranker = BlockRanker(single.repeat(3, 1), block=block, blend=blend)
        assert torch.equal(ranker.ranks(states, item + 29).plain, 3 * (alone - 1) + 2)


def test_widths_are_checked_a_modality():
    states, candidates = real(2, 5)
    ranker = BlockRanker(candidates, blend=UserAdaptiveBlend(3))
    with pytest.raises(ValueError, match=r"as wide as the candidates, got 48 and 16"):
        ranker.ranks(states.repeat(1, 3), torch.arange(2))


# -- serving --------------------------------------------------------------------------------------


def test_the_best_are_found_block_by_block():
    torch.manual_seed(6)
    states, candidates = real(5, 90)
    blend = UserAdaptiveBlend(3)
    order = scores_of(states, candidates, blend).argsort(1, descending=True)
    for block in (90, 13):
        found = top_k(states, candidates, 7, block=block, blend=blend)
        assert torch.equal(found.items, order[:, :7])


@torch.no_grad()
def test_parts_say_what_each_modality_adds(model, lacking):
    recommender = Recommender(model.float(), lacking, name="missrec")
    choices = {choice.item: choice for choice in recommender.recommend([3, 1], k=15, unseen=False)}
    for choice in choices.values():
        assert sum(choice.parts.values()) == pytest.approx(choice.score, abs=1e-4)
    assert choices[4].parts["text"] == choices[4].parts["image"] == 0
    assert choices[0].parts["image"] == 0 != choices[0].parts["text"]


def test_an_index_is_refused(model, lacking):
    recommender = Recommender(model, lacking, name="missrec")
    with pytest.raises(ServingError, match="missrec has scores that are no products"):
        recommender.index()


def test_the_exported_program_gives_the_same_numbers(lacking, split, config, tmp_path):
    small = replace(config, model=replace(config.model, num_layers=1))  # exports faster
    model = sharp(build("missrec", lacking, small)[0])
    recommender = Recommender(model, lacking)
    recommender.export(tmp_path / "scoring.pt2", k=4)
    program = torch.export.load(tmp_path / "scoring.pt2").module()
    items, valid = split.test.history.padded(torch.arange(9))
    scores, best = program(items, valid)
    expected = recommender.top_k(items, valid, 4)
    assert torch.equal(best, expected.items)
    torch.testing.assert_close(scores, expected.scores)
