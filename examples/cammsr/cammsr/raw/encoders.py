"""Encoders of text and of images: batches of inputs to vectors, with a name and a revision.

Whatever keeps to :class:`Encoder` can be used; these are the ones that the command line offers.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cammsr.raw.packages import require
from cammsr.validate import DatasetError

__all__ = ["Encoder", "HashEncoder", "build_encoder", "check_encoder", "packages_of"]

Floats = NDArray[np.float32]


class Encoder(Protocol):
    """Texts, or image files, to vectors."""

    name: str
    revision: str  # that of the weights; other weights have another
    how: str  # whatever else its vectors depend on
    width: int

    def __call__(self, batch: Sequence[str]) -> Floats:  # (B, width)
        """Encode a batch; image files are given by their paths."""


class HashEncoder:
    """A bag of words by the hashing trick: needs no model, and is a weak stand-in for one.

    Every word adds 1 or -1 at a place that its checksum names, and the sum is scaled to length
    one. Two texts are near if they share words; that two words mean the same it cannot know.
    """

    name = "hash"
    revision = "1"
    how = "signed counts of words"

    def __init__(self, width: int = 256) -> None:
        self.width = width

    def __call__(self, batch: Sequence[str]) -> Floats:
        """The same text has the same vector, on every machine."""
        out = np.zeros((len(batch), self.width), dtype=np.float32)
        for row, text in zip(out, batch, strict=True):
            for word in re.findall(r"\w+", text.casefold()):
                code = zlib.crc32(word.encode())
                row[(code >> 1) % self.width] += 1 if code & 1 else -1
        length = np.linalg.norm(out, axis=1, keepdims=True)
        np.divide(out, length, out=out, where=length > 0)
        return out


class _Transformer:
    """The first position, [CLS], of the last layer of a model of ``transformers``."""

    def __init__(
        self, model: Any, prepare: Callable[[Sequence[str]], Any], name: str, how: str
    ) -> None:
        config = model.config
        if not isinstance(getattr(config, "hidden_size", None), int):
            raise DatasetError(
                f"{name} is a {config.model_type}, which has no single last layer. "
                "Choose an encoder such as BERT for text, or ViT for images."
            )
        self.name, self.width = name, int(config.hidden_size)
        self.revision = str(getattr(config, "_commit_hash", None) or _fingerprint(name))
        self.model, self.prepare, self.how = model.eval(), prepare, how

    def __call__(self, batch: Sequence[str]) -> Floats:
        with torch.inference_mode():
            inputs = self.prepare(batch).to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state  # (B, L, D)
        out: Floats = hidden[:, 0].float().cpu().numpy()
        return out


class _Sentences:
    """A model of ``sentence-transformers`` with the pooling that it was trained with."""

    def __init__(self, model: Any, name: str) -> None:
        self.name, self.model = name, model.eval()
        self.how = f"its own pooling, {model.max_seq_length} tokens"
        self.width = len(model.encode([""], show_progress_bar=False)[0])
        config = getattr(getattr(model[0], "auto_model", None), "config", None)
        self.revision = str(getattr(config, "_commit_hash", None) or _fingerprint(name))

    def __call__(self, batch: Sequence[str]) -> Floats:
        vectors = self.model.encode(list(batch), batch_size=len(batch), show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def packages_of(name: str) -> tuple[str, ...]:
    """The packages that an encoder of this name needs."""
    if name in ("none", "hash"):
        return ()
    return ("transformers", "sentence_transformers") if _is_sentences(name) else ("transformers",)


INSTEAD = {
    "text": ", or give --text_encoder hash, which needs neither a package nor a model",
    "image": ", or give --image_encoder none",
}


def check_encoder(kind: Literal["text", "image"], name: str) -> None:
    """Say early what is missing, before hours of reading."""
    if kind == "image" and name == "hash":
        raise DatasetError("Expected --image_encoder none or a model such as ViT, got hash.")
    needed = (*packages_of(name), *(["PIL"] if kind == "image" and name != "none" else []))
    for package in needed:
        require(package, f"The {kind} encoder {name}", INSTEAD[kind])


def build_encoder(
    kind: Literal["text", "image"],
    name: str,
    *,
    revision: str | None = None,
    max_length: int = 512,
    offline: bool = False,
    device: str = "cpu",
) -> Encoder:
    """An encoder by its name: ``"hash"``, a model on the hub, or a folder that holds one.

    Args:
        kind: what it reads.
        name: names that begin with ``sentence-transformers/``, and folders with a modules.json,
            are loaded with that package; everything else gives its [CLS].
        revision: a branch, tag or commit on the hub.
        max_length: tokens at most, for text.
        offline: use only what is already in the hub's cache.
        device: where to compute.
    """
    check_encoder(kind, name)
    if name == "hash":
        return HashEncoder()
    known: dict[str, Any] = {"revision": revision, "local_files_only": offline}
    try:
        if kind == "text" and _is_sentences(name):
            module = require("sentence_transformers", name)
            model = module.SentenceTransformer(name, device=device, **known)
            model.max_seq_length = min(max_length, model.max_seq_length or max_length)
            return _Sentences(model, name)
        transformers = require("transformers", name)
        model = transformers.AutoModel.from_pretrained(name, **known).to(device)
        if kind == "image":
            inputs = _image_inputs(transformers, name, known)
            return _Transformer(model, inputs, name, "[CLS]")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **known)
        longest = min(max_length, tokenizer.model_max_length)
        inputs = _text_inputs(tokenizer, longest)
        return _Transformer(model, inputs, name, f"[CLS], {longest} tokens")
    except (OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        said = " ".join(str(error).split())[:300]
        raise DatasetError(f"The {kind} encoder {name} cannot be loaded: {said}") from error


def _text_inputs(tokenizer: Any, longest: int) -> Callable[[Sequence[str]], Any]:
    def prepare(batch: Sequence[str]) -> Any:
        return tokenizer(
            list(batch), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )

    return prepare


def _image_inputs(transformers: Any, name: str, known: Any) -> Callable[[Sequence[str]], Any]:
    processor = transformers.AutoImageProcessor.from_pretrained(name, **known)
    pillow = require("PIL.Image", name)

    def prepare(batch: Sequence[str]) -> Any:
        images = [pillow.open(path).convert("RGB") for path in batch]
        return processor(images=images, return_tensors="pt")

    return prepare


def _is_sentences(name: str) -> bool:
    return name.startswith("sentence-transformers/") or Path(name, "modules.json").is_file()


def _fingerprint(name: str) -> str:
    """A local model has no commit: its weights are its revision."""
    digest = hashlib.sha256()
    for path in sorted(Path(name).rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json", ".txt") and path.is_file():
            digest.update(f"{path.relative_to(name)}\n".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
