"""From miniature raw files to folders that the recommender reads: every value by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cammsr.dataset import UNKNOWN, Dataset, read_folder
from cammsr.raw.amazon2014 import Amazon2014
from cammsr.raw.amazon2023 import Amazon2023
from cammsr.raw.image_features import WIDTH
from cammsr.raw.movielens import MovieLens
from cammsr.raw.prepare import Settings, prepare
from cammsr.raw.table import ItemColumns, Table
from cammsr.validate import DatasetError


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**options: Any) -> Settings:
        given = {"text_encoder": "none", "corrupt_limit": 0.5, "cache": str(tmp_path / "cache")}
        return Settings(str(tmp_path / "shop"), **(given | options))

    return make


def rows_of(dataset: Dataset) -> list[tuple[int, int, int]]:
    columns = dataset.user_ids, dataset.item_ids, dataset.timestamps
    return list(zip(*(column.tolist() for column in columns), strict=True))


def note(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


# -- Amazon 2014 -----------------------------------------------------------------------------------


@pytest.fixture
def toys(write_lines: Callable[..., Path], tmp_path: Path) -> Amazon2014:
    def review(user: str, item: str, time: int) -> dict[str, Any]:
        return {"reviewerID": user, "asin": item, "unixReviewTime": time}

    reviews = write_lines(
        "reviews_Toys_and_Games_5.json.gz",
        review("A9", "B000000003", 50),
        review("A1", "B000000003", 20),
        review("A1", "B000000001", 20),  # an equal time: after the one above
        review("A1", "B000000002", 10),
        review("A1", "B000000003", 20),  # the same event again
        b"{corrupt",
    )
    meta = write_lines(
        "meta_Toys_and_Games.json.gz",
        {"asin": "B000000003", "title": "Dice", "categories": [["Toys", "Games"]]},
        {"asin": "B000000001", "categories": [["Toys", "Cars"], ["Toys", "Games"]]},  # no title
        {"asin": "B000000007", "title": "nobody took it"},
        literal=True,
    )
    images = tmp_path / "image_features_Toys_and_Games.b"
    images.write_bytes(
        b"".join(
            asin + np.full(WIDTH, value, dtype="<f4").tobytes()
            for asin, value in ((b"B000000002", 0.5), (b"B000000007", 9), (b"B000000001", 2))
        )
    )
    return Amazon2014(reviews=str(reviews), meta=str(meta), image_features_file=str(images))


def test_amazon2014(toys: Amazon2014, settings: Any, counting: Any) -> None:
    folder = prepare(toys, settings(), text_encoder=counting())

    dataset = read_folder(folder)
    assert rows_of(dataset) == [(0, 1, 10), (0, 2, 20), (0, 0, 20), (1, 2, 50)]
    assert dataset.titles == ("", "", "Dice")
    assert dataset.categories == ("Cars", "Games")
    assert dataset.category.tolist() == [0, UNKNOWN, 1]
    assert dataset.labels.tolist() == [[True, True], [False, False], [False, True]]
    assert dataset.features["text"].tolist() == [
        [len("Cars. Games"), ord("C")],
        [0, 0],
        [len("Dice. Games"), ord("D")],
    ]
    assert dataset.features["image"].tolist() == [[2] * WIDTH, [0.5] * WIDTH, [0] * WIDTH]

    assert pl.read_parquet(folder / "users.parquet")["user"].to_list() == ["A1", "A9"]
    items = pl.read_parquet(folder / "items.parquet")
    assert items["item"].to_list() == ["B000000001", "B000000002", "B000000003"]
    assert note(folder, "features_text") == {
        "encoder": "counting",
        "revision": "1",
        "how": "by hand",
        "width": 2,
        "items": 3,
        "present": 2,
    }
    told = note(folder, "prepared")
    assert (told["rows_read"], told["duplicates_dropped"], told["interactions"]) == (5, 1, 4)
    assert (told["users"], told["items"], told["items_without_title"]) == (2, 3, 2)


# -- Amazon 2023 -----------------------------------------------------------------------------------


def test_amazon2023_with_images_from_the_net(
    write_lines: Callable[..., Path],
    settings: Any,
    counting: Any,
    site: Any,
    png: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reviews = write_lines(
        "Baby.jsonl",
        *(
            {"user_id": "U", "parent_asin": item, "timestamp": time}
            for item, time in (("P3", 3), ("P1", 1), ("P2", 2))
        ),
    )
    urls = [
        site.add("/1.png", png("red")),
        site.add("/2.png", b"", 404),
        site.add("/3.png", b"GIF89a"),
    ]
    meta = write_lines(
        "meta_Baby.jsonl",
        *(
            {"parent_asin": f"P{i}", "title": f"Item {i}", "images": [{"large": url}]}
            for i, url in enumerate(urls, start=1)
        ),
    )
    source = Amazon2023(reviews=str(reviews), meta=str(meta))
    folder = prepare(source, settings(), image_encoder=counting(name="fake ViT"))
    dataset = read_folder(folder)
    assert rows_of(dataset) == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
    present = dataset.features["image"].any(1).tolist()
    assert present == [True, False, False], "a dead image is an absent modality"
    said = capsys.readouterr().out
    assert "images: 1 of 3 items; absent: 1 HTTP 404, 1 not an image" in said
    assert note(folder, "features_image")["encoder"] == "fake ViT"
    prepare(source, settings(overwrite=True, text_encoder="hash"))
    assert "image: 3 items name an image, which is not encoded" in capsys.readouterr().out


def test_a_modality_that_no_item_has_is_refused(
    write_lines: Callable[..., Path], tmp_path: Path, settings: Any, counting: Any
) -> None:
    reviews = write_lines("r.jsonl", {"user_id": "U", "parent_asin": "P", "timestamp": 3})
    meta = write_lines("m.jsonl", {"parent_asin": "P", "title": "Rug"})
    source = Amazon2023(reviews=str(reviews), meta=str(meta))
    with pytest.raises(DatasetError, match=r"No item has the modality image"):
        prepare(source, settings(), text_encoder=counting(), image_encoder=counting())
    assert not (tmp_path / "shop").exists()


# -- MovieLens -------------------------------------------------------------------------------------


def test_movielens(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.dat").write_text("2::9::5::8\n1::10::4::7\n1::9::3::7\n")
    (tmp_path / "ml" / "movies.dat").write_bytes("9::Caf\xe9::Drama|War\n".encode("latin-1"))
    folder = prepare(MovieLens(str(tmp_path / "ml")), settings(text_encoder="hash"))
    dataset = read_folder(folder)
    assert rows_of(dataset) == [(0, 0, 7), (0, 1, 7), (1, 1, 8)]
    assert dataset.titles == ("", "Café")
    assert dataset.category.tolist() == [UNKNOWN, 0]
    assert dataset.labels.tolist() == [[False, False], [True, True]]
    assert dataset.features["text"].any(1).tolist() == [False, True]
    assert note(folder, "features_text")["encoder"] == "hash"


# -- tables ----------------------------------------------------------------------------------------


def shop(tmp_path: Path) -> Table:
    (tmp_path / "log.csv").write_text(
        "user,item,timestamp\n"
        + "".join(f"u{u},i{i},{9 - i}\n" for u in (2, 1) for i in range(2))
        + "u3,i9,1\n"
    )
    (tmp_path / "items.csv").write_text("item,name\ni0,Rug\ni1,Lamp\n")
    return Table(
        str(tmp_path / "log.csv"),
        items_file=str(tmp_path / "items.csv"),
        item_columns=ItemColumns(title="name"),
    )


def test_a_table_and_its_core(tmp_path: Path, settings: Any, counting: Any) -> None:
    folder = prepare(shop(tmp_path), settings(k_core=2), text_encoder=counting())
    dataset = read_folder(folder)
    assert rows_of(dataset) == [(0, 1, 8), (0, 0, 9), (1, 1, 8), (1, 0, 9)]
    assert dataset.titles == ("Rug", "Lamp")
    assert note(folder, "prepared")["outside_the_core"] == 1


def test_the_same_input_writes_the_same_folder(
    tmp_path: Path, settings: Any, counting: Any
) -> None:
    def read(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    source = shop(tmp_path)
    first = read(prepare(source, settings(), text_encoder=counting()))
    again = counting()
    second = read(prepare(source, settings(overwrite=True), text_encoder=again))
    assert second.pop("prepared.json") != first.pop("prepared.json"), "--overwrite is told"
    assert second == first
    assert not again.batches, "finished shards are used again"


# -- what is refused before anything is read -------------------------------------------------------


def test_a_folder_without_features_is_refused(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(DatasetError, match=r"There would be no features at all"):
        prepare(Table("nowhere.csv"), settings())


def test_missing_files_are_noticed_before_anything_is_read(settings: Any) -> None:
    source = Amazon2014(reviews="r", meta="m", image_features_file="nothing.b")
    with pytest.raises(DatasetError, match=r"nothing.b is not a file"):
        prepare(source, settings(text_encoder="hash"))
    for other in (Amazon2014(reviews="r", meta="m"), Amazon2023(reviews="r", meta="m")):
        with pytest.raises(DatasetError, match=r"m is not a file"):
            prepare(other, settings(text_encoder="hash"))
    with pytest.raises(DatasetError, match=r"items.csv is not a file"):
        prepare(Table("log.csv", items_file="items.csv"), settings(text_encoder="hash"))


def test_a_folder_that_is_there_is_refused(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "interactions.parquet").write_text("x")
    with pytest.raises(DatasetError, match=r"shop already has interactions.parquet"):
        prepare(Table("nowhere.csv"), settings(text_encoder="hash"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corrupt_limit": 1.5}, r"Expected 0 <= corrupt_limit <= 1, got 1.5"),
        ({"k_core": -1}, r"Expected k_core >= 0, got -1"),
        ({"batch_size": 0}, r"Expected batch_size >= 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Settings("shop", **wrong)
