"""Reading, checking, writing and thinning a dataset folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cammsr.dataset import UNKNOWN, Dataset, DatasetError, k_core, read_folder, write_folder

# -- a small shop ---------------------------------------------------------------------------------

INTERACTIONS = {
    "user_id": [0, 0, 0, 1, 1, 2],
    "item_id": [2, 0, 1, 1, 1, 3],
    "timestamp": [10, 20, 20, 5, 6, 7],
}
ITEMS = {
    "item_id": [0, 1, 2, 3],
    "title": ["Red Lamp", "Rug", None, "Chair"],
    "category": ["lamp", "rug", None, ""],
    "categories": ["light|lamp", "", "chair| seat", None],
}
TEXT = np.array([[1, 2], [0, 0], [3, 4], [0.5, -1]], dtype=np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "shop"
    path.mkdir()
    pl.DataFrame(INTERACTIONS).write_parquet(path / "interactions.parquet")
    pl.DataFrame(ITEMS).write_parquet(path / "items.parquet")
    np.save(path / "features_text.npy", TEXT)
    np.save(path / "features_image.npy", np.ones((4, 3), dtype=np.float64))
    return path


def change(path: Path, **columns: object) -> None:
    """Write a table again with other columns; None drops a column."""
    table = pl.read_parquet(path)
    drop = [name for name, values in columns.items() if values is None]
    new = {name: values for name, values in columns.items() if values is not None}
    kept = {name: table[name] for name in table.columns if name not in columns}
    pl.DataFrame(kept | new).drop(drop, strict=False).write_parquet(path)


def assert_equal(a: Dataset, b: Dataset) -> None:
    for name in ("user_ids", "item_ids", "timestamps", "labels", "category"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.name, a.titles, a.categories) == (b.name, b.titles, b.categories)
    assert list(a.features) == list(b.features)
    assert all(torch.equal(a.features[name], b.features[name]) for name in a.features)


# -- reading --------------------------------------------------------------------------------------


def test_reads_what_the_files_say(folder: Path) -> None:
    dataset = read_folder(folder)
    assert dataset.name == "shop"
    assert dataset.num_users == 3
    assert dataset.num_items == 4
    assert dataset.user_ids.tolist() == INTERACTIONS["user_id"]
    assert dataset.item_ids.tolist() == INTERACTIONS["item_id"], "equal times keep their order"
    assert dataset.timestamps.tolist() == INTERACTIONS["timestamp"]
    assert dataset.titles == ("Red Lamp", "Rug", "", "Chair")
    assert dataset.features["text"].dtype == torch.float32
    assert dataset.features["text"].tolist() == TEXT.tolist()


def test_categories_are_sorted_and_empty_ones_are_unknown(folder: Path) -> None:
    dataset = read_folder(folder)
    assert dataset.categories == ("chair", "lamp", "light", "rug", "seat")
    names = [
        {dataset.categories[c] for c in row.nonzero().flatten().tolist()} for row in dataset.labels
    ]
    assert names == [{"lamp", "light"}, {"rug"}, {"chair", "seat"}, set()]
    assert dataset.category.tolist() == [1, 3, UNKNOWN, UNKNOWN]


def test_labels_come_from_category_when_there_is_no_column_categories(folder: Path) -> None:
    change(folder / "items.parquet", categories=None)
    dataset = read_folder(folder)
    assert dataset.categories == ("lamp", "rug")
    assert dataset.labels.tolist() == [[True, False], [False, True], [False, False], [False, False]]


def test_a_dataset_may_know_no_category_at_all(folder: Path) -> None:
    change(folder / "items.parquet", categories=[None] * 4, category=[None] * 4)
    dataset = read_folder(folder)
    assert dataset.categories == ()
    assert dataset.labels.shape == (4, 0)
    assert dataset.category.tolist() == [UNKNOWN] * 4


def test_modalities_are_read_in_the_order_asked_for(folder: Path) -> None:
    assert list(read_folder(folder).features) == ["image", "text"]
    assert list(read_folder(folder, ["text", "image"]).features) == ["text", "image"]
    assert list(read_folder(folder, ["text"]).features) == ["text"]


def test_a_written_folder_reads_back_the_same(folder: Path, tmp_path: Path) -> None:
    dataset = read_folder(folder)
    write_folder(dataset, tmp_path / "copy" / "shop")
    assert_equal(read_folder(tmp_path / "copy" / "shop"), dataset)


def test_features_of_another_dataset_are_not_mixed_in(folder: Path) -> None:
    write_folder(read_folder(folder), folder)
    with pytest.raises(DatasetError, match=r"features_image.npy belongs to another dataset. Write"):
        write_folder(read_folder(folder, ["text"]), folder)


# -- complaints -----------------------------------------------------------------------------------

Break = Callable[[Path], object]


def interactions(**columns: object) -> Break:
    return lambda folder: change(folder / "interactions.parquet", **columns)


def items(**columns: object) -> Break:
    return lambda folder: change(folder / "items.parquet", **columns)


def text(array: object) -> Break:
    return lambda folder: np.save(folder / "features_text.npy", np.asarray(array))


def remove(pattern: str) -> Break:
    return lambda folder: [file.unlink() for file in folder.glob(pattern)]


def overwrite(name: str) -> Break:
    return lambda folder: (folder / name).write_bytes(b"no such format")


def with_value(value: float) -> np.ndarray:
    array = TEXT.astype(np.float64)
    array[2, 1] = value
    return array


COMPLAINTS = {
    "no interactions file": (remove("inter*"), r"shop has no file interactions.parquet. Write it"),
    "no items file": (remove("items*"), r"shop has no file items.parquet. Write it"),
    "no features": (remove("*.npy"), r"no features_<modality>.npy. Write at least one"),
    "corrupt table": (
        overwrite("items.parquet"),
        r"items.parquet cannot be read as a parquet table .*Write it again",
    ),
    "corrupt features": (
        overwrite("features_text.npy"),
        r"features_text.npy cannot be read as a plain array .*numpy.save",
    ),
    "empty features file": (
        lambda folder: (folder / "features_text.npy").write_bytes(b""),
        r"features_text.npy cannot be read as a plain array",
    ),
    "missing column": (
        interactions(timestamp=None),
        r"interactions.parquet has no column 'timestamp'. Add it; its columns are: user_id",
    ),
    "missing title": (items(title=None), r"items.parquet has no column 'title'"),
    "float ids": (
        interactions(item_id=[0.0, 1.0, 2.0, 1.0, 1.0, 3.0]),
        r"interactions.parquet: expected column 'item_id' to hold integers, got Float64. Cast",
    ),
    "numbers as titles": (
        items(title=[1, 2, 3, 4]),
        r"items.parquet: expected column 'title' to hold text, got Int64. Cast",
    ),
    "null id": (
        interactions(item_id=[2, 0, 1, None, 1, 3]),
        r"interactions.parquet, row 3: item_id is null. Fill it or drop the row",
    ),
    "negative user": (
        interactions(user_id=[-1, 0, 0, 1, 1, 2]),
        r"interactions.parquet, row 0: user_id -1 is negative. Number the ids from 0",
    ),
    "negative item": (
        interactions(item_id=[2, 0, 1, 1, -7, 3]),
        r"interactions.parquet, row 4: item_id -7 is negative",
    ),
    "item out of range": (
        interactions(item_id=[2, 0, 4, 1, 1, 3]),
        r"row 2: item_id 4 is out of range, items.parquet has 4 items. Add the item",
    ),
    "items not in order": (
        items(item_id=[0, 2, 1, 3]),
        r"items.parquet, row 1: expected item_id 1, got 2. Number the items from 0 without gaps",
    ),
    "gap in the items": (items(item_id=[0, 1, 2, 9]), r"row 3: expected item_id 3, got 9"),
    "two labels in category": (
        items(category=["lamp", "rug|mat", "x", "y"]),
        r"items.parquet, row 1: category 'rug\|mat' holds more than one label. Put several",
    ),
    "users not sorted": (
        interactions(user_id=[0, 0, 1, 0, 1, 2]),
        r"row 3: user 0 at time 5 comes after user 1 at time 20. Sort the rows by user_id",
    ),
    "times not sorted": (
        interactions(timestamp=[10, 20, 19, 5, 6, 7]),
        r"row 2: user 0 at time 19 comes after user 0 at time 20. Sort the rows",
    ),
    "a user without history": (
        interactions(user_id=[0, 0, 0, 2, 2, 3]),
        r"row 3: user 1 has an empty history, the rows go on with user 2. Number the users",
    ),
    "no user 0": (interactions(user_id=[1, 1, 1, 2, 2, 3]), r"row 0: user 0 has an empty history"),
    "zero interactions": (
        lambda folder: (
            pl.DataFrame(INTERACTIONS).clear().write_parquet(folder / "interactions.parquet")
        ),
        r"interactions.parquet has no interactions. Write one row for each",
    ),
    "zero items": (
        lambda folder: (pl.DataFrame(ITEMS).cast({"item_id": pl.Int32}).clear()).write_parquet(
            folder / "items.parquet"
        ),
        r"items.parquet has no rows. Write one row for each item",
    ),
    "too few rows": (
        text(TEXT[:3]),
        r"features_text.npy: expected an array of shape \(4, width\), got \(3, 2\). Write one row",
    ),
    "one-dimensional": (text(TEXT[:, 0]), r"of shape \(4, width\), got \(4,\)"),
    "three-dimensional": (text(TEXT[:, None]), r"of shape \(4, width\), got \(4, 1, 2\)"),
    "width zero": (text(TEXT[:, :0]), r"of shape \(4, width\), got \(4, 0\)"),
    "integer features": (
        text(np.ones((4, 2), dtype=np.int64)),
        r"features_text.npy: expected floats \(float16, .*\), got int64. Write it again",
    ),
    "object features": (
        lambda folder: np.save(
            folder / "features_text.npy", np.array([[{}]] * 4, dtype=object), allow_pickle=True
        ),
        r"features_text.npy cannot be read as a plain array .*[Oo]bject arrays",
    ),
    "an archive": (
        lambda folder: (
            np.savez(folder / "pack.npz", TEXT),
            (folder / "pack.npz").rename(folder / "features_text.npy"),
        ),
        r"features_text.npy: expected floats .* got NpzFile",
    ),
    "nan": (
        text(with_value(np.nan)),
        r"features_text.npy, row 2, column 1: nan is not a finite float32 number. Clean the",
    ),
    "infinity": (text(with_value(np.inf)), r"row 2, column 1: inf is not a finite"),
    "too large for float32": (text(with_value(1e300)), r"row 2, column 1: 1e\+300 is not a finite"),
}


@pytest.mark.parametrize("case", COMPLAINTS)
def test_complaint(case: str, folder: Path) -> None:
    damage, sentence = COMPLAINTS[case]
    damage(folder)
    with pytest.raises(DatasetError, match=sentence):
        read_folder(folder)


def test_complaint_about_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere is not a folder. Give the folder that holds"):
        read_folder(tmp_path / "nowhere")


def test_complaint_about_an_unknown_modality(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"no modality 'sound'. Choose from: image, text."):
        read_folder(folder, ["text", "sound"])
    with pytest.raises(DatasetError, match=r"No modality asked for. Choose from: image, text."):
        read_folder(folder, [])


# -- k-core ---------------------------------------------------------------------------------------


def dataset_of(pairs: list[tuple[int, int]], num_items: int) -> Dataset:
    """Users take items; the users are numbered anew without gaps."""
    users = {user: u for u, user in enumerate(sorted({user for user, _ in pairs}))}
    rows = sorted((users[user], time, item) for time, (user, item) in enumerate(pairs))
    columns = torch.tensor(rows).reshape(-1, 3)
    return Dataset(
        name="pairs",
        user_ids=columns[:, 0],
        item_ids=columns[:, 2],
        timestamps=columns[:, 1],
        features={"text": torch.arange(num_items).float()[:, None]},
        categories=("even", "odd"),
        labels=torch.arange(num_items)[:, None] % 2 == torch.arange(2),
        category=torch.arange(num_items) % 2,
        titles=tuple(f"item {i}" for i in range(num_items)),
    )


def naive_core(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Drop one interaction at a time, as long as its user or its item has fewer than k."""
    pairs = list(pairs)
    while True:
        for user, item in pairs:
            few_items = sum(u == user for u, _ in pairs) < k
            few_users = sum(i == item for _, i in pairs) < k
            if few_items or few_users:
                pairs.remove((user, item))
                break
        else:
            return pairs


