"""MovieLens in its three forms, as a folder or as an archive."""

import zipfile
from pathlib import Path

import polars as pl
import pytest

from cammsr.raw.movielens import MovieLens
from cammsr.raw.source import Work
from cammsr.validate import DatasetError

FLAGS = {"Drama": "|0|1|0", "Comedy": "|0|0|1", "both": "|0|1|1", "none": "|1|0|0"}
FORMS: dict[str, dict[str, bytes]] = {
    "1m": {
        "ratings.dat": b"2::10::5::978300760\n1::20::3::978302109\n1::10::x\n",
        "movies.dat": (
            "10::Am\xe9lie (2001)::Comedy|Drama\n20::Alien:: Two::Drama\n30::no genre\n"
        ).encode("latin-1"),
    },
    "100k": {
        "u.data": b"2\t10\t5\t978300760\n1\t20\t3\t978302109\n1\t10\n",
        "u.item": (
            f"10|Am\xe9lie (2001)|1-Jan-2001||http://x{FLAGS['both']}\n"
            f"20|Alien:: Two|||{FLAGS['Drama']}\n30|cut|\n"
        ).encode("latin-1"),
        "u.genre": b"unknown|0\nDrama|1\nComedy|2\n\n",
    },
    "csv": {
        "ratings.csv": (
            b"userId,movieId,rating,timestamp\n2,10,5.0,978300760\n1,20,3,978302109\n1,10,3,\n"
        ),
        "movies.csv": (
            'movieId,title,genres\n10,Amélie (2001),Comedy|Drama\n20,"Alien:: Two",Drama\n30,x\n'
        ).encode(),
    },
}


def write(folder: Path, form: str, **changed: bytes) -> Path:
    folder.mkdir()
    for name, body in (FORMS[form] | changed).items():
        (folder / name).write_bytes(body)
    return folder


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_every_form(
    form: str, zipped: bool, tmp_path: Path, work: Work, said: list[str]
) -> None:
    path = write(tmp_path / "ml", form)
    if zipped:
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            for file in path.iterdir():
                archive.write(file, f"ml-1m/{file.name}")
        path = tmp_path / "ml.zip"
    source = MovieLens(str(path))
    rows = source.interactions(work).collect().rows()
    assert rows == [("2", "10", 978300760), ("1", "20", 978302109)]
    assert "3 rows, 1 dropped as unreadable (row 3: timestamp None" in said[0]
    described = source.describe(pl.Series(["10", "20", "30"]), work)
    assert described["title"].to_list() == ["Amélie (2001)", "Alien:: Two", None]
    first = "Drama" if form == "100k" else "Comedy"  # its genres are columns
    second = "Comedy" if form == "100k" else "Drama"
    assert described["category"].to_list() == [first, "Drama", None]
    assert described["categories"].to_list() == [f"{first}|{second}", "Drama", None]
    assert described["text"][0] == f"Amélie (2001). {first}. {second}"
    assert said[1].endswith("2 of 3 items described")
    assert ", 1 dropped as unreadable" in said[1]


def test_no_genre_is_no_category(tmp_path: Path, work: Work) -> None:
    movies = b"movieId,title,genres\n1,Alone,(no genres listed)\n"
    path = write(tmp_path / "ml", "csv", **{"movies.csv": movies})
    described = MovieLens(str(path)).describe(pl.Series(["1"]), work)
    assert described.rows() == [("1", "Alone", None, None, "Alone", None)]


def test_a_cut_archive_is_refused(tmp_path: Path, work: Work) -> None:
    path = tmp_path / "ml.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml/ratings.csv", FORMS["csv"]["ratings.csv"])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match=r"ml.zip is not a whole zip archive"):
        MovieLens(str(path)).interactions(work)


def test_what_is_missing_is_named(tmp_path: Path, work: Work) -> None:
    with pytest.raises(DatasetError, match=r"ml-9m is no folder, no archive and none of ml-100k,"):
        MovieLens("ml-9m").interactions(work)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty has none of ratings.dat, u.data, ratings.csv"):
        MovieLens(str(tmp_path / "empty")).interactions(work)
    with pytest.raises(DatasetError, match=r"empty has none of movies.dat"):
        MovieLens(str(tmp_path / "empty")).describe(pl.Series(["1"]), work)
    path = write(tmp_path / "ml", "100k")
    (path / "u.genre").unlink()
    with pytest.raises(DatasetError, match=r"ml has no file u.genre"):
        MovieLens(str(path)).describe(pl.Series(["1"]), work)


def test_a_header_without_the_columns_is_refused(tmp_path: Path, work: Work) -> None:
    path = write(tmp_path / "ml", "csv", **{"movies.csv": b"id,name\n1,x\n"})
    with pytest.raises(DatasetError, match=r"movies.csv has no column 'movieId'"):
        MovieLens(str(path)).describe(pl.Series(["1"]), work)
