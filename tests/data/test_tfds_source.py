"""Prepared TFDS sets: what is read, and what is said where something is wrong."""

import io
import json
import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from tests.data.conftest import CLASSES, prepare_small, random_images
from vit_jax.data import open_splits
from vit_jax.data.decode import decode_image
from vit_jax.data.prepared_writer import write_prepared
from vit_jax.data.tfds_source import default_data_dir, find_prepared, open_tfds


def open_train(data_dir: Path, name: str = "small"):
    return open_splits("tfds", name, data_dir, validation_split=None).train


def test_images_labels_and_names_come_back(small_set: Path) -> None:
    train = open_train(small_set)
    assert (len(train), train.image_shape, train.class_names) == (20, (8, 8, 3), CLASSES)
    assert train.name == "small/1.0.0 train"
    examples = train.__getitems__([19, 0, 7])
    for index, example in zip([19, 0, 7], examples, strict=True):
        np.testing.assert_array_equal(example["image"], random_images(20)[index])
        assert example["label"] == index % 3
        np.testing.assert_array_equal(train[index]["image"], example["image"])


def test_tfds_itself_reads_the_same(small_set: Path) -> None:
    theirs = tfds.data_source("small", split="train", data_dir=small_set)
    for ours, expected in zip(open_train(small_set).__getitems__(range(20)), theirs, strict=True):
        np.testing.assert_array_equal(ours["image"], expected["image"])
        assert ours["label"] == expected["label"]


def test_source_survives_pickling(small_set: Path) -> None:
    train = open_train(small_set)
    train[0]
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[3]["image"], train[3]["image"])


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    images = random_images(4, channels=1)
    write_prepared(
        tmp_path,
        "grey",
        "1.0.0",
        {"train": lambda: ({"id": "", "image": image, "label": 0} for image in images)},
        image_shape=(None, None, 1),
        labels={"label": ["only"]},
        description="",
    )
    train = open_splits("tfds", "grey", tmp_path, validation_split=None, test_split=None).train
    assert train.image_shape is None
    assert train.channels == 1
    np.testing.assert_array_equal(train[2]["image"], images[2])


