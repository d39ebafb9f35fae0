"""JSON lines, with every fault that files from the net have."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cammsr.raw.faults import Faults
from cammsr.raw.lines import read_lines
from cammsr.validate import DatasetError


def read(path: Path, *, literals: bool = False) -> tuple[list[tuple[int, dict[str, Any]]], Faults]:
    faults = Faults(path.name, 1.0)
    return list(read_lines(path, faults, literals=literals)), faults


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_reads_objects_with_their_line_numbers(name: str, write_lines: Callable[..., Path]) -> None:
    lines, faults = read(write_lines(name, {"a": 1}, b"", {"a": "ü"}))
    assert lines == [(1, {"a": 1}), (3, {"a": "ü"})]
    assert (faults.seen, faults.count) == (2, 0)


def test_a_gzipped_file_is_known_by_its_content(write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.json.gz", {"a": 1})
    renamed = path.rename(path.with_name("a.json"))
    assert read(renamed)[0] == [(1, {"a": 1})]


def test_corrupt_lines_are_counted_and_left_out(write_lines: Callable[..., Path]) -> None:
    bad = (b'{"a": 2', b'{"a": "\xff"}', b"[1, 2]", b"{'a': 3}", b"[" * 100_000)
    lines, faults = read(write_lines("a.json", {"a": 1}, *bad))
    assert lines == [(1, {"a": 1})]
    assert (faults.seen, faults.count) == (6, 5)
    assert faults.first == [
        "line 2: not JSON, '{\"a\": 2'",
        "line 3: not UTF-8 at byte 7",
        "line 4: no object but list, '[1, 2]'",
    ]


def test_python_literals_are_read_where_they_are_expected(write_lines: Callable[..., Path]) -> None:
    row = {"asin": "1", "title": "it's", "categories": [["A", "B"]]}
    odd = rb"{'asin': '2', 'title': 'C:\d'}"  # a backslash that today's Python warns of
    lines, _ = read(write_lines("a.json", row, odd, literal=True), literals=True)
    assert lines == [(1, row), (2, {"asin": "2", "title": "C:\\d"})]


def test_a_literal_is_never_evaluated(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    trap = f"{{'asin': open({str(tmp_path / 'trap')!r}, 'w')}}".encode()
    lines, faults = read(write_lines("a.json", trap), literals=True)
    assert not lines
    assert "neither JSON nor a literal" in faults.first[0]
    assert not (tmp_path / "trap").exists()


def test_a_truncated_gzip_file_is_refused(write_lines: Callable[..., Path]) -> None:
    path = write_lines("a.json.gz", *({"a": i} for i in range(5000)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"a.json.gz breaks off after line \d+ .*Fetch it again"):
        read(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    body = bytearray(gzip.compress(b'{"a": 1}\n' * 1000))
    body[20] ^= 0xFF
    path.write_bytes(body)
    with pytest.raises(DatasetError, match=r"breaks off after line 0"):
        read(path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_an_empty_file_is_refused(name: str, write_lines: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match=r"a.json.* has no lines"):
        read(write_lines(name))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing.json is not a file"):
        read(tmp_path / "nothing.json")
