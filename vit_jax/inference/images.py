"""Image files of any kind, whatever is in them, to uint8 pixels.

Pillow reads them, and not OpenCV as in training: it tells a file's size before decoding it, refuses
what is cut off instead of filling it with grey, and tells the orientation. JPEG and PNG come out as
the same pixels.
"""

import functools
import glob
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.decode import MAX_PIXELS
from vit_jax.data.pil_pixels import Refusal, pixels_of, upright_pixels
from vit_jax.data.sources import Example, ImageSource, check_index

# What is tried, by content: formats that are data alone. (Pillow would start Ghostscript for EPS.)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF")
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".webp", ".avif"),
)
# Decoded from the whole file in memory, with twice the memory a pixel of the others.
_COSTLY = ("WEBP", "AVIF")
_MAX_COSTLY_BYTES = 2**26

# Larger images are decoded by one thread, so one at a time: the system's allocator keeps freed
# memory for each thread that it was of.
_LARGE = 2**23
_large_images = ThreadPoolExecutor(1, "large_images")


def read_image(
    path: str | os.PathLike[str],
    channels: int = 3,
    fit: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Reads an image file as it is meant to be seen.

    The format is told by the content; the name says nothing. EXIF orientation is applied. Grey,
    palette and CMYK images become RGB, or all become grey for one channel; an alpha channel is
    dropped, as in training; 16-bit values keep their high byte; of animations and files of several
    pages it is the first.

    Args:
      path: a file of one of `FORMATS`, of at most `MAX_PIXELS` (half as many in WebP and AVIF):
        the header is read before anything is decoded.
      channels: 3 for RGB, 1 for grey.
      fit: is applied to the pixels, and of large images before another is begun; None: nothing.

    Returns:
      (H, W, channels) uint8, or what `fit` made of it.

    Raises:
      ValueError: it is not a whole image, or too large; the file is named.
    """
    try:
        return _read(os.fspath(path), channels, fit or np.asarray)
    except Refusal as refusal:
        reason = str(refusal)
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # of damaged files each format raises errors of other kinds
        reason = f"damaged ({type(error).__name__}: {error})"
    raise ValueError(f"{os.fspath(path)}: {reason}")


def _read(path: str, channels: int, fit: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise Refusal("a folder that cannot be listed")
    if not stat.S_ISREG(status.st_mode):
        raise Refusal("not a regular file")  # a pipe would be waited for
    formats = [f for f in FORMATS if status.st_size <= _MAX_COSTLY_BYTES or f not in _COSTLY]
    with open(path, "rb") as file:
        try:
            image = Image.open(file, formats=formats)
        except Image.UnidentifiedImageError:
            empty = "an empty file" if not status.st_size else None
            raise Refusal(empty or f"no image of a known kind ({', '.join(FORMATS)})") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Refusal(f"more than {MAX_PIXELS:,} pixels") from None
        with image:
            width, height = image.size
            cost = width * height * (2 if image.format in _COSTLY else 1)
            if cost > MAX_PIXELS:
                most = MAX_PIXELS * width * height // cost
                raise Refusal(
                    f"{width:,}x{height:,} pixels; of {image.format} at most {most:,} are read"
                )
            decode = functools.partial(_decode, image, channels, fit)
            return decode() if cost <= _LARGE else _large_images.submit(decode).result()


def check_channels(channels: int) -> None:
    """Raises ValueError unless image files give so many channels."""
    if channels not in (1, 3):
        raise ValueError(
            f"image files give 1 or 3 channels, and this model takes {channels}: give arrays"
        )


def check_array(name: str, image: np.ndarray, channels: int) -> None:
    """Raises ValueError unless an array is an image (H, W, channels) uint8 of some pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or not image.size:
        raise ValueError(
            f"{name}: wanted uint8 (H, W, {channels}), got {image.dtype} {image.shape}"
        )


def image_list(images: Any) -> list[Any]:
    """One image or several as a list of paths, PIL images and arrays.

    Args:
      images: a path, a PIL image or an array (H, W, C), or a sequence of them, or an array
        (B, H, W, C).

    Raises:
      ValueError: there are none.
    """
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) == 3:
        images = [images]
    images = [
        image if isinstance(image, str | os.PathLike | Image.Image) else np.asarray(image)
        for image in images
    ]
    if not images:
        raise ValueError("wanted one image or more, got none")
    return images


def image_pixels(
    image: Any, channels: int, fit: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """One of `image_list` as uint8 (H, W, channels), or what `fit` made of it.

    Raises:
      ValueError: a file or a PIL image that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, channels, fit)
    pixels = pixels_of(image, channels) if isinstance(image, Image.Image) else image
    return pixels if fit is None else fit(pixels)


def _decode(
    image: Image.Image, channels: int, fit: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    image.load()
    pixels = upright_pixels(image, channels)
    image.close()
    return fit(pixels)


class ImageFiles(ImageSource):
    """Image files, and images in memory, that have no labels (they read as 0).

    Args:
      images: one or several, see `image_list`.
      channels: 3 for RGB, 1 for grey.
      fit: is applied to each image, see `read_image`; None: nothing.
      size: (height, width) of what `fit` makes; None: they vary.

    Attributes:
      unreadable: why an image was not read, by its index; it reads as a black pixel.

    Raises:
      ValueError: no images; an array of another type or shape; files and PIL images for other
        channels than 1 and 3.
    """

    def __init__(
        self,
        images: Any,
        channels: int,
        fit: Callable[[np.ndarray], np.ndarray] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.images = image_list(images)
        for number, image in enumerate(self.images):
            if isinstance(image, np.ndarray):
                check_array(f"image {number}", image, channels)
            else:
                check_channels(channels)
        self.fit = fit
        self.name = "image files"
        self.class_names = ()
        self.channels = channels
        self.image_shape = None if size is None else (*size, channels)
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image = self.images[check_index(self, index)]
        try:
            pixels = image_pixels(image, self.channels, self.fit)
        except ValueError as error:
            self.unreadable[index] = str(error).removeprefix(f"{image}: ")
            pixels = np.zeros(self.image_shape or (1, 1, self.channels), np.uint8)
        return {"image": pixels, "label": 0}

    def path(self, index: int) -> str | None:
        """Of an image that is a file."""
        image = self.images[index]
        return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def find_images(places: Sequence[str]) -> list[str]:
    """The files that a command line names.

    Args:
      places: files, whatever their names; folders, of which all files of `SUFFIXES` are taken, at
        any depth, sorted; patterns such as 'photos/**/*.jpg'. Names that begin with a dot are left
        out of folders and patterns.

    Returns:
      In the order of `places`, each file once. What is not there, and a folder that cannot be
      listed, stays as it is, for the reader to find out.
    """
    found: list[str] = []
    for place in places:
        if os.path.isdir(place):
            found += _in_folder(place)
        elif not os.path.lexists(place) and glob.has_magic(place):
            matching = sorted(glob.glob(place, recursive=True))
            found += [path for path in matching if not os.path.isdir(path)] or [place]
        else:
            found.append(place)
    named: dict[str, str] = {}
    for path in found:
        named.setdefault(os.path.abspath(path), path)
    return list(named.values())


def _in_folder(folder: str) -> list[str]:
    found: list[str] = []
    unlisted: list[str] = []
    for parent, folders, names in os.walk(
        folder, onerror=lambda error: unlisted.append(error.filename)
    ):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(parent, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found) + unlisted
