"""Tests for cammsr.comparison and cammsr.tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cammsr.comparison import adjusted, compare, paired, rows
from cammsr.dataset import write_folder
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
    scores = compare(config, ["cammsr", "sasrec"], 2, "hr@5")
    assert {len(values) for values in scores["hr@5"].values()} == {2}
    (file,) = Path(config.output).glob("comparison-*.json")
    assert json.loads(file.read_text())["test/ndcg@10"] == scores["ndcg@10"]
    printed = capsys.readouterr().out
    pair = paired(scores["hr@5"]["cammsr"], scores["hr@5"]["sasrec"])
    assert f"{pair.mean:+.4f}" in printed
    assert file.with_suffix(".txt").read_text().strip() in printed
    assert f"{pair.wins} of 2" in file.with_suffix(".md").read_text()
    assert r"\toprule" in file.with_suffix(".tex").read_text()
