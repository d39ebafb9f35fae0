"""Tests for cammsr.page: the page of a run and of a comparison."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cammsr.comparison import rows
from cammsr.config import Config, ModelConfig, TrainingConfig
from cammsr.dataset import Dataset, write_folder
from cammsr.page import comparison_page, write_report
from cammsr.page.facts import changed
from cammsr.page.learning import read_losses
from cammsr.page.markup import element
from cammsr.page.pictures import bars, heat, lines
from cammsr.run import run
from cammsr.saved import ServingError, read_catalogue, read_run, restore
from cammsr.scoring import ModelScorer
from cammsr.split import leave_one_out
from cammsr.variants import file_name
from tests.examples.pages import Page

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "cammsr"
MODELS = ["cammsr", "cammsr w/o guidance", "sasrec"]
EVIL = '</td></svg><script>alert("1")</script> & \'quotes\' "two" <b'
CATEGORIES = ("<i>&amp;</i>", "日本", "plain $x_1$")
COLUMNS = [
    ("validation", "ndcg@10"),
    ("test", "ndcg@10"),
    ("test", "hr@10"),
    ("test", "mrr@10"),
    ("test", "masked/ndcg@10"),
]


def hostile() -> Dataset:
    """Titles and categories that would break a page that is put together without care."""
    users, items = 30, 24
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(6, 9, (users,), generator=generator)
    category = torch.arange(items) % len(CATEGORIES)
    taken = torch.cat([torch.randperm(items, generator=generator)[:n] for n in lengths.tolist()])
    return Dataset(
        name="R&D <odd>",
        user_ids=torch.arange(users).repeat_interleave(lengths),
        item_ids=taken,
        timestamps=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        features={"text": torch.randn(items, 5, generator=generator)},
        categories=CATEGORIES,
        labels=category[:, None] == torch.arange(len(CATEGORIES)),
        category=category,
        titles=("", "long " * 60, *(f"{EVIL} {i}" for i in range(2, items))),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three models; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("page")
    write_folder(hostile(), folder / "R&D <odd>")
    config = Config(
        data=str(folder / "R&D <odd>"),
        output=str(folder / "runs"),
        model=ModelConfig(dim=8, hidden_dim=8, num_layers=1, num_experts=2, max_length=6),
        training=TrainingConfig(batch_size=16, max_epochs=2),
    )
    return run(config, MODELS, progress=False).folder


@pytest.fixture
def copied(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(trained):
    return Page((trained / "report.html").read_text(encoding="utf-8"))


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


# -- form -----------------------------------------------------------------------------------------


def check_form(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {place.removeprefix("#") for place in page.links()} <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(page.pictures())
    assert {attributes["role"] for tag, attributes in page.tags if tag == "svg"} <= {"img"}


def test_the_page_is_well_formed_and_its_places_exist(page):
    check_form(page)
    assert [title for tag, title in page.texts if tag == "h1"] == ["A run on R&D <odd>"]
    assert len(page.pictures()) >= 8  # test, validation, losses, two a CAMMSR


def test_nothing_is_asked_of_anyone(page):
    assert all(place.startswith("#") for place in page.links())
    assert not re.search(r"https?:|@import|url\(\s*['\"]?[^#]", page.source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert "default-src 'none'" in page.values("content")[0]


def test_the_page_is_small(trained):
    assert (trained / "report.html").stat().st_size < 1_000_000


def test_no_folder_of_the_machine_is_told(page, trained):
    assert str(trained.parent) not in page.source
    assert "data" not in [row[0] for row in page.tables["Settings that are not the defaults"]]


def test_the_script_gives_the_same_bytes_wherever_it_runs(trained, copied, monkeypatch, capsys):
    (copied / "report.html").unlink()
    monkeypatch.chdir(copied.parent)
    monkeypatch.setattr(sys, "argv", ["report.py", "run"])
    runpy.run_path(str(SCRIPTS / "report.py"), run_name="__main__")
    assert capsys.readouterr().out.split() == ["run/report.html"]
    assert (copied / "report.html").read_bytes() == (trained / "report.html").read_bytes()


def test_text_of_the_data_stays_text(page):
    assert not any(tag in {"script", "b", "i"} for tag, _ in page.tags)
    shown = [text for tag, text in page.texts if tag == "bdi"]
    assert any(text.startswith(EVIL) for text in shown)
    drawn = [text for tag, text in page.texts if tag == "text"]
    assert set(CATEGORIES) <= set(drawn)
    assert max(map(len, shown)) <= 60


# -- what a run found -----------------------------------------------------------------------------


def test_the_table_has_the_numbers_of_the_run(page, trained):
    metrics = metrics_of(trained)
    found = {**metrics["floors"], **metrics["models"]}
    table = page.tables["Ranking of all items. The best of each column is bold and underlined."]
    assert [row[0] for row in table[1:]] == list(found)
    for name, *cells in table[1:]:
        assert cells[:5] == [f"{found[name][split][metric]:.4f}" for split, metric in COLUMNS]
        if name in MODELS:
            own = metrics["models"][name]
            assert cells[5:7] == [str(own["best_epoch"] + 1), str(own["epochs"])]
    best = [max(every[split][metric] for every in found.values()) for split, metric in COLUMNS]
    assert {f"{value:.4f}" for value in best} <= set(page.bold)


def test_every_metric_of_the_test_is_there(page, trained):
    metrics = metrics_of(trained)
    found = {**metrics["floors"], **metrics["models"]}
    head, *table = page.tables["Test, every metric"]
    names = list(found["sasrec"]["test"])
    assert head[1:] == list(found)
    assert len(table) == len(names) == 18
    for metric, row in zip(names, table, strict=True):
        assert row[1:] == [f"{every['test'][metric]:.4f}" for every in found.values()]


def test_the_dataset_and_the_changed_settings(page):
    assert "text 100.0%" in page.words
    table = page.tables["Settings that are not the defaults"]
    assert ["model.dim", "8", "64"] in table
    assert ["training.max_epochs", "2", "100"] in table
    assert not any(row[0] == "model.dropout" for row in table)


def test_settings_that_differ_are_found_at_any_depth():
    config = replace(Config(), seed=4, model=replace(Config().model, modalities=["text"]))
    assert changed(config) == {"seed": (4, 0), "model.modalities": (["text"], None)}


def test_pictures_say_what_they_show(page, trained):
    curve = metrics_of(trained)["models"]["sasrec"]["curve"]
    (validation,) = (said for said in page.pictures() if said.startswith("Validation"))
    assert f"sasrec from {curve[0]:.4f} to {curve[-1]:.4f}" in validation
    for name in MODELS[:2]:
        assert any(said.startswith(f"{name}: modality weights by") for said in page.pictures())
        assert any(said.startswith(f"{name}: expert use") for said in page.pictures())
    assert any(said.startswith("Loss: next_item") for said in page.pictures())


def test_losses_of_a_run_that_was_stopped_are_joined(tmp_path):
    for number, lines_ in ((0, ["0,1.5,", "0,,7", "1,1.25,"]), (10, ["2,0.5,"]), (2, ["1,1.0,"])):
        folder = tmp_path / "logs" / "csv" / f"run-{number}"
        folder.mkdir(parents=True)
        text = "\n".join(["epoch,train/next_item,validation/hr@5", *lines_])
        (folder / "metrics.csv").write_text(text)
    assert read_losses(tmp_path) == {"next_item": [(1, 1.5), (2, 1.0), (3, 0.5)]}


# -- some users -----------------------------------------------------------------------------------


def naive_places(folder):
    """The place of every user's target among the unseen items, by sorting all scores."""
    saved = read_run(folder)
    dataset = read_catalogue(saved).dataset
    scorer, target = (
        ModelScorer(restore(saved, "cammsr", dataset)),
        leave_one_out(dataset).test,
    )
    places = []
    for user, item in enumerate(target.item.tolist()):
        items, valid = target.history.padded(torch.tensor([user]))
        scores = scorer.scores(items, valid)[0]
        better = (scores > scores[item]).nonzero().flatten().tolist()
        places.append(1 + len(set(better) - set(items[0].tolist())))
    return places


