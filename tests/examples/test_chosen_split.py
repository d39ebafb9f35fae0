"""A run on the split that its settings ask for, from training to evaluation and serving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.chosen_split import choose_split
from cammsr.cli import parse
from cammsr.dataset import DatasetError, k_core, read_folder, write_folder
from cammsr.evaluate_cli import examine, parse_request
from cammsr.floors import floors
from cammsr.metrics import evaluate
from cammsr.run import open_data, run
from cammsr.serving import load
from cammsr.split import leave_one_out
from cammsr.time_split import global_time_split
from cammsr.training import train

MODELS = ["sasrec", "hm4sr"]


def dated(dataset):
    """Times that overlap between users, and rise within each."""
    return replace(
        dataset, timestamps=1_600_000_000 + 50_000 * dataset.timestamps + 7_000 * dataset.user_ids
    )


@pytest.fixture
def by_time(tiny, config, tmp_path):
    """The settings of a run on the split by time."""
    write_folder(dated(tiny), tmp_path / "dated")
    return replace(
        config,
        data=str(tmp_path / "dated"),
        output=str(tmp_path / "runs"),
        split="global_time",
        time_share=0.7,
        model=replace(config.model, num_layers=1),
        training=replace(config.training, max_epochs=2),
    )


def test_the_settings_choose_the_split(tiny, config):
    dataset = dated(tiny)
    chosen = choose_split(dataset, config)
    assert chosen.name == "leave-one-out"
    assert torch.equal(chosen.split.test.item, leave_one_out(dataset).test.item)
    assert f"{chosen.leak.targets:.1%} of the test targets lie before some" in chosen.note
    for share in (0.6, 0.8):
        chosen = choose_split(dataset, replace(config, split="global_time", time_share=share))
        expected = global_time_split(dataset, share)
        assert torch.equal(chosen.split.train.values, expected.split.train.values)
        assert torch.equal(chosen.split.test.item, expected.split.test.item)
        assert chosen.leak is None
        assert expected.describe() in chosen.note


def test_a_run_on_a_split_by_time(by_time, capsys):
    result = run(by_time, MODELS, progress=False)
    out = capsys.readouterr().out
    dataset = k_core(read_folder(by_time.data))
    found = global_time_split(dataset, 0.7)
    assert f"split by time: {found.describe()}" in out
    assert "leaks time" not in out
    for name, scorer in floors(dataset, found.split).items():
        assert result.floors[name]["test"] == evaluate(scorer, found.split.test)
    # evaluate.py ranks the same users as the training did, and report and serving open the run
    for trained in result.models:
        measured = examine(
            parse_request([str(result.folder), "--model", trained.name, "--by", "cold"])
        )
        assert measured["split"] == "global time"
        assert measured["time_leak"] is None
        assert measured["all"].pop("users") == len(found.test_users) < dataset.num_users
        assert measured["all"] == pytest.approx(trained.test, abs=1e-9)
    out = capsys.readouterr().out
    assert f"{dataset.num_items} items, global time" in out
    assert "leaks time" not in out
    assert len(load(result.folder, "hm4sr").recommend(user=3, k=2)) == 2
    assert (result.folder / "report.html").is_file()


def test_a_stopped_run_goes_on_with_its_split(by_time, monkeypatch, tmp_path):
    whole = run(replace(by_time, output=str(tmp_path / "whole")), MODELS, progress=False)

    def stop(name, *arguments, **keywords):
        if name == MODELS[1]:
            raise KeyboardInterrupt
        return train(name, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr("cammsr.run.train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(by_time, MODELS, progress=False)
    (folder,) = Path(by_time.output).iterdir()
    config, models, resume = parse(["--resume", str(folder)])
    assert (config.split, config.time_share) == ("global_time", 0.7)
    run(config, models, resume, progress=False)
    found, expected = (
        json.loads((place / "metrics.json").read_text()) for place in (folder, whole.folder)
    )
    assert found["floors"] == expected["floors"]
    for name in MODELS:
        assert found["models"][name]["test"] == expected["models"][name]["test"]


def test_another_split_is_another_run(by_time):
    folder = run(by_time, ["sasrec"], progress=False).folder
    with pytest.raises(ValueError, match=r"began with, time_share 0.7, got 0.6. Start a new run"):
        run(replace(by_time, time_share=0.6), ["sasrec"], folder, progress=False)


def test_positions_cannot_be_split_by_time(tiny, by_time, tmp_path):
    write_folder(tiny, tmp_path / "counted")
    counted = replace(by_time, data=str(tmp_path / "counted"))
    with pytest.raises(DatasetError, match=r"timestamps of 'counted' are positions in each.*Take"):
        run(counted, MODELS, progress=False)
    assert not Path(by_time.output).exists()


def test_leave_one_out_warns_where_times_are_times(tiny, by_time, tmp_path, capsys):
    loose = replace(by_time, split="leave_one_out")
    dataset, split = open_data(by_time.data, loose)
    warning = choose_split(dataset, loose).note
    assert capsys.readouterr().out.splitlines()[1:] == [warning]
    assert torch.equal(split.test.item, leave_one_out(dataset).test.item)
    write_folder(tiny, tmp_path / "counted")
    open_data(tmp_path / "counted", loose)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time_share", "1"], "Expected 0 < time_share < 1, got 1.0"),
        (["--time_share", "0"], "Expected 0 < time_share < 1, got 0.0"),
        (["--split", "random"], "random"),
    ],
)
def test_wrong_splits_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err
