"""Tests for cammsr.training, cammsr.module, cammsr.variants and cammsr.scoring."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from cammsr.config import Config
from cammsr.metrics import evaluate
from cammsr.scoring import ModelScorer
from cammsr.split import Split
from cammsr.training import train
from cammsr.variants import VARIANTS, build, configure


@pytest.fixture
def trained(tiny, split, config, tmp_path):
    return train("cammsr", tiny, split, config, tmp_path / "run", progress=False)


def test_training_keeps_the_weights_of_the_best_epoch(trained, split):
    assert len(trained.curve) == trained.epochs == 3
    assert trained.best_epoch == max(range(3), key=lambda epoch: trained.curve[epoch])
    assert trained.validation["ndcg@10"] == pytest.approx(max(trained.curve), rel=1e-5)
    assert evaluate(ModelScorer(trained.model), split.test) == trained.test


def test_a_pipe_gets_a_line_an_epoch(tiny, split, config, tmp_path, capsys):
    trained = train("sasrec", tiny, split, config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"  epoch {number}: validation/ndcg@10 {value:.4f}"
        for number, value in enumerate(trained.curve, start=1)
    ]


def test_training_learns(trained, tmp_path):
    table = tmp_path / "run" / "logs" / "csv" / "run-0" / "metrics.csv"
    losses = pl.read_csv(table)["train/loss"].drop_nulls()
    assert losses.is_sorted(descending=True)
    assert losses[-1] < 0.99 * losses[0]


def test_saved_weights_bring_the_scores_back(trained, tiny, config, tmp_path, split):
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    fresh, _ = build("cammsr", tiny, replace(config, seed=5))
    missing, unexpected = fresh.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(".tables." in name for name in missing)  # the raw features are the dataset's
    items, valid = split.test.history.padded(torch.arange(5))
    scores = ModelScorer(trained.model).scores(items, valid)
    assert torch.equal(ModelScorer(fresh.eval()).scores(items, valid), scores)


def test_the_test_split_decides_nothing(tiny, split, config, tmp_path, trained):
    other = Split(split.train, split.validation, replace(split.test, item=split.test.item.flip(0)))
    again = train("cammsr", tiny, other, config, tmp_path / "again", progress=False)
    assert again.curve == trained.curve
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name]), name
    assert again.test != trained.test


def test_logs_and_checkpoints_are_written(trained, tmp_path):
    folder = tmp_path / "run"
    values = pl.read_csv(folder / "logs" / "csv" / "run-0" / "metrics.csv")["validation/ndcg@10"]
    assert values.drop_nulls().to_list() == pytest.approx(trained.curve, abs=1e-6)
    assert list((folder / "logs" / "tensorboard").glob("events.*"))
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == trained.epochs - 1


def test_early_stopping_waits_for_the_patience_and_no_longer(tiny, split, config, tmp_path):
    frozen = replace(config.training, learning_rate=1e-12, max_epochs=50, patience=2)
    stopped = train(
        "sasrec", tiny, split, replace(config, training=frozen), tmp_path / "stop", progress=False
    )
    assert stopped.epochs == 3


def test_scores_do_not_depend_on_the_batch(trained, split):
    scorer = ModelScorer(trained.model)
    items, valid = split.test.history.padded(torch.arange(len(split.test.item)))
    together = scorer.scores(items, valid)
    for user in range(5):
        alone = scorer.scores(*split.test.history.padded(torch.tensor([user])))
        torch.testing.assert_close(alone[0], together[user])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_same_for_the_same_seed(variant, tiny, config):
    first, _ = build(variant, tiny, config)
    torch.rand(5)
    second, _ = build(variant, tiny, config)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_ablations_differ_from_the_model_in_what_they_name_alone():
    config = Config()
    plain = configure("cammsr w/o MSCL", config)
    assert plain == replace(config, objective=replace(config.objective, contrast_weight=0.0))
    blind = configure("cammsr w/o guidance", config)
    assert blind.objective == replace(config.objective, category_weight=0.0)
    assert blind.model == replace(config.model, category_guidance=False)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"Expected a model among \[.*\], got 'bert'"):
        configure("bert", Config())