def test_users_are_the_first_found_and_the_first_missed(page, trained):
    places = naive_places(trained)
    found = [user for user, place in enumerate(places) if place <= 10][:3]
    missed = [user for user, place in enumerate(places) if place > 10][:3]
    headings = [text for tag, text in page.texts if tag == "h3"]
    assert [re.findall(r"\d+", text)[:2] for text in headings] == [
        [str(user), str(places[user])] for user in [*found, *missed]
    ]


def test_the_true_item_is_marked_where_it_stands(page, trained):
    places = naive_places(trained)
    lists = {name: rows for name, rows in page.tables.items() if name.startswith("The best 5 for")}
    assert len(lists) == 6
    for name, (_, *choices) in lists.items():
        place = places[int(re.search(r"user (\d+)", name)[1])]
        marked = [row[0] for row in choices if "taken next" in row[1]]
        assert marked == ([str(place)] if place <= 5 else [])
        for row in choices:
            assert sum(abs(int(share)) for share in row[4:]) == pytest.approx(100, abs=2)


# -- missing parts --------------------------------------------------------------------------------


def test_without_logs_and_weights_and_metrics_the_page_says_so(copied):
    for name in MODELS:
        shutil.rmtree(copied / file_name(name))
    (copied / "metrics.json").write_text(json.dumps({"models": {"cammsr": {}}}))
    page = Page(write_report(copied).read_text())
    check_form(page)
    assert "No losses are known" in page.words
    assert "No curve is known" in page.words
    assert "RUN has no weights of 'cammsr': RUN/cammsr/weights.safetensors" in page.words


def test_a_dataset_that_has_moved_is_asked_for(copied, tmp_path):
    for name in MODELS:
        shutil.rmtree(copied / file_name(name))  # the rest of the page is enough
    config = copied / "config.yaml"
    text = config.read_text()
    config.write_text(re.sub(r"(?m)^data: .*$", "data: /nowhere", text))
    page = Page(write_report(copied).read_text())
    check_form(page)
    assert page.words.count("report.py RUN --data FOLDER") == 2
    table = page.tables["Ranking of all items. The best of each column is bold and underlined."]
    assert len(table) == 9
    write_folder(hostile(), tmp_path / "R&D <odd>")
    again = Page(write_report(copied, tmp_path / "R&D <odd>").read_text())
    assert "--data FOLDER" not in again.words