def test_newest_version_or_the_one_asked_for(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        prepare_small(tmp_path, version=version)
    assert find_prepared("small", tmp_path).name == "1.10.0"
    assert find_prepared("small:1.9.0", tmp_path).name == "1.9.0"
    with pytest.raises(ValueError, match=r"no version 2\.0\.0; it has"):
        find_prepared("small:2.0.0", tmp_path)


def test_data_dir_defaults_to_tfdss_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"


@pytest.mark.parametrize(
    ("name", "directory", "messages"),
    [
        ("cifar100", "nowhere", ["no data directory", "prepare cifar100 --archive cifar-100-bin"]),
        ("smal", ".", ["did you mean small", "vit-jax prepare smal`", "--config.data.data_dir="]),
        ("cifar100", ".", ["not prepared in", "it holds: small"]),
        ("small", "small/1.0.0", ["it is empty"]),
        ("../x", ".", ["is not of the form"]),
    ],
)
def test_missing_set_is_an_error_at_once(
    small_set: Path, name: str, directory: str, messages: list[str]
) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the messages are checked below
        open_splits("tfds", name, small_set / directory)
    assert time.monotonic() - start < 1.0
    assert all(message in str(error.value) for message in messages), error.value
    assert "\n" not in str(error.value)


def test_other_file_formats_are_named(small_set: Path) -> None:
    _edit_json(small_set / "small/1.0.0/dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(ValueError, match="not in the ArrayRecord format"):
        open_train(small_set)


def test_broken_metadata_is_named(small_set: Path) -> None:
    (small_set / "small/1.0.0/features.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a prepared set"):
        open_train(small_set)


_CORE = "tensorflow_datasets.core.features"
_OF_EVIL = {"pythonClassName": "evil.X", "tensor": {}}
_LEGACY = {"type": "evil.X", "content": {}}
_DICT = {"type": f"{_CORE}.features_dict.FeaturesDict"}


@pytest.mark.parametrize(
    "features",
    [
        _OF_EVIL,
        {"python_class_name": "evil.X", "tensor": {}},
        {"featuresDict": {"features": {"image": _OF_EVIL}}},
        {"sequence": {"feature": _OF_EVIL}},
        {**_DICT, "content": {"image": _LEGACY}},
        {**_DICT, "proto_cls": "x", "content": json.dumps({"features": {"image": _OF_EVIL}})},
        {"jsonFeature": {"json": json.dumps({"feature": _LEGACY})}},
        {"pythonClassName": f"{_CORE}.image_feature_test.X", "image": {}},
        {"pythonClassName": "unittest.__main__.X", "image": {}},
    ],
)
def test_no_class_outside_of_tfds_is_loaded(small_set: Path, monkeypatch, features) -> None:
    (small_set / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(small_set)
    path = small_set / "small/1.0.0/features.json"
    path.write_text(
        json.dumps({"pythonClassName": f"{_CORE}.sequence_feature.Sequence"} | features)
    )
    with pytest.raises(ValueError, match=r"names the class '\S+\.X', which is not loaded"):
        open_train(small_set)


@pytest.mark.parametrize(
    "damage",
    ["[]", {"splits": 3, "type": 3}, {"splits": [[]], "featuresDict": 3}, "[" * 100_000],
    ids=range(4),
)
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_metadata_of_wrong_types_are_named(small_set: Path, name: str, damage) -> None:
    path = small_set / "small/1.0.0" / name
    if isinstance(damage, dict):
        damage = json.dumps({**json.loads(path.read_text()), **damage})
    path.write_text(damage)
    with pytest.raises(ValueError, match="cannot be read as a prepared set") as error:
        open_train(small_set)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", ["features.json", "label.labels.txt", "*.array_record-*"])
def test_a_pipe_in_a_prepared_set_is_not_waited_for(small_set: Path, name: str) -> None:
    path = next((small_set / "small/1.0.0").glob(name))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        open_train(small_set)


def test_set_without_labels_is_named(small_set: Path) -> None:
    path = small_set / "small/1.0.0/features.json"
    features = json.loads(path.read_text())
    del features["featuresDict"]["features"]["label"]
    path.write_text(json.dumps(features))
    with pytest.raises(ValueError, match="no image-classification set: wanted one ClassLabel"):
        open_train(small_set)


def test_truncated_file_is_found_when_opened(small_set: Path) -> None:
    path = small_set / "small/1.0.0/small-train.array_record-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"small/1.0.0 train: record 0 cannot be read"):
        open_train(small_set)
    path.unlink()
    with pytest.raises(ValueError, match=r"small/1.0.0 train: record 0 cannot be read"):
        open_train(small_set)


def test_corrupt_record_is_named_also_in_a_batch(small_set: Path) -> None:
    path = small_set / "small/1.0.0/small-train.array_record-00000-of-00001"
    data = bytearray(path.read_bytes())
    middle = data.index(b"PNG", data.index(b"PNG", 0) + 1) + 40  # inside the second record
    data[middle] ^= 255
    path.write_bytes(bytes(data))
    train = open_train(small_set)
    train.__getitems__([0, 2, 3])
    with pytest.raises(ValueError, match=r"small/1.0.0 train: record 1 cannot be read"):
        train.__getitems__([0, 1, 2])
    with pytest.raises(ValueError, match="record 1 cannot be read"):
        train[1]


def test_record_that_is_no_example_is_named(tmp_path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    prepare_small(tmp_path)
    path = tmp_path / "small/1.0.0/small-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(20):
        writer.write(b"\xff\xff no protocol buffer")
    writer.close()
    with pytest.raises(ValueError, match="train: record 0 is no example with features 'image'"):
        open_train(tmp_path)


def test_label_outside_the_classes_is_named(small_set: Path) -> None:
    path = small_set / "small/1.0.0/features.json"
    path.write_text(path.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    labels = small_set / "small/1.0.0/label.labels.txt"
    labels.write_text("ant\nbee\n")
    train = open_train(small_set)
    with pytest.raises(ValueError, match=r"train: image 2 has label 2, .* declares 2 classes"):
        train.__getitems__([0, 1, 2])


def test_images_of_more_than_8_bits_are_refused(small_set: Path) -> None:
    """12-bit values would be read as 8 bits."""
    path = small_set / "small/1.0.0/features.json"
    path.write_text(path.read_text().replace('"uint8"', '"uint16"'))
    with pytest.raises(ValueError, match="holds images of uint16, wanted uint8"):
        open_splits("tfds", "small", small_set)


def test_image_of_another_size_is_named(small_set: Path) -> None:
    path = small_set / "small/1.0.0/features.json"
    path.write_text(path.read_text().replace('"8"', '"9"'))
    with pytest.raises(ValueError, match=r"record 0 is \(8, 8, 3\), the set declares \(9, 9, 3\)"):
        open_tfds("small", small_set)["train"][0]


def test_splits_of_several_shards_are_one(small_set: Path) -> None:
    home = small_set / "small/1.0.0"
    for split in ("train", "test"):  # one set of two shards, made of two splits
        shard = "00000" if split == "train" else "00001"
        (home / f"small-{split}.array_record-00000-of-00001").rename(
            home / f"small-both.array_record-{shard}-of-00002"
        )
    info = json.loads((home / "dataset_info.json").read_text())["splits"]
    merged = {**info[0], "name": "both", "shardLengths": ["20", "10"]}
    _edit_json(home / "dataset_info.json", splits=[merged])
    everything = open_tfds("small", small_set)["both"]
    assert len(everything) == 30
    examples = everything.__getitems__([25, 3, 19, 20])
    for example, (size, index) in zip(examples, [(10, 5), (20, 3), (20, 19), (10, 0)], strict=True):
        np.testing.assert_array_equal(example["image"], random_images(size)[index])


def _encode(image: Image.Image, fmt: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_png_decodes_as_pil_does(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    source = Image.fromarray(pixels[..., :3] if mode == "P" else pixels)
    data = _encode(source.convert(mode), "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, 3, "x"), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_decodes_as_pil_does(mode: str) -> None:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[::-1, None]), -1)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    data = _encode(Image.fromarray(pixels).convert(mode), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.convert("RGB")).astype(int)
    # Zero on one libjpeg; two libraries and the CMYK conversion may round apart.
    assert np.abs(decode_image(data, 3, "x") - expected).max() <= 2


@pytest.mark.parametrize("side", [8_193, 30_000, 60_000])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "BMP"])
def test_images_of_too_many_pixels_are_named_before_they_are_decoded(fmt: str, side: int) -> None:
    """Headers that state a size, and hold next to nothing."""
    order = "<ii" if fmt == "BMP" else ">II" if fmt == "PNG" else ">HH"
    data = _encode(Image.new("RGB", (75, 75)), fmt)
    assert data.count(struct.pack(order, 75, 75)) == 1
    stated = data.replace(struct.pack(order, 75, 75), struct.pack(order, side, side))
    with pytest.raises(ValueError, match=r"photo 3: .*(at most|more than) 67,108,864"):
        decode_image(stated, 3, "photo 3")
    if fmt == "JPEG":  # after a comment that looks like a frame
        comment = b"\xff\xd8\xff\xfe\x00\x04\xff\xc0" + stated[2:]
        with pytest.raises(ValueError, match="at most 67,108,864"):
            decode_image(comment, 3, "photo 3")
    assert decode_image(data, 3, "photo 3").shape == (75, 75, 3)


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_undecodable_bytes_are_named(data: bytes | None) -> None:
    if data is None:
        whole = _encode(Image.fromarray(random_images(1, 32)[0]), "PNG")
        data = whole[: len(whole) // 2]
    with pytest.raises(ValueError, match="photo 3 is not a readable image"):
        decode_image(data, 3, "photo 3")


def _edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
