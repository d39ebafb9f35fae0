"""From a source of raw data to a dataset folder."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cammsr.raw.encode import encode
from cammsr.raw.encoders import Encoder, build_encoder, check_encoder
from cammsr.raw.folder import check_output, new_features, new_folder, write_note, write_tables
from cammsr.raw.image_features import WIDTH, read_image_features
from cammsr.raw.images import fetch_images
from cammsr.raw.interactions import Duplicates, Interactions, number
from cammsr.raw.source import Source, Work
from cammsr.validate import DatasetError

__all__ = ["BERT", "VIT", "Settings", "prepare"]

BERT = "google-bert/bert-base-uncased"
VIT = "google/vit-base-patch16-224-in21k"


@dataclass(frozen=True)
class Settings:
    """What is done with raw data of every kind.

    Args:
        output: The dataset folder to write.
        overwrite: Whether to replace a dataset folder that is already there.
        cache: Downloads, images and finished shards of features are kept here.
        offline: Download nothing: use local files and what the cache has.
        corrupt_limit: Largest share of unreadable rows that is let pass.
        duplicates: "event" drops rows that repeat user, item and timestamp, "item" keeps the first
            time that a user takes an item, "keep" keeps all.
        k_core: Drop users and items with fewer interactions until none is left; 0 keeps all.
        text_encoder: A model of transformers ([CLS]) or sentence-transformers, "hash" or "none".
        text_revision: Its branch, tag or commit.
        text_tokens: Tokens of a text at most.
        image_encoder: A vision model of transformers ([CLS]), or "none".
        image_revision: Its branch, tag or commit.
        image_threads: Images fetched at once.
        image_timeout: Seconds until an image counts as dead.
        batch_size: Texts or images a batch.
        device: Where encoders run.
    """

    output: str
    overwrite: bool = False
    cache: str = "~/.cache/mmfuse"
    offline: bool = False
    corrupt_limit: float = 0.001
    duplicates: Duplicates = "event"
    k_core: int = 0
    text_encoder: str = BERT
    text_revision: str | None = None
    text_tokens: int = 512
    image_encoder: str = "none"
    image_revision: str | None = None
    image_threads: int = 16
    image_timeout: float = 20.0
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if not 0 <= self.corrupt_limit <= 1:
            raise DatasetError(f"Expected 0 <= corrupt_limit <= 1, got {self.corrupt_limit}.")
        for name in ("text_tokens", "image_threads", "batch_size"):
            if getattr(self, name) < 1:
                raise DatasetError(f"Expected {name} >= 1, got {getattr(self, name)}.")
        if self.k_core < 0:
            raise DatasetError(f"Expected k_core >= 0, got {self.k_core}.")


def prepare(
    source: Source,
    settings: Settings,
    *,
    text_encoder: Encoder | None = None,
    image_encoder: Encoder | None = None,
) -> Path:
    """Write the dataset folder, or nothing.

    Args:
        source: the raw data.
        settings: what to do with it.
        text_encoder: instead of the one that the settings name.
        image_encoder: likewise.

    Returns:
        The folder.
    """
    output = Path(settings.output).expanduser().resolve()
    check_output(output, overwrite=settings.overwrite)
    _check_features(source, settings, text_encoder, image_encoder)
    with (
        new_folder(output, overwrite=settings.overwrite) as folder,
        tempfile.TemporaryDirectory(prefix=f".{output.name}.raw.", dir=output.parent) as scratch,
    ):
        cache = Path(settings.cache).expanduser()
        work = Work(Path(scratch), cache, settings.offline, settings.corrupt_limit, _say)
        interactions = _interactions(source, settings, work)
        items = source.describe(interactions.items, work)
        write_tables(folder, interactions, items)
        notes: dict[str, Any] = {}
        _Features(folder, items, settings, work, notes).write(source, text_encoder, image_encoder)
        write_note(folder, "prepared", _note(source, settings, interactions, items, notes))
    _say(f"The dataset is in {output}")
    return output


def _check_features(
    source: Source, settings: Settings, text: Encoder | None, image: Encoder | None
) -> None:
    """What is missing is said before anything is read."""
    if text is None:
        check_encoder("text", settings.text_encoder)
    if image is None and source.published_images is None:
        check_encoder("image", settings.image_encoder)
    named = {settings.text_encoder, settings.image_encoder} - {"none"}
    published = source.published_images
    if published is not None and "://" not in published and not Path(published).is_file():
        raise DatasetError(f"{published} is not a file. Give the file of image features.")
    if not (text or image or named or published):
        raise DatasetError(
            "There would be no features at all. Give --text_encoder (hash needs no model), "
            "--image_encoder or image features."
        )


class _Features:
    """The features of one folder."""

    def __init__(
        self,
        folder: Path,
        items: pl.DataFrame,
        settings: Settings,
        work: Work,
        notes: dict[str, Any],
    ) -> None:
        self.folder, self.items, self.settings = folder, items, settings
        self.work, self.notes = work, notes

    def write(self, source: Source, text: Encoder | None, image: Encoder | None) -> None:
        """Every modality that is asked for."""
        settings = self.settings
        if text is None and settings.text_encoder != "none":
            text = self._build("text", settings.text_encoder, settings.text_revision)
        if text is not None:
            self._encode("text", text, self.items["text"].to_list())
        if source.published_images is not None:
            self._copy(self.work.fetch(source.published_images))
        else:
            if image is None and settings.image_encoder != "none":
                image = self._build("image", settings.image_encoder, settings.image_revision)
            if image is not None:
                self._encode("image", image, self._images())
            elif self.items["image"].count():
                self.work.say(
                    f"image: {self.items['image'].count():,} items name an image, which is not "
                    "encoded: --image_encoder is none"
                )

    def _build(self, kind: Literal["text", "image"], name: str, revision: str | None) -> Encoder:
        settings = self.settings
        return build_encoder(
            kind,
            name,
            revision=revision,
            max_length=settings.text_tokens,
            offline=settings.offline,
            device=settings.device,
        )

    def _images(self) -> list[str | None]:
        found = fetch_images(
            self.items["image"].to_list(),
            self.work.cache / "images",
            threads=self.settings.image_threads,
            timeout=self.settings.image_timeout,
            offline=self.work.offline,
            say=self.work.say,
        )
        self.work.say(str(found))
        return found.files

    def _encode(self, modality: str, encoder: Encoder, inputs: list[str | None]) -> None:
        out = new_features(self.folder, modality, len(inputs), encoder.width)
        is_text = modality == "text"
        done = encode(
            inputs,
            encoder,
            out,
            cache=self.work.cache / "features" / modality,
            batch_size=self.settings.batch_size,
            contents=str.encode if is_text else lambda file: Path(file).read_bytes(),
            say=self.work.say,
        )
        self.work.say(f"{modality}: {done.computed:,} encoded now, {done.reused:,} before")
        told = {"encoder": encoder.name, "revision": encoder.revision, "how": encoder.how}
        self._close(modality, out, done.present, told)

    def _copy(self, path: Path) -> None:
        place = {item: i for i, item in enumerate(self.items["item"].to_list())}
        out = new_features(self.folder, "image", len(place), WIDTH)
        faults = self.work.faults(path.name, "record")
        found = read_image_features(path, place, out, faults)
        faults.check()
        self.work.say(f"{faults}; {found:,} of {len(place):,} items have features")
        told = {"encoder": "published", "revision": path.name, "how": "as published"}
        self._close("image", out, found, told)

    def _close(
        self, modality: str, out: NDArray[np.float32], present: int, told: dict[str, str]
    ) -> None:
        """Flush the array, and write down where it comes from."""
        if present == 0:
            raise DatasetError(
                f"No item has the modality {modality}. Leave it out, or see why above."
            )
        if isinstance(out, np.memmap):
            out.flush()
        note = {
            **told,
            "width": out.shape[1],
            "items": len(out),
            "present": present,
        }
        write_note(self.folder, f"features_{modality}", note)
        self.notes[modality] = note
        self.work.say(f"{modality}: {present:,} of {len(out):,} items, width {out.shape[1]}")


def _interactions(source: Source, settings: Settings, work: Work) -> Interactions:
    raw = source.interactions(work)
    found = number(raw, duplicates=settings.duplicates, k_core=settings.k_core)
    work.say(
        f"{len(found.rows):,} interactions of {len(found.users):,} users with "
        f"{len(found.items):,} items; dropped {found.duplicates:,} duplicates"
        + (f", {found.thinned:,} outside the {settings.k_core}-core" if settings.k_core else "")
    )
    return found


def _note(
    source: Source,
    settings: Settings,
    interactions: Interactions,
    items: pl.DataFrame,
    features: dict[str, Any],
) -> dict[str, Any]:
    """What was done, for whoever finds the folder later."""
    return {
        "source": {"kind": type(source).__name__, **source.note()},
        "settings": {name: value for name, value in asdict(settings).items() if name != "output"},
        "interactions": len(interactions.rows),
        "users": len(interactions.users),
        "items": len(items),
        "rows_read": interactions.read,
        "duplicates_dropped": interactions.duplicates,
        "outside_the_core": interactions.thinned,
        "items_without_title": items["title"].null_count(),
        "items_without_category": items["category"].null_count(),
        "features": features,
    }


def _say(line: str) -> None:
    print(line, flush=True)
