"""Images from the net: whatever goes wrong makes them absent."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cammsr.raw.images import fetch_images
from cammsr.validate import DatasetError


def test_images_come_into_the_cache_and_dead_ones_are_absent(
    tmp_path: Path, site: Any, png: Callable[[str], bytes], said: list[str]
) -> None:
    red = site.add("/red.png", png("red"))
    urls = [
        red,
        None,
        site.add("/gone.png", b"", 404),
        site.add("/page.png", b"<html>not here any more</html>"),
        site.add("/cut.png", png("blue")[:-30]),
        site.add("/slow.png", png("red"), seconds=10),
        site.add("/busy.png", b"", 503),
        "http://127.0.0.1:1/refused.png",
        "ftp://127.0.0.1/a.png",
        "http://[/a.png",
        red,
    ]
    images = fetch_images(urls, tmp_path, timeout=1.5, threads=2, say=said.append)
    assert [path is not None for path in images.files] == [True, *[False] * 9, True]
    assert Path(str(images.files[0])).read_bytes() == png("red")
    assert dict(images.absent) == {
        "without an image": 1,
        "HTTP 404": 1,
        "not an image": 2,
        "timed out": 1,
        "HTTP 503": 1,
        "no connection": 1,
        "not http": 1,
        "not a URL": 1,
    }
    assert str(images).startswith("images: 2 of 11 items; absent: 2 not an image, 1 ")


def test_only_what_may_come_back_is_asked_for_again(
    tmp_path: Path, site: Any, png: Callable[[str], bytes]
) -> None:
    names = ("/red.png", "/gone.png", "/page.png", "/busy.png")
    pages = (png("red"), 200), (b"", 410), (b"page", 200), (b"", 503)
    urls = [site.add(name, *page) for name, page in zip(names, pages, strict=True)]
    first = fetch_images(urls, tmp_path)
    site.asked.clear()
    site.add("/busy.png", png("blue"))
    second = fetch_images(urls, tmp_path)
    assert [path for path, _ in site.asked] == ["/busy.png"]
    assert second.files[:3] == first.files[:3]
    assert second.files[3] is not None
    assert dict(second.absent) == {"HTTP 410": 1, "not an image": 1}


def test_offline_takes_what_the_cache_has(
    tmp_path: Path, site: Any, png: Callable[[str], bytes]
) -> None:
    urls = [site.add("/a.png", png("red")), site.add("/b.png", png("blue"))]
    fetch_images(urls[:1], tmp_path)
    images = fetch_images(urls, tmp_path, offline=True)
    assert [path is not None for path in images.files] == [True, False]
    assert dict(images.absent) == {"not in the cache": 1}


def test_files_are_used_as_they_are(tmp_path: Path, png: Callable[[str], bytes]) -> None:
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    good.write_bytes(png("red"))
    bad.write_bytes(b"text")
    images = fetch_images([str(good), str(bad), str(tmp_path / "c.png")], tmp_path / "cache")
    assert images.files == [str(good), None, None]
    assert dict(images.absent) == {"not an image": 1, "no such file": 1}


def test_pillow_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DatasetError, match=r"Reading images needs the package PIL"):
        fetch_images([], tmp_path)
