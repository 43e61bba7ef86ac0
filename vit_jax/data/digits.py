"""scikit-learn's bundled handwritten digits: 1,797 real images that need no download."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from vit_jax.data.order import stratified_order
from vit_jax.data.sources import ArraySource, ImageSource, Subset

SPLIT_SIZES = {"train": 1257, "validation": 180, "test": 360}
_SPLIT_SEED = 0


def open_digits() -> dict[str, ImageSource]:
    """The splits of the handwritten digits: 1,257 train, 180 validation, 360 test, stratified.

    Images are (8, 8, 1) uint8, the set's 0 to 16 scaled to 0 to 255 and rounded.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository; the 1,797 images that `sklearn.datasets.load_digits` returns.

    Raises:
        ValueError: scikit-learn is not installed, or without its data.
    """
    with gzip.open(_digits_file(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    values, labels = table[:, :64].reshape(-1, 8, 8, 1), table[:, 64]
    images = ((values * 255 + 8) // 16).astype(np.uint8)
    whole = ArraySource(images, labels, class_names=[str(i) for i in range(10)], name="digits")
    order = stratified_order(labels, _SPLIT_SEED)
    splits: dict[str, ImageSource] = {}
    start = 0
    for split, size in SPLIT_SIZES.items():
        splits[split] = Subset(whole, np.sort(order[start : start + size]), name=f"digits {split}")
        start += size
    return splits


def _digits_file() -> Path:
    # Read as a file: importing sklearn.datasets takes a second, this takes milliseconds.
    spec = importlib.util.find_spec("sklearn")
    for root in (spec and spec.submodule_search_locations) or []:
        path = Path(root) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise ValueError(
        "the digits are part of scikit-learn, which is not installed here, or without its file "
        "datasets/data/digits.csv.gz; reinstall scikit-learn"
    )
