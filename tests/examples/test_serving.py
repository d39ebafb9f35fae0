"""Tests for cammsr.serving, cammsr.ranking, cammsr.saved and cammsr.index."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cammsr.dataset import UNKNOWN, k_core, read_folder, write_folder
from cammsr.index import Index, recall
from cammsr.metrics import evaluate
from cammsr.ranking import top_k, window
from cammsr.run import run
from cammsr.saved import Catalogue, read_catalogue, read_run
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, ServingError, load
from cammsr.split import keep_last, leave_one_out
from cammsr.variants import VARIANTS, build
from tests.examples.runs import save_run

WITH_FAISS = importlib.util.find_spec("faiss") is not None
needs_faiss = pytest.mark.skipif(not WITH_FAISS, reason="faiss is not installed (the extra 'ann')")


def fresh(variant, dataset, config):
    """A model with noise on every weight, so that nothing is zero or one by initialisation."""
    model, _ = build(variant, dataset, config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


@pytest.fixture
def model(tiny, config):
    return fresh("cammsr", tiny, config)


@pytest.fixture
def recommender(model, tiny):
    return Recommender(model, tiny)


@pytest.fixture
def histories(split):
    return split.test.history.padded(torch.arange(9))


def naive_top_k(scores, k, seen=()):
    """Read aloud: leave out what was seen, sort all, greater scores first, then lower numbers."""
    left = [item for item in range(len(scores)) if item not in set(seen)]
    return sorted(left, key=lambda item: (-scores[item], item))[:k]


# -- exact ranking --------------------------------------------------------------------------------


@given(
    users=st.integers(1, 4),
    size=st.integers(1, 30),
    k=st.integers(1, 12),
    block=st.integers(1, 31),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_top_k_equals_a_naive_sort(users, size, k, block, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    # Small integers: exact whatever the blocks, with many ties, zeros of both signs included.
    states = torch.randint(-2, 3, (users, 2), generator=generator).float()
    candidates = torch.randint(-2, 3, (size, 2), generator=generator).float()
    seen = torch.randint(-1, size, (users, 5), generator=generator) if masked else None
    scores, items = top_k(states, candidates, k, seen=seen, block=block)
    whole = (states @ candidates.T).tolist()
    for user in range(users):
        expected = naive_top_k(whole[user], k, [] if seen is None else seen[user].tolist())
        count = len(expected)
        assert items[user, :count].tolist() == expected
        assert scores[user, :count].tolist() == [whole[user][item] for item in expected]
        assert (items[user, count:] == -1).all()
        assert (scores[user, count:] == -torch.inf).all()
    assert items.shape == (users, min(k, size))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_top_k_orders_every_float(values):
    candidates = torch.tensor(values).unsqueeze(1)
    scores, items = top_k(torch.ones(1, 1), candidates, len(values))
    finite = [item for item in naive_top_k(values, len(values)) if values[item] != -torch.inf]
    assert items[0, : len(finite)].tolist() == finite
    assert scores[0, : len(finite)].tolist() == [values[item] for item in finite]


class LargestRows(TorchDispatchMode):
    """The widest tensor with one row a user that any operator makes."""

    def __init__(self, users):
        super().__init__()
        self.users, self.width = users, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.shape[:1] == (self.users,):
                self.width = max(self.width, tensor[0].numel())
        return output


def test_scores_of_one_block_exist_at_a_time():
    states, candidates = torch.randn(7, 3), torch.randn(1000, 3)
    with LargestRows(7) as largest:
        top_k(states, candidates, 5, seen=torch.randint(0, 1000, (7, 4)), block=50)
    assert 50 <= largest.width <= 50 + 5


@given(length=st.integers(1, 9), users=st.integers(1, 4), seed=st.integers(0, 100))
def test_window_keeps_what_keep_last_keeps(length, users, seed):
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(1, length + 1, (users, 1), generator=generator)
    valid = torch.arange(length) < count
    items = torch.randint(1, 50, (users, length), generator=generator) * valid
    kept, real = window(items, valid, 4)
    expected, expected_real = keep_last(items, valid, 4)
    width = expected.shape[1]
    assert torch.equal(real[:, :width], expected_real)
    assert torch.equal(kept[:, :width], expected * expected_real)
    assert not real[:, width:].any()


# -- a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_recommends_by_its_own_scores(variant, tiny, config, histories):
    model = fresh(variant, tiny, config)
    recommender = Recommender(model, tiny, name=variant)
    scores, items = recommender.top_k(*histories, k=4)
    expected = ModelScorer(model).scores(*histories)
    for user, row in enumerate(expected):
        seen = histories[0][user][histories[1][user]].tolist()
        assert items[user].tolist() == naive_top_k(row.tolist(), 4, seen)
    torch.testing.assert_close(scores, expected.gather(1, items))
    for choice in recommender.recommend(user=3, k=3):
        if choice.parts is not None:
            beside = {"memory"} if variant.endswith("+ memory") else set()
            assert set(choice.parts) == set(recommender.modalities) | beside
            assert sum(choice.parts.values()) == pytest.approx(choice.score, abs=1e-4)


@torch.no_grad()
def test_parts_are_the_products_of_each_modality(model, recommender, tiny):
    history = [3, 1, 4]
    output = model(torch.tensor([history]), torch.ones(1, 3, dtype=torch.bool))
    streams, _ = model.items()
    state = output.states[0, -1].unflatten(0, (3, -1))
    choices = recommender.recommend(history, k=5)
    for choice in choices:
        for m, name in enumerate(("id", "text", "image")):
            part = float(state[m] @ streams[choice.item, m])
            assert choice.parts[name] == pytest.approx(part, abs=1e-5)
    without_image = next(c for c in recommender.recommend(history, k=15) if c.item % 4 == 0)
    assert without_image.parts["image"] == 0


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("12", "Expected a list of items, got the text '12'"),
        ([3.9], r"Expected items by id or by text, got 3\.9"),
    ],
)
def test_a_history_is_a_list_of_ids_or_text(history, message, recommender):
    with pytest.raises(ServingError, match=message):
        recommender.recommend(history)


@torch.no_grad()
def test_weights_are_the_gate_at_the_last_item(model, recommender):
    history = [3, 1, 4, 2, 7, 8, 6, 9]  # longer than the model reads
    read = torch.tensor([history[-6:]])
    gate = model(read, torch.ones_like(read, dtype=torch.bool)).enriched.weights[0, -1]
    for choice in recommender.recommend(history, k=2):
        assert list(choice.weights.values()) == pytest.approx(gate.tolist())


@torch.no_grad()
def test_weights_of_a_fusion_are_those_in_the_recommended_item(tiny, config):
    model = fresh("gated", tiny, config)
    x, present = model.items()
    weights = model.fusion(x, present, model.labels).weights
    for choice in Recommender(model, tiny).recommend([1, 2], k=6):
        assert choice.parts is None
        assert list(choice.weights.values()) == pytest.approx(weights[choice.item].tolist())


def test_sasrec_has_no_reasons(tiny, config):
    (choice,) = Recommender(fresh("sasrec", tiny, config), tiny).recommend([1], k=1)
    assert choice.parts is None
    assert choice.weights is None


def test_choices_carry_what_is_known_of_the_item(recommender, tiny):
    choices = {choice.item: choice for choice in recommender.recommend([0], k=99)}
    assert set(choices) == set(range(1, 15))  # k beyond the catalogue: all that is unseen
    assert choices[1].category is None
    assert choices[5].category == tiny.categories[tiny.category[5]]
    assert choices[5].title == tiny.titles[5]
    assert tiny.category[1] == UNKNOWN


def test_seen_items_are_left_out_unless_asked_for(recommender):
    history = [2, 5, 9, 11, 12, 1, 0, 3, 4]  # 2, 5 and 9 lie before what the model reads
    unseen = recommender.recommend(history, k=15)
    everything = recommender.recommend(history, k=15, unseen=False)
    assert {choice.item for choice in unseen}.isdisjoint(history)
    assert [c for c in everything if c.item not in history] == unseen
    assert len(everything) == 15
    assert recommender.recommend(list(range(15)), k=3) == []


def test_a_user_is_all_their_items(recommender, tiny):
    own = tiny.item_ids[tiny.user_ids == 5].tolist()
    assert recommender.history(5) == own
    assert recommender.recommend(user=5) == recommender.recommend(own)


def test_titles_are_as_good_as_ids(recommender):
    assert recommender.recommend(["ITEM 1", "m 12", 3]) == recommender.recommend([1, 12, 3])


def test_a_user_alone_is_served_as_in_a_batch(recommender, histories):
    together = recommender.top_k(*histories, k=15)
    for user in range(9):
        items = histories[0][user][histories[1][user]].unsqueeze(0)
        alone = recommender.top_k(items, torch.ones_like(items, dtype=torch.bool), k=15)
        torch.testing.assert_close(alone.scores[0], together.scores[user])


def test_many_histories_are_read_in_turn(recommender, histories, monkeypatch):
    whole = recommender.top_k(*histories, k=5)
    monkeypatch.setattr("cammsr.serving.ROWS", 2)
    parts = recommender.top_k(*histories, k=5, block=4)
    assert torch.equal(parts.items, whole.items)
    torch.testing.assert_close(parts.scores, whole.scores)


@pytest.mark.parametrize("variant", ["cammsr", "gated", "sasrec"])
def test_a_recommender_is_the_model_as_it_was(variant, tiny, config, histories):
    model = fresh(variant, tiny, config).train()
    recommender = Recommender(model, tiny)
    before = recommender.top_k(*histories)
    assert model.training
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert torch.equal(recommender.top_k(*histories).scores, before.scores)


def test_latency_is_a_time(recommender, histories):
    assert 0 < recommender.latency(*histories, repeats=3) < 60


# -- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "unseen"), [("cammsr", True), ("gated", False)])
def test_the_exported_program_gives_the_same_numbers(
    variant, unseen, tiny, config, histories, tmp_path
):
    config = replace(config, model=replace(config.model, num_layers=1))  # exports faster
    recommender = Recommender(fresh(variant, tiny, config), tiny)
    recommender.export(tmp_path / "scoring.pt2", k=4, unseen=unseen)
    program = torch.export.load(tmp_path / "scoring.pt2").module()
    longer = histories[0].repeat(2, 3), torch.ones(18, 3 * histories[0].shape[1], dtype=torch.bool)
    one = histories[0][:1, :1], histories[1][:1, :1]
    for items, valid in (histories, longer, one):
        scores, best = program(items, valid)
        expected = recommender.top_k(items, valid, 4, unseen=unseen)
        assert torch.equal(best, expected.items)
        torch.testing.assert_close(scores, expected.scores)


def test_raw_features_are_not_exported(recommender):
    assert not [name for name in recommender.reader.state_dict() if ".tables." in name]


# -- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def on_folder(tiny, config, tmp_path):
    """The tiny dataset, plus one item and one user that no run keeps."""
    rare = replace(
        tiny,
        user_ids=torch.cat([torch.tensor([0]), tiny.user_ids + 1]),
        item_ids=torch.cat([torch.tensor([0]), tiny.item_ids + 1]),
        timestamps=torch.cat([torch.tensor([0]), tiny.timestamps]),
        features={
            name: torch.cat([torch.ones(1, raw.shape[1]), raw])
            for name, raw in tiny.features.items()
        },
        labels=torch.cat([tiny.labels[:1], tiny.labels]),
        category=torch.cat([tiny.category[:1], tiny.category]),
        titles=("rare thing", *tiny.titles),
    )
    write_folder(rare, tmp_path / "tiny")
    return replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))


@pytest.fixture
def saved(on_folder, tmp_path):
    return save_run(on_folder, tmp_path / "run", ("cammsr", "sasrec"))


def test_a_run_of_train_is_loaded(on_folder):
    once = replace(on_folder, training=replace(on_folder.training, max_epochs=1))
    models = ["cammsr w/o MSCL", "gated"]
    result = run(once, models, progress=False)
    dataset = k_core(read_folder(on_folder.data, ["image", "text"]))
    split = leave_one_out(dataset)
    for trained in result.models:
        recommender = load(result.folder, trained.name)
        items, valid = split.test.history.padded(torch.arange(5))
        expected = (
            ModelScorer(trained.model)
            .scores(items, valid)
            .sort(dim=1, descending=True, stable=True)
        )
        found = recommender.top_k(items, valid, k=dataset.num_items, unseen=False)
        assert torch.equal(found.items, expected.indices)
        assert evaluate(ModelScorer(trained.model), split.test) == trained.test
    assert load(result.folder).name == models[0]  # the first one by default


def test_loading_draws_no_numbers_of_ours(saved):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(saved)
    assert torch.equal(torch.rand(2), expected)


def test_a_run_speaks_in_the_ids_of_the_folder(saved, on_folder):
    whole = read_folder(on_folder.data)
    recommender = load(saved)
    dataset = recommender.catalogue.dataset
    assert recommender.catalogue.item_ids[0] > 0  # the rare item is left out
    for row, item in enumerate(recommender.catalogue.item_ids.tolist()):
        assert dataset.titles[row] == whole.titles[item]
        assert torch.equal(dataset.features["text"][row], whole.features["text"][item])
    kept = set(recommender.catalogue.item_ids.tolist())
    for user in recommender.catalogue.user_ids.tolist():
        own = whole.item_ids[whole.user_ids == user].tolist()
        assert recommender.history(user) == [item for item in own if item in kept]
    for choice in recommender.recommend(user=7, k=4):
        assert choice.title == whole.titles[choice.item]
        assert choice.item not in recommender.history(7)


def test_a_dataset_that_moved_is_named(saved, on_folder, tmp_path):
    before = load(saved).recommend(user=7)
    shutil.move(on_folder.data, tmp_path / "elsewhere")
    with pytest.raises(ServingError, match=r"tiny of .*run is not there.*--data FOLDER"):
        load(saved)
    assert load(saved, data=tmp_path / "elsewhere").recommend(user=7) == before


def test_the_generated_catalogue_lies_in_the_run(saved, on_folder):
    before = load(saved).recommend(user=7)
    shutil.move(on_folder.data, saved / "planted")
    (saved / "config.yaml").write_text(yaml.safe_dump(asdict(replace(on_folder, data=None))))
    assert load(saved).recommend(user=7) == before
    assert read_run(saved).data == saved / "planted"


def test_other_values_of_the_same_shape_are_noticed(saved, on_folder):
    dataset = read_catalogue(read_run(saved)).dataset
    (saved / "dataset.sha256").write_text(dataset.fingerprint() + "\n")
    load(saved)
    whole = read_folder(on_folder.data)
    write_folder(replace(whole, titles=whole.titles[::-1]), on_folder.data)
    with pytest.raises(ServingError, match=r"'tiny' is not what .*run was trained on: its values"):
        load(saved)


def test_settings_come_back(saved, on_folder):
    assert read_run(saved).config == on_folder


# -- errors ---------------------------------------------------------------------------------------


def test_what_is_no_run_folder_says_what_is_missing(saved, tmp_path):
    with pytest.raises(ServingError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ServingError, match=r"no config\.yaml and no metrics\.json"):
        load(tmp_path)
    (saved / "metrics.json").unlink()
    with pytest.raises(ServingError, match=r"is not a run folder: it has no metrics\.json\."):
        load(saved)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "model: {width: 3}"),
        ("config.yaml", "speed: 3"),
        ("config.yaml", "a: ["),
        ("metrics.json", "{"),
        ("metrics.json", "{}"),
    ],
)
def test_a_spoilt_run_folder_is_refused(saved, file, content):
    (saved / file).write_text(content)
    with pytest.raises(ServingError, match="cannot be read as a run folder of this version"):
        load(saved)


def test_unknown_models_are_refused_with_those_there(saved):
    with pytest.raises(ServingError, match=r"has no model 'bert'. It has: cammsr, sasrec\."):
        load(saved, "bert")
    (saved / "metrics.json").write_text('{"models": {}}')
    with pytest.raises(ServingError, match="has no trained model yet"):
        load(saved)


def test_lost_or_spoilt_weights_are_noticed(saved):
    file = saved / "cammsr" / "weights.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ServingError, match="cannot be read as safetensors"):
        load(saved)
    file.unlink()
    with pytest.raises(ServingError, match=r"has no weights of 'cammsr': .* is missing"):
        load(saved)


def test_weights_are_loaded_strictly(saved):
    file = saved / "cammsr" / "weights.safetensors"
    weights = load_file(file)
    del weights["positions"]
    save_file(weights, file)
    with pytest.raises(ServingError, match=r"positions has the shape None in the file and \[6, 8"):
        load(saved)


def test_a_dataset_that_does_not_fit_is_refused_with_both_numbers(saved, on_folder, tmp_path):
    whole = read_folder(on_folder.data)
    wide = {"text": whole.features["text"][:, :5], "image": whole.features["image"]}
    write_folder(replace(whole, features=wide), tmp_path / "wide")
    with pytest.raises(ServingError, match=r"layers.2.weight has the shape \[8, 6\].*\[8, 5\] by"):
        load(saved, data=tmp_path / "wide")
    known = k_core(whole).num_items
    last = int(k_core(whole).item_ids.bincount().argmin())
    keep = whole.item_ids != read_catalogue(read_run(saved)).item_ids[last]
    fewer = replace(
        whole,
        user_ids=whole.user_ids[keep].unique(return_inverse=True)[1],
        item_ids=whole.item_ids[keep],
        timestamps=whole.timestamps[keep],
    )
    write_folder(fewer, tmp_path / "fewer")
    left = k_core(fewer).num_items
    assert left < known
    with pytest.raises(ServingError, match=rf"is for {known} items, and 'fewer' has {left} with"):
        load(saved, data=tmp_path / "fewer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give a history or a user"),
        ({"history": [1], "user": 2}, "Give a history or a user"),
        ({"history": []}, "The history is empty. Give at least one item, by its id or a part"),
        ({"history": [99]}, "knows no item of 'tiny' with the id 99. It knows 15, from 0 to 14"),
        ({"history": [-1]}, "knows no item of 'tiny' with the id -1"),
        ({"user": 99}, "knows no user of 'tiny' with the id 99. It knows 24, from 0 to 23"),
        ({"history": [1], "k": 0}, "Expected k >= 1 and block >= 1, got 0 and"),
    ],
)
def test_what_cannot_be_served_is_said(recommender, arguments, message):
    with pytest.raises(ServingError, match=message):
        recommender.recommend(**arguments)


@pytest.mark.parametrize(
    ("items", "valid", "message"),
    [
        ([[1, 2]], [[True]], r"got \(1, 2\) and \(1, 1\)"),
        ([[1, 2], [3, 0]], [[True, True], [False, False]], "The history in row 1 is empty"),
        ([[0, 2]], [[False, True]], "padded on the right, got a gap"),
        ([[0, 15]], [[True, True]], "Expected items from 0 to 14, got 0 to 15"),
    ],
)
def test_histories_are_checked(recommender, items, valid, message):
    with pytest.raises(ServingError, match=message):
        recommender.top_k(torch.tensor(items), torch.tensor(valid))


def test_weights_that_are_not_finite_are_noticed(model, tiny):
    broken = [model.items.embedding.weight, model.positions]
    for weight, message in zip(
        broken, ["weights that are not", "a state that is not"], strict=True
    ):
        with torch.no_grad():
            kept = weight[0].clone()
            weight[0] = torch.nan
            with pytest.raises(ServingError, match=message):
                Recommender(model, tiny).recommend([1, 2])
            weight[0] = kept


def test_a_whole_dataset_needs_no_ids(tiny):
    catalogue = Catalogue.whole(tiny)
    assert torch.equal(catalogue.item_rows(torch.tensor([3, 0])), torch.tensor([3, 0]))
    assert catalogue.user_row(4) == 4


# -- an index -------------------------------------------------------------------------------------


@needs_faiss
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_that_looks_everywhere_is_exact(kind, recommender, histories):
    index = recommender.index(kind, effort=15)
    exact, near = (recommender.top_k(*histories, k=4, index=i) for i in (None, index))
    assert torch.equal(near.items, exact.items)
    torch.testing.assert_close(near.scores, exact.scores)
    assert recommender.recall(index, *histories, k=4) == 1
    assert recommender.recommend([1, 2], k=99, index=index)[0].item not in (1, 2)


@needs_faiss
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_recall_is_the_share_that_is_found(kind):
    states, candidates = torch.randn(20, 8), torch.randn(3000, 8)
    few, many = (Index(candidates, kind, effort=effort) for effort in (1, 1000))
    exact, near = top_k(states, candidates, 10).items, few.top_k(states, 10).items
    found = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), near.tolist(), strict=True)]
    assert recall(few, states, candidates) == pytest.approx(sum(found) / 20)
    assert recall(few, states, candidates) < recall(many, states, candidates)
    assert recall(many, states, candidates) > 0.99


@needs_faiss
def test_settings_of_an_index_are_checked():
    with pytest.raises(ServingError, match=r"Expected an index among .*'ivf'\), got 'tree'"):
        Index(torch.randn(9, 2), "tree")  # type: ignore[arg-type]
    with pytest.raises(ServingError, match="Expected effort >= 1, got 0"):
        Index(torch.randn(9, 2), effort=0)


@pytest.mark.skipif(WITH_FAISS, reason="faiss is installed")
def test_without_faiss_the_extra_is_named(recommender):
    with pytest.raises(ServingError, match=r"Install the extra 'ann'"):
        recommender.index()
