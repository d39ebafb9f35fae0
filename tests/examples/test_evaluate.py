"""Tests for evaluate.py and cammsr.evaluate_cli."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.dataset import UNKNOWN, k_core, read_folder, write_folder
from cammsr.evaluate_cli import FILE, examine, format_evaluation, parse_request
from cammsr.metrics import evaluate
from cammsr.saved import ServingError, read_run, restore
from cammsr.scoring import ModelScorer
from cammsr.split import leave_one_out
from tests.examples.runs import save_run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cammsr" / "evaluate.py"
MODELS = ("cammsr", "sasrec")


def save(dataset, config, folder):
    """A run folder with untrained models, as train.py leaves one."""
    write_folder(dataset, folder / "tiny")
    config = replace(config, data=str(folder / "tiny"))
    return str(save_run(config, folder / "run", MODELS))


@pytest.fixture
def saved(tiny, config, tmp_path):
    return save(tiny, config, tmp_path)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def written(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((Path(run) / FILE).read_text(), parse_constant=refuse)


def test_the_script_prints_and_writes_what_python_measures(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", saved, "-k", "3"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out, found = capsys.readouterr().out, written(saved)["cammsr"]
    run = read_run(saved)
    dataset = k_core(read_folder(run.data))
    model = restore(run, "cammsr", dataset)
    expected = evaluate(ModelScorer(model), leave_one_out(dataset).test)
    assert found["all"].pop("users") == dataset.num_users == 24
    assert found["all"] == pytest.approx(expected, abs=1e-12)
    numbers = [format(expected[name], ".4f") for name in ("ndcg@10", "hr@10", "mrr@10")]
    assert ["all", "users", "24", *numbers] == out.splitlines()[2].split()[:6]
    assert "cammsr on the test of 'tiny': 15 items, leave-one-out" in out
    assert "lists of 3 unseen items" in out
    assert list(found["by"]) == ["category", "popularity", "length", "cold"]
    for groups in found["by"].values():
        assert sum(values["users"] for values in groups.values()) == 24


def test_only_what_is_asked_for_is_shown(saved, capsys):
    found = examine(parse_request([saved, "--by", "cold", "length"]))
    out = capsys.readouterr().out
    assert list(found["by"]) == ["cold", "length"]
    assert "in training" in out
    assert "category of the target" not in out
    assert "lose text" not in out
    assert "curves" not in found


def test_batches_and_blocks_change_nothing(saved):
    one = examine(parse_request([saved, "--batch_size", "1", "--block", "4"]))
    assert one == examine(parse_request([saved, "--batch_size", "4096"]))


def test_curves_begin_with_the_dataset_as_it_is(saved, capsys):
    found = examine(parse_request([saved, "--curves", "--by", "cold"]))
    assert list(found["curves"]) == [
        "items that lose image",
        "items that lose text",
        "items with a wrong category",
        "items with no category",
    ]
    whole = {name: value for name, value in found["all"].items() if name != "users"}
    for points in found["curves"].values():
        assert [point["share"] for point in points] == [0, 0.25, 0.5, 0.75, 1]
        assert points[0] == {"share": 0, **whole}
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("items that lose image"))
    shares = [line.split()[0] for line in lines[place + 1 : place + 6]]
    assert shares == ["0%", "25%", "50%", "75%", "100%"]


def test_each_model_has_its_place_in_the_file(saved):
    first = examine(parse_request([saved, "--by", "cold"]))
    second = examine(parse_request([saved, "--by", "cold", "--model", "sasrec"]))
    assert written(saved) == {"cammsr": first, "sasrec": second}
    assert not (Path(saved) / FILE).with_suffix(".part").exists()


# -- the warning ----------------------------------------------------------------------------------


def test_positions_cannot_say_how_much_leaks(saved, capsys):
    found = examine(parse_request([saved, "--by", "cold"]))
    assert found["time_leak"] is None
    assert "leaks time" in (out := capsys.readouterr().out)
    assert "How much is not known: the timestamps are positions" in out


def test_the_leak_is_said_with_its_size(tiny, config, tmp_path, capsys):
    times = 1_600_000_000 + 1000 * tiny.timestamps + tiny.user_ids
    run = save(replace(tiny, timestamps=times), config, tmp_path)
    leak = examine(parse_request([run, "--by", "cold"]))["time_leak"]
    out = capsys.readouterr().out
    assert 0 < leak["targets"] < 1
    assert f"{leak['targets']:.1%} of the test targets lie before some training" in out
    assert f"{leak['interactions']:.1%} of the training interactions after the target" in out


def test_what_cannot_be_measured_is_a_dash(tiny, config, tmp_path, capsys):
    category = torch.full_like(tiny.category, UNKNOWN)
    nameless = replace(tiny, category=category, labels=tiny.labels[:, :0], categories=())
    run = save(nameless, config, tmp_path)
    found = examine(parse_request([run, "--curves", "--by", "category"]))
    assert found["lists@10"]["diversity/category"] is None
    assert written(run)["cammsr"] == found
    assert any(
        line.split() == ["diversity/category", "-"]
        for line in format_evaluation(found, 10).split("\n")
    )
    assert "wrong category" not in capsys.readouterr().out


def test_where_no_category_can_be_wrong_there_is_no_curve_of_it(tiny, config, tmp_path):
    run = save(replace(tiny, labels=torch.ones_like(tiny.labels)), config, tmp_path)
    found = examine(parse_request([run, "--curves", "--by", "cold"]))
    assert list(found["curves"]) == ["items that lose image", "items that lose text"]


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k", "batch_size", "block", "threads"])
def test_sizes_are_at_least_one(name, capsys):
    with pytest.raises(SystemExit):
        parse_request(["run", f"--{name}", "0"])
    assert f"Expected {name} >= 1, got 0." in capsys.readouterr().err


def test_unknown_groups_and_models_are_refused(saved, capsys):
    with pytest.raises(SystemExit):
        parse_request([saved, "--by", "colour"])
    assert "colour" in capsys.readouterr().err
    with pytest.raises(ServingError, match=r"no model 'gated'\. It has: cammsr, sasrec"):
        examine(parse_request([saved, "--model", "gated"]))


def test_the_script_says_what_is_wrong_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"error: .*nowhere is not a folder"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
