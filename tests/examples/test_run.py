"""Tests for cammsr.run, cammsr.report and cammsr.cli; the page has tests of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cammsr.cli import PLANTED, parse
from cammsr.compare_cli import parse_comparison
from cammsr.config import Config
from cammsr.dataset import UNKNOWN, DatasetError, write_folder
from cammsr.report import COLUMNS, format_table
from cammsr.run import run
from cammsr.training import Trained, train


@pytest.fixture
def folder(tiny, tmp_path):
    write_folder(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def on_folder(config, folder, tmp_path):
    return replace(config, data=str(folder), output=str(tmp_path / "runs"))


# -- a run ----------------------------------------------------------------------------------------


def test_a_run_leaves_everything_in_its_folder(on_folder, capsys):
    result = run(on_folder, ["cammsr", "sasrec"], progress=False)
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["models"]["cammsr"]["test"] == result.models[0].test
    assert set(metrics["floors"]) == {
        "popularity",
        "content k-NN",
        "Markov",
        "item k-NN",
        "memory alone",
    }
    saved = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert saved["model"]["dim"] == on_folder.model.dim
    assert (result.folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    weights = result.folder / "cammsr" / "weights.safetensors"
    assert weights.stat().st_mode == (result.folder / "config.yaml").stat().st_mode
    table = (result.folder / "table.txt").read_text()
    assert f"{result.models[1].test['ndcg@10']:.4f}" in table
    assert table.strip() in capsys.readouterr().out


def test_the_saved_configuration_runs_again(on_folder):
    first = run(on_folder, ["sasrec"], progress=False)
    config, _, _ = parse(["--config", str(first.folder / "config.yaml")])
    assert config == on_folder
    assert run(config, ["sasrec"], progress=False).models[0].curve == first.models[0].curve


def test_what_is_finished_survives_a_stop(on_folder, monkeypatch, capsys):
    def stop_at_sasrec(name, *arguments, **keywords):
        if name == "sasrec":
            raise KeyboardInterrupt
        return train(name, *arguments, **keywords)

    monkeypatch.setattr("cammsr.run.train", stop_at_sasrec)
    with pytest.raises(KeyboardInterrupt):
        run(on_folder, ["cammsr", "sasrec"], progress=False)
    (saved,) = Path(on_folder.output).glob("*/metrics.json")
    assert set(json.loads(saved.read_text())["models"]) == {"cammsr"}
    monkeypatch.undo()
    capsys.readouterr()
    run(on_folder, ["cammsr", "sasrec"], resume=saved.parent, progress=False)
    printed = capsys.readouterr().out
    assert "\nranking with cammsr (1 of 2)\ntraining sasrec (2 of 2)\n" in printed
    assert set(json.loads(saved.read_text())["models"]) == {"cammsr", "sasrec"}


def test_a_stopped_run_says_how_to_go_on(on_folder, monkeypatch, capsys):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("cammsr.run.train", stop)
    with pytest.raises(KeyboardInterrupt):
        run(on_folder, ["sasrec"], progress=False)
    (folder,) = Path(on_folder.output).iterdir()
    assert capsys.readouterr().out.endswith(f"stopped; to go on: train.py --resume '{folder}'\n")


def test_the_table_says_what_stopped_early_and_what_a_floor_beats():
    def trained(name: str, value: float, best: int) -> Trained:
        metrics = dict.fromkeys(COLUMNS, value)
        return Trained(name, nn.Identity(), metrics, metrics, 1.0, 3, best, [value] * 3)

    floors = {
        name: dict.fromkeys(("validation", "test"), dict.fromkeys(COLUMNS, value))
        for name, value in (("low", 0.1), ("high", 0.5))
    }
    models = [trained("a", 0.6, 2), trained("b", 0.4, 1), trained("c", 0.3, 2)]
    *_, rising, behind = format_table(floors, models).splitlines()
    assert rising == "stopped at their best epoch, --training.max_epochs was reached: a, c"
    assert behind == "behind high, which is not trained, on validation: b, c"
    assert format_table(floors, [trained("d", 0.5, 0)]).splitlines()[-1].startswith("one seed")


def test_a_catalogue_without_categories_trains(tiny, on_folder, tmp_path):
    bare = replace(
        tiny,
        categories=(),
        labels=tiny.labels[:, :0],
        category=torch.full_like(tiny.category, UNKNOWN),
    )
    write_folder(bare, tmp_path / "bare")
    result = run(replace(on_folder, data=str(tmp_path / "bare")), ["cammsr"], progress=False)
    assert (result.folder / "report.html").is_file()


# -- the command line -----------------------------------------------------------------------------


def test_without_data_the_planted_catalogue_and_its_settings():
    config, models, _ = parse([])
    assert config.data is None
    assert config.model != Config().model
    assert models == PLANTED


def test_the_planted_settings_lie_below_a_file_of_settings(tmp_path):
    (tmp_path / "own.yaml").write_text("training:\n  max_epochs: 1\n")
    config, _, _ = parse(["--config", str(tmp_path / "own.yaml")])
    planted, _, _ = parse([])
    assert config == replace(planted, training=replace(planted.training, max_epochs=1))


def test_wrong_data_or_models_leave_no_run_behind(on_folder, tmp_path):
    with pytest.raises(DatasetError, match="is not a folder"):
        run(replace(on_folder, data=str(tmp_path / "nowhere")), ["sasrec"], progress=False)
    without = replace(on_folder, model=replace(on_folder.model, leave_out=["sound"]))
    with pytest.raises(DatasetError, match="Expected leave_out among"):
        run(without, ["sasrec"], progress=False)
    assert not Path(on_folder.output).exists()


def test_flags_change_the_configuration():
    config, models, _ = parse(["--data", "x", "--model.dim", "16", "--models", "[sasrec]"])
    assert config == replace(Config(), data="x", model=replace(Config().model, dim=16))
    assert models == ["sasrec"]


def test_a_fusion_is_a_model_of_its_own():
    assert parse(["--fusion", "low_rank"])[1] == ["low_rank"]
    assert parse(["--data", "x", "--fusion", "mean"])[1] == ["mean"]


def test_number_of_seeds_and_the_metric():
    request = parse_comparison(["--data", "x", "--seeds", "3"])
    assert (request.seeds, request.metric) == (3, "ndcg@10")
    request = parse_comparison(["--data", "x", "--metric", "hr@5"])
    assert (request.seeds, request.metric) == (5, "hr@5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "[bert]"], "Expected a model among"),
        (["--fusion", "bilinear"], "Expected --fusion among ['sum', 'mean',"),
        (["--fusion", "sum", "--models", "[cammsr]"], "Expected --fusion or --models, got 'sum'"),
        (["--models", "[sasrec,sasrec]"], "Expected every model once in --models"),
        (["--model.dim", "9"], "Expected dim divisible by num_heads, got 9 and 2"),
        (["--model.dropout", "1.5"], "Expected 0 <= dropout <= 1, got 1.5"),
        (["--training.threads", "0"], "Expected threads >= 1, got 0"),
        (["--model.top_k", "5"], "Expected top_k between 1 and num_experts (4), got 5"),
        (["--training.max_epochs", "0"], "Expected max_epochs >= 1, got 0"),
        (["--model.num_layers", "0"], "Expected num_layers >= 1, got 0"),
        (["--objective.contrast_weight", "-1"], "Expected contrast_weight >= 0, got -1.0"),
        (["--model.norm", "batch"], "batch"),
        (["--model.dmi", "8"], "dmi"),
    ],
)
def test_wrong_settings_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "Expected --seeds >= 1, got 0"),
        (["--metric", "map"], "Expected --metric among ('ndcg@5', "),
    ],
)
def test_wrong_comparisons_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_comparison(arguments)
    assert message in capsys.readouterr().err
