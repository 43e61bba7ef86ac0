"""Image-classification sets prepared by TFDS in the ArrayRecord format, read without TensorFlow."""

import contextlib
import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.decode import decode_image
from vit_jax.data.sources import Example, ImageSource, check_index, label_error
from vit_jax.storage import check_regular, read_json

# Sets whose official archive `vit-jax prepare` reads from disk: its file, or a directory of files.
LOCAL_ARCHIVES = {
    "cifar10": "cifar-10-binary.tar.gz",
    "cifar100": "cifar-100-binary.tar.gz",
    "fashion_mnist": "DIR",
    "imagenette128": "imagenette2-160.tgz",
    "imagenette224": "imagenette2-320.tgz",
}
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
# Bytes of a record from which one is read at a time.
_LARGE = 2048


class TfdsSource(ImageSource):
    """One split of a prepared TFDS set.

    Records are read, parsed and decoded here: six times as fast as TFDS's own decoding, to the same
    pixels. Small records (CIFAR) are read in bulk, 0.02 in place of 0.1 ms each; large ones one at
    a time, 0.01 in place of 0.05 ms: array_record starts threads for each bulk.

    Args:
        records: the split's serialised `tf.train.Example` records, random access.
        image_key: the feature that holds the compressed image.
        label_key: the feature that holds the class.
        image_shape: (H, W, C) as the set declares it, with None where it varies.
        class_names: the class of each label.
        name: what logs and errors call it.
    """

    def __init__(
        self,
        records: Any,
        *,
        image_key: str,
        label_key: str,
        image_shape: tuple[int | None, int | None, int],
        class_names: Sequence[str],
        name: str,
    ) -> None:
        height, width, channels = image_shape
        self.name = name
        self.class_names = tuple(class_names)
        self.channels = channels
        self.image_shape = (height, width, channels) if height and width else None
        self._records = records
        self._image_key = image_key
        self._label_key = label_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        index = check_index(self, index)
        return self._parse(self._read(index), index)

    def stream(self, indices: Sequence[int]) -> Iterator[Example]:
        indices = [check_index(self, index) for index in indices]
        if not indices:
            return iter(())
        first, rest = self._read(indices[0]), indices[1:]
        records: Iterable[bytes] = map(self._read, rest)
        if len(first) < _LARGE:
            # Where one cannot be read, the error of one at a time says which.
            with contextlib.suppress(RuntimeError):
                records = self._records.__getitems__(rest)
        records = itertools.chain([first], records)
        return (self._parse(record, index) for record, index in zip(records, indices, strict=True))

    def _read(self, index: int) -> bytes:
        try:
            return self._records[index]
        except RuntimeError as error:  # array_record's only exception, for a bad file too
            raise ValueError(
                f"{self.name}: record {index} cannot be read, its file is damaged or cut "
                f"off: {error}"
            ) from error

    def _parse(self, record: bytes, index: int) -> Example:
        from google.protobuf.message import DecodeError

        try:
            features = _parse_example(record)
            data = features[self._image_key].bytes_list.value[0]
            label = features[self._label_key].int64_list.value[0]
        except (DecodeError, IndexError) as error:
            raise ValueError(
                f"{self.name}: record {index} is no example with features "
                f"{self._image_key!r} and {self._label_key!r}"
            ) from error
        if not 0 <= label < self.num_classes:
            raise ValueError(label_error(self.name, index, label, self.num_classes))
        image = decode_image(data, self.channels, f"{self.name}: record {index}")
        if self.image_shape is not None and image.shape != self.image_shape:
            raise ValueError(
                f"{self.name}: record {index} is {image.shape}, the set declares {self.image_shape}"
            )
        return {"image": image, "label": label}


def _parse_example(record: bytes) -> Any:
    """The feature map of a serialised `tf.train.Example`, without TensorFlow."""
    from tensorflow_datasets.proto import tf_example_pb2

    protos: Any = tf_example_pb2  # generated code, which type checkers cannot see into
    return protos.Example.FromString(record).features.feature


