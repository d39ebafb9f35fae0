"""Importing what only preparing needs."""

import sys
from pathlib import Path

import pytest

from cammsr.raw.packages import require
from cammsr.validate import DatasetError


def test_gives_the_module() -> None:
    assert require("os.path", "This") is __import__("os").path


def test_says_what_would_help() -> None:
    message = (
        r'This needs the package no_such_package.*install -c constraints.txt -e "\.\[prepare\]"'
    )
    with pytest.raises(DatasetError, match=message):
        require("no_such_package.inner", "This")


def test_does_not_hide_what_a_package_itself_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("broken_package", "This")
    assert "broken_package" not in sys.modules
