"""Tests for recommend.py, cammsr.recommend_cli and cammsr.titles."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from cammsr.dataset import write_folder
from cammsr.recommend_cli import answer, format_choices, parse_question
from cammsr.saved import ServingError
from cammsr.serving import Recommendation, load
from cammsr.titles import find_title, split_history
from tests.examples.runs import save_run

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cammsr" / "recommend.py"
MODELS = ("cammsr", "gated", "mixer", "sasrec")
TITLES = ("Blue Guitar", "Red Guitar", "blue guitar strap", "Drum", "Drum Stick", "Drum Stick")


@pytest.fixture
def saved(tiny, config, tmp_path):
    write_folder(tiny, tmp_path / "tiny")
    config = replace(config, data=str(tmp_path / "tiny"))
    return str(save_run(config, tmp_path / "run", MODELS))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ask(*arguments):
    answer(parse_question([*arguments]))


# -- the script -----------------------------------------------------------------------------------


def test_the_script_prints_what_python_recommends(saved, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recommend.py", saved, "--user", "17", "-k", "4"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines, names = capsys.readouterr().out.splitlines(), ["id", "image", "text"]
    assert lines[0].startswith("cammsr for user 17: ")
    assert lines[1].split() == ["rank", "id", "title", "category", "score", *names]
    choices = load(saved).recommend(user=17, k=4)
    for rank, (choice, line) in enumerate(zip(choices, lines[2:], strict=False), start=1):
        assert line.split()[:2] == [str(rank), str(choice.item)]
        assert choice.title in line
        assert f"{choice.score:.3f}" in line
        size = sum(abs(part) for part in choice.parts.values())
        assert f"{100 * choice.parts['text'] / size:.0f} %" in line.split("  ")[-1]
    assert any("the gate after the last item" in line for line in lines)
    assert "ms for one user, the median of 30 calls (15 items, threads: 1)" in lines[-1]


def test_the_script_says_errors_in_a_sentence(saved, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recommend.py", saved, "--history", ";"])
    with pytest.raises(SystemExit, match="error: The history is empty"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_typed_history(saved, capsys):
    ask(saved, "--history", "ITEM 12; 3", "-k", "15", "--seen")
    out = capsys.readouterr().out
    assert out.startswith("cammsr for a typed history: 2 items, at the end item 12; item 3\n")
    expected = load(saved).recommend([12, 3], k=15, unseen=False)
    assert [line.split()[1] for line in out.splitlines()[2:17]] == [str(c.item) for c in expected]


def test_an_item_without_a_title_is_called_by_its_id(tiny, config, tmp_path, capsys):
    write_folder(replace(tiny, titles=("", *tiny.titles[1:])), tmp_path / "tiny")
    run = save_run(replace(config, data=str(tmp_path / "tiny")), tmp_path / "run", ["sasrec"])
    ask(str(run), "--history", "0; 1", "-k", "2")
    out = capsys.readouterr().out
    assert out.startswith("sasrec for a typed history: 2 items, at the end item 0; item 1\n")


@pytest.mark.parametrize(
    ("model", "note"),
    [
        ("gated", "how much the fusion counts it in the item"),
        ("mixer", "its part of the score"),
        ("sasrec", "no modalities are shown"),
    ],
)
def test_other_models_show_what_they_have(saved, capsys, model, note):
    ask(saved, "--history", "5", "--model", model, "-k", "2")
    out = capsys.readouterr().out
    assert out.startswith(f"{model} for a typed history: 1 item, at the end item 5\n")
    assert note in out
    assert ("text" in out.splitlines()[1]) == (model != "sasrec")


def test_nothing_left_is_said(saved, capsys):
    ask(saved, "--history", "; ".join(map(str, range(15))))
    assert "nothing is left to recommend" in capsys.readouterr().out


def test_an_index_and_its_recall(saved, capsys):
    pytest.importorskip("faiss", reason="faiss is not installed (the extra 'ann')")
    ask(saved, "--user", "3", "--index", "ivf")
    assert (
        "index ivf: finds 100.0% of the exact 10 best items (24 users)" in capsys.readouterr().out
    )


def test_export_writes_a_program(saved, capsys, tmp_path):
    file = tmp_path / "scoring.pt2"
    ask(saved, "--user", "3", "--model", "sasrec", "-k", "3", "--export", str(file))
    items, valid, _ = load(saved, "sasrec").encode(user=3)
    scores, best = torch.export.load(file).module()(items, valid)
    assert [c.item for c in load(saved, "sasrec").recommend(user=3, k=3)] == best[0].tolist()
    assert "scoring as a program" in capsys.readouterr().out
    assert scores.shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of --user ID and --history 'ITEM; ITEM'."),
        (["--user", "1", "--history", "2"], "Expected one of --user ID and --history"),
        (["--user", "1", "-k", "0"], "Expected k >= 1, got 0"),
        (["--user", "1", "--threads", "0"], "Expected threads >= 1, got 0"),
        (["--user", "1", "--index", "tree"], "tree"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_question(["run", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["17", "1e3", "null", "[3]", "{a: b}", "yes"])
def test_a_history_stays_the_text_it_was(text):
    assert parse_question(["run", "--history", text]).history == text


# -- the table ------------------------------------------------------------------------------------


def test_shares_are_of_the_sizes_of_the_parts():
    choice = Recommendation(7, "x" * 60, None, 1.5, {"text": 2.0, "image": -0.5}, None)
    line = format_choices([choice]).splitlines()[1]
    assert line.split() == ["1", "7", "x" * 39 + "…", "-", "1.500", "80", "%", "-20", "%"]


def test_parts_of_nothing_are_nothing():
    choice = Recommendation(7, "a", "b", 0.0, {"text": 0.0, "image": 0.0}, None)
    assert "   0 %      0 %" in format_choices([choice])


# -- raw identifiers -------------------------------------------------------------------------------


@pytest.fixture
def named(saved):
    """The same run, of a folder that tells what items and users are called elsewhere."""
    folder = Path(saved).parent / "tiny"
    items = pl.read_parquet(folder / "items.parquet")
    names = [f"sku{number}" for number in range(14)] + ["4"]
    items.with_columns(item=pl.Series(names)).write_parquet(folder / "items.parquet")
    users = [f"c{number}@shop" for number in range(23)] + ["7"]
    pl.DataFrame({"user_id": range(24), "user": users}).write_parquet(folder / "users.parquet")
    return saved


def test_users_and_items_have_raw_identifiers(named, capsys):
    ask(named, "--user", "c3@shop", "-k", "4")
    out = capsys.readouterr().out.splitlines()
    expected = load(named).recommend(user=3, k=4)
    assert out[0].startswith("cammsr for user c3@shop: ")
    assert out[1].split()[:4] == ["rank", "id", "item", "title"]
    names = [f"sku{choice.item}" if choice.item < 14 else "4" for choice in expected]
    assert [line.split()[2] for line in out[2:6]] == names == [choice.name for choice in expected]
    assert load(named).recommend(["sku3", "raw:4", 4]) == load(named).recommend([3, 14, 4])
    assert load(named).recommend(user="raw:7") == load(named).recommend(user=23)


def test_a_folder_without_raw_identifiers_shows_none(saved):
    choices = load(saved).recommend(user=3)
    assert {choice.name for choice in choices} == {None}
    assert "item  " not in format_choices(choices).splitlines()[0]


def test_unknown_raw_identifiers_are_refused(named):
    with pytest.raises(ServingError, match=r"'tiny' has no user 'c99@shop'\."):
        load(named).recommend(user="c99@shop")
    with pytest.raises(ServingError, match=r"'tiny' has no item 'raw:99'\."):
        load(named).recommend(["raw:99"])
    with pytest.raises(ServingError, match=r"No title contains 'sku99'"):
        load(named).recommend(["sku99"])


# -- titles ---------------------------------------------------------------------------------------


def test_a_history_is_ids_and_parts_of_titles():
    assert split_history(" blue guitar ; 17;;-3; 4a ;") == ["blue guitar", 17, "-3", "4a"]
    assert split_history(" ; ") == []


@pytest.mark.parametrize(
    ("text", "place"), [("red", 1), ("STRAP", 2), ("drum", 3), (" Blue Guitar ", 0)]
)
def test_a_title_by_a_part_of_it(text, place):
    assert find_title(text, TITLES, range(6)) == place


def test_ambiguous_titles_are_listed_with_their_ids():
    with pytest.raises(ServingError, match="2 titles contain 'e guitar'") as said:
        find_title("e guitar", TITLES, [10, 11, 12, 13, 14, 15])
    assert "10: Blue Guitar\n  12: blue guitar strap" in str(said.value)


def test_equal_titles_need_an_id():
    with pytest.raises(ServingError, match="2 titles contain 'drum stick'") as said:
        find_title("drum stick", TITLES, range(6))
    assert "4: Drum Stick\n  5: Drum Stick" in str(said.value)


def test_long_lists_are_cut():
    with pytest.raises(ServingError, match="30 titles contain 'a'") as said:
        find_title("a", [f"a{i}" for i in range(30)], range(30))
    assert str(said.value).endswith("7: a7\n  and 22 more")


def test_unknown_titles_name_the_nearest():
    with pytest.raises(ServingError, match="No title contains 'rde guitar'") as said:
        find_title("rde guitar", TITLES, range(6))
    assert "1: Red Guitar" in str(said.value)
    with pytest.raises(ServingError, match=r"No title contains 'zzz'\.$"):
        find_title("zzz", TITLES, range(6))
    with pytest.raises(
        ServingError, match=r"'zzz, y'\. Items of a history are separated by ';'\.$"
    ):
        find_title("zzz, y", TITLES, range(6))
    with pytest.raises(ServingError, match="No title contains ''"):
        find_title("", TITLES, range(6))
