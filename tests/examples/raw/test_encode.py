"""Encoding in shards that are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cammsr.raw import encode as module
from cammsr.raw.encode import encode
from cammsr.validate import DatasetError


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 3)


INPUTS = ["bbb", None, "a", "cc", "", "dddd", "e"]
EXPECTED = [[3, 98], [0, 0], [1, 97], [2, 99], [0, 0], [4, 100], [1, 101]]


def run(
    cache: Path, encoder: Any, inputs: list[str | None] | None = None, **options: Any
) -> tuple[list[list[float]], tuple[int, int, int]]:
    given: list[str | None] = list(INPUTS) if inputs is None else inputs
    out = np.zeros((len(given), encoder.width), dtype=np.float32)
    counts = encode(given, encoder, out, cache=cache, say=lambda _: None, **options)
    return out.tolist(), counts


def test_rows_follow_the_inputs_and_absent_ones_stay_zero(tmp_path: Path, counting: Any) -> None:
    assert run(tmp_path, counting()) == (EXPECTED, (5, 0, 5))


def test_batches_hold_inputs_of_similar_length(tmp_path: Path, counting: Any) -> None:
    encoder = counting()
    run(tmp_path, encoder, ["aaaa", "b", "cc"], batch_size=2)
    assert encoder.batches == [["b", "cc"], ["aaaa"]]


def test_a_second_run_computes_nothing(tmp_path: Path, counting: Any) -> None:
    run(tmp_path, counting())
    again = counting()
    assert run(tmp_path, again) == (EXPECTED, (0, 5, 5))
    assert not again.batches


def test_only_the_shard_of_a_changed_text_is_computed(tmp_path: Path, counting: Any) -> None:
    run(tmp_path, counting())
    again = counting()
    rows, counts = run(tmp_path, again, [*INPUTS[:5], "f", "e"])
    assert again.batches == [["f", "cc"]]
    assert (rows[5], counts) == ([1, 102], (2, 3, 5))


@pytest.mark.parametrize("other", [{"name": "b"}, {"revision": "2"}, {"how": "b"}])
def test_another_encoder_or_revision_or_way_computes_anew(
    tmp_path: Path, counting: Any, other: dict[str, str]
) -> None:
    run(tmp_path, counting())
    assert run(tmp_path, counting(**other))[1] == (5, 0, 5)


def test_a_broken_off_run_goes_on_where_it_stopped(tmp_path: Path, counting: Any) -> None:
    class Breaking(counting):  # type: ignore[misc]
        def __call__(self, batch: list[str]) -> Any:
            if "dddd" in batch:
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Breaking())
    again = counting()
    assert run(tmp_path, again) == (EXPECTED, (3, 2, 5))
    assert not any("bbb" in batch for batch in again.batches)


@pytest.mark.parametrize("body", [b"", b"\x93NUMPY", "short"], ids=["empty", "cut", "shape"])
def test_a_damaged_shard_is_computed_anew(tmp_path: Path, counting: Any, body: Any) -> None:
    run(tmp_path, counting())
    for file in tmp_path.glob("*.npy"):
        if body == "short":
            np.save(file, np.zeros((1, 1), dtype=np.float32))
        else:
            file.write_bytes(body)
    assert run(tmp_path, counting()) == (EXPECTED, (5, 0, 5))


def test_files_are_known_by_their_bytes(tmp_path: Path, counting: Any) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"red")

    def contents(file: str) -> bytes:
        return Path(file).read_bytes()

    run(tmp_path / "cache", counting(), [str(image)], contents=contents)
    assert run(tmp_path / "cache", counting(), [str(image)], contents=contents)[1] == (0, 1, 1)
    image.write_bytes(b"blue")
    assert run(tmp_path / "cache", counting(), [str(image)], contents=contents)[1] == (1, 0, 1)


def test_wrong_shapes_and_numbers_are_refused(tmp_path: Path, counting: Any) -> None:
    class Wrong(counting):  # type: ignore[misc]
        def __call__(self, batch: list[str]) -> Any:
            return np.zeros((len(batch), 5))

    class Broken(counting):  # type: ignore[misc]
        def __call__(self, batch: list[str]) -> Any:
            return np.full((len(batch), 2), np.nan)

    with pytest.raises(DatasetError, match=r"encoder counting to give \(2, 2\), got \(2, 5\)"):
        run(tmp_path, Wrong())
    with pytest.raises(DatasetError, match=r"counting gives NaN or infinity for 'a'"):
        run(tmp_path, Broken())
    assert not list(tmp_path.iterdir())
