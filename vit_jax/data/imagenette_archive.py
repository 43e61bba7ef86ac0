"""Imagenette from fast.ai's archives: ten classes of ImageNet, at one size."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vit_jax.data.decode import decode_image
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.order import stratified_order
from vit_jax.data.prepared_writer import write_prepared
from vit_jax.data.tar_files import read_tar_files

VERSION = "1.0.0"
# The classes by their WordNet ids, the folders of the archives.
_CLASSES = {
    "n01440764": "tench",
    "n02102040": "english_springer",
    "n02979186": "cassette_player",
    "n03000684": "chain_saw",
    "n03028079": "church",
    "n03394916": "french_horn",
    "n03417042": "garbage_truck",
    "n03425413": "gas_pump",
    "n03445777": "golf_ball",
    "n03888257": "parachute",
}
_SPLITS = {"train": "train", "val": "validation"}
_PAGE = "https://github.com/fastai/imagenette"
_URL = "https://s3.amazonaws.com/fast-ai-imageclas"
_MAX_BYTES = 2**29  # of an archive, unpacked: imagenette2-320 has 342 million
_MAX_IMAGE_BYTES = 2**22
_ORDER_SEED = 0


@dataclass(frozen=True)
class ImagenetteFormat:
    """A set of one size, and the archive that it is made of.

    Attributes:
        side: rows and columns of its images.
        folder: the archive's outermost folder; its images have 160 or 320 pixels, as it says.
        sha256: the archive's checksum, as TFDS records it.
        counts: images of each split.
        page: where the archive is linked.
    """

    side: int
    folder: str
    sha256: str
    counts: Mapping[str, int]
    page: str = _PAGE

    @property
    def url(self) -> str:
        """Of the archive."""
        return f"{_URL}/{self.folder}.tgz"


_COUNTS = {"train": 9_469, "validation": 3_925}  # of the second version of the set
IMAGENETTE_FORMATS = {
    "imagenette128": ImagenetteFormat(
        side=128,
        folder="imagenette2-160",
        sha256="64d0c4859f35a461889e0147755a999a48b49bf38a7e0f9bd27003f10db02fe5",
        counts=_COUNTS,
    ),
    "imagenette224": ImagenetteFormat(
        side=224,
        folder="imagenette2-320",
        sha256="569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
        counts=_COUNTS,
    ),
}


def prepare_imagenette_archive(
    name: str, data_dir: str | os.PathLike[str], archive: str | os.PathLike[str]
) -> Path:
    """Writes data_dir/NAME/1.0.0 from fast.ai's archive, which is not unpacked to disk.

    Each image is resized by its shorter side (bicubic, antialiased), and its central square is
    kept, as evaluation does, and stored without loss. The order is fixed and mixes the classes, so
    that `train[:1000]` holds all of them.

    Args:
        name: a key of `IMAGENETTE_FORMATS`.
        data_dir: where prepared sets are.
        archive: imagenette2-160.tgz for imagenette128, imagenette2-320.tgz for imagenette224.

    Returns:
        The directory written.

    Raises:
        ValueError: no such file, another archive, one that is damaged or cut off, an image that
            cannot be read, or the directory exists already.
    """
    layout = IMAGENETTE_FORMATS[name]
    wanted = f"wanted {layout.folder}.tgz from {layout.page}"

    def choose(path: str) -> tuple[str, int] | None:
        parts = PurePosixPath(path).parts
        if len(parts) != 4 or parts[1] not in _SPLITS or parts[2] not in _CLASSES:
            return None
        if parts[0] != layout.folder:
            raise ValueError(f"{archive} holds {parts[0]!r}; {wanted} for {name}")
        return "/".join(parts[1:]), _MAX_IMAGE_BYTES

    files = read_tar_files(archive, choose, most_bytes=_MAX_BYTES, wanted=wanted)
    splits = {split: _in_order(folder, files) for folder, split in _SPLITS.items()}
    for split, count in layout.counts.items():
        if len(splits[split]) != count:
            raise ValueError(
                f"{archive} holds {len(splits[split]):,} images of the {split} split, not "
                f"{count:,}; {wanted}"
            )
    return write_prepared(
        data_dir,
        name,
        VERSION,
        {split: _examples(part, files, layout.side, archive) for split, part in splits.items()},
        image_shape=(layout.side, layout.side, 3),
        labels={"label": list(_CLASSES.values())},
        description=f"Imagenette v2: 13,394 colour images of {layout.side}x{layout.side} in 10 "
        "classes of ImageNet.",
    )


def _in_order(folder: str, files: Iterable[str]) -> list[tuple[str, int]]:
    """The path and the label of each image of a split's folder, in the order of the set."""
    paths = sorted(path for path in files if path.startswith(f"{folder}/"))
    classes = list(_CLASSES)
    labels = [classes.index(path.split("/")[1]) for path in paths]
    return [(paths[i], labels[i]) for i in stratified_order(labels, _ORDER_SEED)]


def _examples(
    split: Iterable[tuple[str, int]],
    files: Mapping[str, bytes],
    side: int,
    archive: str | os.PathLike[str],
) -> Callable[[], Iterator[dict[str, Any]]]:
    def generate() -> Iterator[dict[str, Any]]:
        for path, label in split:
            image = decode_image(files[path], 3, f"{archive}: {path}")
            yield {
                "id": PurePosixPath(path).stem,
                "image": evaluation_crop(image, side, side, 1.0, "bicubic"),
                "label": label,
            }

    return generate
