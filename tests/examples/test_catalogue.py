"""The generated catalogue: what is planted can be found, and by whom."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cammsr.catalogue import oracle, write_catalogue
from cammsr.dataset import UNKNOWN, Dataset, k_core, read_folder
from cammsr.floors import ContentKNN, floors, last_item
from cammsr.metrics import Scorer, evaluate, ranking_values, target_ranks
from cammsr.shop import CATEGORIES, DRIVERS, Oracle, Shop, driver, plant
from cammsr.split import Split, keep_last, leave_one_out


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("catalogue")
    write_catalogue(path)
    return read_folder(path)


@pytest.fixture(scope="module")
def dataset(raw: Dataset) -> Dataset:
    return k_core(raw, k=5)


@pytest.fixture(scope="module")
def split(dataset: Dataset) -> Split:
    return leave_one_out(dataset)


def by_driver(scorer: Scorer, dataset: Dataset, split: Split) -> dict[str, float]:
    """NDCG@10 of the test, by what drives the category of the last item of the history."""
    everyone = torch.arange(dataset.num_users)
    last = last_item(*split.test.history.padded(everyone))
    kind = driver(oracle(dataset).shop.category)[last]
    ndcg = ranking_values(target_ranks(scorer, split.test).plain)["ndcg@10"]
    return {name: float(ndcg[kind == k].mean()) for k, name in enumerate(DRIVERS)}


# -- the folder -----------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_values(tmp_path: Path) -> None:
    sizes = {"num_users": 40, "num_items": 300}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_catalogue(tmp_path / name, seed=seed, **sizes)
    a, b, c = (read_folder(tmp_path / name) for name in "abc")
    assert torch.equal(a.item_ids, b.item_ids)
    assert torch.equal(a.timestamps, b.timestamps)
    assert a.titles == b.titles
    assert all(torch.equal(a.features[m], b.features[m]) for m in ("text", "image"))
    assert not torch.equal(a.features["text"], c.features["text"])
    assert a.titles != c.titles


def test_the_folder_holds_what_was_asked_for(raw: Dataset) -> None:
    assert (raw.num_users, raw.num_items, raw.categories) == (2400, 1600, CATEGORIES)
    assert len(raw.item_ids) / raw.num_users == pytest.approx(9, abs=0.1)
    lacks = {name: (values == 0).all(1) for name, values in raw.features.items()}
    assert lacks["image"].sum() == 160
    assert lacks["text"].sum() == 80
    assert not (lacks["image"] & lacks["text"]).any(), "no item lacks both"
    assert (raw.category == UNKNOWN).sum() == 80
    assert torch.equal(raw.labels.any(1), raw.category != UNKNOWN)
    assert len(set(raw.titles)) == raw.num_items


def test_nobody_takes_an_item_twice(raw: Dataset) -> None:
    pairs = torch.stack([raw.user_ids, raw.item_ids])
    assert torch.unique(pairs, dim=1).shape == pairs.shape


def test_the_five_core_keeps_most(raw: Dataset, dataset: Dataset) -> None:
    assert dataset.num_users > 0.98 * raw.num_users
    assert dataset.num_items > 0.95 * raw.num_items
    assert 10 < len(dataset.item_ids) / dataset.num_items < 15, "ids alone stay sparse"


def test_titles_tell_category_and_tone(dataset: Dataset) -> None:
    shop = oracle(dataset).shop
    for title, category, tone in zip(dataset.titles, shop.category, shop.tone, strict=True):
        word, name, number = title.split()
        assert name == CATEGORIES[int(category)]
        assert (word in {"Amber", "Clear", "Pale"}) == (float(tone) > 0)
        assert number.isdigit()


# -- the truth ------------------------------------------------------------------------------------


def naive_chances(shop: Shop, history: list[int]) -> list[float]:
    """The chance of each item to be next, read aloud from the model's description."""
    wish = torch.zeros(6)
    for item in history:
        kind = DRIVERS[int(shop.category[item]) % 3]
        wording, look, tone = shop.wording[item], shop.look[item], float(shop.tone[item])
        left = {
            "text": torch.cat([wording, torch.zeros(3)]),
            "image": torch.cat([torch.zeros(3), look]),
            "both": torch.cat([torch.zeros(3), tone * look]),
        }
        wish = 0.5 * wish + left[kind]
    weights = []
    for item in range(len(shop.category)):
        shown = torch.cat([shop.wording[item], shop.look[item]])
        cosine = float(wish @ shown / wish.norm())
        weights.append(0.0 if item in history else float((12 * cosine + shop.appeal[item]).exp()))
    totals = [
        sum(w for w, c in zip(weights, shop.category.tolist(), strict=True) if c == category)
        for category in range(len(CATEGORIES))
    ]
    row = shop.chain[shop.category[history[-1]]].tolist()
    return [row[c] * w / totals[c] for w, c in zip(weights, shop.category.tolist(), strict=True)]


def test_the_oracle_knows_the_chances() -> None:
    shop = plant(seed=5, num_items=120)
    histories = [[3, 50, 7, 99], [11], [4, 5, 6]]
    items = torch.tensor([[3, 50, 7, 99], [11, 0, 0, 0], [4, 5, 6, 0]])
    valid = torch.tensor([[True] * 4, [True] + [False] * 3, [True] * 3 + [False]])
    made = Oracle(shop).scores(items, valid)
    for row, history in zip(made.tolist(), histories, strict=True):
        assert row == pytest.approx(naive_chances(shop, history), rel=1e-4, abs=1e-9)
        assert sum(row) == pytest.approx(1, abs=1e-5)