def default_data_dir() -> Path:
    """TFDS's directory for prepared sets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> dict[str, ImageSource]:
    """The splits of a prepared set, whether or not TFDS or anyone has code for it.

    Nothing is downloaded, ever: a set that is not there is an error at once.

    Args:
        name: `NAME`, `NAME/CONFIG`, either with `:VERSION`; the newest version by default.
        data_dir: holds NAME/[CONFIG/]VERSION; None for `default_data_dir()`.

    Raises:
        ValueError: the set is not there, is not in the ArrayRecord format, or is no image set.
    """
    directory = find_prepared(name, data_dir)
    import tensorflow_datasets as tfds

    try:
        check_regular(directory)
        _check_classes(directory / "features.json", tfds.features)
        builder: Any = tfds.builder_from_directory(directory)
        features, supervised = builder.info.features, builder.info.supervised_keys
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = {
            split: builder.as_data_source(split, deserialize_method=raw).data_source
            for split, info in builder.info.splits.items()
            if info.num_examples
        }
    except NotImplementedError as error:
        raise ValueError(
            f"{directory} is not in the ArrayRecord format, which random access needs; prepare the "
            f"set again, in another directory, with `vit-jax prepare {name} --data-dir DIR`"
        ) from error
    except Exception as error:  # TFDS and protobuf have many kinds for a file that is not whole
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{directory} cannot be read as a prepared set: {type(error).__name__}: {reason}"
        ) from error
    image_key = _only_feature(features, tfds.features.Image, supervised, directory)
    kind = np.dtype(features[image_key].np_dtype)
    if kind != np.uint8:
        raise ValueError(
            f"{directory} holds images of {kind}, wanted uint8: prepare the set again with pixels "
            "of 0 to 255"
        )
    label_key = _only_feature(features, tfds.features.ClassLabel, supervised, directory)
    label = features[label_key]
    class_names = label.names if label.names else [str(i) for i in range(label.num_classes)]
    shape = features[image_key].shape
    if shape[2] not in (1, 3):
        raise ValueError(f"{directory}: images of 1 or 3 channels are read, these have {shape[2]}")
    title = f"{name.partition(':')[0]}/{directory.name}"
    return {
        split: TfdsSource(
            split_records,
            image_key=image_key,
            label_key=label_key,
            image_shape=shape,
            class_names=class_names,
            name=f"{title} {split}",
        )
        for split, split_records in records.items()
    }


def _check_classes(path: Path, features: Any) -> None:
    """Refuses a set whose features.json names a class that is not one of TFDS's features.

    TFDS imports the module of any class that is named there, and so runs its code.
    """
    base = features.FeatureConnector
    kinds = [kind for kind in vars(features).values() if isinstance(kind, type)]
    own = [kind for kind in kinds if issubclass(kind, base)]
    known = {name for kind in own for name in (f"{kind.__module__}.{kind.__name__}", *kind.ALIASES)}
    for name in _class_names(read_json(path)):
        if name not in known:
            short = ", ".join(sorted({kind.__name__ for kind in own} - {base.__name__}))
            raise ValueError(
                f"features.json names the class {name[:80]!r}, which is not loaded: that would run "
                f"its code; wanted features of TFDS itself: {short}"
            )


def _class_names(value: Any) -> Iterator[str]:
    """The classes that features.json names, in any of TFDS's forms: some are JSON in a text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            yield from _class_names(json.loads(value))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_class_names, value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and key in ("pythonClassName", "python_class_name", "type"):
                yield inner
            else:
                yield from _class_names(inner)


def name_parts(name: str) -> tuple[str, str | None, str | None]:
    """`NAME[/CONFIG][:VERSION]` as (name, config, version); ValueError for anything else."""
    match = re.fullmatch(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise ValueError(
            f"data set name {name!r} is not of the form NAME, NAME/CONFIG or NAME:1.2.3"
        )
    return match[1], match[2], match[3]


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The directory data_dir/NAME/[CONFIG/]VERSION of a prepared set.

    Raises:
        ValueError: it is not there; says where it was looked for, what is there, and the ways out.
    """
    base, config, version = name_parts(name)
    root = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    ways_out = _ways_out(base)
    if not root.is_dir():
        raise ValueError(f"data set {name!r}: there is no data directory {root}. {ways_out}")
    home = root / base / config if config else root / base
    versions = {
        tuple(map(int, match.groups())): path
        for path in (home.iterdir() if home.is_dir() else ())
        if (match := _VERSION.fullmatch(path.name)) and (path / "dataset_info.json").is_file()
    }
    if version is not None and versions:
        wanted = tuple(map(int, version.split(".")))
        if wanted not in versions:
            found = ", ".join(path.name for path in versions.values())
            raise ValueError(f"{home} has no version {version}; it has {found}")
        return versions[wanted]
    if versions:
        return versions[max(versions)]
    present = sorted(path.name for path in root.iterdir() if path.is_dir())
    near = difflib.get_close_matches(base, present, n=3)
    if near and base not in near:
        hint = f"did you mean {' or '.join(near)}?"
    elif present:
        hint = f"it holds: {', '.join(present[:10])}."
    else:
        hint = "it is empty."
    raise ValueError(
        f"data set {name!r} is not prepared in {root} "
        f"(no {home}/VERSION/dataset_info.json); {hint} {ways_out}"
    )


def _ways_out(base: str) -> str:
    archive = (
        f"or, from a local copy of the official archive, "
        f"`vit-jax prepare {base} --archive {LOCAL_ARCHIVES[base]}`; "
        if base in LOCAL_ARCHIVES
        else ""
    )
    return (
        f"Ways out: `vit-jax prepare {base}` downloads and prepares it; {archive}"
        "or name the directory that has it with --config.data.data_dir=DIR"
    )


def _only_feature(features: Any, kind: type, supervised: Any, directory: Path) -> str:
    """The key of the feature of this kind: the only one, or the one among the supervised keys."""
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    chosen = [key for key in keys if supervised and key in supervised] if len(keys) > 1 else keys
    if len(chosen) != 1:
        raise ValueError(
            f"{directory} is no image-classification set: wanted one {kind.__name__} feature, got "
            f"{len(keys)} among {', '.join(features)}"
        )
    return chosen[0]
