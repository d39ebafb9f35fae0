"""Downloads: cache, checksums, resume, and no network at all."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cammsr.raw.download import fetch, fetch_from_hub
from cammsr.validate import DatasetError

BODY = b"0123456789" * 1000


def test_a_local_file_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a")
    assert fetch(str(path), tmp_path / "cache", offline=True) == path
    assert not (tmp_path / "cache").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nothing.csv is not a file"):
        fetch("nothing.csv", tmp_path)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DatasetError, match=r"needs the package pooch.*\[prepare\]"):
        fetch("http://127.0.0.1/a", tmp_path)
    with pytest.raises(DatasetError, match=r"needs the package huggingface_hub"):
        fetch_from_hub("a/b", "c", revision="main", cache=tmp_path, offline=False)


def test_offline_takes_the_cache_or_says_so(tmp_path: Path) -> None:
    url = "http://127.0.0.1/a.csv"
    with pytest.raises(DatasetError, match=r"a.csv is not in the cache .* --offline is set"):
        fetch(url, tmp_path, offline=True)
    cached = tmp_path / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-a.csv"
    cached.write_bytes(BODY)
    good = hashlib.md5(BODY).hexdigest()
    assert fetch(url, tmp_path, offline=True) == cached
    assert fetch(url, tmp_path, offline=True, known_hash=f"md5:{good}") == cached
    with pytest.raises(DatasetError, match=rf"expected the checksum {'0' * 64}, got [0-9a-f]+"):
        fetch(url, tmp_path, offline=True, known_hash="0" * 64)


# -- with pooch ------------------------------------------------------------------------------------


def test_downloads_once(tmp_path: Path, site: Any, said: list[str]) -> None:
    pytest.importorskip("pooch")
    url = site.add("/a.csv?x=1", BODY)
    for _ in range(2):
        path = fetch(url, tmp_path / "cache", say=said.append)
        assert path.read_bytes() == BODY
        assert path.name.endswith("-a.csv")
    assert len(site.asked) == 1
    assert said == [f"downloading {url}"]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name]


def test_a_checksum_is_verified(tmp_path: Path, site: Any, said: list[str]) -> None:
    pytest.importorskip("pooch")
    url = site.add("/a.csv", BODY)
    with pytest.raises(DatasetError, match=r"could not be downloaded: .*hash"):
        fetch(url, tmp_path, known_hash="0" * 64, say=said.append)
    assert not list(tmp_path.glob("*-a.csv"))
    known = hashlib.sha256(BODY).hexdigest()
    assert fetch(url, tmp_path, known_hash=known, say=said.append).read_bytes() == BODY


def test_a_broken_off_download_goes_on_where_it_stopped(
    tmp_path: Path, site: Any, said: list[str]
) -> None:
    pytest.importorskip("pooch")
    url = site.add("/a.csv", BODY)
    site.break_after = 4000
    with pytest.raises(DatasetError, match=r"4,000 of 10,000 bytes"):
        fetch(url, tmp_path, say=said.append)
    site.break_after = None
    assert fetch(url, tmp_path, say=said.append).read_bytes() == BODY
    assert [asked for _, asked in site.asked] == [None, "bytes=4000-"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(
    tmp_path: Path, site: Any, said: list[str]
) -> None:
    pytest.importorskip("pooch")
    url = site.add("/a.csv", BODY)
    site.break_after = 4000
    with pytest.raises(DatasetError, match=r"bytes"):
        fetch(url, tmp_path, say=said.append)
    site.break_after = None
    site.add("/a.csv", BODY[::-1])
    assert fetch(url, tmp_path, say=said.append).read_bytes() == BODY[::-1]


def test_a_part_that_is_whole_is_taken_again(tmp_path: Path, site: Any, said: list[str]) -> None:
    pytest.importorskip("pooch")
    url = site.add("/a.csv", BODY)
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-a.csv.part"
    (tmp_path / name).write_bytes(BODY)
    (tmp_path / f"{name}.tag").write_text(site.pages["/a.csv"][2]["ETag"])
    assert fetch(url, tmp_path, say=said.append).read_bytes() == BODY


def test_a_dead_address_is_refused(tmp_path: Path, site: Any, said: list[str]) -> None:
    pytest.importorskip("pooch")
    with pytest.raises(DatasetError, match=r"gone.csv could not be downloaded: .*404"):
        fetch(f"{site.url}/gone.csv", tmp_path, say=said.append)
    with pytest.raises(DatasetError, match=r"could not be downloaded: Invalid"):
        fetch("http://[/a.csv", tmp_path, say=said.append)


# -- the hub ---------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_one_file_of_one_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(*names: str, **options: Any) -> str:
        asked.append((names, options))
        if options["local_files_only"]:
            raise FileNotFoundError("not there\nmore")
        return str(tmp_path / "found")

    hub = SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = fetch_from_hub("a/b", "c.jsonl", revision="abc", cache=tmp_path, offline=False)
    assert found == tmp_path / "found"
    assert asked[0] == (
        ("a/b", "c.jsonl"),
        {
            "repo_type": "dataset",
            "revision": "abc",
            "cache_dir": tmp_path,
            "local_files_only": False,
        },
    )
    with pytest.raises(DatasetError, match=r"c.jsonl of a/b could not be downloaded: not there "):
        fetch_from_hub("a/b", "c.jsonl", revision="abc", cache=tmp_path, offline=True)
