"""Downloads into a cache: broken-off ones go on where they stopped, checksums are verified.

A local file is used as it is, so that everything works without a network.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cammsr.raw.packages import require
from cammsr.raw.progress import Progress
from cammsr.validate import DatasetError

__all__ = ["fetch", "fetch_from_hub"]

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


def fetch(
    source: str,
    cache: Path,
    *,
    known_hash: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """The local file of a path or a URL.

    Args:
        source: a path, or a URL of http or https.
        cache: where downloads are kept.
        known_hash: what the file must hash to: a sha256, or ``"md5:..."``.
        offline: whether a URL must already lie in the cache.
        say: prints a line.

    Raises:
        DatasetError: there is no such file, it cannot be downloaded, or its checksum is another.
    """
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise DatasetError(
                f"{Path(source).absolute()} is not a file. Give a file, or a URL to download."
            )
        return path
    address = hashlib.sha256(source.encode()).hexdigest()[:12]
    name = f"{address}-{Path(source.partition('?')[0]).name or 'file'}"
    if offline:
        return _cached(source, cache / name, known_hash)
    pooch = require("pooch", f"Downloading {source}")
    pooch.get_logger().setLevel("WARNING")
    try:
        found = pooch.retrieve(
            source, known_hash, fname=name, path=cache, downloader=_Resume(cache / name, say)
        )
    except (OSError, ValueError) as error:  # ValueError: another checksum
        raise DatasetError(f"{source} could not be downloaded: {error}") from error
    return Path(found)


def fetch_from_hub(
    repository: str, name: str, *, revision: str, cache: Path, offline: bool
) -> Path:
    """A file of a data set on the Hugging Face hub; the hub's client resumes and verifies."""
    hub = require("huggingface_hub", f"Downloading {name} of {repository}")
    try:
        found = hub.hf_hub_download(
            repository,
            name,
            repo_type="dataset",
            revision=revision,
            cache_dir=cache,
            local_files_only=offline,
        )
    except (OSError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"{name} of {repository} could not be downloaded: {said} "
            "Fetch it by hand and give the file."
        ) from error
    return Path(found)


def _cached(source: str, path: Path, known_hash: str | None) -> Path:
    if not path.is_file():
        raise DatasetError(
            f"{source} is not in the cache {path.parent} and --offline is set. "
            "Fetch it by hand and give the file."
        )
    if known_hash is not None:
        method, _, wanted = known_hash.rpartition(":")
        with path.open("rb") as file:
            got = hashlib.file_digest(file, method or "sha256").hexdigest()
        if got != wanted:
            raise DatasetError(f"{path}: expected the checksum {wanted}, got {got}. Delete it.")
    return path


class _Resume:
    """A downloader for pooch that keeps what has arrived in ``<file>.part``."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.part, self.say = path.with_name(f"{path.name}.part"), say

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Download into a part file of the cache, then move it to where pooch wants it."""
        part = self.part
        tag = part.with_name(f"{part.name}.tag")
        request = urllib.request.Request(url, headers={"User-Agent": "mmfuse-prepare"})
        if part.is_file() and tag.is_file():  # go on only if the file there is still the same
            request.add_header("Range", f"bytes={part.stat().st_size}-")
            request.add_header("If-Range", tag.read_text())
        self.say(f"downloading {url}")
        try:
            _receive(request, part, tag, self.say)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            part.unlink()
            request.remove_header("Range")
            _receive(request, part, tag, self.say)
        part.replace(output_file)
        tag.unlink(missing_ok=True)


def _receive(
    request: urllib.request.Request, part: Path, tag: Path, say: Callable[[str], None]
) -> None:
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        before = part.stat().st_size if goes_on else 0
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        tag.write_text(mark) if mark else tag.unlink(missing_ok=True)
        expected = before + int(answer.headers.get("Content-Length") or 0)
        progress = Progress("downloaded", expected // CHUNK, say, unit="MiB", start=before // CHUNK)
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.at(file.tell() // CHUNK)
            size = file.tell()
    if expected > before and size != expected:
        raise OSError(f"got {size:,} of {expected:,} bytes; start again to go on from there")
