"""The command line, and the script itself."""

import runpy
import sys
from pathlib import Path

import pytest

from cammsr.dataset import read_folder
from cammsr.raw.amazon2014 import Amazon2014
from cammsr.raw.amazon2023 import Amazon2023
from cammsr.raw.command import parse
from cammsr.raw.movielens import MovieLens
from cammsr.raw.prepare import BERT, Settings
from cammsr.raw.table import InteractionColumns, ItemColumns, Table

SCRIPT = Path(__file__).parents[3] / "examples" / "cammsr" / "prepare.py"


def test_every_kind_has_its_settings() -> None:
    given = parse(["amazon2014", "--category", "Toys", "--output", "o"])
    assert given == (Amazon2014("Toys"), Settings("o"))
    given = parse(["amazon2023", "--category=All_Beauty", "--revision=abc", "--output=o"])
    assert given == (Amazon2023("All_Beauty", revision="abc"), Settings("o"))
    given = parse(["movielens", "--source", "ml-1m", "--output", "o", "--k-core", "5"])
    assert given == (MovieLens("ml-1m"), Settings("o", k_core=5))


def test_columns_are_mapped_by_flags_and_files(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text("columns: {user: who, timestamp: null}\nitem_columns: {text: [name, story]}\n")
    source, settings = parse(
        f"table --config {file} --interactions-file log.csv --columns.item=what --output o "
        "--corrupt-limit=0.5 --text-encoder hash".split()
    )
    assert source == Table(
        "log.csv",
        InteractionColumns("who", "what", None),
        None,
        ItemColumns(text=["name", "story"]),
    )
    assert settings == Settings("o", corrupt_limit=0.5, text_encoder="hash")
    assert Settings("o").text_encoder == BERT


@pytest.mark.parametrize(
    "wrong", [[], ["nothing"], ["movielens", "--output", "o"], ["movielens", "--source", "x"]]
)
def test_incomplete_commands_are_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)
    assert "usage" in capsys.readouterr().err


def test_the_script_writes_a_folder_or_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("user,item,timestamp\na,x,1\n")
    items.write_text("item,name\nx,Rug\n")
    command = ["prepare.py", "table", "--output", tmp_path / "shop", "--cache", tmp_path / "cache"]
    command += ["--text-encoder", "hash", "--interactions-file", log]
    command += ["--items-file", items, "--item-columns.title", "name", "--overwrite", "true"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert read_folder(tmp_path / "shop").titles == ("Rug",)

    log.write_text("user,what,timestamp\na,x,1\n")
    with pytest.raises(SystemExit) as failed:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    wanted = f"error: {log} has no column 'item'. Its columns are: user, what, timestamp."
    assert failed.value.code == wanted, "one line, and no traceback"
    assert read_folder(tmp_path / "shop").titles == ("Rug",), "what was there is as it was"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["cache", "items.csv", "log.csv", "shop"]