@given(
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=50),
    k=st.integers(1, 4),
)
def test_k_core_drops_what_a_loop_drops(pairs: list[tuple[int, int]], k: int) -> None:
    dataset, expected = dataset_of(pairs, num_items=7), naive_core(pairs, k)
    if not expected:
        with pytest.raises(DatasetError, match="core of 'pairs' is empty: every user and item"):
            k_core(dataset, k)
        return
    core = k_core(dataset, k)
    old_items = [int(title.split()[1]) for title in core.titles]
    names = sorted({user for user, _ in expected})
    pairs_left = zip(core.user_ids.tolist(), core.item_ids.tolist(), strict=True)
    assert sorted((names[user], old_items[item]) for user, item in pairs_left) == sorted(expected)
    assert core.features["text"].flatten().tolist() == old_items
    assert core.category.tolist() == [i % 2 for i in old_items]
    assert core.labels[:, 1].tolist() == [i % 2 == 1 for i in old_items]
    assert core.user_ids.diff().clamp(min=0).sum() == core.num_users - 1, "users have no gaps"


def test_k_core_keeps_the_order_of_time(folder: Path) -> None:
    core = k_core(read_folder(folder), k=2)
    assert core.titles == ("Rug",)
    assert core.user_ids.tolist() == [0, 0]
    assert core.timestamps.tolist() == [5, 6]
    assert core.categories == ("chair", "lamp", "light", "rug", "seat")


@pytest.mark.parametrize("scale", [1, 10**3, 10**6, 10**9])
def test_times_are_read_in_seconds_whatever_their_unit(folder: Path, scale: int) -> None:
    times = [1_600_000_000, 1_600_000_001, 1_600_086_400]
    rows = {"user_id": [0, 0, 0], "item_id": [2, 0, 1]}
    written = [time * scale + scale // 2 for time in times]
    pl.DataFrame({**rows, "timestamp": written}).write_parquet(folder / "interactions.parquet")
    assert read_folder(folder).timestamps.tolist() == times
