"""Data that the caller holds: lists, arrays, Hugging Face data sets, anything with an index."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.pil_pixels import pixels_of
from vit_jax.data.sources import ArraySource, Example, ImageSource, check_index, label_error
from vit_jax.data.splits import Splits

SPLITS = ("train", "validation", "test")
_IMAGE_KEYS, _LABEL_KEYS = ("image", "img"), ("label", "labels", "fine_label")


class OwnSource(ImageSource):
    """A random-access sequence of labelled images.

    Args:
      items: `items[i]` is (image, label), or a mapping with "image" and "label". An image is a
        PIL image (turned upright) or a uint8 array, (H, W, C) or (H, W); a label is a class, or an
        array of numbers that is of one shape in all items.
      class_names: the class of each label, or the name of each of its numbers where it says of
        each class whether it is there; empty: not known, or labels are no classes.
      name: what logs and errors call it.

    Raises:
      ValueError: no items, or the first is not of this kind.
    """

    def __init__(self, items: Any, class_names: Sequence[str] = (), name: str = "data") -> None:
        if not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
            raise ValueError(
                f"{name}: wanted something with len() and an index, such as a list, got "
                f"{type(items).__name__}"
            )
        if not len(items):
            raise ValueError(f"{name}: it holds no images")
        self.items, self.name, self.class_names = items, name, tuple(class_names)
        self.image_shape = None
        self.channels, self.label_shape, self.label_dtype = 0, (), np.dtype(np.int32)
        image, label = self._read(0)
        self.channels = image.shape[2]
        self.label_shape = label.shape
        self.label_dtype = np.dtype(np.int32 if label.dtype.kind in "iub" else np.float32)
        is_class = not self.label_shape and self.label_dtype == np.int32
        if self.class_names and not is_class and self.label_shape != (len(self.class_names),):
            raise ValueError(
                f"{name}: wanted classes, as class_names has names of them, or one number for each "
                f"of the {len(self.class_names)}, got labels of shape {self.label_shape} "
                f"{label.dtype}"
            )
        self._example(0, image, label)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        index = check_index(self, index)
        return self._example(index, *self._read(index))

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        item = self.items[index]
        if isinstance(item, Mapping):
            parts = [_first(item, keys) for keys in (_IMAGE_KEYS, _LABEL_KEYS)]
        else:
            parts = list(item) if isinstance(item, list | tuple) else []
        if len(parts) != 2 or any(part is None for part in parts):
            known = f" with keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
            raise ValueError(
                f'{self.name}: item {index}: wanted (image, label) or a mapping with "image" and '
                f'"label", got {type(item).__name__}{known}'
            )
        return self._pixels(index, parts[0]), np.asarray(parts[1])

    def _pixels(self, index: int, image: Any) -> np.ndarray:
        if isinstance(image, Image.Image):
            grey = image.mode in ("1", "L", "I;16", "LA")
            try:
                return pixels_of(image, self.channels or (1 if grey else 3))
            except ValueError as error:
                raise ValueError(f"{self.name}: image {index}: {error}") from error
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
            raise ValueError(
                f"{self.name}: image {index}: wanted a PIL image or uint8 (H, W, 3), (H, W, 1) or "
                f"(H, W), got {pixels.dtype} of shape {pixels.shape}"
            )
        if self.channels == 3 and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self.channels == 1 and pixels.shape[2] == 3:
            raise ValueError(f"{self.name}: image {index} is in colour, and the first is grey")
        return pixels

    def _example(self, index: int, image: np.ndarray, label: np.ndarray) -> Example:
        if label.shape != self.label_shape or label.dtype.kind not in "iubf":
            raise ValueError(
                f"{self.name}: label {index}: wanted numbers of shape {self.label_shape}, as the "
                f"first, got {label.dtype} of shape {label.shape}"
            )
        if label.dtype.kind == "f" and self.label_dtype == np.int32:
            raise ValueError(f"{self.name}: label {index} is {label}, and the first is a class")
        if (
            self.class_names
            and not self.label_shape
            and not 0 <= int(label) < len(self.class_names)
        ):
            raise ValueError(label_error(self.name, index, int(label), len(self.class_names)))
        return {"image": image, "label": label.astype(self.label_dtype)}


def _first(item: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def own_splits(data: Any, class_names: Sequence[str] | None = None) -> Splits:
    """The splits of a run whose data the caller holds.

    Args:
      data: `Splits`; or a mapping of "train" and, if there are such, "validation" and "test"; or
        the training images alone. Each is an `ImageSource`, a pair of arrays (images, labels) as
        of `ArraySource`, or what `OwnSource` takes.
      class_names: the class of each label; None: as the data themselves say (a Hugging Face data
        set's features), else not known.

    Raises:
      ValueError: anything else, or splits that do not fit each other.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Mapping) and data.get("train") is None:
        raise ValueError(f'data: wanted "train", got {", ".join(map(str, data)) or "nothing"}')
    parts = dict(data) if isinstance(data, Mapping) and "train" in data else {"train": data}
    if unknown := [name for name in parts if name not in SPLITS]:
        raise ValueError(f"data: wanted splits named {', '.join(SPLITS)}, got {unknown[0]!r}")
    sources = {
        name: _source(part, f"data[{name!r}]", class_names)
        for name, part in parts.items()
        if part is not None
    }
    train = sources["train"]
    for name, source in sources.items():
        for fact in ("class_names", "channels", "label_shape", "label_dtype"):
            ours, theirs = getattr(train, fact), getattr(source, fact)
            if ours != theirs:
                raise ValueError(f"data[{name!r}]: its {fact} {theirs!r} are not train's, {ours!r}")
    return Splits(train, sources.get("validation"), sources.get("test"))


def _source(part: Any, name: str, class_names: Sequence[str] | None) -> ImageSource:
    if isinstance(part, ImageSource):
        return part
    names = _stated_names(part) if class_names is None else tuple(class_names)
    is_arrays = isinstance(part, tuple) and len(part) == 2
    if is_arrays and all(isinstance(array, np.ndarray) for array in part):
        images, labels = part
        is_classes = labels.dtype.kind in "iu" and labels.ndim == 1
        if names and is_classes:
            return ArraySource(images, labels, class_names=names, name=name)
        if len(images) != len(labels):
            raise ValueError(f"{name}: {len(images)} images and {len(labels)} labels")
        part = _Pairs(images, labels)
    return OwnSource(part, names, name)


def _stated_names(part: Any) -> tuple[str, ...]:
    """The classes that a Hugging Face data set states."""
    features = getattr(part, "features", None)
    if not isinstance(features, Mapping):
        return ()
    return tuple(getattr(_first(features, _LABEL_KEYS), "names", None) or ())


class _Pairs(Sequence):
    """Two arrays as one sequence of pairs."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index], self.labels[index]
