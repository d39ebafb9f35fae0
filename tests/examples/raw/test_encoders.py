"""Encoders by name; those of transformers with tiny random weights, where it is installed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cammsr.raw.encoders import HashEncoder, build_encoder, check_encoder, packages_of
from cammsr.validate import DatasetError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "rug", "lamp"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}

# -- words -----------------------------------------------------------------------------------------


def test_hash_is_a_bag_of_words() -> None:
    encoder = build_encoder("text", "hash")
    a, b, c, nothing = encoder(["Red rug, red!", "RUG red red", "lamp", "!?"])
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not nothing.any()
    assert np.linalg.norm([a, c], axis=1) == pytest.approx([1, 1])
    assert (encoder.name, encoder.revision, encoder.width) == ("hash", "1", 256)


def test_hash_is_the_same_everywhere() -> None:
    vector = HashEncoder(8)(["red rug red"])[0]
    expected = np.zeros(8)
    expected[place("red")] += 2 * sign("red")
    expected[place("rug")] += sign("rug")
    assert vector == pytest.approx(expected / np.sqrt(5), abs=1e-6)


def crc32(text: str) -> int:
    """Bit by bit."""
    value = 0xFFFFFFFF
    for byte in text.encode():
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def place(word: str) -> int:
    return (crc32(word) >> 1) % 8


def sign(word: str) -> int:
    return 1 if crc32(word) & 1 else -1


# -- what is missing is said early -----------------------------------------------------------------


def test_packages_of_a_name(tmp_path: Path) -> None:
    assert packages_of("none") == packages_of("hash") == ()
    assert packages_of("google-bert/bert-base-uncased") == ("transformers",)
    sentences = ("transformers", "sentence_transformers")
    assert packages_of("sentence-transformers/all-MiniLM-L6-v2") == sentences
    (tmp_path / "modules.json").write_text("[]")
    assert packages_of(str(tmp_path)) == sentences


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DatasetError, match=r"text encoder a/b needs the package transformers"):
        check_encoder("text", "a/b")
    check_encoder("text", "hash")
    check_encoder("image", "none")


def test_there_is_no_bag_of_words_of_images() -> None:
    with pytest.raises(DatasetError, match=r"Expected --image_encoder none or a model.*got hash"):
        check_encoder("image", "hash")


# -- transformers ----------------------------------------------------------------------------------


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def bert(transformers: Any, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path / "bert")
    config = transformers.BertConfig(vocab_size=len(WORDS), **SMALL)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_text_is_the_first_position_of_the_last_layer(bert: Path, transformers: Any) -> None:
    encoder = build_encoder("text", str(bert), offline=True)
    vectors = encoder(["red rug", "lamp"])
    model = transformers.AutoModel.from_pretrained(bert).eval()
    with torch.inference_mode():
        alone = model(torch.tensor([[2, 7, 3]])).last_hidden_state[0, 0]  # [CLS] lamp [SEP]
    assert vectors[1] == pytest.approx(alone.numpy(), abs=1e-5), "padding does not count"
    assert (vectors.shape, vectors.dtype, encoder.width) == ((2, 16), np.float32, 16)


def test_sentence_transformers_keep_their_own_pooling(
    bert: Path, transformers: Any, tmp_path: Path
) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    sentences.SentenceTransformer(str(bert)).save(str(tmp_path / "st"))  # the mean
    encoder = build_encoder("text", str(tmp_path / "st"), offline=True)
    model = transformers.AutoModel.from_pretrained(bert).eval()
    with torch.inference_mode():
        mean = model(torch.tensor([[2, 7, 3]])).last_hidden_state[0].mean(0)
    assert encoder(["red rug", "lamp"])[1] == pytest.approx(mean.numpy(), abs=1e-5)
    assert (encoder.width, encoder.revision[:7]) == (16, "sha256:")


def test_long_texts_are_cut(bert: Path) -> None:
    encoder = build_encoder("text", str(bert), max_length=4)
    assert np.array_equal(encoder(["red rug lamp lamp"]), encoder(["red rug red"]))
    assert encoder.how == "[CLS], 4 tokens"


def test_weights_are_the_revision_of_a_local_model(bert: Path, transformers: Any) -> None:
    first = build_encoder("text", str(bert)).revision
    assert first.startswith("sha256:")
    assert build_encoder("text", str(bert)).revision == first
    config = transformers.BertConfig(vocab_size=len(WORDS), **SMALL)
    transformers.BertModel(config).save_pretrained(bert)
    assert build_encoder("text", str(bert)).revision != first


def test_an_image_is_the_first_position_too(
    transformers: Any, tmp_path: Path, png: Any, recwarn: Any
) -> None:
    config = transformers.ViTConfig(image_size=32, patch_size=16, **SMALL)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "vit")
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "blue.png").write_bytes(png("blue"))
    encoder = build_encoder("image", str(tmp_path / "vit"))
    red, blue = encoder([str(tmp_path / "red.png"), str(tmp_path / "blue.png")])
    assert red.shape == (16,)
    assert np.abs(red - blue).max() > 1e-3


def test_what_cannot_be_loaded_is_named(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"The text encoder .*nothing cannot be loaded"):
        build_encoder("text", str(tmp_path / "nothing"), offline=True)