def test_the_chain_is_sparse_and_visits_all_categories_alike() -> None:
    chain = plant().chain
    assert chain.sum(0).tolist() == pytest.approx([1] * 9)
    assert chain.sum(1).tolist() == pytest.approx([1] * 9)
    assert (chain > 0).sum(1).tolist() == [3] * 9
    assert chain.diagonal().tolist() == [0.5] * 9


def test_users_walk_as_the_oracle_says(raw: Dataset) -> None:
    """If p is the true chance, then p(next item) is p^2 summed over the items, on average."""
    split = leave_one_out(raw)
    scorer = oracle(raw)
    items, valid = split.test.history.padded(torch.arange(raw.num_users))
    chances = scorer.scores(items, valid).double()
    happened = chances.gather(1, split.test.item[:, None]).squeeze(1)
    gap = happened - chances.square().sum(1)
    assert abs(gap.mean()) < 4 * gap.std() / raw.num_users**0.5
    assert happened.mean() > 30 / raw.num_items


def test_an_oracle_of_another_shop_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="is not sold in the shop of seed 1 with 1600 items"):
        oracle(dataset, seed=1)


# -- who finds it ---------------------------------------------------------------------------------


def test_oracle_beats_item_knn_beats_popularity(dataset: Dataset, split: Split) -> None:
    scorers: dict[str, Scorer] = {**floors(dataset, split), "oracle": oracle(dataset)}
    values = {name: evaluate(scorer, split.test) for name, scorer in scorers.items()}
    for metric in ("ndcg@10", "masked/ndcg@10"):
        of = {name: value[metric] for name, value in values.items()}
        assert of["oracle"] > 2.5 * max(of[name] for name in of if name != "oracle")
        assert of["oracle"] > 0.28
        assert of["item k-NN"] > 2 * of["popularity"]
        assert of["popularity"] < 0.01


def test_the_driving_modality_is_the_one_to_follow(dataset: Dataset, split: Split) -> None:
    text = by_driver(ContentKNN.fit(dataset.features["text"]), dataset, split)
    image = by_driver(ContentKNN.fit(dataset.features["image"]), dataset, split)
    assert text["text"] > 3 * image["text"]
    assert image["image"] > 3 * text["image"]


def test_only_the_product_of_tone_and_look_explains_the_last_third(
    dataset: Dataset, split: Split
) -> None:
    truth = oracle(dataset)
    deaf = Oracle(replace(truth.shop, tone=torch.zeros_like(truth.shop.tone)))
    knows, misses = by_driver(truth, dataset, split), by_driver(deaf, dataset, split)
    assert knows["both"] > 3 * misses["both"]


def test_look_alone_has_no_direction_in_the_last_third(raw: Dataset) -> None:
    shop, same_user = oracle(raw).shop, raw.user_ids[1:] == raw.user_ids[:-1]
    before, after = raw.item_ids[:-1][same_user], raw.item_ids[1:][same_user]
    both = driver(shop.category[before]) == DRIVERS.index("both")
    similarity = (shop.look[before] * shop.look[after]).sum(1)[both]
    toned = similarity * shop.tone[before][both, 0]
    assert abs(similarity.mean()) < 0.1, "the memory of older wishes leaves a little"
    assert toned.mean() > 0.6


def test_a_faint_modality_hides_the_category(raw: Dataset) -> None:
    """The accuracy of a linear probe, fitted on every other item and tested on the rest."""
    category = oracle(raw).shop.category

    def accuracy(modality: str) -> dict[str, float]:
        features = raw.features[modality]
        x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        known, even = features.any(1), torch.arange(len(x)) % 2 == 0
        y = one_hot(category, len(CATEGORIES)).float()
        weights = torch.linalg.lstsq(x[known & even], y[known & even]).solution
        hits = (x @ weights).argmax(1) == category
        kinds = {name: driver(category) == k for k, name in enumerate(DRIVERS)}
        return {name: float(hits[known & ~even & of].double().mean()) for name, of in kinds.items()}

    text, image = accuracy("text"), accuracy("image")
    assert min(text["text"], text["both"], image["image"], image["both"]) > 0.98
    assert max(text["image"], image["text"]) < 0.7


def test_the_last_few_items_are_enough(dataset: Dataset, split: Split) -> None:
    """A wish fades by half at each step, so a model may cut the history."""

    class Cut:
        def scores(self, items: Tensor, valid: Tensor) -> Tensor:
            return oracle_.scores(*keep_last(items, valid, 4))

    oracle_ = oracle(dataset)
    whole, cut = (evaluate(s, split.test)["masked/ndcg@10"] for s in (oracle_, Cut()))
    assert cut > 0.95 * whole


# -- complaints -----------------------------------------------------------------------------------


def test_a_shop_that_could_sell_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"can sell out a category of 5\. Expected num_items of more"
    ):
        write_catalogue(tmp_path, num_users=10, num_items=45)


def test_walks_shorter_than_a_user_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected mean_length to be at least 5, got 4.0."):
        write_catalogue(tmp_path, mean_length=4.0)
