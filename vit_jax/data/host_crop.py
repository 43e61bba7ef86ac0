"""From images that vary in size to one size, on the host: random and central crops."""

import math
from dataclasses import dataclass

import numpy as np

from vit_jax.data.evaluation_geometry import evaluation_geometry
from vit_jax.data.order import CROP_STREAM, raw_words
from vit_jax.data.resample import INTERPOLATIONS, resample

TRAIN_INTERPOLATIONS = (*INTERPOLATIONS, "random")

_TRIES = 10
# Of each try: area, aspect ratio, top, left. One word more chooses the kernel.
_WORDS_A_TRY = 4
# A resized image keeps at most so many times the rows and columns of its crop.
_LONGEST = 16


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of random area and aspect ratio, resized: torchvision's `RandomResizedCrop`.

    Up to ten times an area uniform in `scale` (of the image's) and a ratio log-uniform in `ratio`
    are drawn, rounded to whole pixels and taken if they fit, at a place uniform among those
    possible. Else it is the largest central rectangle whose ratio is allowed. (torchvision 0.21,
    `transforms.RandomResizedCrop`; Szegedy et al., 2015, arXiv:1409.4842, section 6.)

    What is drawn depends on (seed, epoch, index) alone, so not on order, workers or resume.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: "bilinear", "bicubic", or "random": each image draws one of the two, as
            timm's training does. See `vit_jax.data.resample`.

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

    def __call__(
        self, image: np.ndarray, height: int, width: int, *, seed: int, epoch: int, index: int
    ) -> np.ndarray:
        """A crop of `image` (H, W, C) uint8 at (height, width).

        Args:
            image: the whole image.
            height: rows of the result.
            width: columns of the result.
            seed: of the run.
            epoch: passes over the data completed before this one.
            index: of the example; a repeat of an image has one of its own.
        """
        words = raw_words(_TRIES * _WORDS_A_TRY + 1, CROP_STREAM, seed, epoch, index)
        top, left, rows, columns = self.box(words, image.shape[0], image.shape[1])
        kernel = self.interpolation
        if kernel == "random":
            kernel = INTERPOLATIONS[int(words[-1]) >> 63]
        crop = image[top : top + rows, left : left + columns]
        return resample(crop, height, width, kernel)

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
    # Pillow itself, as timm. (`resample`, which training takes, is near it, and takes 0.73 ms where
    # Pillow takes 3.0, of 375x500 to 256x341 on one core.)
    resized = _resized(image, rows, columns, interpolation)
    return resized[top : top + height, left : left + width]


def _resized(image: np.ndarray, rows: int, columns: int, interpolation: str) -> np.ndarray:
    # Here and not above: a run on images of one size needs no Pillow.
    from PIL import Image

    kernel = Image.Resampling[interpolation.upper()]
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((columns, rows), kernel))
    planes = [
        np.asarray(Image.fromarray(plane).resize((columns, rows), kernel))
        for plane in np.ascontiguousarray(np.moveaxis(image, 2, 0))
    ]
    return np.stack(planes, axis=2)


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
