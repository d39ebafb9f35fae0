"""A dataset folder is written whole, or not at all."""

from pathlib import Path

import numpy as np
import pytest

from cammsr.raw.folder import new_features, new_folder
from cammsr.validate import DatasetError


def make(path: Path, value: str, *, overwrite: bool = False) -> None:
    with new_folder(path, overwrite=overwrite) as folder:
        (folder / "interactions.parquet").write_text(value)


def break_off(path: Path, *, overwrite: bool = False) -> None:
    with new_folder(path, overwrite=overwrite) as folder:
        (folder / "interactions.parquet").write_text("half")
        raise KeyboardInterrupt


def test_the_folder_appears_in_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "shop"
    with new_folder(target, overwrite=False) as folder:
        (folder / "interactions.parquet").write_text("a")
        assert not target.exists()
    assert (target / "interactions.parquet").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["shop"]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path / "shop")
    assert not list(tmp_path.iterdir())


def test_after_an_error_the_old_folder_is_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "shop", "old")
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path / "shop", overwrite=True)
    assert (tmp_path / "shop" / "interactions.parquet").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_old_folder_is_replaced_only_if_it_may(tmp_path: Path) -> None:
    make(tmp_path / "shop", "old")
    (tmp_path / "shop" / "features_old.npy").write_text("x")
    with pytest.raises(DatasetError, match=r"shop already has .*--overwrite true"):
        make(tmp_path / "shop", "new")
    make(tmp_path / "shop", "new", overwrite=True)
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["interactions.parquet"]
    assert (tmp_path / "shop" / "interactions.parquet").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    make(tmp_path / "shop", "new")
    assert (tmp_path / "shop" / "interactions.parquet").read_text() == "new"


def test_what_is_no_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DatasetError, match=r"letter.txt, which is no dataset folder"):
        make(tmp_path / "home", "new", overwrite=True)
    with pytest.raises(DatasetError, match=r"letter.txt is a file"):
        make(tmp_path / "home" / "letter.txt", "new", overwrite=True)


def test_features_are_zeros_that_are_filled_in_place(tmp_path: Path) -> None:
    out = new_features(tmp_path, "text", 3, 2)
    out[1] = [1, 2]
    del out
    assert np.load(tmp_path / "features_text.npy").tolist() == [[0, 0], [1, 2], [0, 0]]