def test_a_folder_that_is_no_run_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ServingError, match="is not a run folder"):
        write_report(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .* is not a run folder"):
        runpy.run_path(str(SCRIPTS / "report.py"), run_name="__main__")


# -- after evaluate.py ----------------------------------------------------------------------------


def test_what_evaluate_measures_comes_into_the_page(copied, page, monkeypatch):
    assert page.words.count("evaluate.py RUN --model MODEL") == 3
    before = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(copied), "--curves"])
    runpy.run_path(str(SCRIPTS / "evaluate.py"), run_name="__main__")
    torch.set_num_threads(before)
    found = json.loads((copied / "evaluation.json").read_text())["cammsr"]
    after = Page((copied / "report.html").read_text())
    check_form(after)
    assert "--model MODEL" not in after.words
    for part, caption in (("category", "category of the target"), ("length", "items in the hist")):
        (table,) = (rows for name, rows in after.tables.items() if f"by {caption}" in name)
        assert table[1:] == [
            [group, str(values["users"]), f"{values['ndcg@10']:.4f}", f"{values['hr@10']:.4f}"]
            for group, values in found["by"][part].items()
        ]
    measures = after.tables["Lists of the best unseen items"]
    assert ["coverage, lists of 10", f"{found['lists@10']['coverage']:.4f}"] in measures
    (said,) = (
        said for said in after.pictures() if said.startswith("cammsr: test NDCG@10 by share")
    )
    points = found["curves"]["items that lose text"]
    ends = f"{points[0]['ndcg@10']:.4f} to {points[-1]['ndcg@10']:.4f}"
    assert f"items that lose text from {ends}" in said


# -- a comparison ---------------------------------------------------------------------------------


def test_the_page_of_a_comparison_has_its_table_and_spreads():
    scores = {
        "ndcg@10": {"floor": [0.1, 0.1], "new": [0.3, 0.5], "<old>": [0.2, 0.3]},
        "hr@5": {"floor": [0.0, 0.0], "new": [0.25, 0.75], "<old>": [0.5, 0.5]},
    }
    title = "test ndcg@10 over 2 seeds; difference: new minus the row"
    found, same = rows(scores["ndcg@10"], "new"), {"new": {}, "<old>": {}}
    text = comparison_page(title, found, same, scores)
    page = Page(text)
    check_form(page)
    assert page.tables[title][2][:3] == ["new", "0.4000", "0.1414"]
    assert page.tables[title][3][0] == "<old>"
    assert page.tables[title][3][3] == "+0.1500"
    assert page.tables["Test"][2] == ["new", "0.4000 ± 0.1414", "0.5000 ± 0.3536"]
    (said,) = page.pictures()
    assert "new 0.4000 ± 0.1414; <old> 0.2500 ± 0.0707" in said
    assert text == comparison_page(title, found, same, scores)
    assert "In which the models differ" not in text
    rates = {name: {"training.learning_rate": rate} for name, rate in (("new", 1), ("<old>", 2))}
    page = Page(comparison_page(title, found, rates, scores))
    check_form(page)
    assert page.tables["In which the models differ"] == [
        ["", "training.learning_rate"],
        ["new", "1"],
        ["<old>", "2"],
    ]


def test_one_seed_has_no_spread():
    scores = {"ndcg@10": {"new": [0.3], "old": [0.2]}}
    found = rows(scores["ndcg@10"], "new")
    page = Page(comparison_page("a title", found, {"new": {}, "old": {}}, scores))
    assert "±" not in page.pictures()[0]


# -- the parts of a page --------------------------------------------------------------------------


def test_what_is_not_markup_is_escaped_in_texts_and_attributes():
    assert element("p", "a < b & c", id='"x"') == '<p id="&quot;x&quot;">a &lt; b &amp; c</p>'
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert element("p", "a\x00b", class_="c") == '<p class="c">a b</p>'


def test_what_is_not_a_number_is_not_drawn():
    drawn = Page(heat("title", [[0.25, float("nan")]], ["row"], ["one", "two"]))
    assert [text for tag, text in drawn.texts if tag == "text"] == ["one", "two", "row", "0.25"]


def test_pictures_have_the_colours_of_the_page_and_names_of_their_own():
    one = lines("one", {"a": [(1, 0.5), (2, 0.25)], "b": [(1, 0.5)]}, "epoch", "loss")
    other = bars("two", {"a": 1.0, "<b>": 0.0}, ["<b>"], {"a": 0.5}, "hits")
    both = Page(f"<div>{one}{other}</div>")
    ids = both.values("id")
    assert len(ids) == len(set(ids))
    assert {place.removeprefix("#") for place in both.links()} == set(ids)
    assert {"var(--s0)", "var(--s1)", "var(--ink)"} <= set(re.findall(r"var\(--\w+\)", one))
    assert "var(--floor)" in other
    assert "#0102" not in one + other
