"""The binary files of published image features."""

from pathlib import Path

import numpy as np
import pytest

from cammsr.raw.faults import Faults
from cammsr.raw.image_features import RECORDS_A_READ, WIDTH, read_image_features
from cammsr.validate import DatasetError

PLACE = {"B000000001": 0, "B000000002": 1, "B000000003": 2}


def record(asin: bytes, value: float) -> bytes:
    return asin + np.full(WIDTH, value, dtype="<f4").tobytes()


def read(tmp_path: Path, body: bytes) -> tuple[np.ndarray, int, Faults]:
    path = tmp_path / "image_features_Toys.b"
    path.write_bytes(body)
    out = np.zeros((3, WIDTH), dtype=np.float32)
    faults = Faults(path.name, 1.0, "record")
    return out, read_image_features(path, PLACE, out, faults), faults


def test_known_items_get_their_features_and_unknown_ones_are_passed_over(tmp_path: Path) -> None:
    body = record(b"B000000003", 1.5) + record(b"B999999999", 7) + record(b"B000000001", -2)
    out, found, faults = read(tmp_path, body)
    assert found == 2
    assert (out == np.array([[-2], [0], [1.5]])).all()
    assert (faults.seen, faults.count) == (3, 0)


def test_the_first_record_of_an_item_counts(tmp_path: Path) -> None:
    out, found, _ = read(tmp_path, record(b"B000000001", 1) + record(b"B000000001", 2))
    assert (found, out[0, 0]) == (1, 1)


def test_records_beyond_one_read_count_too(tmp_path: Path) -> None:
    body = record(b"B999999999", 1) * RECORDS_A_READ + record(b"B000000002", 3)
    out, found, _ = read(tmp_path, body)
    assert (found, out[1, -1]) == (1, 3)


def test_faulty_records_are_counted(tmp_path: Path) -> None:
    bad = record(b"B000000001", float("nan")), record(b"\xff\xfe00000000", 1)
    out, found, faults = read(tmp_path, b"".join(bad) + record(b"B000000002", 3))
    assert (found, out[0].any()) == (1, False)
    assert faults.first[0] == "record 1: the features of B000000001 are not finite"
    assert "is not ASCII" in faults.first[1]


@pytest.mark.parametrize("body", [b"", record(b"B000000001", 1)[:-1]], ids=["empty", "cut"])
def test_a_cut_file_is_refused(tmp_path: Path, body: bytes) -> None:
    message = rf"expected records of 16,394 bytes, got {len(body):,} bytes.*fetch it again"
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, body)
