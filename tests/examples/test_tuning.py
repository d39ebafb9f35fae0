"""Tests for cammsr.tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.cli import SPACE, parse, parse_tuning
from cammsr.config import Config
from cammsr.dataset import DatasetError, write_folder
from cammsr.metrics import evaluate
from cammsr.split import Target
from cammsr.tuning import changed, read_space, tune


def test_settings_change_by_name():
    config = changed(Config(), {"model.dropout": 0.2, "training.learning_rate": 0.1})
    model = replace(Config().model, dropout=0.2)
    assert config == replace(
        Config(), model=model, training=replace(Config().training, learning_rate=0.1)
    )


@pytest.mark.parametrize("name", ["dropout", "model.droput", "modle.dropout", "seed.x"])
def test_unknown_settings_are_refused(name):
    with pytest.raises(ValueError, match=r"Expected a setting such as model\.dropout, got"):
        changed(Config(), {name: 1})


def test_the_space_that_comes_along_is_one():
    assert "training.learning_rate" in read_space(SPACE)


@pytest.mark.parametrize(
    "values", ["{low: 1}", "{choices: [1], low: 2}", "{low: 1, high: 2, lgo: 1}"]
)
def test_a_space_without_a_range_is_refused(values, tmp_path):
    (tmp_path / "space.yaml").write_text(f"model.dropout: {values}\n")
    with pytest.raises(ValueError, match=r"Expected model\.dropout in .* with low and high"):
        read_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "Expected --trials >= 1, got 0"),
        (["--space", "nowhere.yaml"], "Expected a YAML file after --space, nowhere.yaml is none"),
    ],
)
def test_wrong_searches_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_tuning(arguments)
    assert message in capsys.readouterr().err


def test_a_search_finds_the_better_of_two_and_never_looks_at_the_test(
    tiny, split, config, tmp_path, monkeypatch
):
    pytest.importorskip("optuna", reason="optuna is an extra")
    write_folder(tiny, tmp_path / "tiny")
    config = replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))
    (tmp_path / "space.yaml").write_text(
        "training.learning_rate: {choices: [0.00000001, 0.02]}\n"
        "model.dropout: {low: 0.0, high: 0.3}\n"
    )

    def watched(scorer: object, target: Target, **options: int) -> dict[str, float]:
        assert torch.equal(target.item, split.validation.item)
        return evaluate(scorer, target, **options)

    monkeypatch.setattr("cammsr.training.evaluate", watched)
    found = tune(config, ["sasrec"], 6, tmp_path / "space.yaml")["sasrec"]
    (file,) = Path(config.output).glob("*/best-sasrec.yaml")
    again, _, _ = parse(["--config", str(file), "--data", config.data, "--output", config.output])
    assert again == found != config  # with what was set before the search
    trials = sorted(file.parent.glob("sasrec/trial-*"))
    assert len(trials) == 6


def test_choices_alone_are_tried_once_each(tiny, config, tmp_path, capsys):
    pytest.importorskip("optuna", reason="optuna is an extra")
    write_folder(tiny, tmp_path / "tiny")
    config = replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))
    (tmp_path / "space.yaml").write_text(
        "training.learning_rate: {choices: [0.001, 0.02]}\nmodel.dropout: {choices: [0.0, 0.3]}\n"
    )
    tune(config, ["sasrec"], 20, tmp_path / "space.yaml")
    tried = {line.partition(" with {")[2] for line in capsys.readouterr().out.splitlines()} - {""}
    assert tried == {
        f"'training.learning_rate': {rate}, 'model.dropout': {dropout}}}"
        for rate in (0.001, 0.02)
        for dropout in (0.0, 0.3)
    }
    assert len(list(Path(config.output).glob("*/sasrec/trial-*"))) == 4


def test_a_search_needs_data(config):
    pytest.importorskip("optuna", reason="optuna is an extra")
    with pytest.raises(DatasetError, match="needs --data"):
        tune(config, ["sasrec"], 1, SPACE)
