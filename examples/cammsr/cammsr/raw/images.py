"""Images of items: fetched in threads into a cache; one that cannot be had is absent."""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path

from cammsr.raw.packages import require
from cammsr.raw.progress import Progress

__all__ = ["Images", "fetch_images"]

LARGEST = 32 << 20  # bytes
GONE = (400, 401, 403, 404, 410, 451)  # for good: not asked for again
BLOCK = 512  # images between two lines of progress


class Images:
    """Where each item's image lies, and why others are absent.

    Args:
        files: a path for each item, None where it has none.
        absent: reason -> number of items.
    """

    def __init__(self, files: list[str | None], absent: Counter[str]) -> None:
        self.files, self.absent = files, absent

    def __str__(self) -> str:
        """One line for a person."""
        there = sum(file is not None for file in self.files)
        said = f"images: {there:,} of {len(self.files):,} items"
        reasons = [f"{count:,} {why}" for why, count in self.absent.most_common()]
        return said + (f"; absent: {', '.join(reasons)}" if reasons else "")


def fetch_images(
    sources: Sequence[str | None],
    cache: Path,
    *,
    threads: int = 16,
    timeout: float = 20.0,
    offline: bool = False,
    say: Callable[[str], None] = print,
) -> Images:
    """Fetch URLs into the cache, and check that they are images; files are used as they are.

    Any error makes the image absent. What a server says is gone, or is no image, is remembered in
    the cache; what timed out or did not answer is asked for again by the next run.

    Args:
        sources: a URL, a file, or nothing, for each item.
        cache: a folder.
        threads: downloads at once.
        timeout: seconds without an answer.
        offline: use what the cache has and ask no server.
        say: prints a line.
    """
    require("PIL.Image", "Reading images")
    cache.mkdir(parents=True, exist_ok=True)
    get = partial(_get, cache=cache, timeout=timeout, offline=offline)
    progress = Progress("images", len(sources), say)
    found: list[tuple[str | None, str]] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(sources), BLOCK):
            found += pool.map(get, sources[start : start + BLOCK])
            progress.at(len(found))
    return Images([path for path, _ in found], Counter(why for _, why in found if why))


class _DeadError(Exception):
    """An image that cannot be had: why, and whether it will stay so."""

    def __init__(self, why: str, *, for_good: bool = False) -> None:
        super().__init__(why)
        self.for_good = for_good


def _get(
    source: str | None, *, cache: Path, timeout: float, offline: bool
) -> tuple[str | None, str]:
    """A path, or None and why."""
    if not source:
        return None, "without an image"
    try:
        if "://" in source:
            return str(_from_cache(source, cache, timeout, offline)), ""
        if not Path(source).is_file():
            raise _DeadError("no such file")
        _check_image(Path(source).read_bytes())
    except _DeadError as error:
        return None, str(error)
    return source, ""


def _from_cache(url: str, cache: Path, timeout: float, offline: bool) -> Path:
    path = cache / hashlib.sha256(url.encode()).hexdigest()
    dead = path.with_suffix(".dead")
    if path.is_file():
        return path
    if dead.is_file():
        raise _DeadError(dead.read_text())
    if offline:
        raise _DeadError("not in the cache")
    try:
        body = _download(url, timeout)
        _check_image(body)
    except _DeadError as error:
        if error.for_good:
            dead.write_text(str(error))
        raise
    part = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
    part.write_bytes(body)
    part.replace(path)
    return path


def _download(url: str, timeout: float) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise _DeadError("not http", for_good=True)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmfuse-prepare"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            body: bytes = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        raise _DeadError(f"HTTP {error.code}", for_good=error.code in GONE) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # URLError holds what happened
        slow = isinstance(reason, TimeoutError)
        raise _DeadError("timed out" if slow else "no connection") from error
    except ValueError as error:
        raise _DeadError("not a URL", for_good=True) from error
    if len(body) > LARGEST:
        raise _DeadError("too large", for_good=True)
    return body


def _check_image(body: bytes) -> None:
    """Whether these bytes can be decoded."""
    pillow = require("PIL.Image", "Reading images")
    try:
        with pillow.open(BytesIO(body)) as image:
            image.convert("RGB")
    except Exception as error:  # whatever a decoder throws at bytes from anywhere
        raise _DeadError("not an image", for_good=True) from error
