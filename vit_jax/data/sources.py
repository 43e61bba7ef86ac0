"""What every data set looks like to the loader: random access to uint8 images with labels."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np


class Example(TypedDict):
    """One labelled image: `image` is (H, W, C) uint8, RGB or one grey channel.

    `label` is a class, or an array of a source's `label_shape`.
    """

    image: np.ndarray
    label: int | np.ndarray


@runtime_checkable
class ImageSource(Protocol):
    """Random access to the labelled images of one split.

    A source is picklable, so that Grain's worker processes can open it, and may be read from
    several threads at once. Reading an image that cannot be decoded is a ValueError that names it.

    Attributes:
        name: one line that says which data this is, for logs and errors.
        class_names: the class of each label, in the order of the labels.
        channels: 3 (RGB) or 1 (grey), the same for every image.
        image_shape: (height, width, channels) of every image; None when sizes vary.
        label_shape, label_dtype: of every label; classes unless a source says other.
        label_limit: labels have to be from 0 to below it; a run sets it to the classes of its model
            where `class_names` is empty, and to 2 where each number of a label says whether
            something is there. None: the source knows its classes, or has none.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    image_shape: tuple[int, int, int] | None
    label_shape: tuple[int, ...] = ()
    label_dtype: np.dtype = np.dtype(np.int32)
    label_limit: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes that the source declares, whether or not each has an image."""
        return len(self.class_names)

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def stream(self, indices: Sequence[int]) -> Iterator[Example]:
        """The examples at `indices`, in that order, each decoded when its turn comes.

        Formats whose records are read faster in bulk override it.
        """
        return (self[index] for index in indices)

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The examples at `indices`, in that order."""
        return list(self.stream(indices))


def check_index(source: ImageSource, index: int) -> int:
    """`index` as a plain int; IndexError unless 0 <= index < len(source)."""
    index = int(index)
    if not 0 <= index < len(source):
        raise IndexError(f"index {index} is outside {source.name}, which has {len(source)} images")
    return index


class ArraySource(ImageSource):
    """Images held in memory.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) integers in [0, len(class_names)).
        class_names: the class of each label.
        name: what logs and errors call it.

    Raises:
        ValueError: for another type or rank, lengths that differ, or a label outside the classes.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str], name: str
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name}: images must be uint8 of shape (N, H, W, C), "
                f"got {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"{name}: one label an image is needed: {len(images)} images, "
                f"labels of shape {labels.shape}"
            )
        self.images = images
        self.labels = labels.astype(np.int64)
        self.name = name
        self.class_names = tuple(class_names)
        self.image_shape = images.shape[1:]
        self.channels = images.shape[3]
        for index in np.flatnonzero((self.labels < 0) | (self.labels >= self.num_classes))[:1]:
            raise ValueError(label_error(name, int(index), int(labels[index]), self.num_classes))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = check_index(self, index)
        return {"image": self.images[index], "label": int(self.labels[index])}


class Subset(ImageSource):
    """The examples of `source` at `indices`, renumbered from 0.

    Args:
        source: where the examples are read.
        indices: (N,) positions in `source`.
        name: what logs and errors call it.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray, *, name: str) -> None:
        self.source = source
        self.indices = np.asarray(indices, np.int64)
        self.name = name
        self.class_names = source.class_names
        self.channels = source.channels
        self.image_shape = source.image_shape
        self.label_shape, self.label_dtype = source.label_shape, source.label_dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indices[check_index(self, index)])]

    def stream(self, indices: Sequence[int]) -> Iterator[Example]:
        return self.source.stream(
            [int(self.indices[check_index(self, index)]) for index in indices]
        )


class Concatenation(ImageSource):
    """The examples of several sources with the same classes, one source after another."""

    def __init__(self, sources: Sequence[ImageSource], *, name: str) -> None:
        self.sources = tuple(sources)
        self.name = name
        self.class_names = sources[0].class_names
        self.channels = sources[0].channels
        self.label_shape, self.label_dtype = sources[0].label_shape, sources[0].label_dtype
        shapes = {source.image_shape for source in sources}
        self.image_shape = shapes.pop() if len(shapes) == 1 else None
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        (which,), (place,) = self.places(np.array([check_index(self, index)]))
        return self.sources[which][int(place)]

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each index, which of the sources has the example, and its index there."""
        which = np.searchsorted(self._starts, indices, side="right") - 1
        return which, indices - self._starts[which]


def checked_label(source: ImageSource, index: int, label: int | np.ndarray) -> int | np.ndarray:
    """`label`, of the image `index`; ValueError unless it is below `source.label_limit`."""
    limit = source.label_limit
    if limit is None or np.all((label >= 0) & (label < limit)):
        return label
    if source.label_shape:
        values = np.asarray(label).tolist()
        raise ValueError(
            f"{source.name}: image {index} has the labels {values}: wanted 0 or 1 each"
        )
    raise ValueError(label_error(source.name, index, int(label), limit))


def label_error(where: str, index: int, label: int, num_classes: int) -> str:
    """The message for a label outside the declared classes."""
    return (
        f"{where}: image {index} has label {label}, but the set declares {num_classes} classes "
        f"(labels 0 to {num_classes - 1})"
    )
