"""Tests for cammsr.tuning."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.cli import SPACE, parse, parse_tuning
from cammsr.config import Config
from cammsr.dataset import DatasetError, write_folder
from cammsr.metrics import evaluate
from cammsr.named import changed
from cammsr.search_space import read_space, suggest
from cammsr.split import Target
from cammsr.tuning import tune


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
    "values",
    ["{low: 1}", "{choices: [1], low: 2}", "{low: 1, high: 2, lgo: 1}", "0.3", "[0.3]", "null"],
)
def test_a_space_without_a_range_is_refused(values, tmp_path):
    (tmp_path / "space.yaml").write_text(f"model.dropout: {values}\n")
    with pytest.raises(ValueError, match=r"Expected model\.dropout in .* with low and high"):
        read_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dropout: {choices: 0.3}", r"a list of choices of model\.dropout in .*, got 0\.3"),
        ("model.dropout: {choices: []}", r"a list of choices of model\.dropout in .*, got \[\]"),
        (
            "model.dropout: {low: .6, high: .1}",
            r"low <= high of model\.dropout .* 0\.6 and 0\.1",
        ),
        ("model.dropout: {low: a, high: b}", r"low <= high of model\.dropout .* got a and b"),
        ("model.dropout: {low: 0, high: 1, log: true}", "above 0 where log is true, got 0 and 1"),
        ("- model.dropout", "settings with what to try for each"),
        ("a: [b", "Expected YAML in"),
        ("time_share: {low: .5, high: .9}", r"a setting such as model\.dropout, got 'time_share'"),
        ("categories.noise: {low: 0, high: 1}", r"leave the data alone, got categories\.noise"),
        ("model.modalities: {choices: [null]}", r"leave the data alone, got model\.modalities"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_space(tmp_path / "space.yaml")


class _Trial:
    """Says what it is asked for."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> tuple[object, ...]:
        return (name, "int", low, high, log)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> tuple[object, ...]:
        return (name, "float", low, high, log)

    def suggest_categorical(self, name: str, choices: list[object]) -> tuple[object, ...]:
        return (name, choices)


def test_whole_numbers_are_asked_for_where_the_setting_has_them(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "model.num_layers: {low: 1, high: 3}\n"
        "model.dropout: {low: 0, high: 1}\n"
        "training.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "objective.z_weight: {choices: [1e-3, 0]}\n"
        "model.top_k: {choices: [null, 2]}\n"
        "model.norm: {choices: [dyt, layernorm]}\n"
    )
    found = suggest(_Trial(), read_space(tmp_path / "space.yaml"))
    assert list(found.values()) == [
        ("model.num_layers", "int", 1, 3, False),
        ("model.dropout", "float", 0, 1, False),
        ("training.learning_rate", "float", 1e-4, 1e-2, True),
        ("objective.z_weight", [1e-3, 0]),
        ("model.top_k", [None, 2]),
        ("model.norm", ["dyt", "layernorm"]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "Expected --trials >= 1, got 0"),
        (["--epochs", "0"], "Expected --epochs >= 1, got 0"),
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
    threads: list[int] = []
    monkeypatch.setattr("cammsr.hardware.torch.set_num_threads", threads.append)
    config = replace(config, training=replace(config.training, threads=1))
    found = tune(config, ["sasrec"], 6, tmp_path / "space.yaml")["sasrec"]
    assert threads == [1]
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


@pytest.fixture
def on_folder(tiny, config, tmp_path):
    pytest.importorskip("optuna", reason="optuna is an extra")
    write_folder(tiny, tmp_path / "tiny")
    return replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))


def test_what_was_found_is_written_even_where_it_is_the_default(on_folder, tmp_path):
    (tmp_path / "space.yaml").write_text("model.num_layers: {choices: [2]}")
    tune(on_folder, ["sasrec"], 1, tmp_path / "space.yaml", epochs=1)
    (file,) = Path(on_folder.output).glob("*/best-sasrec.yaml")
    found, _, _ = parse(["--data", "x", "--model.num_layers", "1", "--config", str(file)])
    assert found.model.num_layers == 2
    assert found.training.max_epochs == on_folder.training.max_epochs == 3
    (log,) = file.parent.glob("sasrec/trial-0/logs/csv/run-0/metrics.csv")
    assert {row["epoch"] for row in csv.DictReader(log.read_text().splitlines())} == {"0"}


def test_what_a_model_fixes_is_not_searched(on_folder, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "objective.category_weight: {low: 0.01, high: 2.0}\n"
        "model.memory_size: {choices: [0, 5]}\n"
        "model.dropout: {choices: [0.1]}\n"
    )
    short = replace(on_folder, output=str(tmp_path / "runs"))
    tune(short, ["hm4sr + memory", "sasrec"], 2, space, epochs=1)
    tried = {
        path.stem: [trial["settings"] for trial in json.loads(path.read_text())]
        for path in (tmp_path / "runs").glob("*/trials-*.json")
    }
    assert tried["trials-hm4sr-+-memory"] == [{"model.memory_size": 5, "model.dropout": 0.1}]
    assert all("objective.category_weight" in settings for settings in tried["trials-sasrec"])
    assert len(tried["trials-sasrec"]) == 2


def test_a_trial_that_fails_is_said_and_the_search_goes_on(on_folder, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text("model.num_heads: {choices: [3, 1]}")
    found = tune(on_folder, ["sasrec"], 5, tmp_path / "space.yaml")
    assert found["sasrec"].model.num_heads == 1
    failed = "sasrec 1 of 2: failed (Expected dim divisible by num_heads, got 8 and 3.)"
    assert failed in capsys.readouterr().out
    (file,) = Path(on_folder.output).glob("*/trials-sasrec.json")
    first, second = json.loads(file.read_text())
    assert first == {
        "settings": {"model.num_heads": 3},
        "error": "Expected dim divisible by num_heads, got 8 and 3.",
    }
    assert second["settings"] == {"model.num_heads": 1}
    assert 0 < second["ndcg@10"] < 1


def test_without_optuna_a_search_says_so_before_it_reads_the_data(on_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match="optuna"):
        tune(on_folder, ["sasrec"], 1, SPACE)
    assert capsys.readouterr().out == ""
    assert not Path(on_folder.output).exists()


def test_a_search_of_failures_alone_is_refused(on_folder, tmp_path):
    (tmp_path / "space.yaml").write_text("model.num_heads: {choices: [3]}")
    with pytest.raises(ValueError, match=r"Expected a trial that works, all .* failed: .*json"):
        tune(on_folder, ["sasrec"], 1, tmp_path / "space.yaml")


def test_a_model_that_the_data_cannot_train_is_refused_before_the_first_trial(on_folder, capsys):
    config = replace(on_folder, model=replace(on_folder.model, modalities=["text"]))
    with pytest.raises(DatasetError, match="got 'image'"):
        tune(config, ["sasrec", "cammsr w/o image"], 1, SPACE)
    assert "1 of 1" not in capsys.readouterr().out
