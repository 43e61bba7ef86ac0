"""From images that vary in size to one size, on the host: random and central crops."""

import math
from dataclasses import dataclass

import numpy as np

from vit_jax.data.evaluation_geometry import evaluation_geometry
from vit_jax.data.order import CROP_STREAM, raw_words

INTERPOLATIONS = ("bilinear", "bicubic")
TRAIN_INTERPOLATIONS = (*INTERPOLATIONS, "random")

_TRIES = 10
# Of each try: area, aspect ratio, top, left. One word more chooses the kernel.
_WORDS_A_TRY = 4
# A resized image keeps at most so many times the rows and columns of its crop.
_LONGEST = 16


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area and aspect ratio: torchvision's `RandomResizedCrop`.

    Up to ten times an area uniform in `scale` (of the image's) and a ratio log-uniform in `ratio`
    are drawn, rounded to whole pixels and taken if they fit, at a place uniform among those
    possible. Else it is the largest central rectangle whose ratio is allowed. (torchvision 0.21,
    `transforms.RandomResizedCrop`; Szegedy et al., 2015, arXiv:1409.4842, section 6.)

    What is drawn depends on (seed, epoch, index) and the image's size alone, so not on order,
    workers or resume, nor on whether the host cuts the image or the training step.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: "bilinear", "bicubic", or "random": each image draws one of the two, as
            timm's training does.

    Raises:
        ValueError: an argument out of its range.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(
                f"crop scale: wanted (smallest, largest) in (0, 1], got {tuple(self.scale)}"
            )
        if not (len(self.ratio) == 2 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(
                f"crop ratio: wanted (smallest, largest), above 0, got {tuple(self.ratio)}"
            )
        if self.interpolation not in TRAIN_INTERPOLATIONS:
            raise ValueError(
                f"unknown interpolation {self.interpolation!r}; valid: "
                f"{', '.join(TRAIN_INTERPOLATIONS)}"
            )

    def draw(
        self, height: int, width: int, *, seed: int, epoch: int, index: int
    ) -> tuple[int, int, int, int, int]:
        """The crop of an image of (height, width): top, left, rows, columns, kernel.

        The kernel is a position in `INTERPOLATIONS`: 0 bilinear, 1 bicubic.

        Args:
            height: rows of the image.
            width: columns of the image.
            seed: of the run.
            epoch: passes over the data completed before this one.
            index: of the example; a repeat of an image has one of its own.
        """
        words = raw_words(_TRIES * _WORDS_A_TRY + 1, CROP_STREAM, seed, epoch, index)
        if self.interpolation == "random":
            kernel = int(words[-1]) >> 63
        else:
            kernel = INTERPOLATIONS.index(self.interpolation)
        return *self.box(words, height, width), kernel

    def box(self, words: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, rows, columns) of the crop in an image of (height, width).

        Args:
            words: (41,) random uint64, of which the last is not used here.
            height: rows of the image.
            width: columns of the image.
        """
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for first in range(0, _TRIES * _WORDS_A_TRY, _WORDS_A_TRY):
            a, r, y, x = uniform[first : first + _WORDS_A_TRY].tolist()
            area = height * width * (self.scale[0] + a * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + r * (high - low))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                top, left = int(y * (height - rows + 1)), int(x * (width - columns + 1))
                return top, left, rows, columns
        rows, columns = height, width
        if width / height < self.ratio[0]:
            rows = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            columns = round(height * self.ratio[1])
        return (height - rows) // 2, (width - columns) // 2, rows, columns


def cut(
    image: np.ndarray, crop: tuple[int, int, int, int, int], height: int, width: int
) -> np.ndarray:
    """A crop that `RandomResizedCrop.draw` drew of `image` (H, W, C) uint8, at (height, width)."""
    top, left, rows, columns, kernel = crop
    inside = image[top : top + rows, left : left + columns]
    return pil_resize(inside, height, width, INTERPOLATIONS[kernel])


def evaluation_crop(
    image: np.ndarray,
    height: int,
    width: int,
    crop_fraction: float,
    interpolation: str = "bilinear",
    crop_mode: str = "center",
) -> np.ndarray:
    """What evaluation shows of `image`: resized, and of that the central (height, width).

    Args:
        image: (H, W, C) uint8.
        height: rows of the result.
        width: columns of the result.
        crop_fraction: see `vit_jax.data.evaluation_geometry`.
        interpolation: "bilinear" or "bicubic", Pillow's.
        crop_mode: see `vit_jax.data.evaluation_geometry`.
    """
    if crop_mode.startswith("center"):
        scale = max(
            height / crop_fraction / image.shape[0],
            width / crop_fraction / image.shape[1],
        )
        # Of a strip only the part around the crop is resized: all of it could be any number of
        # pixels.
        most = (math.ceil(_LONGEST * height / scale), math.ceil(_LONGEST * width / scale))
        image = _centre(image, min(image.shape[0], most[0]), min(image.shape[1], most[1]))
    rows, columns, top, left = evaluation_geometry(
        image.shape[0], image.shape[1], height, width, crop_fraction, crop_mode
    )
    resized = pil_resize(image, rows, columns, interpolation)
    return resized[top : top + height, left : left + width]


def pil_resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """`image` at (height, width), by Pillow: shrinking is antialiased.

    A crop is cut before it is resized, as torchvision and timm do. (`resize(box=)` of Pillow lets
    pixels outside of the box in.)

    Args:
        image: (H, W, C) uint8; may be a view into a larger image.
        height: rows of the result.
        width: columns of the result.
        interpolation: one of `INTERPOLATIONS`.

    Returns:
        (height, width, C) uint8.
    """
    # Here and not above: a run on images of one size needs no Pillow.
    from PIL import Image

    kernel = Image.Resampling[interpolation.upper()]
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), kernel))
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), kernel))
        for plane in np.ascontiguousarray(np.moveaxis(image, 2, 0))
    ]
    return np.stack(planes, axis=2)


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
