"""Tests for the ablations: each setting changes what it says, and nothing else.

They cover cammsr.enrichment, cammsr.modalities, cammsr.categories and cammsr.clusters too.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from cammsr.batches import Batch, training_loader
from cammsr.blockwise import model_ranks
from cammsr.categories import virtual_categories, with_categories
from cammsr.cli import parse
from cammsr.clusters import k_means
from cammsr.compare_cli import parse_comparison
from cammsr.comparison import compare
from cammsr.config import CategoryConfig, ModelConfig, ObjectiveConfig
from cammsr.dataset import UNKNOWN, DatasetError, write_folder
from cammsr.metrics import target_ranks
from cammsr.modalities import pairs_of
from cammsr.model import CAMMSR
from cammsr.objective import Objective
from cammsr.ranking import Reader
from cammsr.robustness import adapt, with_wrong_categories
from cammsr.run import run
from cammsr.saved import read_catalogue, read_run
from cammsr.scoring import ModelScorer
from cammsr.serving import Recommender, load
from cammsr.variants import VARIANTS, build, check, configure, file_name
from mmfuse import ModalitySwapInfoNCE

HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 0, 0]])
VALID = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
SMALL = ModelConfig(dim=8, hidden_dim=16, num_experts=3, max_length=6, dropout=0.0)


def made(tiny, **settings):
    """CAMMSR with noise on every weight, so that nothing is zero or one by initialisation."""
    torch.manual_seed(0)
    model = CAMMSR(tiny.features, tiny.labels, replace(SMALL, **settings)).double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model


def enriched(model, items=HISTORY, valid=VALID):
    return model(items, valid).enriched


# -- the router and what experts read -------------------------------------------------------------


@pytest.mark.parametrize(("router", "alone"), [("linear", True), ("attentive", False)])
def test_a_linear_router_decides_at_each_position_by_itself(router, alone, tiny):
    model = made(tiny, router=router)
    changed = HISTORY.clone()
    changed[:, 1] = 7
    before, after = (enriched(model, items).router.expert_weight for items in (HISTORY, changed))
    assert not torch.equal(before[:, 1], after[:, 1])
    assert torch.equal(before[0, 2:], after[0, 2:]) == alone
    if alone:
        seen = model(HISTORY, VALID).present & VALID.unsqueeze(-1)
        torch.testing.assert_close(before.sum(-1), seen.double())


@pytest.mark.parametrize(("mixture", "own"), [("own", True), ("cross", False)])
def test_plain_experts_read_their_own_stream_alone(mixture, own, tiny):
    model = made(tiny, mixture=mixture, router="linear", category_guidance=False)
    before = enriched(model).x
    with torch.no_grad():
        model.items.embedding.weight.mul_(2)
    after = enriched(model).x
    assert not torch.equal(before[..., 0, :], after[..., 0, :])
    assert torch.equal(before[..., 1:, :], after[..., 1:, :]) == own


def test_the_moe_of_the_paper_is_a_plain_mixture_with_equal_weights(tiny, config):
    config = configure("cammsr MoE", config)
    assert config.objective.category_weight == 0
    names = ("mixture", "router", "category_guidance")
    model = made(tiny, **{name: getattr(config.model, name) for name in names})
    streams, present = model.items()
    found = enriched(model)
    for row, position in VALID.nonzero().tolist():
        item = HISTORY[row, position]
        for m in present[item].nonzero().flatten().tolist():
            e = streams[item, m] + model.positions[position]
            bank, gate = model.enrichment.mixture.experts[m], model.enrichment.mixture.routers[m]
            share = (gate.weight @ e).softmax(0) / present[item].sum()
            expected = e.clone()
            for k in range(3):
                inner = F.gelu(e @ bank.in_weight[k] + bank.in_bias[k])
                expected += share[k] * (inner @ bank.out_weight[k] + bank.out_bias[k])
            torch.testing.assert_close(found.x[row, position, m], expected)


def test_without_experts_the_streams_stay_and_so_does_the_gate(tiny):
    model = made(tiny, mixture="none")
    names = {name for name, _ in model.named_parameters() if name.startswith("enrichment")}
    assert names == {"enrichment.gate.weight", "enrichment.gate.bias"}
    found = enriched(model)
    x, present = model.items()
    seen = present[HISTORY] & VALID.unsqueeze(-1)
    expected = (x[HISTORY] + model.positions[:6, None]) * seen.unsqueeze(-1)
    assert torch.equal(found.x, expected)
    weights, losses = model.enrichment.gate(expected, seen, tiny.labels[HISTORY])
    assert torch.equal(found.weights, weights)
    assert torch.equal(found.losses["category"], losses["category"])


def test_pooling_reaches_the_gate(tiny):
    most, joint = (enriched(made(tiny, pooling=pooling)).weights for pooling in ("max", "joint"))
    several = tiny.labels[HISTORY].sum(-1) > 1
    assert several.any()
    assert not torch.isclose(most[several], joint[several]).all()
    torch.testing.assert_close(most[~several], joint[~several])


# -- candidates -----------------------------------------------------------------------------------


def naive_candidates(model, tiny):
    """Eq. 5-11 of a history of one item without a position: attention to itself is one."""
    x, present = model.items()
    block, made = model.enrichment, torch.zeros_like(x)
    for item in range(len(x)):
        there = present[item].nonzero().flatten().tolist()
        joint = (x[item] * present[item].unsqueeze(-1)).flatten()
        labels = tiny.labels[item].nonzero().flatten().tolist()
        delta = {}
        for m in there:
            logits = block.gate.weight[m] @ x[item, m] + block.gate.bias[m]
            of_label = [
                F.binary_cross_entropy_with_logits(logits, F.one_hot(torch.tensor(c), 3).double())
                for c in labels
            ]
            delta[m] = max(of_label) if labels else torch.zeros(())
        total = sum(torch.exp(-value) for value in delta.values())
        for m in there:
            value = block.mixture.routers[m].weight[2] @ x[item, m]
            bank = block.mixture.experts[m]
            made[item, m] = x[item, m]
            for k in range(3):
                inner = F.gelu(joint @ bank.in_weight[k] + bank.in_bias[k])
                expert = inner @ bank.out_weight[k] + bank.out_bias[k]
                made[item, m] += torch.exp(-delta[m]) / total * value[k] * expert
    return made.flatten(-2)


@torch.no_grad()
def test_enriched_candidates_are_histories_of_one_item_without_a_position(tiny):
    model = made(tiny, candidates="enriched")
    output = model(HISTORY, VALID)
    torch.testing.assert_close(output.candidates, naive_candidates(model, tiny))
    plain = made(tiny)(HISTORY, VALID)
    assert torch.equal(output.states, plain.states)
    assert not torch.allclose(output.candidates, plain.candidates)


def test_enriched_candidates_teach_the_experts(tiny):
    model = made(tiny, candidates="enriched")
    model(HISTORY, VALID).candidates.square().sum().backward()
    assert all(value.grad.any() for value in model.enrichment.mixture.parameters())


def test_every_way_of_scoring_uses_enriched_candidates(tiny, split, tmp_path):
    model = made(tiny, candidates="enriched", num_layers=1).float()
    items, valid = split.test.history.padded(torch.arange(9))
    scores = ModelScorer(model).scores(items, valid)
    output = model(items[:, -6:] * 0 + 1, torch.ones_like(valid[:, -6:]))
    recommender = Recommender(model, tiny)
    found = recommender.top_k(items, valid, 4, unseen=False)
    torch.testing.assert_close(found.scores, scores.topk(4).values)
    torch.testing.assert_close(recommender.reader.candidates.flatten(-2), output.candidates)
    choice = recommender.recommend(user=3, k=1)[0]
    assert sum(choice.parts.values()) == pytest.approx(choice.score, abs=1e-4)
    recommender.export(tmp_path / "scoring.pt2", k=4, unseen=False)
    exported, best = torch.export.load(tmp_path / "scoring.pt2").module()(items, valid)
    assert torch.equal(best, found.items)
    torch.testing.assert_close(exported, found.scores)
    usual = target_ranks(ModelScorer(model), split.test)
    assert torch.equal(model_ranks(Reader(model), split.test).plain, usual.plain)


def test_enriched_candidates_follow_the_categories_of_a_changed_dataset(tiny):
    model = made(tiny, candidates="enriched")
    changed = adapt(model, with_wrong_categories(tiny, 1.0))
    before, after = (ModelScorer(m).made["candidates"] for m in (model, changed))
    moved = (before != after).flatten(1).any(1)
    assert torch.equal(moved, tiny.category != UNKNOWN)


# -- contrast -------------------------------------------------------------------------------------


def test_contrast_of_named_pairs_is_that_of_their_places(tiny, split, config):
    config = replace(config, objective=replace(config.objective, contrast_pairs=[["image", "id"]]))
    model, objective = build("cammsr", tiny, config)
    batch = next(iter(training_loader(split.train, 6, 8, seed=0)))
    output, last = model.eval()(batch.items, batch.valid), batch.valid.sum(1) - 1
    swap = ModalitySwapInfoNCE(pairs=[(2, 0)], temperature=0.2, symmetric=True)
    torch.manual_seed(1)
    expected = swap(
        output.enriched.x,
        lambda views, m: model.encode(views, m, last.repeat(len(views) // len(last))),
        batch.valid,
        present=output.present,
        ids=batch.targets[torch.arange(len(last)), last],
    )
    torch.manual_seed(1)
    torch.testing.assert_close(objective.contrast(model, output, batch), expected)
    torch.manual_seed(1)
    every = Objective(replace(config.objective, contrast_pairs=None))
    assert not torch.isclose(every.contrast(model, output, batch), expected)


def test_pairs_are_of_two_modalities_that_there_are(tiny, config):
    assert pairs_of([["text", "id"]], ["id", "text"]) == [(1, 0)]
    assert pairs_of(None, ["id"]) is None
    for pair in (["text"], ["text", "text"], ["a", "b", "a"]):
        with pytest.raises(ValueError, match=r"contrast_pairs of two different modalities each"):
            ObjectiveConfig(contrast_pairs=[pair])
    wrong = replace(config, objective=replace(config.objective, contrast_pairs=[["id", "sound"]]))
    with pytest.raises(DatasetError, match=r"pairs of \['id', 'text', 'image'\], got 'sound'"):
        build("cammsr", tiny, wrong)
    build("sasrec", tiny, wrong)  # which contrasts nothing


# -- categories -----------------------------------------------------------------------------------


def test_well_separated_clusters_are_found():
    centres = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 100
    truth = torch.arange(60) % 5
    points = centres[truth] + torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    for seed in range(5):
        found = k_means(points, 5, seed)
        assert len({(a, b) for a, b in zip(truth.tolist(), found.tolist(), strict=True)}) == 5
        assert torch.equal(found, k_means(points, 5, seed))


def test_at_the_end_every_point_is_at_its_nearest_mean():
    points = torch.randn(80, 2, generator=torch.Generator().manual_seed(3)).double()
    found = k_means(points, 6, 0, rounds=1000)
    means = torch.stack([points[found == c].mean(0) for c in range(6)])
    assert torch.equal(torch.cdist(points, means).argmin(1), found)


def test_as_many_clusters_as_points_and_no_more():
    points = torch.randn(7, 2)
    assert sorted(k_means(points, 7).tolist()) == list(range(7))
    assert k_means(torch.ones(4, 2), 2).tolist() in ([0] * 4, [1] * 4)
    for clusters in (0, 8):
        with pytest.raises(ValueError, match=f"Expected from 1 to 7 clusters, got {clusters}"):
            k_means(points, clusters)


def test_clusters_of_what_a_model_is_not_to_see_are_refused(tiny, config):
    virtual = replace(config, categories=CategoryConfig("virtual", clusters=2))
    check("cammsr", tiny, virtual)
    check("sasrec", tiny, virtual)
    with pytest.raises(DatasetError, match=r"for cammsr w/o text, which does not see \['text'\]"):
        check("cammsr w/o text", tiny, virtual)
    check("cammsr w/o text", tiny, config)
    unguided = replace(virtual, model=replace(virtual.model, category_guidance=False))
    check("cammsr w/o text", tiny, unguided)


def test_virtual_categories_are_clusters_of_items_with_features(tiny):
    truth = torch.arange(15) % 2
    noise = torch.rand(15, 4) / 10
    features = {
        "text": 0.01 * (noise + truth.unsqueeze(1)),
        "image": 100 * (noise[:, :2] - truth.unsqueeze(1)),
    }
    for values in features.values():
        values[3] = 0
    found = virtual_categories(replace(tiny, features=features), 2, seed=0)
    assert found.category[3] == UNKNOWN
    assert not found.labels[3].any()
    kept = torch.arange(15) != 3
    assert len(set(zip(truth[kept].tolist(), found.category[kept].tolist(), strict=True))) == 2
    assert torch.equal(found.labels[kept], F.one_hot(found.category[kept], 2).bool())
    assert found.categories == ("cluster 0000", "cluster 0001")
    with pytest.raises(DatasetError, match=r"as clusters \(20\), 'tiny' has 15"):
        virtual_categories(tiny, 20, seed=0)
    with pytest.raises(DatasetError, match=r"as clusters \(2\), 'tiny' has 0"):
        virtual_categories(replace(tiny, features={}), 2, seed=0)


def test_a_stated_share_of_the_items_loses_or_changes_its_category(tiny):
    known = tiny.category != UNKNOWN
    found = with_categories(tiny, CategoryConfig(removed=0.5, noise=0.5), seed=3)
    lost = known & (found.category == UNKNOWN)
    wrong = known & ~lost & (found.category != tiny.category)
    assert int(lost.sum()) == 7  # of 14
    assert not found.labels[lost].any()
    assert int(wrong.sum()) == round(0.5 * 7)
    for item in wrong.nonzero().flatten().tolist():
        assert not (found.labels[item] & tiny.labels[item]).any()
    rest = ~lost & ~wrong
    assert torch.equal(found.labels[rest], tiny.labels[rest])
    assert with_categories(tiny, CategoryConfig(), seed=3) is tiny
    others = with_categories(tiny, CategoryConfig(removed=0.5, noise=0.5), seed=4)
    assert not torch.equal(others.category, found.category)


def test_no_categories_are_none(tiny):
    found = with_categories(tiny, CategoryConfig(source="none"), seed=0)
    assert found.labels.untyped_storage().nbytes() == 0  # a view of others cannot be exported
    assert (found.categories, found.labels.shape) == ((), (15, 0))
    assert (found.category == UNKNOWN).all()
    with pytest.raises(DatasetError, match=r"Expected an item that some category is wrong for"):
        with_categories(found, CategoryConfig(noise=0.1), seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--categories.noise", "1.5"], "Expected 0 <= noise <= 1, got 1.5"),
        (["--categories.clusters", "0"], "Expected clusters >= 1, got 0"),
        (
            ["--categories.source", "none", "--categories.removed", "0.1"],
            "Expected removed and noise of 0 without categories, got 0.1 and 0.0",
        ),
        (["--objective.contrast_pairs", "[[id,id]]"], "two different modalities each, got"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mixture", "router", "pooling", "candidates"])
def test_words_that_are_no_choice_are_refused(name):
    with pytest.raises(ValueError, match=rf"Expected {name} among \['.*\], got 'odd'"):
        ModelConfig(**{name: "odd"})


# -- variants -------------------------------------------------------------------------------------


def test_every_variant_has_a_folder_of_its_own():
    names = [file_name(variant) for variant in VARIANTS]
    assert len({name.lower() for name in names}) == len(names)
    assert not [name for name in names if name.endswith(".") or "/" in name]


def test_a_model_without_a_modality_has_the_others(tiny, config):
    assert build("cammsr w/o text", tiny, config)[0].items.names == ("id", "image")
    both = replace(config, model=replace(config.model, leave_out=["text"]))
    model, objective = build("cammsr w/o image", tiny, both)
    assert model.items.names == ("id",)
    batch = Batch(HISTORY[:, :-1], VALID[:, 1:], HISTORY[:, 1:], None)
    assert objective(model, batch)["contrast"] == 0  # of no pair
    wrong = replace(config, model=replace(config.model, leave_out=["sound"]))
    with pytest.raises(DatasetError, match=r"among \['text', 'image'\] of 'tiny', got 'sound'"):
        build("sasrec", tiny, wrong)


@pytest.fixture
def on_folder(tiny, config, tmp_path):
    write_folder(tiny, tmp_path / "tiny")
    once = replace(config.training, max_epochs=1)
    return replace(
        config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"), training=once
    )


def test_what_a_dataset_lacks_is_said_before_anything_is_trained(tiny, on_folder, tmp_path):
    write_folder(replace(tiny, features={"text": tiny.features["text"]}), tmp_path / "few")
    few = replace(on_folder, data=str(tmp_path / "few"))
    for variant in ("cammsr w/o image", "cammsr MSCL text-image"):
        with pytest.raises(DatasetError, match="got 'image'"):
            run(few, ["cammsr", variant], progress=False)
    assert not list((tmp_path / "runs").glob("*/cammsr"))


@pytest.mark.parametrize(
    ("model", "source"), [("cammsr w/o Att.", "virtual"), ("cammsr w/o text", "given")]
)
def test_ablated_runs_resume_and_serve(model, source, on_folder, split):
    models = [model]
    ablated = replace(
        on_folder,
        seed=2,
        model=replace(on_folder.model, candidates="enriched", pooling="joint"),
        categories=CategoryConfig(source, clusters=4, removed=0.2, noise=0.3),
    )
    first = run(ablated, models, progress=False)
    assert read_run(first.folder).config == ablated
    again = run(*parse(["--resume", str(first.folder)])[:2], first.folder, progress=False)
    assert [m.test for m in again.models] == [m.test for m in first.models]
    dataset = read_catalogue(read_run(first.folder)).dataset
    assert len(dataset.categories) == (4 if source == "virtual" else 3)
    items, valid = split.test.history.padded(torch.arange(5))
    for trained in first.models:
        assert torch.equal(trained.model.labels, dataset.labels)
        scores = ModelScorer(trained.model).scores(items, valid)
        found = load(first.folder, trained.name).top_k(items, valid, 3, unseen=False)
        torch.testing.assert_close(found.scores, scores.topk(3).values)


def test_a_run_without_experts_has_its_report(on_folder):
    none = replace(on_folder.model, mixture="none")
    result = run(replace(on_folder, model=none), ["cammsr"], progress=False)
    assert (result.folder / "metrics.json").is_file()


# -- rows of other settings -----------------------------------------------------------------------


def test_a_setting_is_varied_value_by_value():
    rows = parse_comparison(
        ["--data", "x", "--vary", "model.num_experts=1,4", "objective.contrast_pairs=[[id,text]]"]
    ).rows
    assert [config.model.num_experts for _, config in rows.values()] == [4, 4, 1, 4, 4]
    assert [model for model, _ in rows.values()] == ["cammsr", "sasrec", *["cammsr"] * 3]
    assert list(rows) == [
        "cammsr",
        "sasrec",
        "cammsr model.num_experts=1",
        "cammsr model.num_experts=4",
        'cammsr objective.contrast_pairs=[["id", "text"]]',
    ]
    assert rows["cammsr model.num_experts=4"][1] == parse(["--data", "x"])[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=1", "Expected --vary such as model.num_experts=1,2,4, got 'seed=1'"),
        ("model.dim", "Expected --vary such as model.num_experts=1,2,4, got 'model.dim'"),
        ("model.dim=[", "Expected --vary such as model.num_experts=1,2,4, got 'model.dim=['"),
        ("model.wide=1", "--model.wide=1"),
        ("model.dim=9", "Expected dim divisible by num_heads, got 9 and 2"),
    ],
)
def test_wrong_variations_are_refused(setting, message, capsys):
    with pytest.raises(SystemExit):
        parse_comparison(["--data", "x", "--vary", setting])
    assert message in capsys.readouterr().err


def test_a_comparison_has_a_row_for_each_value(on_folder):
    other = replace(on_folder, training=replace(on_folder.training, learning_rate=0.1))
    rows = {
        "sasrec": ("sasrec", on_folder),
        "sasrec as it is": ("sasrec", on_folder),
        "sasrec training.learning_rate=0.1": ("sasrec", other),
    }
    scores = compare(rows, 1, "hr@5")["ndcg@10"]
    assert scores["sasrec as it is"] == scores["sasrec"]
    (alone,) = run(other, ["sasrec"], progress=False).models
    assert scores["sasrec training.learning_rate=0.1"] == [alone.test["ndcg@10"]]
    assert scores["sasrec"] != [alone.test["ndcg@10"]]
