"""MovieLens: ml-1m and ml-10m (``::``), ml-100k (tabs), ml-20m and later (CSV)."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cammsr.raw.columns import check_names, check_rows, scan
from cammsr.raw.faults import Faults
from cammsr.raw.items import Description, join_text
from cammsr.raw.source import Work
from cammsr.validate import DatasetError

__all__ = ["DOWNLOADS", "MovieLens"]

SITE = "https://files.grouplens.org/datasets/movielens"
#: archives that are fixed, and their checksums; "ml-latest" and the like change over time
DOWNLOADS: Mapping[str, str | None] = {
    "ml-100k": "md5:0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-10m": None,
    "ml-20m": "md5:cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "md5:6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": None,
    "ml-latest": None,
    "ml-latest-small": None,
}
#: a file of ratings -> how its columns are separated and which are user, item and timestamp
RATINGS: Mapping[str, tuple[str, bool, tuple[str, str, str]]] = {
    # "1::1193::5::978300760" has empty columns between its single colons
    "ratings.dat": (":", False, ("column_1", "column_3", "column_7")),
    "u.data": ("\t", False, ("column_1", "column_2", "column_4")),
    "ratings.csv": (",", True, ("userId", "movieId", "timestamp")),
}
NO_GENRE = ("(no genres listed)", "unknown")


@dataclass(frozen=True)
class MovieLens:
    """MovieLens ratings. Every rating is an interaction, whatever its value.

    Args:
        source: A folder or zip archive of MovieLens, or a name to download such as ml-1m.
    """

    source: str

    def interactions(self, work: Work) -> pl.LazyFrame:
        """The ratings: who rated what, and when (seconds)."""
        folder = self._folder(work)
        name = next((name for name in RATINGS if (folder / name).is_file()), None)
        if name is None:
            raise DatasetError(f"{folder} has none of {', '.join(RATINGS)}. Give another folder.")
        separator, header, (user, item, timestamp) = RATINGS[name]
        path = str(folder / name)
        table = scan(path, separator=separator, header=header)
        check_names(path, table, (user, item, timestamp))
        faults = work.faults(path, "row")
        columns: dict[str, str | None] = {"user": user, "item": item, "timestamp": timestamp}
        rows = check_rows(table, columns, faults, work.scratch / "interactions.parquet")
        work.say(str(faults))
        return rows

    def describe(self, items: pl.Series, work: Work) -> pl.DataFrame:
        """Titles, and genres as categories; a movie's first genre is its category."""
        folder = self._folder(work)
        readers = {"movies.dat": _movies_dat, "u.item": _u_item, "movies.csv": _movies_csv}
        name = next((name for name in readers if (folder / name).is_file()), None)
        if name is None:
            raise DatasetError(f"{folder} has none of {', '.join(readers)}. Give another folder.")
        faults = work.faults(str(folder / name))
        return work.align(readers[name](folder / name, faults), items, faults)

    @property
    def published_images(self) -> None:
        """None are published."""

    def note(self) -> dict[str, Any]:
        """The settings above."""
        return asdict(self)

    def _folder(self, work: Work) -> Path:
        """The folder of the files; an archive is unpacked into the scratch folder, once."""
        path = Path(self.source).expanduser()
        if path.is_dir():
            return path
        if self.source in DOWNLOADS:
            path = work.fetch(f"{SITE}/{self.source}.zip", DOWNLOADS[self.source])
        elif not path.exists() and "://" not in self.source:
            raise DatasetError(
                f"{self.source} is no folder, no archive and none of {', '.join(DOWNLOADS)}."
            )
        else:
            path = work.fetch(self.source)
        target = work.scratch / "movielens"
        if not target.is_dir():
            _unpack(path, target)
        return target


def _unpack(path: Path, target: Path) -> None:
    """The files that are read, without the archive's folders."""
    wanted = (*RATINGS, "movies.dat", "movies.csv", "u.item", "u.genre")
    try:
        with zipfile.ZipFile(path) as archive:
            target.mkdir()
            for entry in archive.infolist():
                name = Path(entry.filename).name
                if name in wanted and not entry.is_dir():
                    with archive.open(entry) as file, (target / name).open("wb") as out:
                        while chunk := file.read(1 << 20):
                            out.write(chunk)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DatasetError(
            f"{path} is not a whole zip archive ({error}). Fetch it again."
        ) from error


def _decoded(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Lines as text: UTF-8, or else the Latin-1 of the older archives."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                faults.seen += 1
                try:
                    yield number, line.decode("utf-8-sig").rstrip("\r\n")
                except UnicodeDecodeError:
                    yield number, line.decode("latin-1").rstrip("\r\n")


def _movie(item: str, title: str, genres: list[str]) -> Description:
    labels = [genre for genre in genres if genre not in NO_GENRE]
    return Description(
        item.strip(), title, labels[0] if labels else None, labels, join_text(title, labels)
    )


def _movies_dat(path: Path, faults: Faults) -> Iterator[Description]:
    for number, line in _decoded(path, faults):
        item, _, rest = line.partition("::")
        title, separator, genres = rest.rpartition("::")  # a title may hold the separator
        if separator:
            yield _movie(item, title, genres.split("|"))
        else:
            faults.add(number, f"expected MovieID::Title::Genres, got {line[:40]!r}")


def _u_item(path: Path, faults: Faults) -> Iterator[Description]:
    names_file = path.with_name("u.genre")
    if not names_file.is_file():
        raise DatasetError(f"{path.parent} has no file u.genre, which names the genres of u.item.")
    rows = (line.split("|") for line in names_file.read_text("latin-1").splitlines() if line)
    names = {int(row[1]): row[0] for row in rows if len(row) == 2 and row[1].strip().isdigit()}
    for number, line in _decoded(path, faults):
        row = line.split("|")
        if len(row) != 5 + len(names):
            faults.add(number, f"expected {5 + len(names)} columns, got {len(row)}")
            continue
        genres = [names[i] for i, flag in enumerate(row[5:]) if flag.strip() == "1" and i in names]
        yield _movie(row[0], row[1], genres)


def _movies_csv(path: Path, faults: Faults) -> Iterator[Description]:
    lines = (line for _, line in _decoded(path, faults))
    rows = csv.reader(lines)
    header = next(rows, [])
    for name in ("movieId", "title", "genres"):
        if name not in header:
            raise DatasetError(f"{path} has no column '{name}'. Its columns are: {header}.")
    item, title, genres = (header.index(name) for name in ("movieId", "title", "genres"))
    for row in rows:
        if len(row) == len(header):
            yield _movie(row[item], row[title], row[genres].split("|"))
        else:
            faults.add(rows.line_num, f"expected {len(header)} columns, got {len(row)}")
