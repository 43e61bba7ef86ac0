"""Writes a set in TFDS's layout, as ArrayRecord, without TensorFlow and without TFDS's builders."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.storage import system_error

_FEATURES = "tensorflow_datasets.core.features"


def write_prepared(
    data_dir: str | os.PathLike[str],
    name: str,
    version: str,
    splits: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]],
    *,
    image_shape: tuple[int | None, int | None, int],
    labels: Mapping[str, Sequence[str]],
    description: str,
) -> Path:
    """Writes data_dir/NAME/VERSION, which `tfds.builder_from_directory` and `open_tfds` read.

    The directory appears whole or not at all: it is written under a hidden name beside its place,
    and renamed at the end. An existing one is never touched. What a writer that was killed left is
    removed by the next one of the same set.

    Args:
        data_dir: holds prepared sets; made if need be.
        name: of the set.
        version: such as "1.0.0".
        splits: for each split a function that yields its examples: `id` (str), `image` (H, W, C)
            uint8, RGB or grey, stored as PNG, and an int for each key of `labels`.
        image_shape: (height, width, channels), None where it varies.
        labels: for each label feature its class names; "label" is the one to be learned.
        description: one or two sentences on the set.

    Returns:
        The directory.

    Raises:
        ValueError: the directory exists, or cannot be written.
    """
    final = Path(data_dir).expanduser() / name / version
    if final.exists():
        raise ValueError(
            f"{final} exists already and is left as it is; remove it first to prepare {name} again"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _incomplete(final) as partial:
            infos = [
                _write_split(partial, name, split, examples(), labels)
                for split, examples in splits.items()
            ]
            _write_metadata(partial, name, version, infos, image_shape, labels, description)
            partial.chmod(0o755)  # mkdtemp makes it private
            partial.rename(final)
    except (OSError, RuntimeError) as error:  # array_record has the latter alone
        reason = system_error(error, final)
        if reason is None:
            raise
        raise ValueError(f"{final} cannot be written: {reason}") from error
    return final


@contextlib.contextmanager
def _incomplete(final: Path) -> Iterator[Path]:
    """A hidden directory beside `final`, held by this process, which is gone at the end.

    The system lets go of it with the process, however that ends: those that nobody holds are what
    killed writers left, and are removed.
    """
    prefix = f".{final.name}.incomplete-"
    home = os.open(final.parent, os.O_RDONLY)
    try:
        fcntl.flock(home, fcntl.LOCK_EX)  # until ours is held
        for left in final.parent.glob(f"{prefix}*"):
            with contextlib.suppress(BlockingIOError):
                os.close(_held(left))
                shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
        ours = _held(partial)
    finally:
        os.close(home)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already where it was renamed
        os.close(ours)


def _held(directory: Path) -> int:
    """A descriptor that holds a directory for this process; BlockingIOError where another does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_split(
    directory: Path,
    name: str,
    split: str,
    examples: Iterable[Mapping[str, Any]],
    labels: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Writes one split as one shard; returns its entry for dataset_info.json."""
    import cv2
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    protos: Any = tf_example_pb2  # generated code, which type checkers cannot see into
    path = directory / f"{name}-{split}.array_record-00000-of-00001"
    count = num_bytes = 0
    writer = ArrayRecordWriter(str(path), "group_size:1")  # each record readable by itself
    try:
        for example in examples:
            image: np.ndarray = example["image"]
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
            encoded, png = cv2.imencode(".png", bgr)
            assert encoded, "OpenCV encodes any uint8 image of 1 or 3 channels"
            proto = protos.Example()
            features = proto.features.feature
            features["id"].bytes_list.value.append(example["id"].encode())
            features["image"].bytes_list.value.append(png.tobytes())
            for key in labels:
                features[key].int64_list.value.append(int(example[key]))
            record = proto.SerializeToString(deterministic=True)
            writer.write(record)
            count += 1
            num_bytes += len(record)
    finally:
        writer.close()
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(num_bytes),
        "shardLengths": [str(count)],
    }


def _write_metadata(
    directory: Path,
    name: str,
    version: str,
    infos: Sequence[Mapping[str, Any]],
    image_shape: tuple[int | None, int | None, int],
    labels: Mapping[str, Sequence[str]],
    description: str,
) -> None:
    """dataset_info.json, features.json and the class names, as TFDS 4.9 writes them."""
    features: dict[str, Any] = {
        "id": {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}},
        "image": {
            "pythonClassName": f"{_FEATURES}.image_feature.Image",
            "image": {
                "dtype": "uint8",
                "encodingFormat": "png",
                "shape": {"dimensions": [str(-1 if d is None else d) for d in image_shape]},
            },
        },
    }
    for key, class_names in labels.items():
        features[key] = {
            "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(class_names))},
        }
        (directory / f"{key}.labels.txt").write_text("\n".join(class_names) + "\n")
    keys = [{"featureKey": "image"}, {"featureKey": "label"}]
    _write_json(
        directory / "features.json",
        {
            "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        },
    )
    _write_json(
        directory / "dataset_info.json",
        {
            "name": name,
            "version": version,
            "description": description,
            "fileFormat": "array_record",
            "moduleName": __name__,
            "splits": list(infos),
            "supervisedKeys": {"tuple": {"items": keys}},
        },
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
