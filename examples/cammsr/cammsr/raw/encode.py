"""Encoding a catalogue in shards, so that what was finished is not computed twice.

A shard's file is named by a hash of everything that its vectors depend on: the encoder's name,
revision and way of working, and the inputs themselves. A broken-off run goes on where it stopped;
another encoder, another revision or another text is another file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cammsr.raw.encoders import Encoder
from cammsr.raw.progress import Progress
from cammsr.validate import DatasetError

__all__ = ["Encoded", "encode"]

SHARD = 1024  # inputs
Floats = NDArray[np.float32]


class Encoded(NamedTuple):
    """How many inputs were encoded now, how many before, and how many vectors are not zero."""

    computed: int
    reused: int
    present: int


def encode(
    inputs: Sequence[str | None],
    encoder: Encoder,
    out: Floats,  # (V, width), zeros
    *,
    cache: Path,
    batch_size: int = 32,
    contents: Callable[[str], bytes] = str.encode,
    say: Callable[[str], None] = print,
) -> Encoded:
    """Encode the inputs into the rows of ``out``; an absent input leaves its row zero.

    Args:
        inputs: a text, or an image's file; None or empty is absent.
        encoder: turns a batch of them into vectors.
        out: where the vectors go, for example a memory map.
        cache: the folder of finished shards.
        batch_size: inputs a batch.
        contents: what of an input the vectors depend on; for a file, its bytes.
        say: prints a line.

    Raises:
        DatasetError: the encoder gives vectors of another shape or that are not finite.
    """
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(f"{encoder.name}", len(inputs), say)
    computed = reused = present = 0
    for start in range(0, len(inputs), SHARD):
        shard = inputs[start : start + SHARD]
        there = [i for i, value in enumerate(shard) if value]
        values = [str(shard[i]) for i in there]
        file = cache / f"{_key(encoder, values, contents)}.npy"
        vectors = _read(file, (len(values), encoder.width))
        if vectors is None:
            vectors = np.empty((len(values), encoder.width), dtype=np.float32)
            for rows in _batches(values, batch_size):
                vectors[rows] = _run(encoder, [values[i] for i in rows])
                computed += len(rows)
                progress.at(start + computed % SHARD)
            _write(file, vectors)
        else:
            reused += len(values)
        out[[start + i for i in there]] = vectors
        present += int(vectors.any(axis=1).sum())
        progress.at(start + len(shard))
    return Encoded(computed, reused, present)


def _batches(values: list[str], size: int) -> Iterator[list[int]]:
    """Inputs of similar length together: padding costs as much as words do."""
    order = sorted(range(len(values)), key=lambda i: len(values[i]))
    return (order[i : i + size] for i in range(0, len(order), size))


def _run(encoder: Encoder, batch: list[str]) -> Floats:
    vectors = np.asarray(encoder(batch))
    expected = (len(batch), encoder.width)
    if vectors.shape != expected:
        raise DatasetError(
            f"Expected the encoder {encoder.name} to give {expected}, got {vectors.shape}."
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise DatasetError(
            f"The encoder {encoder.name} gives NaN or infinity for "
            f"{batch[int(finite.argmin())][:60]!r}."
        )
    return vectors.astype(np.float32)


def _key(encoder: Encoder, values: list[str], contents: Callable[[str], bytes]) -> str:
    depends = (encoder.name, encoder.revision, encoder.how, str(encoder.width))
    digest = hashlib.sha256("\0".join(depends).encode())
    for value in values:
        digest.update(hashlib.sha256(contents(value)).digest())
    return digest.hexdigest()[:32]


def _read(file: Path, shape: tuple[int, int]) -> Floats | None:
    """A finished shard; a file that is not one is computed anew."""
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(vectors, np.ndarray) and vectors.shape == shape
    return vectors if fits and vectors.dtype == np.float32 else None


def _write(file: Path, vectors: Floats) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    with partial.open("wb") as out:
        np.save(out, vectors, allow_pickle=False)
    partial.replace(file)
