"""What a source is given to work with."""

from pathlib import Path

import pytest

from cammsr.raw.source import Work
from cammsr.validate import DatasetError


def test_a_file_is_fetched_as_it_is(work: Work, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert work.fetch(str(tmp_path / "a")) == tmp_path / "a"


def test_offline_is_kept(tmp_path: Path, said: list[str]) -> None:
    work = Work(tmp_path, tmp_path, True, 0.5, said.append)
    with pytest.raises(DatasetError, match=r"--offline is set"):
        work.fetch("http://127.0.0.1/a")


def test_faults_have_the_limit_of_the_run(work: Work) -> None:
    faults = work.faults("a.b", "record")
    assert (faults.source, faults.limit, faults.unit) == ("a.b", 0.5, "record")
