"""Tests for cammsr.comparison and cammsr.tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.compare_cli import parse_comparison
from cammsr.comparison import adjusted, compare, join, paired, rows
from cammsr.config import Config
from cammsr.dataset import write_folder
from cammsr.joined import read_runs
from cammsr.metrics import METRIC_NAMES
from cammsr.named import unlike
from cammsr.run import run
from cammsr.tables import TABLES


def test_paired_difference_and_its_interval():
    pair = paired([0.3, 0.5, 0.4], [0.2, 0.3, 0.5])
    assert pair.mean == pytest.approx(0.2 / 3)
    spread = torch.tensor([0.1, 0.2, -0.1]).std().item()
    assert pair.half_width == pytest.approx(4.303 * spread / 3**0.5, rel=1e-4)
    assert (pair.wins, pair.count) == (2, 3)


def test_p_of_three_seeds_is_the_closed_form_of_two_degrees_of_freedom():
    differences = torch.tensor([0.1, 0.2, -0.1], dtype=torch.float64)
    t = (differences.mean() / (differences.std() / 3**0.5)).item()
    pair = paired(differences.tolist(), [0.0] * 3)
    assert pair.p_value == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t))
    assert paired([0.0] * 3, differences.tolist()).p_value == pytest.approx(pair.p_value)


@pytest.mark.parametrize(
    ("values", "half_width", "p_value"),
    [([0.5], math.inf, 1.0), ([0.5, 0.5], 0.0, 0.0), ([0.0, 0.0], 0.0, 1.0)],
)
def test_without_a_spread_nothing_is_divided_by_zero(values, half_width, p_value):
    pair = paired(values, [0.0] * len(values))
    assert (pair.half_width, pair.p_value) == (half_width, p_value)


def test_holm_by_hand():
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert adjusted([]) == []


@pytest.fixture
def table():
    scores = {"new": [0.3, 0.5, 0.4], "old_one": [0.2, 0.3, 0.5], "R&D": [0.1, 0.1, 0.1]}
    return rows(scores, "new")


def test_a_table_says_what_the_reference_has_over_each(table):
    first, second, _ = table
    assert first.difference is None
    pair = paired([0.3, 0.5, 0.4], [0.2, 0.3, 0.5])
    assert (second.difference, second.half_width) == (pair.mean, pair.half_width)
    assert second.p_value == pytest.approx(max(pair.p_value, second.p_value))
    assert second.wins == "2 of 3"


def test_text(table):
    title, head, first, second, _ = TABLES["txt"]("a title", table).splitlines()
    assert title == "a title"
    assert head.split() == ["mean", "std", "difference", "95", "%", "p", "(Holm)", "wins"]
    assert first.split() == ["new", "0.4000", "0.1000"]
    assert second.split()[:7] == ["old_one", "0.3333", "0.1528", "+0.0667", "±", "0.3795", "0.529"]


def test_one_seed_has_no_interval_and_no_p():
    _, _, _, row = TABLES["txt"]("a title", rows({"a": [0.3], "b": [0.2]}, "a")).splitlines()
    assert row.split() == ["b", "0.2000", "+0.1000", "1", "of", "1"]


def test_markdown_has_as_many_cells_in_every_line(table):
    _, _, *lines = TABLES["md"]("a title", table).splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert lines[2] == "| new | 0.4000 | 0.1000 |  |  |  |  |"


def test_latex_escapes_what_it_would_read_as_a_command(table):
    written = TABLES["tex"]("a title", table)
    assert r"old\_one & 0.3333 & 0.1528 & $+0.0667$ & $\pm$ 0.3795 & 0.529 & 2 of 3 \\" in written
    assert r"R\&D" in written
    assert written.startswith("% a title\n")


def test_a_comparison_runs_the_seeds_and_writes_its_tables(tiny, config, tmp_path, capsys):
    write_folder(tiny, tmp_path / "tiny")
    config = replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "runs"))
    scores = compare({name: (name, config) for name in ("cammsr", "sasrec")}, 2, "hr@5")
    assert {len(values) for values in scores["hr@5"].values()} == {2}
    (file,) = Path(config.output).glob("comparison-*.json")
    assert json.loads(file.read_text())["test/ndcg@10"] == scores["ndcg@10"]
    printed = capsys.readouterr().out
    pair = paired(scores["hr@5"]["cammsr"], scores["hr@5"]["sasrec"])
    assert f"{pair.mean:+.4f}" in printed
    assert file.with_suffix(".txt").read_text().strip() in printed
    assert "  cammsr: model.norm affine_dyt\n  sasrec: model.norm layernorm\n" in printed
    assert f"{pair.wins} of 2" in file.with_suffix(".md").read_text()
    assert r"\toprule" in file.with_suffix(".tex").read_text()


# -- the best settings of each model --------------------------------------------------------------


@pytest.fixture
def search(tmp_path):
    """What tune.py leaves: a file for each model."""
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "best-cammsr.yaml").write_text("model: {dropout: 0.2}\n")
    (folder / "best-sasrec.yaml").write_text("training: {learning_rate: 0.02}\n")
    return folder


def test_each_model_gets_its_best_settings_above_those_that_are_given(search):
    given = ["--data", "x", "--model.dropout", "0.4", "--model.dim", "8", "--tuned", str(search)]
    rows = parse_comparison([*given, "--vary", "model.dim=16"]).rows
    assert [config.model.dropout for _, config in rows.values()] == [0.2, 0.4, 0.2]
    assert [config.model.dim for _, config in rows.values()] == [8, 8, 16]
    assert [config.training.learning_rate for _, config in rows.values()] == [1e-3, 0.02, 1e-3]
    assert list(rows) == ["cammsr", "sasrec", "cammsr model.dim=16"]


def test_settings_that_all_have_alike_are_left_out():
    settings = {
        "a": {"seed": 1, "model": {"dim": 8, "dropout": 0.25}},
        "b": {"seed": 2, "model": {"dim": 8}},
    }
    default = Config().model.dropout
    assert unlike(settings, but=frozenset({"seed"})) == {
        "a": {"model.dropout": 0.25},
        "b": {"model.dropout": default},
    }
    assert unlike({"a": settings["a"]}) == {"a": {}}


def test_a_model_that_was_not_searched_is_refused(search, capsys):
    with pytest.raises(SystemExit):
        parse_comparison(["--data", "x", "--models", "[sum]", "--tuned", str(search)])
    assert f"best settings of every model in {search}, best-sum.yaml lacks" in (
        capsys.readouterr().err
    )


# -- runs that are there --------------------------------------------------------------------------


def test_runs_of_a_seed_and_a_model_join_to_the_table_of_one_comparison(
    tiny, config, tmp_path, capsys
):
    write_folder(tiny, tmp_path / "tiny")
    config = replace(config, data=str(tmp_path / "tiny"), output=str(tmp_path / "together"))
    slower = replace(config, training=replace(config.training, learning_rate=0.001))
    settings = {"cammsr": ("cammsr", config), "sasrec": ("sasrec", slower)}
    together = compare(settings, 2)
    runs = [
        run(replace(chosen, seed=seed, output=str(tmp_path / "apart")), [name]).folder
        for seed in (1, 0)
        for name, chosen in settings.values()
    ]
    capsys.readouterr()
    join(runs, models=["sasrec", "cammsr"])
    assert (
        "settings in which the models differ:\n"
        "  sasrec: model.norm layernorm, training.learning_rate 0.001\n"
        "  cammsr: model.norm affine_dyt, training.learning_rate 0.01\n"
    ) in capsys.readouterr().out
    (file,) = (tmp_path / "apart").glob("comparison-*.json")
    joined = {
        name.removeprefix("test/"): values for name, values in json.loads(file.read_text()).items()
    }
    assert joined == together
    (other,) = (tmp_path / "together").glob("comparison-*.txt")
    first, *_ = rows(together["ndcg@10"], "sasrec")[-1:]
    assert first.model == "sasrec"
    assert "difference: sasrec minus the row" in file.with_suffix(".txt").read_text()
    assert "difference: cammsr minus the row" in other.read_text()
    assert file.with_suffix(".html").is_file()


@pytest.fixture
def finished(tmp_path):
    """Folders such as runs leave."""

    def make(name: str, seed: int, *, trained: str = "sasrec", sha: str = "0", **settings):
        folder = tmp_path / name
        folder.mkdir()
        config = {"data": "here", "seed": seed, "models": [trained], **settings}
        dataset = config.pop("dataset", "a")
        (folder / "config.yaml").write_text(json.dumps(config))
        test = dict.fromkeys(METRIC_NAMES, seed / 10)
        metrics = {
            "dataset": dataset,
            "floors": {"Markov": {"test": test}},
            "models": {trained: {"test": test}},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "dataset.sha256").write_text(f"{sha}\n")
        return folder

    return make


def test_data_whose_categories_a_seed_draws_are_known_by_their_floors(finished):
    drawn = {"categories": {"source": "virtual", "removed": 0, "noise": 0}}
    runs = [finished("one", 0, **drawn), finished("two", 1, sha="b", **drawn)]
    read_runs(runs)
    for folder, value in zip(runs, (0.1, 0.2), strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["floors"]["popularity"] = {"test": dict.fromkeys(METRIC_NAMES, value)}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    message = r"same data, got \['popularity 0.1\d*'\].*\['popularity 0.2\d*'\]"
    with pytest.raises(ValueError, match=message):
        read_runs(runs)


@pytest.mark.parametrize(
    ("model", "setting", "own"),
    [
        ("sasrec + memory", "model.memory_size=0", "model.memory_size 200"),
        ("hm4sr", "objective.category_weight=0.5", "objective.category_weight 1.0"),
        ("cammsr w/o MSCL", "objective.contrast_weight=0.1", "objective.contrast_weight 0.0"),
    ],
)
def test_what_a_model_fixes_cannot_be_varied(model, setting, own, capsys):
    with pytest.raises(SystemExit):
        parse_comparison(["--data", "x", "--models", f"[{model}]", "--vary", setting])
    assert f"Expected a setting that {model} leaves open, it has {own}" in capsys.readouterr().err


def test_runs_are_joined_in_the_order_of_their_seeds(finished):
    joined = read_runs([finished("one", 3), finished("two", 1)])
    assert list(joined.models) == ["sasrec"]
    assert joined.scores["mrr@10"] == {"Markov": [0.1, 0.3], "sasrec": [0.1, 0.3]}


BY_TIME = {"split": "global_time"}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"seed": 0}, {"seed": 0}, "sasrec once for each seed, got seed 0 in .*one and .*two"),
        (
            {"seed": 0},
            {"seed": 1, "trained": "sum"},
            r"same seeds, sasrec has \[0\] and sum \[1\]",
        ),
        (
            {"seed": 0, "training": {"average": 0}},
            {"seed": 1},
            r"same settings for every seed, got training\.average 0 in .*one and 0\.99 in .*two",
        ),
        (
            {"seed": 0},
            {"seed": 1, "training": {"average": 0}},
            r"same settings for every seed, got training\.average 0\.99 in .*one and 0 in .*two",
        ),
        ({"seed": 0}, {"seed": 1, "dataset": "b"}, "same data, got .*'a'.* in .*one and .*'b'"),
        ({"seed": 0}, {"seed": 1, **BY_TIME}, "same data, got .*leave_one_out.*global_time"),
        (
            {"seed": 0, **BY_TIME},
            {"seed": 1, **BY_TIME, "time_share": 0.9},
            r"same data, got .*0\.8.*0\.9",
        ),
        ({"seed": 0}, {"seed": 1, "sha": "b"}, r"same data, got \['0'\].*\['b'\]"),
        (
            {"seed": 0},
            {"seed": 0, "trained": "sum", "sha": "b"},
            r"same data, got \['0'\].*\['b'\]",
        ),
        (
            {"seed": 0, "data": None},
            {"seed": 0, "data": None, "trained": "sum", "sha": "b"},
            r"same data, got \['0'\].*\['b'\]",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(finished, first, second, message):
    runs = [finished("one", **first), finished("two", **second)]
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        read_runs(runs)


@pytest.mark.parametrize(
    "second",
    [
        {"training": {"threads": 2}},
        {"split": "leave_one_out", "time_share": 0.9},  # which that split does not look at
        {"data": "there", "model": {"dropout": 0.5}},  # the default
    ],
)
def test_what_changes_nothing_joins(finished, second):
    joined = read_runs([finished("one", 0), finished("two", 1, **second)])
    assert joined.scores["hr@5"]["sasrec"] == [0, 0.1]


@pytest.mark.parametrize(
    "settings",
    [{"data": None}, {"categories": {"noise": 0.1}}, {"categories": {"source": "virtual"}}],
)
def test_what_a_seed_draws_of_the_data_may_differ_between_seeds(finished, settings):
    joined = read_runs([finished("one", 0, **settings), finished("two", 1, sha="b", **settings)])
    assert joined.scores["hr@5"]["sasrec"] == [0, 0.1]


def test_runs_without_a_model_or_an_end_are_refused(finished):
    folder = finished("one", 0)
    with pytest.raises(ValueError, match=r"Expected models of the runs, \['sasrec'\], got 'sum'"):
        read_runs([folder], ["sum"])
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "models": {}}))
    with pytest.raises(ValueError, match=r"Expected finished runs, .*one lacks \['sasrec'\]"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", None),
        ("config.yaml", ""),
        ("config.yaml", "a: [b"),
        ("config.yaml", "seed: 1"),
        ("metrics.json", None),
        ("metrics.json", "{"),
        ("metrics.json", '{"dataset": "a", "models": {"sasrec": {}}, "floors": {}}'),
        ("dataset.sha256", None),
    ],
)
def test_what_is_no_run_is_refused_by_its_folder(finished, file, content):
    folder = finished("one", 0)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=r"Expected the folder of a run, .*one is none: "):
        read_runs([folder])


def test_a_metric_that_is_no_number_is_refused(finished):
    folder = finished("one", 0)
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"mrr@10": 0.0', '"mrr@10": NaN'))
    with pytest.raises(ValueError, match=r"one is none: .*sasrec|Markov has .*nan"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "[]"], "Expected a run or more after --runs, got none"),
        (["--runs=[]"], "Expected a run or more after --runs, got none"),
        (["--runs", "[a]", "--seeds", "3"], "--seeds"),
        (["--runs", "[a]", "--vary", "model.dim=8"], "--vary"),
        (["--runs", "[a]", "--metric", "map"], "Expected --metric among"),
        (["--runs", "[a]", "--models", "[sum,sum]"], "Expected every model once in --models"),
        (["--models", "[sum]", "--tuned", "a"], "Expected --data beside --tuned"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_comparison(arguments)
    assert message in capsys.readouterr().err


def test_a_join_leaves_other_comparisons_alone(finished, monkeypatch):
    runs = [finished("one", 0), finished("two", 1)]
    (runs[0].parent / "comparison-one.json").write_text("{}")
    monkeypatch.chdir(runs[0])
    join([Path()])
    join([Path(), runs[1]])
    assert (runs[0].parent / "comparison-one.json").read_text() == "{}"
    assert len(list(runs[0].parent.glob("comparison-*.json"))) == 3
