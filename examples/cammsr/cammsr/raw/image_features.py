"""Published image features of Amazon 2014: records of an asin and 4,096 numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cammsr.raw.faults import Faults
from cammsr.validate import DatasetError

__all__ = ["ASIN_BYTES", "WIDTH", "read_image_features"]

ASIN_BYTES = 10
WIDTH = 4096
RECORD = np.dtype([("asin", f"S{ASIN_BYTES}"), ("values", "<f4", (WIDTH,))])
RECORDS_A_READ = 256


def read_image_features(
    path: Path,
    place: Mapping[str, int],
    out: NDArray[np.float32],  # (V, 4096)
    faults: Faults,
) -> int:
    """Copy the features of known items to their rows, and say how many items had some.

    The file is read in pieces, so that its size does not matter. Unknown items are passed over; a
    record that is not finite is a fault, and its item lacks the modality.

    Args:
        path: the file.
        place: asin -> row of ``out``.
        out: zeros.
        faults: counts records and faults; the caller checks it in the end.

    Raises:
        DatasetError: the file is empty or ends within a record.
    """
    size = path.stat().st_size
    if size == 0 or size % RECORD.itemsize:
        raise DatasetError(
            f"{path}: expected records of {RECORD.itemsize:,} bytes, got {size:,} bytes, which is "
            f"{size // RECORD.itemsize:,} records and {size % RECORD.itemsize:,} bytes. "
            "The download is incomplete: fetch it again."
        )
    found = 0
    with path.open("rb") as file:
        while len(records := np.fromfile(file, RECORD, RECORDS_A_READ)):
            found += _copy(records, place, out, faults)
    return found


def _copy(
    records: NDArray[Any], place: Mapping[str, int], out: NDArray[np.float32], faults: Faults
) -> int:
    found = 0
    for record in records:
        faults.seen += 1
        asin = bytes(record["asin"]).decode("ascii", errors="replace").strip()
        values = record["values"]
        row = place.get(asin)
        if not asin.isascii() or not asin.isalnum():
            faults.add(faults.seen, f"asin {asin!r} is not ASCII letters and digits")
        elif row is not None and not np.isfinite(values).all():
            faults.add(faults.seen, f"the features of {asin} are not finite")
        elif row is not None and values.any() and not out[row].any():
            out[row] = values
            found += 1
    return found
