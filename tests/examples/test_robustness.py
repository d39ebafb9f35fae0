"""Modalities dropped and categories changed: nested, and of a model that stays as it was."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cammsr.blockwise import model_ranks
from cammsr.dataset import UNKNOWN
from cammsr.metrics import summarise
from cammsr.ranking import Reader
from cammsr.robustness import adapt, curve, with_wrong_categories, without
from cammsr.variants import build

per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
Shares = st.floats(0, 1)
Seeds = st.integers(0, 1000)


def present(dataset, modality):
    return (dataset.features[modality] != 0).any(1)


def trained(dataset, config, variant="cammsr"):
    """A model with noise on every weight, so that nothing is zero or one by initialisation."""
    model, _ = build(variant, dataset, config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


# -- modalities -----------------------------------------------------------------------------------


@per_example
@given(share=Shares, seed=Seeds)
def test_a_share_of_the_items_that_have_a_modality_lose_it(tiny, share, seed):
    changed = without(tiny, "image", share, seed)
    had, has = present(tiny, "image"), present(changed, "image")
    assert int((had & ~has).sum()) == round(share * int(had.sum()))
    assert not (has & ~had).any()
    assert torch.equal(changed.features["image"][has], tiny.features["image"][has])
    assert torch.equal(changed.features["text"], tiny.features["text"])


@per_example
@given(low=Shares, high=Shares, seed=Seeds)
def test_what_is_gone_at_a_share_is_gone_at_a_greater_one(tiny, low, high, seed):
    low, high = sorted((low, high))
    few, many = (~present(without(tiny, "text", share, seed), "text") for share in (low, high))
    assert not (few & ~many).any()
    few, many = (
        with_wrong_categories(tiny, share, seed).category != tiny.category for share in (low, high)
    )
    assert not (few & ~many).any()


def test_the_seed_draws_the_items_and_nothing_else_does(tiny):
    dataset = replace(tiny, features={"text": torch.ones(40, 2)})
    torch.manual_seed(1)
    first = present(without(dataset, "text", 0.5, 3), "text")
    torch.manual_seed(2)
    assert torch.equal(present(without(dataset, "text", 0.5, 3), "text"), first)
    assert not torch.equal(present(without(dataset, "text", 0.5, 4), "text"), first)


def test_the_dataset_stays_as_it_was(tiny):
    before = tiny.fingerprint()
    others = {"audio" if name == "image" else name: x for name, x in tiny.features.items()}
    assert replace(tiny, features=others).fingerprint() != before
    without(tiny, "text", 1.0)
    with_wrong_categories(tiny, 1.0)
    with_wrong_categories(tiny, 1.0, noise="lost")
    assert tiny.fingerprint() == before


# -- categories -----------------------------------------------------------------------------------


@per_example
@given(share=Shares, seed=Seeds)
def test_a_wrong_category_is_one_that_the_item_does_not_have(tiny, share, seed):
    changed = with_wrong_categories(tiny, share, seed)
    moved = (changed.category != tiny.category).nonzero().flatten()
    known = tiny.category != UNKNOWN
    assert len(moved) == round(share * int(known.sum()))
    assert known[moved].all()
    for item in moved.tolist():
        new = int(changed.category[item])
        assert not tiny.labels[item, new]
        assert changed.labels[item].nonzero().flatten().tolist() == [new]
    kept = torch.ones(tiny.num_items, dtype=torch.bool).index_fill(0, moved, False)
    assert torch.equal(changed.labels[kept], tiny.labels[kept])


def test_an_item_keeps_its_wrong_category_at_greater_shares(tiny):
    half, all_ = (with_wrong_categories(tiny, share, 5).category for share in (0.5, 1.0))
    moved = half != tiny.category
    assert torch.equal(half[moved], all_[moved])


def test_a_lost_category_leaves_nothing(tiny):
    changed = with_wrong_categories(tiny, 1.0, noise="lost")
    assert (changed.category == UNKNOWN).all()
    assert not changed.labels.any()


# -- a trained model ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cammsr", "gated", "hm4sr", "mixer", "sasrec"])
def test_a_model_over_the_same_dataset_says_the_same(variant, tiny, split, config):
    model = trained(tiny, config, variant)
    same, own = (model_ranks(Reader(m), split.test) for m in (adapt(model, tiny), model))
    assert torch.equal(same.plain, own.plain)


def test_items_that_keep_a_modality_keep_its_stream(tiny, config):
    model = trained(tiny, config)
    changed = without(tiny, "image", 0.5)
    before, after = model.items(), adapt(model, changed).items()
    image = model.items.names.index("image")
    kept = present(changed, "image")
    assert torch.equal(after.present[:, image], kept)
    assert torch.equal(after.x[kept], before.x[kept]), "the scale is that of the training"
    assert not after.x[~kept, image].any()


def test_the_model_stays_as_it_was_and_shares_its_tables(tiny, config):
    model = trained(tiny, config)
    changed = with_wrong_categories(without(tiny, "text", 1.0), 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = adapt(model, changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.labels, tiny.labels)
    assert torch.equal(copied.labels, changed.labels)
    tables = zip(copied.items.tables, model.items.tables, strict=True)
    assert all(one.features is other.features for one, other in tables)
    assert copied.items.embedding.weight is not model.items.embedding.weight


def test_a_curve_is_an_evaluation_at_each_share(tiny, split, config):
    model = trained(tiny, config)
    points = curve(model, partial(without, tiny, "image"), split.test, (0, 0.5, 1), block=4)
    assert [point.pop("share") for point in points] == [0, 0.5, 1]
    assert points[0] == summarise(model_ranks(Reader(model), split.test))
    assert points[0] != points[2]
    blind = without(tiny, "image", 1.0)
    assert points[2] == summarise(model_ranks(Reader(adapt(model, blind)), split.test))


def test_a_model_of_the_id_alone_does_not_care(tiny, split, config):
    points = curve(
        trained(tiny, config, "sasrec"), partial(without, tiny, "text"), split.test, (0, 1)
    )
    assert points[0] == {**points[1], "share": 0}


# -- errors ---------------------------------------------------------------------------------------


def test_what_cannot_be_changed_is_refused(tiny, config):
    with pytest.raises(ValueError, match=r"among \['text', 'image'\], got 'id'"):
        without(tiny, "id", 0.5)
    with pytest.raises(ValueError, match=r"share from 0 to 1, got 1.5"):
        without(tiny, "text", 1.5)
    with pytest.raises(ValueError, match=r"share from 0 to 1, got -0.5"):
        with_wrong_categories(tiny, -0.5)
    with pytest.raises(ValueError, match=r"among \['wrong', 'lost'\], got 'odd'"):
        with_wrong_categories(tiny, 0.5, noise="odd")
    model = trained(without(tiny, "text", 1.0), config)
    with pytest.raises(ValueError, match=r"item 0 has 'text' in 'tiny' and lacks it in the model"):
        adapt(model, tiny)


def test_one_category_cannot_be_wrong(tiny):
    one = replace(
        tiny,
        categories=("a",),
        labels=torch.ones(tiny.num_items, 1, dtype=torch.bool),
        category=torch.zeros_like(tiny.category),
    )
    with pytest.raises(ValueError, match="'tiny' has none; it has 1 categories"):
        with_wrong_categories(one, 0.5)
    assert (with_wrong_categories(one, 1.0, noise="lost").category == UNKNOWN).all()
