"""JSON lines, plain or gzipped: one object a line, corrupt lines counted.

Older Amazon metadata are Python literals (``{'asin': '0001', ...}``); these are parsed as literals
and never evaluated.
"""

from __future__ import annotations

import ast
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from cammsr.raw.faults import Faults
from cammsr.raw.progress import Progress
from cammsr.validate import DatasetError

__all__ = ["Lines", "read_lines"]

Lines = Iterator[tuple[int, dict[str, Any]]]  # numbers, from 1, and objects

GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 10_000  # lines between two looks at the clock


def read_lines(
    path: Path,
    faults: Faults,
    *,
    literals: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Lines:
    """Yield each line's number, from 1, and its object.

    A line that is not UTF-8, does not parse or is no object is counted and left out. Blank lines
    are skipped. Whether a file is gzipped is told by its first bytes.

    Args:
        path: the file.
        faults: counts lines and faults; the caller checks it in the end.
        literals: whether a line may be a Python literal instead of JSON.
        say: prints a line of progress.

    Raises:
        DatasetError: the file is missing, empty, or a gzip file that breaks off.
    """
    number, progress = 0, Progress(f"reading {path.name}", 0, say, unit="lines")
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if number % BLOCK == 0:
                    progress.at(number)
                faults.seen += 1
                try:
                    yield number, _parse(line, literals)
                except _FaultError as fault:
                    faults.add(number, str(fault))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(
            f"{path} breaks off after line {number} ({error}): the download is incomplete or "
            "damaged. Fetch it again."
        ) from error
    if faults.seen == 0:
        raise DatasetError(f"{path} has no lines. Fetch it again.")


class _FaultError(Exception):
    pass


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise DatasetError(f"{path} is not a file. Give the file, or a category to download.")
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.GzipFile(path)) if zipped else path.open("rb")


def _parse(line: bytes, literals: bool) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _FaultError(f"not UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not literals:
            raise _FaultError(f"not JSON, {_shorten(text)}") from error
        value = _parse_literal(text)
    if not isinstance(value, dict):
        raise _FaultError(f"no object but {type(value).__name__}, {_shorten(text)}")
    return value


def _parse_literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backslashes that old dumps leave as they were
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise _FaultError(f"neither JSON nor a literal, {_shorten(text)}") from error


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
